"""How lag and engine mismatch are corrected: what the importance ratio is centred on, and the behavior weight.

Three policies: behavior (sampled the token), proximal (the clip is centred on it), current (carries the
gradient). Shapes: N completion tokens of one micro-batch.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Correction = Literal["none", "behavior_clip", "tis", "mis", "decoupled"]

LOG_RATIO_BOUND = 20.0
"""A log-ratio is held within this before exp: e^20 = 4.9e8 is far past every clip and cap, and squares in float32."""


def bounded(log_ratio_N: Tensor, mask_N: Tensor) -> Tensor:
    """A log-ratio that is safe to exponentiate: 0 where masked, at most `LOG_RATIO_BOUND` in size elsewhere.

    Masked before exp: what is masked may be -inf or NaN, and 0 * inf would put NaN into the gradient.
    """
    return log_ratio_N.masked_fill(~mask_N, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def correct(
    correction: Correction,
    logprobs_N: Tensor,
    behavior_logprobs_N: Tensor,
    proximal_logprobs_N: Tensor | None,
    mask_N: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Log of the importance ratio (carries the gradient) and of the behavior weight (detached; None is weight 1).

    Args:
        proximal_logprobs_N: used by `decoupled` only. None: the current weights are the ones last published,
            which is so whenever each step is published; the ratio is then exactly 1 and decoupled equals tis.
    """
    current_N = logprobs_N.detach()
    match correction:
        case "none":
            return bounded(logprobs_N - current_N, mask_N), None
        case "behavior_clip":
            return bounded(logprobs_N - behavior_logprobs_N, mask_N), None
        case "tis" | "mis":
            return bounded(logprobs_N - current_N, mask_N), bounded(current_N - behavior_logprobs_N, mask_N)
        case "decoupled":
            proximal_N = current_N if proximal_logprobs_N is None else proximal_logprobs_N
            return bounded(logprobs_N - proximal_N, mask_N), bounded(proximal_N - behavior_logprobs_N, mask_N)
