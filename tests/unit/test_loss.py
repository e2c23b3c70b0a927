"""Losses and corrections against numbers one can check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from r1async.config import ConfigError, LossConfig
from r1async.learner.loss import (
    PRESETS,
    LossSettings,
    LossTerms,
    Totals,
    k3,
    policy_loss,
    resolve_loss,
    segment_mean,
    token_scale,
)
from torch import Tensor

ON_POLICY = LossSettings(correction="behavior_clip", clip_low=0.2, clip_high=0.2)


def loss_of(
    settings: LossSettings,
    ratios: list[list[float]],
    advantages: list[float],
    *,
    mask: list[list[bool]] | None = None,
    ref_ratios: list[list[float]] | None = None,
    behavior: float = -1.0,
    proximal_ratios: list[list[float]] | None = None,
) -> tuple[LossTerms, Tensor]:
    """Loss of rollouts whose tokens have these ratios current / behavior; the second value carries the gradient."""
    flat = torch.tensor([r for row in ratios for r in row], dtype=torch.float64)
    behavior_N = torch.full_like(flat, behavior)
    logprobs_N = (behavior_N + flat.log()).requires_grad_()
    mask_N = torch.tensor([m for row in mask for m in row]) if mask else torch.ones(len(flat), dtype=torch.bool)
    current_N = logprobs_N.detach()
    ref_N = proximal_N = None
    if ref_ratios is not None:
        ref_N = current_N + torch.tensor([r for row in ref_ratios for r in row], dtype=torch.float64).log()
    if proximal_ratios is not None:
        proximal_N = behavior_N + torch.tensor([r for row in proximal_ratios for r in row], dtype=torch.float64).log()
    totals = Totals(rollouts=len(ratios), loss_tokens=int(mask_N.sum()))
    lengths_n = torch.tensor([len(row) for row in ratios])
    terms = policy_loss(
        settings, logprobs_N, behavior_N, torch.tensor(advantages, dtype=torch.float64), lengths_n, mask_N, totals,
        proximal_logprobs_N=proximal_N, ref_logprobs_N=ref_N,
    )  # fmt: skip
    return terms, logprobs_N


def gradient(loss: Tensor, logprobs_N: Tensor) -> list[float]:
    (grad,) = torch.autograd.grad(loss, logprobs_N)
    return grad.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the clip range: d(r A)/d log p = r A
        (1.5, 2.0, -2.4, 0.0),  # pushed up too far: held at 1.2
        (0.5, 2.0, -1.0, -1.0),  # good token made unlikelier: never clipped
        (1.5, -2.0, 3.0, 3.0),  # bad token made likelier: the full penalty, never clipped
        (0.5, -2.0, 1.6, 0.0),  # bad token pushed down far enough: held at 0.8
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_ratio_is_clipped_only_where_it_would_help(ratio, advantage, expected, slope):
    terms, logprobs = loss_of(ON_POLICY, [[ratio]], [advantage])
    assert terms.policy.item() == pytest.approx(expected, abs=1e-12)
    assert gradient(terms.policy, logprobs) == pytest.approx([slope], abs=1e-12)


def test_clipped_tokens_are_counted_on_the_side_that_clipped_them():
    terms, _ = loss_of(ON_POLICY, [[1.5, 0.5, 1.0], [1.5, 0.5, 0.1]], [1.0, -1.0])
    assert (terms.clipped_low.item(), terms.clipped_high.item()) == (2, 1)


def test_grpo_averages_tokens_within_a_completion_and_then_completions():
    terms, _ = loss_of(PRESETS["grpo"], [[1.0, 1.0, 1.0, 1.0], [1.0]], [1.0, -3.0])
    # -(1/2)[ (1+1+1+1)/4 * 1 + (1)/1 * -3 ] = 1
    assert terms.policy.item() == pytest.approx(1.0, abs=1e-12)


def test_grpo_adds_the_k3_divergence_with_the_papers_coefficient():
    terms, logprobs = loss_of(PRESETS["grpo"], [[1.0, 1.0], [1.0]], [0.0, 0.0], ref_ratios=[[2.0, 1.0], [0.5]])
    first, second = (2 - math.log(2) - 1) / 2, 0.5 - math.log(0.5) - 1
    assert terms.kl.item() == pytest.approx((first + second) / 2, abs=1e-12)
    # d k3 / d log p = 1 - ref / current
    assert gradient(terms.kl, logprobs) == pytest.approx([(1 - 2) / 4, 0.0, (1 - 0.5) / 2], abs=1e-12)
    assert PRESETS["grpo"].kl_coef == 0.04


def test_r1_has_the_published_settings_and_clips_only_above_eleven():
    preset = PRESETS["r1"]
    assert (preset.ratio, preset.kl_coef, preset.ref_refresh_steps) == ("token", 0.001, 400)
    settings = resolve_loss(LossConfig(kind="r1"), "behavior_clip", 8)
    assert loss_of(settings, [[12.0]], [1.0])[0].policy.item() == pytest.approx(-11.0)
    assert loss_of(settings, [[1e-6]], [-1.0])[0].policy.item() == pytest.approx(1e-6)


def test_dapo_clips_higher_and_weighs_every_token_alike():
    settings = resolve_loss(LossConfig(kind="dapo"), "behavior_clip", 8)
    terms, _ = loss_of(settings, [[1.0, 1.0, 1.0], [1.5]], [1.0, 2.0])
    # -(3 * 1 + 1.28 * 2) / 4
    assert terms.policy.item() == pytest.approx(-(3 + 2.56) / 4, abs=1e-12)
    assert settings.kl_coef == 0


def test_dr_grpo_divides_by_a_constant_length():
    settings = resolve_loss(LossConfig(kind="dr_grpo"), "behavior_clip", 10)
    terms, _ = loss_of(settings, [[1.0, 1.0, 1.0], [1.0]], [1.0, 1.0])
    assert terms.policy.item() == pytest.approx(-4 / (2 * 10), abs=1e-12)


def test_gspo_has_one_ratio_per_rollout_the_geometric_mean():
    settings = LossSettings(ratio="sequence", clip_low=0.2, clip_high=0.2, correction="behavior_clip")
    terms, logprobs = loss_of(settings, [[4.0, 0.25], [1.21, 1.0]], [1.0, 2.0])
    # s_1 = sqrt(4 * 1/4) = 1, s_2 = sqrt(1.21) = 1.1; tokens alone would have been clipped
    assert terms.policy.item() == pytest.approx(-(1.0 + 2.2) / 2, abs=1e-12)
    # d s A / d log p_t = s A / |o|
    assert gradient(terms.policy, logprobs) == pytest.approx([-0.25, -0.25, -0.55, -0.55], abs=1e-12)


def test_gspo_clips_whole_rollouts_at_the_papers_range():
    settings = resolve_loss(LossConfig(kind="gspo"), "behavior_clip", 8)
    terms, logprobs = loss_of(settings, [[1.01, 1.01]], [1.0])
    assert terms.policy.item() == pytest.approx(-1.0004, abs=1e-12)
    assert gradient(terms.policy, logprobs) == [0.0, 0.0]
    assert terms.clipped_high.item() == 2


def test_cispo_bounds_the_weight_and_keeps_every_gradient():
    settings = resolve_loss(LossConfig(kind="cispo"), "behavior_clip", 8)
    terms, logprobs = loss_of(settings, [[9.0, 2.0, 0.1]], [3.0])
    # weights 5 (cut at 1 + 4), 2, 0.1; loss is -w A log p / tokens
    assert gradient(terms.policy, logprobs) == pytest.approx([-5.0, -2.0, -0.1], abs=1e-12)
    value = sum(w * 3.0 * (-1.0 + math.log(r)) for w, r in ((5.0, 9.0), (2.0, 2.0), (0.1, 0.1)))
    assert terms.policy.item() == pytest.approx(-value / 3, abs=1e-12)
    assert (terms.clipped_low.item(), terms.clipped_high.item()) == (0, 1)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        # gradient of each token: -weight * A / tokens, for ratios 8, 1.25, 0.25 and A = 3
        ("none", [-1.0, -1.0, -1.0]),
        ("behavior_clip", [0.0, 0.0, -0.25]),
        ("tis", [-2.0, -1.25, -0.25]),
        ("mis", [0.0, -1.25, 0.0]),
        ("decoupled", [-2.0, -1.25, -0.25]),
    ],
)
def test_corrections_weigh_lagging_tokens(correction, expected):
    settings = LossSettings(correction=correction, aggregation="token", is_cap=2.0)
    terms, logprobs = loss_of(settings, [[8.0, 1.25, 0.25]], [3.0])
    assert gradient(terms.policy, logprobs) == pytest.approx(expected, abs=1e-12)


def test_corrections_agree_when_the_policies_are_the_same():
    values = {
        correction: gradient(*_on_policy(correction))
        for correction in ("none", "behavior_clip", "tis", "mis", "decoupled")
    }
    for got in values.values():
        assert got == pytest.approx([-0.5, -0.5, 1.0], abs=1e-12)


def _on_policy(correction) -> tuple[Tensor, Tensor]:
    terms, logprobs = loss_of(LossSettings(correction=correction), [[1.0, 1.0], [1.0]], [2.0, -2.0])
    return terms.policy, logprobs


def test_decoupled_clips_around_the_proximal_policy_and_weighs_by_behavior():
    settings = LossSettings(correction="decoupled", is_cap=2.0)
    terms, logprobs = loss_of(settings, [[1.5], [3.0]], [1.0, 1.0], proximal_ratios=[[1.5], [2.0]])
    # first: ratio 1, weight 1.5; second: ratio 1.5 held at 1.2, weight 2
    assert terms.policy.item() == pytest.approx(-(1.5 + 1.2 * 2.0) / 2, abs=1e-12)
    assert gradient(terms.policy, logprobs) == pytest.approx([-0.75, 0.0], abs=1e-12)


def test_over_age_tokens_leave_the_loss_and_every_denominator_but_the_length():
    ratios, advantages = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0]], [1.0, 1.0]
    mask = [[False, False, True, True], [True, True]]
    by_completion, logprobs = loss_of(LossSettings(), ratios, advantages, mask=mask)
    # the first rollout's two tokens weigh 1/4 each, not 1/2
    assert gradient(by_completion.policy, logprobs) == pytest.approx([0, 0, -1 / 8, -1 / 8, -1 / 4, -1 / 4])
    by_token, logprobs = loss_of(LossSettings(aggregation="token"), ratios, advantages, mask=mask)
    assert gradient(by_token.policy, logprobs) == pytest.approx([0, 0, -1 / 4, -1 / 4, -1 / 4, -1 / 4])
    constant, logprobs = loss_of(LossSettings(aggregation="constant", max_tokens=5), ratios, advantages, mask=mask)
    assert gradient(constant.policy, logprobs) == pytest.approx([0, 0, -0.1, -0.1, -0.1, -0.1])


@pytest.mark.parametrize("aggregation", ["completion", "token", "constant"])
def test_on_policy_the_sequence_ratio_has_the_token_ratios_gradient(aggregation):
    """Also with over-age tokens: the suffix of a long rollout weighs the same under either ratio."""
    mask = [[False, True, True], [True, True, True, True], [False]]
    got = []
    for ratio in ("token", "sequence"):
        settings = LossSettings(ratio=ratio, aggregation=aggregation, max_tokens=7)
        terms, logprobs = loss_of(settings, [[1.0] * 3, [1.0] * 4, [1.0]], [1.0, -2.0, 5.0], mask=mask)
        got.append(gradient(terms.policy, logprobs))
    assert got[0] == pytest.approx(got[1], abs=1e-12)
    assert got[0][0] == 0
    assert got[0][-1] == 0


@pytest.mark.parametrize("kind", sorted(PRESETS))
@pytest.mark.parametrize("correction", ["none", "behavior_clip", "tis", "mis", "decoupled"])
def test_masked_infinities_and_overflowing_ratios_give_finite_gradients(kind, correction):
    settings = resolve_loss(LossConfig(kind=kind), correction, 8)
    logprobs_N = torch.tensor([-1.0, -300.0, -0.1, -0.5, -0.2], requires_grad=True)
    behavior_N = torch.tensor([-math.inf, -0.1, -300.0, math.nan, -0.3])
    ref_N = torch.tensor([math.inf, -0.1, -300.0, -math.inf, -0.3])
    mask_N = torch.tensor([False, True, True, False, True])
    terms = policy_loss(
        settings, logprobs_N, behavior_N, torch.tensor([1.0, -1.0]), torch.tensor([3, 2]), mask_N,
        Totals(rollouts=2, loss_tokens=3), ref_logprobs_N=ref_N,
    )  # fmt: skip
    (terms.policy + 0.1 * terms.kl).backward()
    assert logprobs_N.grad is not None
    assert torch.isfinite(logprobs_N.grad).all()
    assert torch.isfinite(terms.policy)
    assert logprobs_N.grad[~mask_N].tolist() == [0.0, 0.0]
    assert logprobs_N.grad[-1] != 0


@pytest.mark.parametrize("kind", sorted(PRESETS))
@pytest.mark.parametrize("correction", ["behavior_clip", "decoupled"])
def test_gradients_match_finite_differences(kind, correction):
    """cispo detaches its ratio by definition, so its loss is compared with that ratio held."""
    settings = resolve_loss(LossConfig(kind=kind), correction, 8)
    generator = torch.Generator().manual_seed(1)
    start_N = -torch.rand(9, generator=generator, dtype=torch.float64) - 0.1
    behavior_N = start_N + 0.02 * torch.randn(9, generator=generator, dtype=torch.float64)
    proximal_N = start_N + 0.02 * torch.randn(9, generator=generator, dtype=torch.float64)
    ref_N = start_N + 0.3 * torch.randn(9, generator=generator, dtype=torch.float64)
    mask_N = torch.tensor([True] * 7 + [False, True])

    def loss(logprobs_N: Tensor) -> Tensor:
        terms = policy_loss(
            settings, logprobs_N, behavior_N, torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64),
            torch.tensor([4, 2, 3]), mask_N, Totals(rollouts=3, loss_tokens=8),
            proximal_logprobs_N=proximal_N, ref_logprobs_N=ref_N,
        )  # fmt: skip
        return terms.policy + settings.kl_coef * terms.kl

    if settings.surrogate == "cispo":
        centre_N = behavior_N if correction == "behavior_clip" else proximal_N
        held_N = (start_N - centre_N).exp() * (1 if correction == "behavior_clip" else (proximal_N - behavior_N).exp())
        advantages_N = torch.tensor([0.7] * 4 + [-1.3] * 2 + [0.4] * 3, dtype=torch.float64)
        logprobs_N = start_N.clone().requires_grad_()
        assert gradient(loss(logprobs_N), logprobs_N) == pytest.approx((-held_N * advantages_N * mask_N / 8).tolist())
        return
    assert torch.autograd.gradcheck(loss, (start_N.clone().requires_grad_(),), atol=1e-7)


@pytest.mark.parametrize("kind", sorted(PRESETS))
def test_shares_of_micro_batches_add_up_to_the_whole_batch(kind):
    settings = resolve_loss(LossConfig(kind=kind), "behavior_clip", 8)
    generator = torch.Generator().manual_seed(2)
    lengths = [3, 1, 4, 2]
    logprobs_N = (-torch.rand(10, generator=generator, dtype=torch.float64)).requires_grad_()
    behavior_N = logprobs_N.detach() + 0.3 * torch.randn(10, generator=generator, dtype=torch.float64)
    advantages_n = torch.tensor([1.0, -0.5, 0.3, -2.0], dtype=torch.float64)
    mask_N = torch.rand(10, generator=generator) > 0.3
    totals = Totals(rollouts=4, loss_tokens=int(mask_N.sum()))

    def share(a: int, b: int) -> Tensor:
        tokens = slice(sum(lengths[:a]), sum(lengths[:b]))
        return policy_loss(
            settings, logprobs_N[tokens], behavior_N[tokens], advantages_n[a:b], torch.tensor(lengths[a:b]),
            mask_N[tokens], totals,
        ).policy  # fmt: skip

    whole, parts = share(0, 4), share(0, 1) + share(1, 3) + share(3, 4)
    assert whole.item() == pytest.approx(parts.item(), abs=1e-14)
    assert gradient(whole, logprobs_N) == pytest.approx(gradient(parts, logprobs_N), abs=1e-14)


def test_k3_is_zero_at_equality_and_where_masked():
    same = torch.tensor([-1.0, -2.0])
    assert k3(same, same, torch.tensor([True, True])).tolist() == [0.0, 0.0]
    assert k3(same, same + 1, torch.tensor([True, False])).tolist() == pytest.approx([math.e - 2, 0.0], rel=1e-6)


def test_segment_mean_divides_by_the_length_and_survives_an_empty_rollout():
    assert segment_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2, 0, 1])).tolist() == [2.0, 0.0, 5.0]


def test_token_scale_of_a_batch_without_loss_tokens_is_finite():
    for aggregation in ("completion", "token", "constant"):
        scale = token_scale(aggregation, torch.tensor([0.0]), Totals(rollouts=0, loss_tokens=0), 4)
        assert torch.isfinite(scale).all()


def test_overrides_replace_the_presets_values():
    loss = LossConfig(
        kind="grpo", clip_low=0.1, clip_high=0.3, aggregation="token", kl_coef=0.0, ref_refresh_steps=5, is_cap=3.0
    )
    assert resolve_loss(loss, "tis", 64) == LossSettings(
        clip_low=0.1, clip_high=0.3, aggregation="token", kl_coef=0.0, ref_refresh_steps=5, correction="tis",
        is_cap=3.0, max_tokens=64,
    )  # fmt: skip


def test_an_unresolved_correction_is_refused():
    with pytest.raises(ConfigError, match="auto"):
        resolve_loss(LossConfig(), "auto", 8)


def test_shapes_that_would_broadcast_are_refused():
    tokens, mask = torch.zeros(3), torch.ones(3, dtype=torch.bool)
    totals = Totals(rollouts=1, loss_tokens=3)
    with pytest.raises(ValueError, match="advantages_n"):
        policy_loss(LossSettings(), tokens, tokens, torch.zeros(1, 1), torch.tensor([3]), mask, totals)
    with pytest.raises(ValueError, match="behavior_logprobs_N"):
        policy_loss(LossSettings(), tokens, torch.zeros(1), torch.zeros(1), torch.tensor([3]), mask, totals)
    with pytest.raises(ValueError, match="bool"):
        policy_loss(LossSettings(), tokens, tokens, torch.zeros(1), torch.tensor([3]), tokens, totals)
