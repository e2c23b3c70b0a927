"""The cold start: what it imitates, when it stops, and what it leaves behind. Whole trainings are made small."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from r1async.config import ColdStartConfig, Config, ConfigError, DataConfig
from r1async.models.loading import load_model, load_tokenizer, stop_token_ids
from r1async.recipes import cold_start as recipe
from r1async.tasks import chain_mod
from r1async.tasks.source import open_source
from torch.nn.functional import cross_entropy


@pytest.fixture
def quick(tmp_path: Path) -> ColdStartConfig:
    """A criterion that holds at the first look."""
    return ColdStartConfig(
        enabled=True, target_accuracy=0.0, max_steps=4, eval_every=2, batch_size=8, cache_dir=str(tmp_path / "cache")
    )


def make(settings: ColdStartConfig, seed: int = 0) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return recipe.cold_start(settings, seed, threads=1, report=lines.append), lines


def test_model_has_the_specified_size_and_head():
    model = recipe.make_model(0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 101_056
    config = model.config
    assert (config.hidden_size // config.num_attention_heads, config.num_key_value_heads) == (32, 1)
    assert config.to_dict()["rope_parameters"]["rope_theta"] == 10_000.0
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_loss_is_over_completion_tokens_and_blind_to_padding():
    model = recipe.make_model(3)
    pairs = [
        ([1, *chain_mod.encode("1+1=")], [*chain_mod.encode("<answer>2</answer>"), 2]),
        ([1, *chain_mod.encode("5-4*2=")], [*chain_mod.encode("<think>5,1,2</think><answer>2</answer>"), 2]),
    ]
    losses = []
    for prompt, completion in pairs:
        ids = torch.tensor([prompt + completion])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(completion), reduction="sum"))
    expected = torch.stack(losses).sum().item() / sum(len(completion) for _, completion in pairs)
    assert recipe.imitation_loss(model, recipe.pad(pairs)).item() == pytest.approx(expected, abs=1e-6)


def test_batches_hold_the_demonstrations_in_order():
    batch = next(recipe.batches(seed=5, batch_size=4))
    for row, mask, (prompt, completion) in zip(
        batch.token_ids, batch.loss_mask, islice(chain_mod.demonstrations(5), 4), strict=True
    ):
        learned = row[mask].tolist()
        assert learned == [*chain_mod.encode(completion), chain_mod.EOS]
        assert row[: len(prompt) + 1].tolist() == [chain_mod.BOS, *chain_mod.encode(prompt)]
        assert set(row[len(prompt) + 1 + len(learned) :].tolist()) <= {chain_mod.PAD}


def test_greedy_texts_take_the_likeliest_token_until_the_end():
    model = recipe.make_model(1)
    rng = random.Random(0)
    prompts = [[chain_mod.BOS, *chain_mod.encode(chain_mod.draw(rng).text)] for _ in range(5)]
    expected = [list(prompt) for prompt in prompts]
    for tokens in expected:
        while len(tokens) < len(prompts[0]) + recipe.MAX_NEW_TOKENS and tokens[-1] != chain_mod.EOS:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    texts = ["".join(chain_mod.VOCABULARY[t] for t in tokens[len(prompts[0]) :]) for tokens in expected]
    assert recipe.greedy_texts(model, prompts) == [text.removesuffix("<eos>") for text in texts]


def test_accuracy_counts_right_answers_of_thoughts(monkeypatch: pytest.MonkeyPatch):
    problems = list(islice(chain_mod.problems(random.Random(0), held_out=False), 4))
    right = [f"1</think><answer>{problem.answer}</answer>" for problem in problems]
    asked: list[list[int]] = []

    def greedy(model: object, prompts: list[list[int]]) -> list[str]:
        asked.extend(prompts)
        return [*right[:3], "<answer>none</answer>"]

    monkeypatch.setattr(recipe, "greedy_texts", greedy)
    assert recipe.thinking_accuracy(recipe.make_model(0), problems) == 0.75
    assert all(prompt[-1] == chain_mod.encode("<think>")[0] for prompt in asked)


def test_checkpoint_loads_like_any_other(quick: ColdStartConfig):
    folder, lines = make(quick)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 101_056
    assert stop_token_ids(folder, tokenizer) == (chain_mod.EOS,)
    record = json.loads((folder / "cold_start.json").read_text())
    assert (record["steps"], record["samples"], record["seed"]) == (2, 16, 0)
    assert {"accuracy", "wall_s", "cpu_s", "loss"} <= record.keys()
    assert any("step 2" in line and "dev accuracy" in line for line in lines)
    source = open_source(Config(data=DataConfig(task="chain-mod", template="none")), folder)
    assert source.prompt(0).token_ids[0] == chain_mod.BOS


def test_same_settings_and_seed_are_taken_from_the_cache(quick: ColdStartConfig, monkeypatch: pytest.MonkeyPatch):
    first, _ = make(quick)
    monkeypatch.setattr(recipe, "train", lambda *_: pytest.fail("trained again"))
    again, lines = make(quick)
    assert again == first
    assert "taken from" in lines[0]


def test_cache_key_knows_everything_that_decides_the_model(quick: ColdStartConfig, monkeypatch: pytest.MonkeyPatch):
    from dataclasses import replace

    key = recipe.cache_key(quick, 0)
    assert recipe.cache_key(replace(quick, cache_dir="elsewhere"), 0) == key
    others = [recipe.cache_key(quick, 1), recipe.cache_key(replace(quick, lr=1e-3), 0)]
    monkeypatch.setattr(recipe, "RECIPE", recipe.RECIPE + 1)
    others.append(recipe.cache_key(quick, 0))
    assert len({key, *others}) == 4


def test_same_seed_makes_the_same_weights(quick: ColdStartConfig, tmp_path: Path):
    from dataclasses import replace

    one, _ = make(quick)
    two, _ = make(replace(quick, cache_dir=str(tmp_path / "other")))
    first, second = load_model(one).state_dict(), load_model(two).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_criterion_not_reached_is_an_error_and_leaves_nothing(quick: ColdStartConfig):
    from dataclasses import replace

    hard = replace(quick, target_accuracy=1.0)
    with pytest.raises(
        ConfigError,
        match=r"cold_start\.max_steps=4: dev accuracy is 0\.\d+ at best in 3 attempts, .*target_accuracy=1\.0",
    ):
        make(hard)
    assert not Path(hard.cache_dir).exists()


def test_failure_while_saving_leaves_no_half_checkpoint(quick: ColdStartConfig):
    place = Path(quick.cache_dir) / f"chain-mod-{recipe.cache_key(quick, 0)}"
    place.parent.mkdir()
    place.write_text("a file is in the way")
    with pytest.raises(NotADirectoryError):
        make(quick)
    assert list(place.parent.iterdir()) == [place]


def test_training_learns_the_notation():
    """Thirty steps: far from arithmetic, but the next token is no longer a guess among 34 (3.53 nats)."""
    settings = ColdStartConfig(enabled=True, target_accuracy=0.0, max_steps=30, eval_every=30, batch_size=32)
    assert recipe.train(settings, seed=0, report=lambda line: None).loss < 1.7
