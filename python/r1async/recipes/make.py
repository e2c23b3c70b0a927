"""`r1async make MODULE:FUNCTION FOLDER [SETTINGS]`: a stage that is a Python function.

The function is called as `function(folder, **settings)` and writes what it makes into the folder.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from r1async.config import ConfigError
from r1async.settings import read_tree


def make(target: str, folder: Path, settings: Path | None) -> None:
    """Calls the function.

    Raises:
        ConfigError: no such function, or settings that are not its arguments.
    """
    module_name, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(f"make: no module {module_name!r}") from error
    if not inspect.isfunction(function):
        raise ConfigError(f"make: {module_name} has no function {name!r}; it is written module:function")
    arguments = read_tree(settings) if settings is not None else {}
    try:
        bound = inspect.signature(function).bind(folder, **arguments)
    except TypeError as error:
        raise ConfigError(f"make {target}: {error}; got {', '.join(arguments) or 'no settings'}") from error
    folder.mkdir(parents=True, exist_ok=True)
    function(*bound.args, **bound.kwargs)
