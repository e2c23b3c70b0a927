"""Stands in for a module of SGLang's kernels: see the package."""

from __future__ import annotations

from . import Missing


def __getattr__(name: str) -> Missing:
    if name.startswith("__"):
        raise AttributeError(name)
    return Missing(f"sgl_kernel.scalar_type.{name}")
