"""Software-engineering instances as prompts: the issue and the files that matter, one shot (`r1async.swe.prompt`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from r1async.config import ConfigError
from r1async.swe.grade import default_cache
from r1async.swe.instance import Instance, read_instances
from r1async.swe.prompt import render_prompt
from r1async.swe.repository import Repositories, RepositoryError
from r1async.tasks import PromptError
from r1async.tasks.file import Row
from r1async.tasks.templates import Template, apply_template
from r1async.tasks.tokenizer import PromptTokenizer

SOURCE = "swe"
"""Of these prompts, for `staleness.windows`."""


class SweRows:
    """Instances of a file; the prompt of one is made when it is asked for, from its repository at the base commit.

    Args:
        path: JSONL file of instances.
        where: `reward.swe.repos`.
        cache: `reward.swe.cache`.
        budget: tokens that a prompt may have, its template included.

    Raises:
        ConfigError: no such file, no instances, or a line that is none.
    """

    def __init__(
        self, path: Path, where: str, cache: str, tokenizer: PromptTokenizer, template: Template, budget: int
    ) -> None:
        if not path.is_file():
            raise ConfigError(f"data.path: {path}: must be a JSONL file of instances")
        self._path, self._instances = path, _instances(path)
        self._repositories = Repositories(where, Path(cache or default_cache()))
        self._tokenizer = tokenizer
        self._budget = budget - len(apply_template(template, "", tokenizer, prefill=True))
        self._row = lru_cache(maxsize=256)(self._made)

    def __len__(self) -> int:
        return len(self._instances)

    def __getitem__(self, index: int) -> Row:
        """
        Raises:
            PromptError: its repository is not to be had, or the issue alone is too long.
        """
        return self._row(index)

    def _made(self, index: int) -> Row:
        instance = self._instances[index]
        where = f"{self._path}: {instance.instance_id}"
        try:
            tree = self._repositories.tree(instance.repo, instance.base_commit)
            question = render_prompt(tree, instance.problem_statement, self._budget, self._count)
        except (RepositoryError, ValueError) as error:
            raise PromptError(f"{where}: {error}") from error
        return Row(question, "", {"instance_id": instance.instance_id, "source": SOURCE}, where)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


def _instances(path: Path) -> Sequence[Instance]:
    found: list[Instance] = []
    for instance in read_instances(path):
        if not isinstance(instance, Instance):
            raise ConfigError(f"data.path: {path}: {instance.instance_id}: {instance.why}")
        found.append(instance)
    if not found:
        raise ConfigError(f"data.path: {path} has no instances")
    return found
