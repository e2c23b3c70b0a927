"""Policy losses: pure functions of tensors.

Shapes of one micro-batch: n rollouts, N completion tokens of all of them, one rollout after another
without padding. A *unit* (suffix U) is what has one importance ratio: a token, or under a sequence
ratio a rollout. docs/losses.md has formula, source and deviations of each preset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from r1async.config import ConfigError, LossConfig
from r1async.learner.correction import Correction, bounded, correct

Aggregation = Literal["completion", "token", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """A preset with the overrides of `LossConfig` applied."""

    ratio: Literal["token", "sequence"] = "token"
    """What one importance ratio belongs to; a sequence's is the geometric mean over its tokens."""
    surrogate: Literal["clip", "cispo"] = "clip"
    """clip: PPO's pessimistic minimum. cispo: a clipped, detached ratio that weighs the log-probability."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "completion"
    kl_coef: float = 0.0
    ref_refresh_steps: int = 0
    correction: Correction = "none"
    is_cap: float = 2.0
    max_tokens: int = 1
    """Length that aggregation `constant` divides by."""


PRESETS: dict[str, LossSettings] = {
    "grpo": LossSettings(kl_coef=0.04),
    "r1": LossSettings(clip_low=10.0, clip_high=10.0, kl_coef=0.001, ref_refresh_steps=400),
    "dapo": LossSettings(clip_high=0.28, aggregation="token"),
    "dr_grpo": LossSettings(aggregation="constant"),
    "gspo": LossSettings(ratio="sequence", clip_low=3e-4, clip_high=4e-4),
    "cispo": LossSettings(surrogate="cispo", clip_low=1.0, clip_high=4.0, aggregation="token"),
}


def resolve_loss(loss: LossConfig, correction: str, max_tokens: int) -> LossSettings:
    """The preset named by `loss.kind` with what `loss` overrides; `correction` is `Config.correction`.

    Raises:
        ConfigError: a correction nobody knows, `auto` included.
    """
    match correction:
        case "none" | "behavior_clip" | "tis" | "mis" | "decoupled":
            settings = replace(PRESETS[loss.kind], correction=correction, is_cap=loss.is_cap, max_tokens=max_tokens)
        case _:
            raise ConfigError(f"loss.correction must be resolved before the loss is, got {correction!r}")
    if loss.clip_low is not None:
        settings = replace(settings, clip_low=loss.clip_low)
    if loss.clip_high is not None:
        settings = replace(settings, clip_high=loss.clip_high)
    if loss.aggregation != "preset":
        settings = replace(settings, aggregation=loss.aggregation)
    if loss.kl_coef is not None:
        settings = replace(settings, kl_coef=loss.kl_coef)
    if loss.ref_refresh_steps is not None:
        settings = replace(settings, ref_refresh_steps=loss.ref_refresh_steps)
    return settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Exact counts of the whole batch, over parts, micro-batches and ranks, that sums are divided by."""

    rollouts: int
    loss_tokens: int

    def divisor(self, aggregation: Aggregation) -> int:
        """What the sum over all tokens' terms is divided by."""
        return max(1, self.loss_tokens if aggregation == "token" else self.rollouts)


SUM = Totals(rollouts=1, loss_tokens=1)
"""For sums that are divided later: while a batch fills, nobody knows its totals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """One micro-batch's share: over all micro-batches and ranks the shares add up to the batch's value."""

    policy: Tensor
    """Scalar that carries the gradient."""
    kl: Tensor
    """Scalar that carries the gradient: k3 to the reference, not yet times `kl_coef`; zero without a reference."""
    clipped_low: Tensor
    """Loss tokens whose gradient the lower bound took away or, in CISPO, cut. A count."""
    clipped_high: Tensor
    """The same for the upper bound."""


def token_scale(aggregation: Aggregation, lengths_n: Tensor, totals: Totals, max_tokens: int) -> Tensor:
    """What one loss token of each rollout is multiplied by, ``(n,)``.

    `lengths_n` are full completion lengths, over-age tokens included: divided by what is left, the
    suffix of a long rollout would weigh more than the tokens of a short one (DESIGN 3.3). The other
    denominators count rollouts, or loss tokens without over-age ones.
    """
    ones_n, divisor = torch.ones_like(lengths_n), totals.divisor(aggregation)
    match aggregation:
        case "completion":
            return ones_n / (lengths_n.clamp(min=1) * divisor)
        case "token":
            return ones_n / divisor
        case "constant":
            return ones_n / (max_tokens * divisor)


def segment_mean(values_N: Tensor, lengths_n: Tensor) -> Tensor:
    """Sum over each rollout's tokens divided by its length; 0 for an empty one."""
    sums_n = torch.segment_reduce(values_N, "sum", lengths=lengths_n, unsafe=True)
    return sums_n / lengths_n.clamp(min=1)


