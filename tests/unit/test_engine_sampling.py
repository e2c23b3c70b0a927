"""Noise by counter, the inverse of the cumulative distribution, temperature, top-k and top-p."""

import math

import numpy as np
import pytest
import r1async.generator.sampling as sampling_module
import torch
from r1async.generator.engine import check_sampling
from r1async.generator.sampling import RowSettings, keep_top, rollout_keys, sample, uniforms
from r1async.types import Sampling


def settings_of(*rows: Sampling) -> RowSettings:
    settings = RowSettings.empty(len(rows))
    for row, sampling in enumerate(rows):
        settings.set(row, sampling)
    return settings


def plain(**changes: float) -> Sampling:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 8, "greedy": False, **changes}
    return Sampling(
        temperature=float(values["temperature"]),
        top_p=float(values["top_p"]),
        top_k=int(values["top_k"]),
        max_tokens=int(values["max_tokens"]),
        greedy=bool(values["greedy"]),
    )


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_noise_is_the_splitmix64_sequence_of_its_key():
    # First outputs of splitmix64 from seed 1234567, as Vigna's reference implementation prints them.
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    key = np.full(3, 1234567, np.uint64)
    assert uniforms(key, np.arange(3)).tolist() == [(x >> 12) * 2.0**-52 for x in reference]


def test_noise_depends_on_seed_rollout_and_position_and_fills_the_unit_interval():
    keys = np.concatenate([rollout_keys(seed, np.arange(64)) for seed in (0, 1)])
    assert len(set(keys.tolist())) == 128
    noise = np.stack([uniforms(keys, np.full(128, position)) for position in range(64)])
    assert len(np.unique(noise)) == noise.size
    assert noise.min() >= 0
    assert noise.max() < 1
    # 8192 draws: the mean of a uniform is within four standard errors of one half.
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * noise.size)


def test_evaluation_rollouts_with_bit_62_set_have_keys_of_their_own():
    numbers = np.array([5, 5 | (1 << 62)], np.int64)
    assert len(set(rollout_keys(0, numbers).tolist())) == 2


@pytest.mark.parametrize(
    ("uniform", "token"),
    [
        (0.0, 0),
        (0.0999, 0),  # cumulative: 0.1, 0.3, 0.6, 1.0
        (0.1001, 1),
        (0.4, 2),
        (0.95, 3),
    ],
)
def test_token_is_the_first_whose_cumulative_probability_exceeds_the_noise(uniform, token):
    tokens, logprobs = sample(logits_of(0.1, 0.2, 0.3, 0.4), settings_of(plain()), np.array([uniform]))
    assert tokens.tolist() == [token]
    assert logprobs.item() == pytest.approx(math.log([0.1, 0.2, 0.3, 0.4][token]), abs=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-52])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    tokens, logprobs = sample(logits, settings_of(plain()), np.array([uniform]))
    assert tokens.item() in (1, 3)
    assert math.isfinite(logprobs.item())


def test_temperature_divides_the_logits_and_the_logprob_is_of_that_distribution():
    # logits 0 and ln 4 at temperature 2: probabilities 1/3 and 2/3.
    tokens, logprobs = sample(torch.tensor([[0.0, math.log(4)]]), settings_of(plain(temperature=2.0)), np.array([0.5]))
    assert tokens.item() == 1
    assert logprobs.item() == pytest.approx(math.log(2 / 3), abs=1e-6)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [1, 2]),
        (1, 1.0, [1]),
        (9, 1.0, [0, 1, 2, 3]),  # more than there are
        (0, 0.5, [1]),  # 0.5 is reached by the likeliest alone
        (0, 0.51, [1, 2]),
        (0, 0.81, [0, 1, 2]),
        (0, 1e-9, [1]),  # never none
        (2, 0.7, [1, 2]),  # top-p over what top-k left: 0.5 / 0.8 is below 0.7
        (2, 0.6, [1]),
    ],
)
def test_top_k_then_top_p_keep(top_k, top_p, kept):
    logits = logits_of(0.15, 0.5, 0.3, 0.05)
    out = keep_top(logits, torch.tensor([top_k]), torch.tensor([top_p], dtype=torch.float64))
    assert torch.isfinite(out[0]).nonzero().flatten().tolist() == kept
    assert torch.equal(out[0, kept], logits[0, kept])


def test_top_k_keeps_ties_with_the_kth():
    out = keep_top(logits_of(0.2, 0.3, 0.3, 0.2), torch.tensor([1]), torch.tensor([1.0], dtype=torch.float64))
    assert torch.isfinite(out[0]).nonzero().flatten().tolist() == [1, 2]


def test_logprob_after_top_k_is_renormalised():
    tokens, logprobs = sample(logits_of(0.15, 0.5, 0.3, 0.05), settings_of(plain(top_k=2)), np.array([0.99]))
    assert tokens.item() == 2
    assert logprobs.item() == pytest.approx(math.log(0.3 / 0.8), abs=1e-6)


def test_greedy_takes_the_likeliest_with_logprob_zero_and_ignores_temperature():
    rows = settings_of(plain(greedy=True, temperature=0.0), plain())
    tokens, logprobs = sample(logits_of(0.1, 0.2, 0.7).repeat(2, 1), rows, np.array([0.0, 0.0]))
    assert tokens.tolist() == [2, 0]
    assert logprobs[0].item() == 0.0
    assert logprobs[1].item() == pytest.approx(math.log(0.1), abs=1e-6)


@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_finite_give_a_logprob_that_shows_it(greedy):
    _, logprobs = sample(torch.tensor([[0.0, torch.nan]]), settings_of(plain(greedy=greedy)), np.array([0.5]))
    assert math.isnan(logprobs.item())


def test_a_row_has_the_same_bits_alone_among_others_and_in_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 50, generator=generator)
    rows = [plain(), plain(top_p=0.9), plain(temperature=0.7), plain(top_k=5), plain(greedy=True), plain(), plain()]
    noise = np.random.default_rng(0).random(7)
    together = sample(logits.clone(), settings_of(*rows), noise)
    for i, row in enumerate(rows):
        alone = sample(logits[i : i + 1].clone(), settings_of(row), noise[i : i + 1])
        assert torch.equal(alone[0], together[0][i : i + 1])
        assert torch.equal(alone[1], together[1][i : i + 1])
    monkeypatch.setattr(sampling_module, "_BLOCK_ELEMENTS", 100)  # two rows a block
    blocks = sample(logits.clone(), settings_of(*rows), noise)
    assert torch.equal(blocks[0], together[0])
    assert torch.equal(blocks[1], together[1])


def test_frequencies_are_the_probabilities():
    probabilities, draws = np.array([0.1, 0.2, 0.3, 0.4]), 20_000
    noise = uniforms(rollout_keys(3, np.arange(draws)), np.zeros(draws, np.int64))
    tokens, _ = sample(logits_of(*probabilities).repeat(draws, 1), settings_of(*[plain()] * draws), noise)
    shares = np.bincount(tokens.numpy(), minlength=4) / draws
    assert np.all(np.abs(shares - probabilities) < 4 * np.sqrt(probabilities * (1 - probabilities) / draws))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, name):
    with pytest.raises(ValueError, match=name):
        check_sampling(plain(**changes))
