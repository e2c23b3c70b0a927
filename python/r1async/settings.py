"""From YAML and `key=value` overrides to a checked `Config`; every error names its key.

The file holds only what differs from the defaults, overrides win over the file. A table of the user's own
keys (`reward.weights`) is replaced by a file or by `reward.weights={accuracy: 1}`, and extended by
`reward.weights.accuracy=1`: who writes the table out means the whole of it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from r1async.checks import out_of_range, problems, reward_problems
from r1async.config import Config, ConfigError, RewardConfig, ScorerConfig

Tree = dict[str, object]
C = TypeVar("C")


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """See `r1async.config.load_config`."""
    return load_as(Config, problems, path, overrides)


def load_as(
    root: type[C], problems_of: Callable[[C], list[str]], path: str | Path | None, overrides: Sequence[str] = ()
) -> C:
    """The same for the settings of any command.

    Args:
        root: the dataclass of all its settings.
        problems_of: sentences about what cannot work; empty if all can.
    """
    tree = {} if path is None else read_tree(Path(path))
    for override in overrides:
        _apply_override(tree, override, root)
    config = _to_config(tree, root)
    found = problems_of(config)
    if found:
        raise ConfigError("\n".join(found))
    return config


def load_reward(
    path: Path | None, overrides: Sequence[str] = (), weights: Mapping[str, float] | None = None
) -> tuple[RewardConfig, ScorerConfig]:
    """A checked reward without a run, and the pools that grade it.

    Args:
        path: YAML of a run's settings, or of what is under `reward` in them.
        weights: `reward.weights` where neither file nor overrides say.

    Raises:
        ConfigError: as `load`; what is not about the reward is not looked at.
    """
    tree: Tree = {} if path is None else read_tree(path)
    own = field_types(RewardConfig)
    if tree and "reward" not in tree and all(name in own for name in tree):
        tree = {"reward": tree}
    for override in overrides:
        _apply_override(tree, override)
    reward = _table(tree, "reward", "reward")
    if weights is not None:
        reward.setdefault("weights", dict(weights))
    config = _to_config(tree, Config)
    found = [line for line in out_of_range(config) if line.startswith(("reward.", "scorer.", "sampling."))]
    if found := found or reward_problems(config):
        raise ConfigError("\n".join(found))
    return config.resolved_reward, config.scorer


def to_yaml(config: object) -> str:
    """Every setting, resolved; `load` reads it back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def field_types(cls: type) -> dict[str, object]:
    """Name and type of each setting in a table of settings."""
    hints = get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls)}


def all_fields(root: type = Config) -> Iterator[tuple[str, object]]:
    """Full key and type of every setting that is not itself a table."""

    def walk(cls: type, prefix: str) -> Iterator[tuple[str, object]]:
        for name, hint in field_types(cls).items():
            if isinstance(hint, type) and is_dataclass(hint):
                yield from walk(hint, f"{prefix}{name}.")
            else:
                yield prefix + name, hint

    return walk(root, "")


def read_tree(path: Path) -> Tree:
    """What the YAML file says, before it is checked."""
    if not path.exists() or path.is_dir():  # a pipe will do: /dev/stdin
        raise ConfigError(f"config {path}: no such file")
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: not YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"config {path}: must hold `key: value` lines, got a list")
    return _plain(loaded)


