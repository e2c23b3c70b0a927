"""What a recipe has done already: outputs are keyed by the hash of everything that decides them.

A stage's key covers its command, its settings, the content of the recipe's inputs that it names, and the keys of the
stages it needs; so a changed setting gives new keys to that stage and to all that depend on it, and nothing runs twice.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1async.config import ConfigError
from r1async.files import write_atomic, write_json
from r1async.recipes.digests import digests
from r1async.recipes.graph import Recipe, Reference, Stage, as_json, references, resolved
from r1async.settings import Tree
from r1async.tasks.file import digest_of

FORMAT = 1
"""Raised when old outputs no longer stand for what the same settings would make."""
DONE = "done.json"
SETTINGS = "stage.yaml"
INPUTS = "inputs.json"
"""Beside the stages: what large inputs hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A stage with everything known but what it makes."""

    stage: Stage
    key: str
    folder: Path
    settings: Tree
    """References replaced by paths."""

    @property
    def done(self) -> bool:
        """Whether its outputs are there, whole."""
        return (self.folder / DONE).is_file() and all(path.exists() for path in self.outputs.values())

    @property
    def begun(self) -> bool:
        return self.folder.is_dir() and not self.done

    @property
    def outputs(self) -> dict[str, Path]:
        return {name: self.folder / place for name, place in self.stage.outputs.items()}

    @property
    def record(self) -> dict[str, object]:
        """What `finish` wrote."""
        return json.loads((self.folder / DONE).read_text())


def plan(recipe: Recipe) -> dict[str, Job]:
    """Every stage of the recipe with its key and folder, in order."""
    inputs = digests(recipe.inputs, recipe.folder / recipe.name / INPUTS)
    jobs: dict[str, Job] = {}
    for stage in recipe.stages.values():
        names: dict[Reference, object] = {Reference("seed"): recipe.seed}
        values: dict[Reference, object] = {Reference("seed"): recipe.seed}
        for each in references(stage.settings):
            if each.of == "inputs":
                names[each], values[each] = f"input {inputs[each.output]}", str(recipe.inputs[each.output])
            elif each.of != "seed":
                needed = jobs[each.of]
                names[each], values[each] = f"{needed.key} {each.output}", str(needed.outputs[each.output])
        key = _key(stage, resolved(stage.settings, names))
        settings = resolved(stage.settings, values)
        assert isinstance(settings, dict)
        folder = recipe.folder / recipe.name / f"{stage.name}-{key}"
        jobs[stage.name] = Job(stage=stage, key=key, folder=folder, settings=settings)
    return jobs


def _key(stage: Stage, settings: object) -> str:
    deciding = {
        "format": FORMAT,
        "command": stage.command.name,
        # A function sees the order of its tables, and mixed-in rows are numbered by it; to other jobs it is nothing.
        "settings": json.dumps(settings, default=str) if stage.command.name in ("make", "sample") else settings,
        "outputs": dict(stage.outputs),
        "code": "" if stage.command.takes_file else _code(stage),
    }
    return hashlib.sha256(as_json(deciding).encode()).hexdigest()[:12]


def _code(stage: Stage) -> str:
    """A function of a `make` and the digest of the modules that decide what it makes.

    Raises:
        ConfigError: there is no such module.
    """
    module = stage.target.partition(":")[0]
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as for `python -m r1async`, which a stage is
    if _file_of(module) is None:
        raise ConfigError(f"stages.{stage.name}.make: no module {module!r}; it is written module:function")
    sources = sorted(_sources(module).items())
    return f"{stage.target} {hashlib.sha256(b''.join(text for _, text in sources)).hexdigest()}"


def _sources(module: str) -> dict[str, bytes]:
    """The module and those of its part of the package (two names deep: r1async.recipes) that it imports, and so on.

    Not its neighbours that it does not import: a change of the page would train all models again.
    """
    part, found, left = ".".join(module.split(".")[:2]), dict[str, bytes](), [module]
    while left:
        name = left.pop()
        file = _file_of(name)
        if name in found or file is None:
            continue
        found[name] = file.read_bytes()
        for node in ast.walk(ast.parse(found[name])):
            named = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                named = [str(node.module), *(f"{node.module}.{each}" for each in named)]
            left += [each for each in named if each.startswith(f"{part}.")]
    return found


def _file_of(module: str) -> Path | None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(found.origin) if found is not None and found.origin is not None else None


def check(jobs: Mapping[str, Job], scratch: Path) -> list[str]:
    """What is wrong with the settings of any stage, so that a mistake in the last one shows before the first runs."""
    found = []
    for job in jobs.values():
        if not job.stage.command.takes_file:
            found += [f"stages.{job.stage.name}: {line}" for line in _argument_problems(job)]
            continue
        path = scratch / f"{job.stage.name}.yaml"
        path.write_text(_yaml(job.settings))
        try:
            job.stage.command.check(path)
        except ConfigError as error:
            found += [f"stages.{job.stage.name}: {line}" for line in str(error).splitlines()]
    return found


def _argument_problems(job: Job) -> list[str]:
    """Settings that are no arguments of a `make`'s function, and those it lacks; read, not imported, which is slow."""
    module, _, name = job.stage.target.partition(":")
    file = _file_of(module)
    assert file is not None, "the key has read it"
    body = ast.parse(file.read_bytes()).body
    function = next((each for each in body if isinstance(each, ast.FunctionDef) and each.name == name), None)
    if function is None or function.args.kwarg is not None:
        return []  # defined elsewhere, or takes anything: the call will tell
    takes = function.args
    optional = len(takes.args) - len(takes.defaults)
    wanted = {each.arg: number >= optional for number, each in enumerate(takes.args)}
    wanted |= {each.arg: given is not None for each, given in zip(takes.kwonlyargs, takes.kw_defaults, strict=True)}
    del wanted[takes.args[0].arg]  # the folder
    unknown = [
        f"set.{key}: no argument of {name}; it has {', '.join(wanted)}" for key in job.settings if key not in wanted
    ]
    return unknown + [
        f"set.{key}: must be set" for key, has_default in wanted.items() if not has_default and key not in job.settings
    ]


