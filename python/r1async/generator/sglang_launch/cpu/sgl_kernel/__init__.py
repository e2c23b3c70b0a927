"""Stands in for SGLang's compiled kernels on a machine without a GPU, where no kernel of theirs can run.

SGLang imports names from here when its own modules are imported and then computes in plain torch, so any name is there
and calling it is the error. One function has no plain version in SGLang, and is here.
"""

from __future__ import annotations

import torch


class Missing:
    """A kernel, or a module of kernels, that is not there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self._name}.{name}")

    def __call__(self, *arguments: object, **named: object) -> object:
        raise NotImplementedError(f"{self._name} is a GPU kernel of SGLang, and this machine runs without: use its GPU")


def __getattr__(name: str) -> Missing:
    # The import machinery asks for __path__ and the like, and must hear that they are not there.
    if name.startswith("__"):
        raise AttributeError(name)
    return Missing(f"sgl_kernel.{name}")


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Writes each request's new cache slots into its row of the token table.

    Args:
        req_pool_indices: (B,), row of each request.
        req_to_token: (rows, pool_len), changed in place.
        start: (B,), column of each request's first new slot.
        end: (B,), and past its last.
        out_cache_loc: (sum of end - start,), the slots, request by request.
        pool_len: columns of the table.
    """
    taken = 0
    for row, first, last in zip(req_pool_indices.tolist(), start.tolist(), end.tolist(), strict=True):
        req_to_token[row, first:last] = out_cache_loc[taken : taken + last - first].to(req_to_token.dtype)
        taken += last - first
