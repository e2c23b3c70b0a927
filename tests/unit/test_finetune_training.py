"""Fine-tuning: losses by hand and against plain torch, packing, and the order of the data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from r1async.config_finetune import LoraConfig, TrainConfig
from r1async.finetune.adapters import add_adapters, merged
from r1async.finetune.core import Finetuner
from r1async.finetune.objectives import BradleyTerry, CompletionLoss, Sequences, bradley_terry
from r1async.finetune.plan import Plan, micro_batches
from r1async.learner.schedule import lr_factor
from r1async.models.forward import packed_logprobs
from r1async.models.loading import load_scorer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tests.tiny_models import VOCABULARY, save_tiny, tiny_model


def small() -> PreTrainedModel:
    return tiny_model(hidden=32, mlp=48)


def sequences(seed: int, count: int, longest: int = 24) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random tokens; the learned ones may begin anywhere and have gaps, as turns of a conversation do."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        tokens = rng.integers(3, len(VOCABULARY), rng.integers(3, longest + 1)).astype(np.int32)
        learned = rng.random(len(tokens)) < 0.6
        learned[0], learned[-1] = False, True
        made.append((tokens, learned.astype(np.uint8)))
    return made


def plain_loss(model: torch.nn.Module, batch: Sequences) -> Tensor:
    """Mean cross-entropy over learned tokens, sequence by sequence, with nothing of ours."""
    losses, count = [], 0
    for tokens, learned in batch:
        ids = torch.from_numpy(tokens.astype(np.int64))
        labels = torch.where(torch.from_numpy(learned.astype(bool)), ids, -100)
        logits = model(ids.unsqueeze(0)).logits[0]
        losses.append(cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int(learned.sum())
    return torch.stack(losses).sum() / count


def test_loss_curve_is_that_of_a_loop_in_plain_torch_for_50_steps():
    settings = TrainConfig(lr=3e-3, warmup_ratio=0.1, weight_decay=0.01, micro_batch_tokens=96)
    core = Finetuner(small(), CompletionLoss(), settings, steps=50)
    reference = small().train()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    last = math.inf
    for step in range(50):
        batch = sequences(step % 2, 12)
        lengths = np.array([[len(tokens)] for tokens, _ in batch])
        (share,) = micro_batches(range(12), lengths, ranks=1, tokens=96, padded=True)
        got = core.step([[batch[i] for i in part] for part in share])
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * lr_factor("cosine", step, warmup_steps=5, steps=50)
        optimizer.zero_grad()
        loss = plain_loss(reference, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        last = got["loss"]
        assert last == pytest.approx(loss.item(), abs=1e-5), step
    assert last < 3.2  # below the 3.5 nats of 34 equal tokens: two batches were being learned by heart


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_packed_is_what_one_by_one_gives(layout):
    model = small().train()
    batch = sequences(3, 7)
    tokens = torch.from_numpy(np.concatenate([tokens for tokens, _ in batch]))
    learned = torch.from_numpy(np.concatenate([learned for _, learned in batch])).bool()
    bounds = torch.tensor([0, *np.cumsum([len(tokens) for tokens, _ in batch])])
    packed = -packed_logprobs(model, tokens, bounds, layout=layout).logprobs_T[learned].mean()
    single = plain_loss(model, batch)
    assert packed.item() == pytest.approx(single.item(), abs=1e-5)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (packed, single)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_a_step_does_not_depend_on_how_it_is_cut_into_passes():
    batch, weights = sequences(5, 8), []
    for passes in ([batch], [batch[:3], batch[3:]], [[each] for each in batch]):
        core = Finetuner(small(), CompletionLoss(), TrainConfig(lr=1e-3), steps=10)
        core.step(passes)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in core.model.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert torch.allclose(weights[0], weights[2], atol=1e-6)


def test_learned_tokens_have_a_loss_and_no_other():
    """A change of what is not learned, behind the last learned token, changes nothing."""
    model = small()
    tokens = np.array([1, 8, 9, 10, 11], np.int32)
    learned = np.array([0, 0, 1, 0, 0], np.uint8)
    expected = -torch.log_softmax(model(torch.tensor([[1, 8]])).logits[0, -1], -1)[9].item()
    for last in (11, 20):
        tokens[-1] = last
        loss = CompletionLoss().loss(model, [(tokens, learned)], torch.device("cpu"))
        assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "right"),
    [
        (1.0, 0.0, 0.3132617, 1.0),  # log(1 + e^-1)
        (0.0, 1.0, 1.3132617, 0.0),  # log(1 + e)
        (2.0, 2.0, math.log(2), 0.5),  # a tie says nothing
        (50.0, -50.0, 0.0, 1.0),
        (-50.0, 50.0, 100.0, 0.0),  # no overflow
    ],
)
def test_bradley_terry_by_hand(chosen, rejected, loss, right):
    got = bradley_terry(torch.tensor([chosen]), torch.tensor([rejected])).tolist()
    assert got == pytest.approx([loss, right, chosen - rejected, (chosen + rejected) / 2], abs=1e-6)


def test_gradient_of_bradley_terry_is_the_sigmoid_of_the_margin():
    chosen, rejected = torch.tensor([0.3], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    bradley_terry(chosen, rejected)[0].backward()
    wrong = 1 / (1 + math.exp(0.3 - 1.0))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-wrong, wrong))


def test_a_reward_does_not_depend_on_what_it_is_padded_beside(tmp_path):
    model = load_scorer(save_tiny(tmp_path / "m", hidden=32, mlp=48), pad=0, seed=1)
    pair, longer = sequences(1, 2, longest=8), sequences(2, 2)
    objective = BradleyTerry(pad=0)
    with torch.no_grad():
        alone = objective.loss(model, pair, torch.device("cpu"))
        beside = objective.loss(model, [*pair, *longer], torch.device("cpu"))
        others = objective.loss(model, longer, torch.device("cpu"))
    assert torch.allclose(alone + others, beside, atol=1e-5)
    head = model(input_ids=torch.from_numpy(pair[0][0]).long().unsqueeze(0)).logits
    assert head.shape == (1, 1)


def test_every_row_once_an_epoch_in_an_order_of_its_own():
    plan = Plan(examples=10, batch_size=4, epochs=2, max_steps=0, seed=3, shuffle=True)
    assert (plan.steps_per_epoch, plan.steps) == (3, 6)
    epochs = [np.concatenate([plan.examples_of(step) for step in range(start, start + 3)]) for start in (0, 3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    again = Plan(examples=10, batch_size=4, epochs=2, max_steps=5, seed=3, shuffle=True)
    assert again.steps == 5
    assert again.examples_of(4).tolist() == plan.examples_of(4).tolist()
    in_order = Plan(examples=5, batch_size=4, epochs=1, max_steps=0, seed=3, shuffle=False)
    assert [in_order.examples_of(step).tolist() for step in (0, 1)] == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_passes_hold_every_example_once_within_the_limit_and_as_many_on_each_rank(ranks, padded):
    lengths = np.random.default_rng(0).integers(2, 30, (40, 2))
    shares = micro_batches(range(40), lengths, ranks=ranks, tokens=128, padded=padded)
    assert sorted(i for share in shares for part in share for i in part) == list(range(40))
    assert len({len(share) for share in shares}) == 1
    for part in (part for share in shares for part in share if part):
        used = len(part) * 2 * lengths[part].max() if padded else lengths[part].sum()
        assert used <= 128


def test_adapters_train_alone_and_are_merged_for_export(tmp_path: Path):
    """One step moves no frozen weight; the merged model answers as the adapted one does."""
    lora = LoraConfig(rank=2, alpha=4)
    model = small()
    adapted = add_adapters(model, lora, seed=0)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    core = Finetuner(model, CompletionLoss(), TrainConfig(lr=1e-2), steps=3)
    for step in range(3):
        core.step([sequences(step, 4)])
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    ids = torch.tensor([[1, 8, 9, 10]])
    expected = model(ids).logits
    plain = merged(add_adapters(small(), lora, seed=0), trained, tmp_path / "adapter")
    assert torch.allclose(plain(ids).logits, expected, atol=1e-5)
    assert not torch.allclose(small()(ids).logits, expected, atol=1e-3)
    assert not [name for name in plain.state_dict() if "lora" in name]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert adapted is not None


def test_head_of_a_reward_model_is_trained_beside_its_adapters(tmp_path: Path):
    model = load_scorer(save_tiny(tmp_path / "m", hidden=32, mlp=48), pad=0, seed=1)
    add_adapters(model, LoraConfig(rank=2), seed=0)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "score.weight" in names
    assert all("lora" in name for name in names - {"score.weight"})
