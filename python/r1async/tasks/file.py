"""Prompts and answers from files: JSONL, parquet, or a directory that `datasets` reads.

Every row is checked when the source is opened, so a bad line is an error with its file and line number before
anything is started, not a crash in the middle of a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from r1async.config import ConfigError
from r1async.tasks import PromptError
from r1async.tasks.templates import Question, Template, apply_template, question_text
from r1async.tasks.tokenizer import PromptTokenizer
from r1async.types import Prompt

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT_SPLITS = ("test", "validation")
"""Splits that `data.eval_path` means when it names a directory with several."""

_CHECK_ROWS = 1000
"""Rows decoded at a time while a data set is checked."""


class Row(NamedTuple):
    question: Question
    answer: str
    extra: Mapping[str, str]
    where: str
    """file:line or file:row, for messages."""


T = TypeVar("T", covariant=True)
Parse = Callable[[Mapping[str, Any], str], T]
"""From a row and where it stands to what is wanted of it.

Raises:
    RowError: the row has not what it must have.
"""


class Rows(Protocol[T]):
    """Checked rows by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> T: ...


class RowError(ConfigError):
    """A row without what it must have; the message begins with file:line."""


class JsonlRows(Generic[T]):
    """One JSON object a line. Only the lines' offsets are kept: a row is read again when it is asked for."""

    def __init__(self, paths: Sequence[Path], parse: Parse[T]) -> None:
        self._parse_row = parse
        self._paths = paths
        self._index = [(file, line, offset) for file, path in enumerate(paths) for line, offset in self._check(path)]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> T:
        file, line, offset = self._index[index]
        with self._paths[file].open("rb") as stream:
            stream.seek(offset)
            return self._parse(stream.readline(), f"{self._paths[file]}:{line}")

    def _check(self, path: Path) -> list[tuple[int, int]]:
        found, offset = [], 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    self._parse(line, f"{path}:{number}")
                    found.append((number, offset))
                offset += len(line)
        return found

    def _parse(self, line: bytes, where: str) -> T:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RowError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise RowError(f"{where}: a line must be a JSON object, got {type(row).__name__}")
        return self._parse_row(row, where)


class ArrowRows(Generic[T]):
    """A `datasets.Dataset`, memory-mapped.

    Args:
        checked: the columns that `parse` looks at; None: all. Others are not decoded while rows are checked.
    """

    def __init__(self, dataset: Dataset, name: str, parse: Parse[T], checked: Sequence[str] | None = None) -> None:
        self._dataset, self._name, self._parse = dataset, name, parse
        only = dataset if checked is None else dataset.select_columns(list(checked))
        for start in range(0, len(only), _CHECK_ROWS):
            for i, row in enumerate(_rows_of(only[start : start + _CHECK_ROWS])):
                parse(row, f"{name}:{start + i}")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> T:
        return self._parse(self._dataset[index], f"{self._name}:{index}")


def _rows_of(batch: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _row(row: Mapping[str, Any], where: str, prompt_key: str, answer_key: str) -> Row:
    for key in (prompt_key, answer_key):
        if row.get(key) is None:
            raise RowError(
                f"{where}: no {key!r}; the row has {', '.join(row) or 'nothing'}"
                + _key_hint(key, (prompt_key, answer_key))
            )
    answer = row[answer_key]
    if not isinstance(answer, str | int | float):
        raise RowError(f"{where}: {answer_key!r} must be a string or a number, got {type(answer).__name__}")
    others = {key: value for key, value in row.items() if key not in (prompt_key, answer_key) and value is not None}
    question = question_of(row[prompt_key], f"{where}: {prompt_key!r}")
    extra = {key: value if isinstance(value, str) else _as_json(value) for key, value in others.items()}
    if not isinstance(question, str):
        extra.setdefault("messages", _as_json(question))
    return Row(question, str(answer), extra, where)


def _as_json(value: object) -> str:
    # default=str: parquet columns may hold dates and decimals, which JSON does not know.
    return json.dumps(value, ensure_ascii=False, default=str)


def _key_hint(key: str, keys: tuple[str, str]) -> str:
    return f" (data.{'prompt_key' if key == keys[0] else 'answer_key'} says which column it is)"


def question_of(value: object, where: str) -> Question:
    match value:
        case str() if value.strip():
            return value
        case [_, *_]:
            return [message_of(message, f"{where}[{i}]") for i, message in enumerate(value)]
        case _:
            raise RowError(f"{where} must be a non-empty string or a list of chat messages, got {value!r:.80}")


def message_of(value: object, where: str) -> Mapping[str, str]:
    match value:
        case {"role": str(role), "content": str(content)}:
            return {"role": role, "content": content}
        case _:
            raise RowError(f"{where} must be a message with role and content (strings), got {value!r:.80}")


def read_rows(
    path: Path, prompt_key: str, answer_key: str, *, held_out: bool = False, setting: str = "data.path"
) -> Rows[Row]:
    """Prompts and answers of a file or directory, every row checked.

    Args:
        held_out: of a directory with several splits take `test` or `validation` instead of `train`.
        setting: the setting that named the path, for messages.

    Raises:
        ConfigError: no such file, an unknown kind of file, no rows, or a row without prompt or answer.
    """
    keys = (prompt_key, answer_key)

    def columns(dataset: Dataset) -> Sequence[str]:
        for key in keys:
            if key not in dataset.column_names:
                raise RowError(
                    f"{path}: no column {key!r}; it has {', '.join(dataset.column_names)}" + _key_hint(key, keys)
                )
        return keys

    return read_any(path, lambda row, where: _row(row, where, *keys), columns, held_out=held_out, setting=setting)


def read_any(
    path: Path,
    parse: Parse[T],
    columns: Callable[[Dataset], Sequence[str] | None],
    *,
    held_out: bool = False,
    setting: str = "data.path",
) -> Rows[T]:
    """Rows of any form of a file or directory, every one parsed once before this returns.

    Args:
        columns: those of a data set that `parse` looks at (None: all), or an error about one that is missing.

    Raises:
        ConfigError: as `read_rows`, and what `parse` says of a row.
    """
    if not path.exists():
        raise ConfigError(f"{setting}: {path} does not exist")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.suffix in (".jsonl", ".json") else []
    if files:
        rows: Rows[T] = JsonlRows(files, parse)
    else:
        dataset = _open_arrow(path, held_out, setting)
        rows = ArrowRows(dataset, str(path), parse, columns(dataset))
    if not len(rows):
        raise ConfigError(f"{setting}: {path} has no rows")
    return rows


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of all files in a directory with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for each in sorted(each for each in path.rglob("*") if each.is_file()):
        whole.update(f"{each.relative_to(path)} {digest_of(each)}\n".encode())
    return whole.hexdigest()


def _open_arrow(path: Path, held_out: bool, setting: str) -> Dataset:
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        if path.is_file() and path.suffix == ".parquet":
            return _loaded(Dataset.from_parquet(str(path)))
        if path.is_dir() and (files := sorted(path.glob("*.parquet"))):
            return _loaded(Dataset.from_parquet([str(file) for file in files]))
        if path.is_dir():
            found = load_from_disk(str(path))
            return _split(found, held_out, path, setting) if isinstance(found, DatasetDict) else found
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error}") from error
    raise ConfigError(
        f"{setting}: {path} must be .jsonl or .parquet, a directory of those, or a directory saved by `datasets`"
    )