def k3(logprobs_N: Tensor, ref_logprobs_N: Tensor, mask_N: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(current || ref) per token, never negative; 0 where masked.

    Source: DeepSeekMath (arXiv 2402.03300) eq. 4.
    """
    delta_N = bounded(ref_logprobs_N - logprobs_N, mask_N)
    return delta_N.exp() - delta_N - 1


def clip_objective(ratio_U: Tensor, advantages_U: Tensor, low: float, high: float) -> Tensor:
    """PPO's pessimistic surrogate ``min(r A, clip(r, 1 - low, 1 + high) A)``, to be maximised."""
    clipped_U = ratio_U.clamp(1 - low, 1 + high)
    return torch.minimum(ratio_U * advantages_U, clipped_U * advantages_U)


def cispo_objective(logprobs_N: Tensor, ratio_N: Tensor, advantages_N: Tensor, low: float, high: float) -> Tensor:
    """``sg(clip(r)) A log p``: every token keeps a gradient, its weight is bounded.

    Source: MiniMax-M1 (arXiv 2506.13585) eq. 4 and 5.
    """
    return ratio_N.detach().clamp(1 - low, 1 + high) * advantages_N * logprobs_N


def policy_loss(
    settings: LossSettings,
    logprobs_N: Tensor,
    behavior_logprobs_N: Tensor,
    advantages_n: Tensor,
    lengths_n: Tensor,
    loss_mask_N: Tensor,
    totals: Totals,
    *,
    proximal_logprobs_N: Tensor | None = None,
    ref_logprobs_N: Tensor | None = None,
) -> LossTerms:
    """One micro-batch's share of the batch's loss.

    Args:
        logprobs_N: log-probability of each completion token, in nats. Carries the gradient.
        behavior_logprobs_N: the same as the engine reported it; anything where the mask is False.
        advantages_n: group-relative advantage of each rollout.
        lengths_n: completion tokens of each rollout, over-age ones included; they add up to N.
        loss_mask_N: False on tokens the over-age rule takes out of the loss.
        totals: counts of the whole batch.
        proximal_logprobs_N: under the weights last published, for `decoupled`. None: those are the current ones.
        ref_logprobs_N: under the reference policy; None leaves the KL out.

    Raises:
        ValueError: shapes that broadcasting would turn into a wrong loss.
    """
    _check_shapes(logprobs_N, behavior_logprobs_N, advantages_n, lengths_n, loss_mask_N)
    scale_n = token_scale(settings.aggregation, lengths_n.to(logprobs_N.dtype), totals, settings.max_tokens)
    scale_N = scale_n.repeat_interleave(lengths_n, output_size=len(logprobs_N)) * loss_mask_N
    log_ratio_N, log_weight_N = correct(
        settings.correction, logprobs_N, behavior_logprobs_N, proximal_logprobs_N, loss_mask_N
    )
    if settings.ratio == "token":
        advantages_N = advantages_n.repeat_interleave(lengths_n, output_size=len(logprobs_N))
        policy, low, high = _policy_term(
            settings, log_ratio_N, log_weight_N, advantages_N, scale_N, loss_mask_N,
            logprobs_U=logprobs_N.masked_fill(~loss_mask_N, 0.0),
        )  # fmt: skip
    else:
        counts_n = segment_mean(loss_mask_N.to(logprobs_N.dtype), lengths_n) * lengths_n
        log_weight_n = None if log_weight_N is None else segment_mean(log_weight_N, lengths_n)
        # A rollout weighs as much as its tokens would: times its length, so that ratio's own 1 / length divides once.
        scale_U = scale_n * lengths_n * (counts_n > 0)
        policy, low, high = _policy_term(
            settings, segment_mean(log_ratio_N, lengths_n), log_weight_n, advantages_n, scale_U, counts_n
        )
    kl = policy.new_zeros(())
    if ref_logprobs_N is not None:
        kl = (k3(logprobs_N, ref_logprobs_N, loss_mask_N) * scale_N).sum()
    return LossTerms(policy=policy, kl=kl, clipped_low=low, clipped_high=high)


def _policy_term(
    settings: LossSettings,
    log_ratio_U: Tensor,
    log_weight_U: Tensor | None,
    advantages_U: Tensor,
    scale_U: Tensor,
    tokens_U: Tensor,
    *,
    logprobs_U: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and the loss tokens clipped below and above; `tokens_U` are the loss tokens of each unit."""
    low, high = settings.clip_low, settings.clip_high
    ratio_U = log_ratio_U.exp()
    below_U, above_U = ratio_U.detach() < 1 - low, ratio_U.detach() > 1 + high
    if settings.surrogate == "cispo":
        assert logprobs_U is not None, "CISPO weighs tokens"
        objective_U = cispo_objective(logprobs_U, ratio_U, advantages_U, low, high)
    else:
        objective_U = clip_objective(ratio_U, advantages_U, low, high)
        below_U, above_U = below_U & (advantages_U < 0), above_U & (advantages_U > 0)
    if log_weight_U is not None:
        objective_U = objective_U * importance_weight(settings, log_weight_U)
    return -(objective_U * scale_U).sum(), (below_U * tokens_U).sum(), (above_U * tokens_U).sum()


def importance_weight(settings: LossSettings, log_weight_U: Tensor) -> Tensor:
    """The behavior weight, cut at `is_cap`, or under `mis` zero outside ``[1 / is_cap, is_cap]``."""
    log_cap = math.log(settings.is_cap)
    if settings.correction == "mis":
        return log_weight_U.exp() * (log_weight_U.abs() <= log_cap)
    return log_weight_U.clamp(max=log_cap).exp()


def _check_shapes(
    logprobs_N: Tensor, behavior_logprobs_N: Tensor, advantages_n: Tensor, lengths_n: Tensor, loss_mask_N: Tensor
) -> None:
    for name, got in (("behavior_logprobs_N", behavior_logprobs_N), ("loss_mask_N", loss_mask_N)):
        if got.shape != logprobs_N.shape:
            raise ValueError(f"{name} must have shape {tuple(logprobs_N.shape)}, got {tuple(got.shape)}")
    if advantages_n.shape != lengths_n.shape or advantages_n.dim() != 1:
        want, got = tuple(lengths_n.shape), tuple(advantages_n.shape)
        raise ValueError(f"advantages_n must have shape {want} like lengths_n, got {got}")
    if loss_mask_N.dtype != torch.bool:
        raise ValueError(f"loss_mask_N must be bool, got {loss_mask_N.dtype}")
