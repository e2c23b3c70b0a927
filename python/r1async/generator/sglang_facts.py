"""What an SGLang server says of itself, and which servers we cannot work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from r1async.engines import check_version
from r1async.generator.engine import EngineError

_SESSIONS_FROM = Version("0.5.21")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself."""

    version: str
    block_tokens: int
    context: int
    """Tokens of a request at most, SGLang's own few included."""
    running: int
    """Requests at a time; 0: it does not say."""
    mask_tokens: int
    """Candidates at most for which it reports logprobs after top-k and top-p."""
    workers: int
    """Processes that hold weights."""
    device: str
    """cpu or cuda."""
    sessions: bool
    """Whether an update by broadcast stands between a begin and an end: from 0.5.21 on."""
    overlap: bool
    """Whether a step is in flight while the scheduler does something else: a pause in place comes one token early."""


def read_facts(url: str, info: Mapping[str, Any]) -> Facts:
    """Of /server_info.

    Raises:
        EngineVersionError: a version that is not supported.
        EngineError: a server that runs in a way in which weights cannot be updated.
    """
    check_version("sglang", info["version"])
    if info.get("dp_size", 1) != 1:
        raise EngineError(
            f"SGLang at {url} runs with dp_size={info['dp_size']}: weights cannot be updated in that; "
            "start one server for each replica"
        )
    if info.get("tokenizer_worker_num", 1) != 1:
        raise EngineError(
            f"SGLang at {url} runs with tokenizer_worker_num={info['tokenizer_worker_num']}: only one "
            "of these learns of new weights; start it with 1"
        )
    return Facts(
        version=info["version"],
        block_tokens=0 if info.get("disable_radix_cache") else int(info.get("page_size") or 1),
        context=min(info.get("context_length") or 1 << 30, info.get("max_total_num_tokens") or 1 << 30),
        running=int(info.get("max_running_requests") or 0),
        mask_tokens=int(info.get("sampling_mask_max_tokens") or 0),
        workers=int(info.get("tp_size") or 1) * int(info.get("pp_size") or 1),
        device=str(info.get("device") or "cuda"),
        sessions=Version(info["version"]) >= _SESSIONS_FROM,
        overlap=not info.get("disable_overlap_schedule", False),
    )
