"""LearnerCore: what one optimizer step does, without sockets."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from r1async.config import LearnerConfig
from r1async.learner.core import LearnerCore, NotFiniteError
from r1async.learner.loss import PRESETS, LossSettings, Totals, policy_loss
from r1async.models.forward import packed_logprobs
from r1async.types import Batch

from tests.learner_batches import make_batch, parts_of, take
from tests.tiny_models import tiny_model

SETTINGS = LearnerConfig(lr=1e-3)
LOSS = LossSettings(correction="behavior_clip", clip_high=0.28, aggregation="token")


def core_of(
    loss: LossSettings = LOSS, settings: LearnerConfig = SETTINGS, *, steps: int = 100, publish_every: int = 1
) -> LearnerCore:
    return LearnerCore(
        tiny_model(hidden=32, mlp=48, scale=0.1), loss, settings, steps=steps, publish_every=publish_every
    )


def weights(core: LearnerCore) -> torch.Tensor:
    return torch.cat([parameter.detach().ravel() for parameter in core.model.parameters()])


def gradients(core: LearnerCore) -> torch.Tensor:
    return torch.cat([p.grad.ravel() for p in core.model.parameters() if p.grad is not None])


def test_a_step_is_adamw_on_the_loss_of_the_formula():
    """The same step by hand: one rollout at a time, torch.optim.AdamW as it comes."""
    core, batch = core_of(settings=replace(SETTINGS, max_grad_norm=0.5, weight_decay=0.1)), make_batch(max_staleness=2)
    model = copy.deepcopy(core.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    loss = torch.zeros(())
    for i in range(8):
        one = take(batch, [i])
        tokens = torch.from_numpy(one.token_ids)
        scored = packed_logprobs(model, tokens, torch.from_numpy(one.cu_seqlens), temperature=1.0).logprobs_T[5:]
        ratio = (scored - torch.from_numpy(one.behavior_logprobs[5:])).exp()
        advantage = float(one.advantages[0])
        kept = torch.from_numpy(np.repeat(one.over_age == 0, one.run_lengths))
        objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        loss = loss - (objective * kept).sum() / batch.total_loss_tokens
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    metrics = core.step(batch)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    torch.testing.assert_close(dict(core.model.named_parameters()), dict(model.named_parameters()), atol=2e-6, rtol=0)
    assert core.version == 1


@pytest.mark.parametrize("kind", sorted(PRESETS))
def test_accumulation_over_micro_batches_equals_one_big_batch(kind):
    loss = replace(PRESETS[kind], correction="behavior_clip", max_tokens=8)
    batch = make_batch(groups=3, group_size=4, max_staleness=2, over_age=1)
    whole, split = core_of(loss), core_of(loss)
    one = whole.step(batch)
    many = split.step(replace(batch, micro_batches=((0, 1), (1, 1), (1, 7), (7, 12))))
    assert one["loss"] == pytest.approx(many["loss"], abs=1e-6)
    assert one["is/ess"] == pytest.approx(many["is/ess"], abs=1e-6)
    assert one["grad_norm"] == pytest.approx(many["grad_norm"], rel=1e-4)
    torch.testing.assert_close(gradients(whole), gradients(split), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(PRESETS))
def test_a_batch_that_comes_in_parts_trains_like_the_whole(kind):
    loss = replace(PRESETS[kind], correction="behavior_clip", max_tokens=8)
    batch = make_batch(groups=3, group_size=4, max_staleness=2, over_age=1)
    whole, streamed = core_of(loss), core_of(loss)
    streamed.accumulate(parts_of(batch, 8)[0])  # the batch of a life that got no further: begun again, forgotten
    one = whole.step(batch)
    for part in parts_of(batch, 4, 8, 12):
        streamed.accumulate(part)
    many = streamed.update()
    assert many["parts"] == 4  # the last one is empty
    assert set(one) == set(many)
    for name in set(one) - {"parts", "cpu_s", "step_s", "prepare_s", "forward_s", "backward_s", "optimizer_s"}:
        assert one[name] == pytest.approx(many[name], abs=1e-6, rel=1e-4), name
    assert whole.staleness == streamed.staleness
    torch.testing.assert_close(gradients(whole), gradients(streamed), atol=1e-6, rtol=1e-4)


def test_parts_out_of_order_are_refused_and_no_batch_is_no_step():
    core = core_of()
    first, second, third = parts_of(make_batch(groups=3), 4, 8)
    with pytest.raises(ValueError, match="step 0 has no batch yet"):
        core.update()
    core.accumulate(first)
    with pytest.raises(ValueError, match="the next part of step 0 is 1, got 2"):
        core.accumulate(third)
    core.accumulate(second)
    assert core.version == 0


def test_the_same_batches_give_the_same_bits():
    first, second = core_of(), core_of()
    for step in range(3):
        batch = make_batch(step=step, max_staleness=1, micro_batches=2)
        assert first.step(batch)["loss"] == second.step(batch)["loss"]
    assert torch.equal(weights(first), weights(second))


def test_temperature_divides_the_logits_as_it_did_when_sampling():
    hot, cold = core_of(), core_of()
    batch = make_batch()
    assert hot.step(batch)["entropy"] < cold.step(replace(batch, temperature=4.0))["entropy"]
    assert cold.version == 1


def test_sampled_by_these_very_weights_the_ratio_is_one():
    core = core_of()
    batch = on_policy(core, make_batch())
    metrics = core.step(batch)
    assert metrics["is/ess"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["mismatch/max"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["mismatch/tokens"] == batch.total_completion_tokens
    assert metrics["clip_fraction"] == 0
    assert metrics["kl/behavior"] == pytest.approx(0.0, abs=1e-6)


def on_policy(core: LearnerCore, batch: Batch) -> Batch:
    """The batch with the behavior logprobs that the core's own weights give."""
    with torch.no_grad():
        scored = packed_logprobs(
            core.model,
            torch.from_numpy(batch.token_ids),
            torch.from_numpy(batch.cu_seqlens),
            prompt_lens=torch.from_numpy(batch.prompt_lens),
        )
    return replace(batch, behavior_logprobs=scored.logprobs_T.numpy())