def _loaded(dataset: object) -> Dataset:
    from datasets import Dataset

    assert isinstance(dataset, Dataset), "from_parquet without streaming gives a Dataset"
    return dataset


def _split(splits: Mapping[Any, Dataset], held_out: bool, path: Path, setting: str) -> Dataset:
    names = [str(name) for name in splits]
    wanted = [name for name in (HELD_OUT_SPLITS if held_out else ("train",)) if name in names]
    if not wanted and len(names) != 1:
        raise ConfigError(f"{setting}: {path} has the splits {', '.join(names)}; name the directory of one of them")
    return splits[(wanted or names)[0]]


class FileSource:
    """Rows in a seeded order, shuffled anew in each epoch; the held-out ones are never in it."""

    def __init__(
        self,
        rows: Rows[Row],
        held_out: Sequence[int] | range,
        held_out_rows: Rows[Row],
        *,
        tokenizer: PromptTokenizer,
        template: Template,
        prefill: bool,
        max_prompt_tokens: int,
        seed: int,
        shuffle: bool,
        epochs: int,
        digest: str,
    ) -> None:
        self._rows, self._held_out, self._held_out_rows = rows, held_out, held_out_rows
        self._num_train = len(rows) - len(held_out) if held_out_rows is rows else len(rows)
        self._digest = digest
        self._tokenizer, self._prefill = tokenizer, prefill
        self._template: Template = template
        self._max_prompt_tokens, self._seed, self._shuffle, self._epochs = max_prompt_tokens, seed, shuffle, epochs
        # Two: around the end of an epoch prompts of both are asked for in turn.
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def total(self) -> int | None:
        return self._num_train * self._epochs if self._epochs else None

    @property
    def fingerprint(self) -> str:
        order = "shuffled" if self._shuffle else "in order"
        prefill = ", <think> prefilled" if self._prefill else ""
        return f"{self._digest}, {self._num_train} rows {order}, template {self._template}{prefill}"

    def prompt(self, ordinal: int) -> Prompt:
        if ordinal < 0 or (self.total is not None and ordinal >= self.total):
            raise IndexError(f"ordinal must be in [0, {self.total}), got {ordinal}")
        epoch, place = divmod(ordinal, self._num_train)
        row = self._rows[int(self._order(epoch)[place]) if self._shuffle else place]
        return self._as_prompt(ordinal, row)

    def held_out(self, count: int) -> Sequence[Prompt]:
        if count > len(self._held_out):
            raise PromptError(f"eval.prompts={count}, but only {len(self._held_out)} rows are held out")
        return [self._as_prompt(i, self._held_out_rows[self._held_out[i]]) for i in range(count)]

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._num_train)

    def _as_prompt(self, ordinal: int, row: Row) -> Prompt:
        try:
            ids = apply_template(self._template, row.question, self._tokenizer, prefill=self._prefill)
        except PromptError as error:
            raise PromptError(f"{row.where}: {error}") from error
        if not 0 < len(ids) <= self._max_prompt_tokens:
            raise PromptError(
                f"{row.where}: the prompt has {len(ids)} tokens, data.max_prompt_tokens allows 1 to "
                f"{self._max_prompt_tokens}: raise it or remove the row"
            )
        return Prompt(
            ordinal=ordinal,
            text=question_text(row.question),
            answer=row.answer,
            token_ids=np.asarray(ids, dtype=np.int32),
            extra=row.extra,
            source=row.extra.get("source", ""),
        )
