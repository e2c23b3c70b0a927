"""Which inference engines there are, which versions of them we know, and which Python runs each.

vLLM, SGLang and the learner's torch pin one another's packages differently, so each engine may have an environment of
its own. Imports no engine.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import Version

if TYPE_CHECKING:
    from r1async.config import Config

ENGINES = ("torch", "vllm", "sglang")
SUPPORTED = {"vllm": SpecifierSet(">=0.32,<0.33"), "sglang": SpecifierSet(">=0.5.19,<0.6")}
"""vLLM 0.32 is the first with pluggable weight transfer and version spans together; SGLang has spans from 0.5.19 on."""

FENCED_EXIT_CODE = 5
"""Of a generator whose engine failed its proof: it is not started again, for its engine would fail again."""


class EngineVersionError(ValueError):
    """An engine of a version that we do not know; the message says which we do."""


def kinds(engine: str) -> tuple[str, ...]:
    """The engines that `generator.engine` names, in the order in which generators take them."""
    return tuple(part.strip() for part in engine.split("+"))


def check_version(engine: str, version: str) -> None:
    """Raises:
    EngineVersionError: the version is outside the supported range.
    """
    supported = SUPPORTED[engine]
    # A local build (0.32.0+cpu, 0.32.1.dev3) counts as its base version.
    if Version(version).base_version not in supported:
        raise EngineVersionError(f"{engine} {version} is not supported: want {engine}{supported}; see docs/engines.md")


def engine_of(config: Config, index: int) -> str:
    """The engine of generator `index`."""
    named = kinds(config.generator.engine)
    return named[index % len(named)]


def generator_python(config: Config, index: int) -> str:
    """The interpreter of a generator's own process: vLLM runs inside it, a server elsewhere does not.

    Raises:
        ConfigError: as `python_for`.
    """
    kind = engine_of(config, index)
    inside = kind == "vllm" and not config.generator.vllm.url
    return python_for(config, kind) if inside else sys.executable


def python_for(config: Config, engine: str) -> str:
    """The interpreter that has the engine: the setting, this one, or `.venv-<engine>` beside where we are.

    Raises:
        ConfigError: none of them has it.
    """
    from r1async.config import ConfigError

    named = config.generator.python.get(engine)
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"generator.python.{engine}: {named}: no such file")
        return named
    if engine == "torch" or importlib.util.find_spec(engine) is not None:
        return sys.executable
    beside = Path(f".venv-{engine}", "bin", "python")
    if beside.is_file():
        return str(beside.absolute())
    raise ConfigError(
        f"generator.engine: {engine} is not installed for {sys.executable}, and there is no {beside}; "
        f"`make install-{engine}-cpu` makes that on a machine without a GPU, `pip install r1async[{engine}]` installs "
        f"it on one with; or name its Python: generator.python.{engine}=PATH"
    )