def begin(job: Job) -> Path:
    """Makes the stage's folder and writes its settings there; what an interrupted one left stays, to go on from."""
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / SETTINGS
    write_atomic(path, _yaml(job.settings).encode())
    return path


def finish(job: Job, seconds: float) -> None:
    """Marks the stage as done and points STAGE, without the key, at it.

    Raises:
        ConfigError: an output is missing, though the job ended well.
    """
    missing = [f"{name} ({path})" for name, path in job.outputs.items() if not path.exists()]
    if missing:
        raise ConfigError(f"stages.{job.stage.name}: it ended well and did not make {', '.join(missing)}")
    record = {
        "stage": job.stage.name,
        "command": job.stage.command.name,
        "key": job.key,
        "seconds": round(seconds, 1),
        "outputs": {name: {"path": str(path), "sha256": digest_of(path)} for name, path in _own(job).items()},
    }
    write_json(job.folder / DONE, record)
    point(job)


def point(job: Job) -> None:
    """Points STAGE, without the key, at the stage's folder."""
    link = job.folder.parent / job.stage.name
    staged = link.with_name(f".{job.stage.name}.link")
    staged.unlink(missing_ok=True)
    staged.symlink_to(job.folder.name)
    staged.replace(link)


def _own(job: Job) -> dict[str, Path]:
    """Outputs that are not the folder as a whole, which has logs in it."""
    return {name: path for name, path in job.outputs.items() if path != job.folder}


def forget(job: Job) -> None:
    """Removes what the stage made, all at once: a job would go on from half of it, or take it for done."""
    doomed = job.folder.with_name(f".{job.folder.name}.forgotten")
    if doomed.is_dir():
        shutil.rmtree(doomed)
    if job.folder.is_dir():
        job.folder.rename(doomed)
        shutil.rmtree(doomed)


def _yaml(settings: Tree) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(settings))