def _plain(loaded: DictConfig) -> Tree:
    container = OmegaConf.to_container(loaded, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _apply_override(tree: Tree, override: str, root: type = Config) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {override!r}: must be key=value, as in staleness.max_staleness=4")
    try:
        value = _plain(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: value {text!r} is not YAML: {error}") from error
    if value is None and not text.strip():
        value = ""
    cls = root
    names = key.split(".")
    _set(tree, cls, names, 0, value, root)


def _set(tree: Tree, cls: type, names: Sequence[str], depth: int, value: object, root: type) -> None:
    """Sets the setting `names`, of which the table `tree` of class `cls` is those before `depth`."""
    key, here, name = ".".join(names), ".".join(names[: depth + 1]), names[depth]
    hint, more = _known(cls, name, ".".join(names[:depth]), root), depth + 1 < len(names)
    inner = get_args(hint)[1] if get_origin(hint) is dict else None
    if not more:
        tree[name] = value
    elif isinstance(hint, type) and is_dataclass(hint):
        _set(_table(tree, name, here), hint, names, depth + 1, value, root)
    elif isinstance(inner, type) and is_dataclass(inner) and depth + 2 < len(names):
        entry = _table(_table(tree, name, here), names[depth + 1], ".".join(names[: depth + 2]))
        _set(entry, inner, names, depth + 2, value, root)
    elif inner is not None:
        _extend(tree, cls, name, key, ".".join(names[depth + 1 :]), value)
    else:
        raise ConfigError(f"{key}: {here} is a value, not a table of settings")


def _table(tree: Tree, name: str, key: str) -> Tree:
    table = tree.setdefault(name, {})
    if table is None:
        table = tree[name] = {}
    if not isinstance(table, dict):
        raise ConfigError(f"{key}: must be a table of settings, got {table!r}")
    return table


def _extend(tree: Tree, cls: type, name: str, key: str, entry: str, value: object) -> None:
    """Sets one entry of a table of the user's own keys and keeps the others, the defaults too."""
    if name not in tree:
        tree[name] = dict(getattr(cls(), name))
    _table(tree, name, key.removesuffix(f".{entry}"))[entry] = value


def _known(cls: type, name: str, prefix: str, root: type) -> object:
    """The type of the setting, or an error with the nearest name."""
    known = field_types(cls)
    if name in known:
        return known[name]
    key = f"{prefix}.{name}" if prefix else name
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    here = [f"{prefix}.{each}" if prefix else each for each in near]
    elsewhere = [full for full, _ in all_fields(root) if full.rpartition(".")[2] == name]
    close = get_close_matches(key, [full for full, _ in all_fields(root)], n=1, cutoff=0.6)
    candidates = elsewhere[:1] or here or close
    hint = f"did you mean {candidates[0]}?" if candidates else f"known here: {', '.join(known)}"
    raise ConfigError(f"{key}: unknown key; {hint}")


def _to_config(tree: Tree, root: type[C]) -> C:
    node = OmegaConf.structured(root)
    _unlock(node)
    errors = list(_fill(node, root, tree, "", root))
    if errors:
        raise ConfigError("\n".join(errors))
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_first_line(error)}") from error
    assert isinstance(config, root)
    return config


def _unlock(node: DictConfig) -> None:
    """Frozen dataclasses give read-only nodes, and the flag is set on each table."""
    OmegaConf.set_readonly(node, False)
    for name in node:
        if OmegaConf.is_dict(node[name]):
            _unlock(node[name])


def _fill(node: DictConfig, cls: type, tree: Mapping[str, object], prefix: str, root: type) -> Iterator[str]:
    """Puts the tree's values into the typed node; yields one line for each that does not fit."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        try:
            hint = _known(cls, str(name), prefix.rstrip("."), root)
        except ConfigError as error:
            yield str(error)
            continue
        if isinstance(hint, type) and is_dataclass(hint):
            if isinstance(value, dict):
                yield from _fill(node[name], hint, value, f"{key}.", root)
            elif value is not None:
                yield f"{key}: must be a table of settings, got {value!r}"
            continue
        inner = get_args(hint)[1] if get_origin(hint) is dict else None
        if isinstance(inner, type) and is_dataclass(inner) and isinstance(value, dict):
            node[str(name)] = {}
            yield from _fill_tables(node[str(name)], inner, value, f"{key}.", root)
            continue
        if _is_choice(hint) and isinstance(value, bool):
            value = str(value).lower()  # `resume: true` is a bool to YAML
        try:
            OmegaConf.update(node, str(name), value, merge=False)
        except OmegaConfBaseException as error:
            where = error.full_key if get_origin(hint) is dict and error.full_key else key
            wanted = describe(get_args(hint)[1] if where != key else hint)
            got = value[where.rpartition(".")[2]] if where != key and isinstance(value, dict) else value
            yield f"{where}: must be {wanted}, got {'null' if got is None else repr(got)}"


def _fill_tables(node: DictConfig, cls: type, tree: Mapping[str, object], prefix: str, root: type) -> Iterator[str]:
    """The same for a table of the user's own names, each a table of settings."""
    for name, value in tree.items():
        if not isinstance(value, dict):
            yield f"{prefix}{name}: must be a table of settings, got {value!r}"
            continue
        table = OmegaConf.structured(cls)
        OmegaConf.set_readonly(table, False)
        yield from _fill(table, cls, value, f"{prefix}{name}.", root)
        node[str(name)] = table


def _is_choice(hint: object) -> bool:
    return get_origin(hint) is Literal


def describe(hint: object) -> str:
    """A type in a user's words."""
    arguments = get_args(hint)
    if _is_choice(hint):
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if each is type(None) else describe(each) for each in arguments)
    if get_origin(hint) is dict:
        return f"a table of names, each {describe(arguments[1])}"
    if isinstance(hint, type) and is_dataclass(hint):
        return "a table of settings"
    if get_origin(hint) is tuple:
        inner = [each for each in arguments if each is not Ellipsis]
        return f"a list of {'' if Ellipsis in arguments else f'{len(inner)} values, each '}{describe(inner[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words[hint] if isinstance(hint, type) and hint in words else str(hint)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