def test_a_batch_of_equal_rewards_moves_nothing():
    core = core_of()
    before = weights(core)
    core.step(replace(make_batch(), advantages=np.zeros(8, np.float32)))
    assert torch.equal(weights(core), before)


def test_a_batch_of_another_step_is_refused():
    with pytest.raises(ValueError, match="next step is 0, got a batch of step 3"):
        core_of().step(make_batch(step=3))


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    core = core_of()
    before = weights(core)
    with pytest.raises(NotFiniteError, match="step 0"):
        core.step(replace(make_batch(), advantages=np.full(8, math.nan, np.float32)))
    assert torch.equal(weights(core), before)
    assert core.version == 0


def test_the_schedule_sets_the_learning_rate_of_each_step():
    core = core_of(settings=replace(SETTINGS, schedule="linear", warmup_steps=1), steps=5)
    rates = [core.step(make_batch(step=step))["lr"] for step in range(5)]
    assert rates == pytest.approx([5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_the_reference_is_loaded_only_for_a_kl_and_refreshed_every_n_steps():
    assert core_of().reference is None
    core = core_of(replace(LOSS, kl_coef=0.1, ref_refresh_steps=2))
    kl = [core.step(make_batch(step=step))["kl/ref"] for step in range(4)]
    assert kl[0] == pytest.approx(0.0, abs=1e-7)
    assert kl[1] > 0
    assert kl[2] == pytest.approx(0.0, abs=1e-7)
    assert kl[3] > 0


def test_the_reference_pulls_the_policy_back():
    free, held = core_of(LOSS), core_of(replace(LOSS, kl_coef=100.0))
    batches = [make_batch(step=step, groups=4) for step in range(4)]
    for batch in batches:
        free.step(batch)
        held.step(batch)
    start = torch.cat([p.ravel() for p in tiny_model(hidden=32, mlp=48, scale=0.1).parameters()])
    assert (weights(held) - start).norm() < (weights(free) - start).norm()


def test_decoupled_centres_on_the_weights_last_published():
    """Published every second step: in the second one the ratio is taken to weights one step older."""
    loss = replace(LOSS, correction="decoupled")
    assert core_of(loss).proximal is None
    core, plain = core_of(loss, publish_every=2), core_of(replace(LOSS, correction="tis"))
    first, second = make_batch(step=0), make_batch(step=1)
    assert core.step(first)["loss"] == pytest.approx(plain.step(first)["loss"], abs=1e-6)
    assert core.proximal is not None
    start = tiny_model(hidden=32, mlp=48, scale=0.1)
    proximal, current = (_logprobs(model, second) for model in (start, core.model))
    expected = policy_loss(
        loss, current, _completions(second, second.behavior_logprobs), torch.from_numpy(second.advantages),
        torch.from_numpy(np.diff(second.cu_seqlens) - second.prompt_lens).long(),
        torch.ones(len(current), dtype=torch.bool), Totals(rollouts=8, loss_tokens=second.total_loss_tokens),
        proximal_logprobs_N=proximal,
    ).policy.item()  # fmt: skip
    assert core.step(second)["loss"] == pytest.approx(expected, abs=1e-6)
    core.published()
    own = torch.cat([parameter.ravel() for parameter in core.proximal.model.parameters()])
    assert torch.equal(own, weights(core))


def _completions(batch: Batch, values: np.ndarray) -> torch.Tensor:
    keep = np.concatenate([np.arange(size) >= 5 for size in np.diff(batch.cu_seqlens)])
    return torch.from_numpy(values[keep])


@torch.no_grad()
def _logprobs(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    scored = packed_logprobs(model, torch.from_numpy(batch.token_ids), torch.from_numpy(batch.cu_seqlens))
    return _completions(batch, scored.logprobs_T.numpy())


def test_gradient_checkpointing_changes_no_gradient():
    plain, saved = core_of(), core_of(settings=replace(SETTINGS, gradient_checkpointing=True))
    batch = make_batch(micro_batches=2)
    assert plain.step(batch)["loss"] == saved.step(batch)["loss"]
    torch.testing.assert_close(gradients(plain), gradients(saved), atol=1e-7, rtol=0)


def test_bfloat16_autocast_is_near_float32():
    plain, half = core_of(), core_of(settings=replace(SETTINGS, autocast=True))
    batch = make_batch()
    exact, rounded = plain.step(batch)["loss"], half.step(batch)["loss"]
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.02)


def test_dropout_is_off_although_the_model_trains():
    model = tiny_model(hidden=32, mlp=48, attention_dropout=0.5)
    first = LearnerCore(copy.deepcopy(model), LOSS, SETTINGS, steps=10)
    second = LearnerCore(model, LOSS, SETTINGS, steps=10)
    assert first.model.training
    assert first.step(make_batch())["loss"] == second.step(make_batch())["loss"]


def test_seconds_of_a_step_are_named_and_add_up():
    metrics = core_of().step(make_batch())
    parts = [metrics[f"{name}_s"] for name in ("prepare", "forward", "backward", "optimizer")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= metrics["step_s"] * 1.001
