"""A recipe: stages that are ordinary r1async jobs, joined by what they make.

    name: r1
    seed: 0
    inputs: {model: models/base, math: data/math.jsonl}
    stages:
      zero:
        run: zero.yaml
        set: {model.path: "${inputs.model}", data.path: "${inputs.math}", seed: "${seed}"}
      exam:
        each: [zero]
        eval: exam.yaml
        set: {model.path: "${each.model}"}

A stage names one command with its settings file (beside the recipe), and `set` what differs. An input is a path from
where one is, or from the recipe's folder. A value that holds
`${stage.output}` makes the stage wait for that one. `each` makes a stage of its own for every name in the list:
`exam-zero`; `${exam.folder}` elsewhere is the table of them all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from r1async.config import ConfigError
from r1async.recipes.commands import COMMANDS, Command
from r1async.settings import Tree, read_tree

_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_-]+)(?:\.([A-Za-z0-9_-]+))?\}")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_RESERVED = ("inputs", "seed", "each", "lock", "logs")
"""Names of references, and of what else lies in the recipe's folder."""
_TOP = ("name", "seed", "folder", "inputs", "stages")
_STAGE = ("set", "outputs", "each", "about")


@dataclass(frozen=True, slots=True)
class Reference:
    """What `${stage.output}` names; `output` is empty in `${seed}` and `${each}`."""

    of: str
    output: str = ""

    def __str__(self) -> str:
        return f"${{{self.of}.{self.output}}}" if self.output else f"${{{self.of}}}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One job."""

    name: str
    command: Command
    target: str
    """The settings file, absolute, or `module:function` of a `make`."""
    settings: Tree
    """Settings of the job, references unresolved: the file's with `set` over them, or a function's arguments."""
    outputs: Mapping[str, str]
    """Name and place in the stage's folder of what it makes."""
    about: str = ""
    """One line for people."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages that have to be done first, in the order of their mention."""
        found = {each.of for each in references(self.settings) if each.of not in _RESERVED}
        return tuple(sorted(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A checked graph."""

    name: str
    folder: Path
    """Outputs lie in `folder`/`name`/STAGE-KEY."""
    seed: int
    inputs: Mapping[str, Path]
    stages: Mapping[str, Stage]
    """In an order in which each has what it needs."""
    families: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Stages made by `each`: the name it was written under, then value and stage."""

    def downstream(self, name: str) -> set[str]:
        """The stage and all that need it, directly or not."""
        found = {name}
        for stage in self.stages.values():  # in order, so one pass will do
            if found & set(stage.needs):
                found.add(stage.name)
        return found

    def upstream(self, name: str) -> set[str]:
        """The stage and all that it needs, directly or not."""
        found = {name}
        for stage in reversed(list(self.stages.values())):
            if stage.name in found:
                found |= set(stage.needs)
        return found


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: the YAML file.
        overrides: `seed=1`, `name=OTHER`, `inputs.math=FILE`, or `STAGE.setting=value`.

    Raises:
        ConfigError: what cannot work, with file and stage; all problems of the graph at once.
    """
    tree = read_tree(path)
    _apply(tree, overrides)
    return _Reader(path, tree).recipe()


def references(value: object) -> Iterator[Reference]:
    """Every reference in a tree of settings."""
    if isinstance(value, str):
        for match in _REFERENCE.finditer(value):
            yield Reference(match[1], match[2] or "")
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def resolved(value: object, values: Mapping[Reference, object]) -> object:
    """The tree with every reference replaced; one that is the whole text keeps its value's type."""
    if isinstance(value, str):
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return values[Reference(whole[1], whole[2] or "")]
        return _REFERENCE.sub(lambda match: str(values[Reference(match[1], match[2] or "")]), value)
    if isinstance(value, Mapping):
        return {key: resolved(item, values) for key, item in value.items()}
    return [resolved(item, values) for item in value] if isinstance(value, list) else value


def _apply(tree: Tree, overrides: Sequence[str]) -> None:
    """Puts `key=value` into the recipe: its own keys, or a stage's settings."""
    from omegaconf import OmegaConf

    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r}: must be key=value, as in seed=1 or STAGE.steps=50")
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        assert isinstance(value, dict)
        head, _, rest = key.strip().partition(".")
        stages = tree.get("stages")
        if head in ("seed", "name", "folder") and not rest:
            tree[head] = value["value"]
        elif head == "inputs" and rest:
            _child(tree, "inputs")[rest] = value["value"]
        elif rest and isinstance(stages, dict) and isinstance(stages.get(head), dict):
            _child(stages[head], "set")[rest] = value["value"]
        else:
            known = list(stages) if isinstance(stages, dict) else []
            near = get_close_matches(head, [*known, "seed", "name", "folder", "inputs"], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; stages are {', '.join(map(str, known))}"
            raise ConfigError(f"override {override!r}: no stage {head!r}{hint}")


def _child(tree: Tree, key: str) -> Tree:
    child = tree.setdefault(key, {})
    if child is None:
        child = tree[key] = {}
    if not isinstance(child, dict):
        raise ConfigError(f"{key}: must be a table, got {child!r}")
    return child


class _Reader:
    """From the file's tree to a checked graph; collects what is wrong with stages."""

    def __init__(self, path: Path, tree: Tree) -> None:
        self._path, self._tree = path, tree
        self._errors: list[str] = []
        self._families: dict[str, dict[str, str]] = {}

    def recipe(self) -> Recipe:
        self._refuse_unknown(self._tree, _TOP, "")
        name = self._text(self._tree.get("name", self._path.stem), "name")
        if not _NAME.fullmatch(name):
            self._errors.append(f"name: must be lower-case letters, digits, - and _, got {name!r}")
        seed = self._tree.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool):
            self._errors.append(f"seed: must be a whole number, got {seed!r}")
            seed = 0
        stages = self._stages()
        self._fail()
        recipe = Recipe(
            name=name,
            folder=Path(self._text(self._tree.get("folder", "recipes"), "folder")),
            seed=seed,
            inputs=self._inputs(),
            stages=self._ordered({stage.name: stage for stage in stages}),
            families=self._families,
        )
        self._check_references(recipe)
        self._fail()
        return recipe

    def _fail(self) -> None:
        if self._errors:
            raise ConfigError("\n".join(f"{self._path}: {line}" for line in self._errors))

    def _inputs(self) -> dict[str, Path]:
        table = self._tree.get("inputs") or {}
        if not isinstance(table, dict):
            self._errors.append(f"inputs: must be a table of names and paths, got {table!r}")
            return {}
        found = {}
        for name, path in table.items():
            told = self._text(path, f"inputs.{name}")
            beside = self._path.parent / told
            found[str(name)] = beside if beside.exists() and not Path(told).exists() else Path(told)
            if not found[str(name)].exists():
                self._errors.append(f"inputs.{name}: {path} does not exist; give it, or inputs.{name}=PATH")
        return found

    def _stages(self) -> list[Stage]:
        table = self._tree.get("stages")
        if not isinstance(table, dict) or not table:
            self._errors.append("stages: must be a table of stages, with one at least")
            return []
        found: list[Stage] = []
        for name, body in table.items():
            if not _NAME.fullmatch(str(name)) or name in _RESERVED:
                self._errors.append(f"stages.{name}: a stage's name is lower-case letters, digits, - and _")
            elif not isinstance(body, dict):
                self._errors.append(f"stages.{name}: must be a table, got {body!r}")
            else:
                found += self._stage(str(name), body)
        twice = sorted(name for name, count in Counter(each.name for each in found).items() if count > 1)
        self._errors += [f"stages.{name}: two stages have this name; an `each` makes STAGE-NAME" for name in twice]
        return found

    def _stage(self, name: str, body: Tree) -> list[Stage]:
        where = f"stages.{name}"
        commands = [key for key in body if key in COMMANDS]
        if len(commands) != 1:
            got = f"got {', '.join(commands)}" if commands else "got none"
            self._errors.append(f"{where}: must name one command ({', '.join(COMMANDS)}), {got}")
            return []
        self._refuse_unknown(body, (*_STAGE, commands[0]), f"{where}.")
        command = COMMANDS[commands[0]]
        settings = self._settings(where, command, body)
        outputs = {**command.outputs, **self._outputs(where, command, body.get("outputs"))}
        if settings is None:
            return []
        target, tree = settings
        about = self._text(body.get("about", ""), f"{where}.about")
        stage = Stage(name=name, command=command, target=target, settings=tree, outputs=outputs, about=about)
        return self._for_each(stage, body["each"]) if "each" in body else [stage]

    def _settings(self, where: str, command: Command, body: Tree) -> tuple[str, Tree] | None:
        """The target and the tree of settings; None after an error."""
        target = self._text(body[command.name], f"{where}.{command.name}")
        changes = body.get("set") or {}
        if not isinstance(changes, dict):
            self._errors.append(f"{where}.set: must be a table of settings, got {changes!r}")
            return None
        if not command.takes_file:
            return target, dict(changes)
        file = (self._path.parent / target).resolve()
        try:
            tree = read_tree(file)
        except ConfigError as error:
            self._errors.append(f"{where}.{command.name}: {error}")
            return None
        for key, value in changes.items():
            self._put(tree, str(key), value, where)
        return str(file), tree

    def _put(self, tree: Tree, key: str, value: object, where: str) -> None:
        """`a.b: value` replaces what is at a.b as a whole."""
        *tables, last = key.split(".")
        for table in tables:
            inner = tree.setdefault(table, {})
            if not isinstance(inner, dict):
                self._errors.append(f"{where}.set.{key}: {table} is a value, not a table")
                return
            tree = inner
        tree[last] = value

    def _outputs(self, where: str, command: Command, table: object) -> dict[str, str]:
        if table is None:
            return {}
        if command.takes_file or not isinstance(table, dict):
            what = "only a `make` says what it makes" if command.takes_file else f"must be a table, got {table!r}"
            self._errors.append(f"{where}.outputs: {what}")
            return {}
        return {str(name): self._text(path, f"{where}.outputs.{name}") for name, path in table.items()}

    def _for_each(self, stage: Stage, names: object) -> list[Stage]:
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            self._errors.append(f"stages.{stage.name}.each: must be a list of stages, got {names!r}")
            return []
        made = []
        for name in names:
            values = {ref: f"${{{name}.{ref.output}}}" for ref in references(stage.settings) if ref.of == "each"}
            keep = {ref: str(ref) for ref in references(stage.settings) if ref.of != "each"}
            settings = resolved(stage.settings, {**keep, **values, Reference("each"): name})
            assert isinstance(settings, dict)
            made.append(replace(stage, name=f"{stage.name}-{name}", settings=settings))
        self._families[stage.name] = dict(zip(names, (each.name for each in made), strict=True))
        return [replace(each, settings=_expanded(each.settings, self._families)) for each in made]

    def _ordered(self, stages: Mapping[str, Stage]) -> dict[str, Stage]:
        """Inputs first; among those that could come next, the one written first."""
        expanded = {
            name: replace(stage, settings=_expanded(stage.settings, self._families)) for name, stage in stages.items()
        }
        graph = {name: [each for each in stage.needs if each in stages] for name, stage in expanded.items()}
        sorter = TopologicalSorter(graph)
        try:
            sorter.prepare()
        except CycleError as error:
            self._errors.append(f"stages: {' needs '.join(reversed(error.args[1]))}, which is a circle")
            return {}
        place = {name: number for number, name in enumerate(stages)}
        order: list[str] = []
        ready = list(sorter.get_ready())
        while ready:
            ready.sort(key=place.__getitem__)
            order.append(ready.pop(0))
            sorter.done(order[-1])
            ready += sorter.get_ready()
        return {name: expanded[name] for name in order}

    def _check_references(self, recipe: Recipe) -> None:
        for stage in recipe.stages.values():
            for each in references(stage.settings):
                if problem := _unknown(each, recipe):
                    self._errors.append(f"stages.{stage.name}: {each}: {problem}")
        named = [
            each.output
            for stage in recipe.stages.values()
            for each in references(stage.settings)
            if each.of == "inputs"
        ]
        for name in [name for name in recipe.inputs if name not in named]:
            near = get_close_matches(name, named, n=1)
            self._errors.append(f"inputs.{name}: no stage takes it" + (f"; did you mean {near[0]}?" if near else ""))

    def _refuse_unknown(self, tree: Tree, known: Sequence[str], prefix: str) -> None:
        for key in tree:
            if key not in known:
                near = get_close_matches(str(key), [*known, *COMMANDS], n=1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
                self._errors.append(f"{prefix}{key}: unknown key; {hint}")

    def _text(self, value: object, where: str) -> str:
        if not isinstance(value, str):
            self._errors.append(f"{where}: must be a text, got {value!r}")
            return ""
        return value


def _expanded(settings: Tree, families: Mapping[str, Mapping[str, str]]) -> Tree:
    """`${exam.results}` of an `each` is the table of what its stages made."""

    def walk(value: object) -> object:
        if isinstance(value, str):
            whole = _REFERENCE.fullmatch(value)
            if whole and whole[1] in families and whole[2]:
                return {each: f"${{{stage}.{whole[2]}}}" for each, stage in families[whole[1]].items()}
            return value
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list) else value

    walked = walk(settings)
    assert isinstance(walked, dict)
    return walked


def _unknown(reference: Reference, recipe: Recipe) -> str:
    """What is wrong with a reference; empty if nothing."""
    if reference.of == "seed" and not reference.output:
        return ""
    if reference.of == "inputs":
        known: Sequence[str] = list(recipe.inputs)
    elif reference.of in recipe.stages:
        known = list(recipe.stages[reference.of].outputs)
    elif reference.of == "each":
        return "the stage has no `each`"
    else:
        near = get_close_matches(reference.of, recipe.stages, n=1)
        return f"no stage {reference.of!r}" + (f"; did you mean {near[0]}?" if near else "")
    if reference.output not in known:
        return f"{reference.of} has {', '.join(known) or 'no outputs'}, not {reference.output!r}"
    return ""


def as_json(value: object) -> str:
    """One text for one tree, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
