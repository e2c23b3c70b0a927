"""Names of tests: pytest's `path::Class::function[case]`, unittest's `package.module.Class.function`, Django's
`function (package.module.Class)`."""

from __future__ import annotations

import re
from typing import NamedTuple

_DJANGO = re.compile(r"(\w+) \(([\w.]+)\)")


class Where(NamedTuple):
    """Where a test function is written."""

    path: str
    qualname: tuple[str, ...]
    """Classes and the function."""


def function_of(name: str) -> str:
    """The name without its case."""
    return name.partition("[")[0] if "::" in name else name


def test_file(name: str) -> str:
    """The file of a pytest name; the other names as they are."""
    return name.partition("::")[0]


def places(name: str) -> list[Where]:
    """Where a test may be written; dotted names do not say where the module ends."""
    name = function_of(name)
    if "::" in name:
        path, *qualname = name.split("::")
        return [Where(path, tuple(qualname))]
    if (django := _DJANGO.fullmatch(name)) is not None:
        name = f"{django[2]}.{django[1]}" if not django[2].endswith(f".{django[1]}") else django[2]
    parts = name.split(".")
    return [Where("/".join(parts[:end]) + ".py", tuple(parts[end:])) for end in range(1, len(parts))]
