"""The embedded engine's promises: the same bits in any company, resuming, chunks, aborting, limits, two weight sets."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import r1async.generator.torch_engine as engine_module
import torch
from r1async.generator.decoder import Decoder, bucket
from r1async.generator.engine import EngineError
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion, Sampling, VersionRun

from tests.engine_runs import (
    EOS,
    PLAIN,
    V0,
    Outcome,
    Request,
    chosen,
    collect,
    drive,
    full_logprobs,
    make_engine,
    random_prompt,
)
from tests.tiny_models import tiny_model

V1 = PolicyVersion(1, 1)
KV_HEADS = [1, 2]


def crowd(rng: np.random.Generator, n: int, *, first: int = 1000) -> list[Request]:
    """Requests of every kind: lengths 1 to 30, plain, greedy, filtered, hot."""
    kinds = [
        PLAIN,
        replace(PLAIN, greedy=True),
        replace(PLAIN, top_p=0.8),
        replace(PLAIN, temperature=0.6, max_tokens=30),
        replace(PLAIN, top_k=4, max_tokens=3),
    ]
    kind = itertools.cycle(kinds)
    return [
        Request(
            id=first + i,
            rollout=first + i,
            prompt_ids=random_prompt(rng, int(rng.integers(1, 31))),
            sampling=next(kind),
        )
        for i in range(n)
    ]


def bits(outcome: Outcome) -> tuple[list[int], bytes]:
    return outcome.tokens, np.array(outcome.logprobs, np.float32).tobytes()


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_tokens_and_logprobs_are_bitwise_the_same_in_any_company(architecture, kv_heads):
    model = tiny_model(architecture, heads=4, kv_heads=kv_heads)
    rng = np.random.default_rng(0)
    mine = [Request(id=i, rollout=i, prompt_ids=random_prompt(rng, 5 + 4 * i), sampling=PLAIN) for i in range(4)]
    single = make_engine(model)
    alone = {request.id: drive(single, [request])[request.id] for request in mine}
    others = crowd(rng, 56)
    # First of 60; last of 60; and seated while others are already decoding, among rows that come and go.
    for requests in ([*mine, *others], [*others, *mine]):
        together = drive(make_engine(model, slots=64), requests)
        assert all(bits(together[i]) == bits(alone[i]) for i in alone)
    engine = make_engine(model, slots=64)
    engine.submit(others)
    late = collect(engine, at={3: lambda: engine.submit(mine[:2]), 5: lambda: engine.submit(mine[2:])})
    assert all(bits(late[i]) == bits(alone[i]) for i in alone)


def test_where_bits_depend_on_the_width_the_engine_always_computes_at_full_width(monkeypatch):
    monkeypatch.setattr(engine_module, "rows_are_independent", lambda *_: False)
    widths = set()
    decode = Decoder.decode

    def spy(self, weights, cache, tokens, positions, columns):
        widths.add((len(tokens), columns))
        return decode(self, weights, cache, tokens, positions, columns)

    monkeypatch.setattr(Decoder, "decode", spy)
    model, rng = tiny_model(), np.random.default_rng(0)
    one = Request(id=1, rollout=1, prompt_ids=random_prompt(rng, 9), sampling=PLAIN)
    alone = drive(make_engine(model, slots=40), [one])[1]
    together = drive(make_engine(model, slots=40), [*crowd(rng, 30), one])[1]
    assert bits(alone) == bits(together)
    assert widths == {(bucket(40), bucket(64))}


def test_rows_that_stay_behind_move_down_and_the_batch_gets_narrower(monkeypatch):
    widths = []
    decode = Decoder.decode

    def spy(self, weights, cache, tokens, positions, columns):
        widths.append(len(tokens))
        return decode(self, weights, cache, tokens, positions, columns)

    model, rng = tiny_model(), np.random.default_rng(0)
    short, long = replace(PLAIN, max_tokens=2), replace(PLAIN, max_tokens=20)
    requests = [
        Request(id=i, rollout=i, prompt_ids=random_prompt(rng, 6), sampling=long if i % 16 == 15 else short)
        for i in range(64)
    ]
    single = make_engine(model, stop_ids=())
    alone = {i: drive(single, [requests[i]])[i] for i in (15, 31, 47, 63)}
    engine = make_engine(model, slots=64, stop_ids=())
    monkeypatch.setattr(Decoder, "decode", spy)
    together = drive(engine, requests)
    assert widths == [64, 64] + [16] * 18
    assert all(bits(together[i]) == bits(alone[i]) for i in alone)


def test_same_rollout_of_another_seed_or_number_samples_otherwise():
    model, prompt = tiny_model(), random_prompt(np.random.default_rng(0), 8)
    request = Request(id=1, rollout=1, prompt_ids=prompt, sampling=PLAIN)
    runs = [
        drive(make_engine(model), [request])[1].tokens,
        drive(make_engine(model, seed=1), [request])[1].tokens,
        drive(make_engine(model), [replace(request, rollout=2)])[1].tokens,
    ]
    assert len({tuple(tokens) for tokens in runs}) == 3
    assert drive(make_engine(model), [replace(request, id=99)])[99].tokens == runs[0]


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_a_resumed_rollout_goes_on_as_if_it_had_never_stopped(architecture):
    model, rng = tiny_model(architecture), np.random.default_rng(1)
    requests = [Request(id=i, rollout=i, prompt_ids=random_prompt(rng, 7), sampling=PLAIN) for i in range(8)]
    whole = drive(make_engine(model, stop_ids=()), requests)
    engine = make_engine(model, stop_ids=())
    for cut in (1, 10, 23):
        resumed = [replace(r, resume_ids=np.array(whole[r.id].tokens[:cut], np.int32)) for r in requests]
        rest = drive(engine, resumed)
        for i, outcome in rest.items():
            assert outcome.tokens == whole[i].tokens[cut:]
            np.testing.assert_allclose(outcome.logprobs, whole[i].logprobs[cut:], atol=1e-5)
            assert outcome.finish == "length"


def test_a_chunk_is_reported_when_it_is_full_and_the_rest_at_the_end():
    engine = make_engine(tiny_model(), stop_ids=(), chunk_tokens=10)
    engine.submit([Request(id=1, rollout=1, prompt_ids=np.array([3], np.int32), sampling=PLAIN)])
    lengths = [(len(p.token_ids), p.finish) for _ in range(24) for p in engine.step()]
    assert lengths == [(10, None), (10, None), (4, "length")]
    assert not engine.busy


def test_flush_reports_what_is_new_and_nothing_twice():
    engine = make_engine(tiny_model(), stop_ids=())
    engine.submit([Request(id=i, rollout=i, prompt_ids=np.array([3 + i], np.int32), sampling=PLAIN) for i in range(2)])
    assert engine.flush() == []
    for _ in range(5):
        engine.step()
    first = engine.flush()
    assert [(p.id, len(p.token_ids), p.finish, p.runs) for p in first] == [
        (i, 5, None, (VersionRun(version=V0, count=5),)) for i in range(2)
    ]
    assert engine.flush() == []
    whole = drive(
        make_engine(tiny_model(), stop_ids=()),
        [Request(id=0, rollout=0, prompt_ids=np.array([3], np.int32), sampling=PLAIN)],
    )
    rest = collect(engine)[0]
    assert first[0].token_ids.tolist() + rest.tokens == whole[0].tokens


def test_abort_frees_the_slot_and_disturbs_nobody():
    model, rng = tiny_model(), np.random.default_rng(2)
    requests = [Request(id=i, rollout=i, prompt_ids=random_prompt(rng, 6), sampling=PLAIN) for i in range(16)]
    expected = drive(make_engine(model, stop_ids=()), requests)
    engine = make_engine(model, stop_ids=())
    engine.submit(requests)
    engine.abort([3])  # before it is prefilled
    assert engine.free == 1
    again = replace(requests[3], id=103)
    outcomes = collect(
        engine,
        at={4: lambda: engine.abort([5, 6, 999]), 6: lambda: engine.submit([again]), 7: lambda: engine.abort([15])},
    )
    assert set(outcomes) == set(range(16)) - {3, 5, 6, 15} | {103}
    assert bits(outcomes[103]) == bits(expected[3])
    assert all(bits(outcomes[i]) == bits(expected[i]) for i in outcomes if i != 103)
    assert engine.free == 16


def test_a_stop_token_ends_the_completion_and_is_part_of_it():
    model, rng = tiny_model(), np.random.default_rng(3)
    requests = [Request(id=i, rollout=i, prompt_ids=random_prompt(rng, 6), sampling=PLAIN) for i in range(16)]
    endless = drive(make_engine(model, stop_ids=()), requests)
    stops = {EOS, 10, 20}
    stopped = drive(make_engine(model, stop_ids=sorted(stops)), requests)
    reasons = set()
    for i, outcome in stopped.items():
        tokens = endless[i].tokens
        end = next((n + 1 for n, token in enumerate(tokens) if token in stops), len(tokens))
        assert outcome.tokens == tokens[:end]
        assert outcome.finish == ("stop" if tokens[end - 1] in stops else "length")
        reasons.add(outcome.finish)
    assert reasons == {"stop", "length"}


def test_a_stop_token_at_the_limit_counts_as_stop():
    model = tiny_model()
    request = Request(id=1, rollout=1, prompt_ids=np.array([5, 6], np.int32), sampling=PLAIN)
    tokens = drive(make_engine(model, stop_ids=()), [request])[1].tokens
    limit = tokens.index(tokens[5]) + 1
    limited = replace(request, sampling=replace(PLAIN, max_tokens=limit))
    outcome = drive(make_engine(model, stop_ids=[tokens[5]]), [limited])[1]
    assert (outcome.tokens, outcome.finish) == (tokens[:limit], "stop")


def test_max_tokens_is_each_requests_own_and_counts_resumed_tokens():
    engine = make_engine(tiny_model(), stop_ids=())
    requests = [
        Request(id=n, rollout=n, prompt_ids=np.array([7], np.int32), sampling=replace(PLAIN, max_tokens=n))
        for n in (1, 2, 24)
    ]
    resumed = replace(requests[2], id=5, resume_ids=np.full(20, 8, np.int32))
    outcomes = drive(engine, [*requests, resumed])
    assert {i: (len(o.tokens), o.finish) for i, o in outcomes.items()} == {
        1: (1, "length"),
        2: (2, "length"),
        24: (24, "length"),
        5: (4, "length"),
    }


@pytest.mark.parametrize("kv_heads", KV_HEADS)
def test_long_prompts_take_several_passes_and_the_cache_grows(kv_heads):
    model, rng = tiny_model(heads=4, kv_heads=kv_heads), np.random.default_rng(4)
    sampling = replace(PLAIN, max_tokens=40)
    requests = [
        Request(id=n, rollout=n, prompt_ids=random_prompt(rng, n), sampling=sampling)
        for n in (1, 2, 16, 17, 256, 257, 258, 600)
    ]
    outcomes = drive(make_engine(model, max_len=640), requests)
    alone = drive(make_engine(model, max_len=640), requests[-1:])
    assert bits(outcomes[600]) == bits(alone[600])
    for request in requests:
        outcome = outcomes[request.id]
        reference = chosen(full_logprobs(model, request.prompt_ids.tolist(), outcome.tokens), outcome.tokens)
        np.testing.assert_allclose(outcome.logprobs, reference.numpy(), atol=2e-5)


def test_a_prompt_that_a_group_shares_is_prefilled_once(monkeypatch):
    prefilled = []
    prefill = Decoder.prefill

    def spy(self, weights, cache, tokens, rows, start):
        prefilled.append(tuple(tokens.shape))
        prefill(self, weights, cache, tokens, rows, start)

    model, rng = tiny_model(), np.random.default_rng(5)
    prompts = [random_prompt(rng, 13) for _ in range(2)]
    requests = [Request(id=i, rollout=i, prompt_ids=prompts[i // 8], sampling=PLAIN) for i in range(16)]
    engine = make_engine(model)
    monkeypatch.setattr(Decoder, "prefill", spy)
    together = drive(engine, requests)
    assert prefilled == [(2, 16)]
    for request in requests[::5]:
        assert bits(drive(make_engine(model), [request])[request.id]) == bits(together[request.id])


def request_of(**changes: object) -> Request:
    return replace(Request(id=1, rollout=1, prompt_ids=np.array([5, 6], np.int32), sampling=PLAIN), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt_ids": np.array([], np.int32)}, "empty prompt"),
        ({"prompt_ids": np.array([34], np.int32)}, "outside the vocabulary of 34"),
        ({"prompt_ids": np.array([-1], np.int32)}, "outside the vocabulary"),
        ({"resume_ids": np.array([99], np.int32)}, "outside the vocabulary"),
        ({"resume_ids": np.zeros(24, np.int32)}, "resumes with 24 of at most 24"),
        ({"prompt_ids": np.full(41, 3, np.int32)}, "41 prompt \\+ 24 completion tokens, the engine's context is 64"),
        ({"sampling": replace(PLAIN, temperature=0.0)}, "temperature"),
        ({"pin": V1}, "pinned to 1@1, the engine holds none"),
        ({"id": 0}, "request 0 is in the engine already"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_and_none_of_its_company_taken(changes, says):
    engine = make_engine(tiny_model(), pinned_slots=4)
    engine.submit([request_of(id=0)])
    with pytest.raises(ValueError, match=says):
        engine.submit([request_of(id=2), request_of(**changes)])
    assert engine.free == 15
    assert set(collect(engine)) == {0}


def test_more_requests_than_slots_are_refused():
    engine = make_engine(tiny_model(), slots=3)
    with pytest.raises(ValueError, match="4 requests for 3 free slots of 3"):
        engine.submit([request_of(id=i) for i in range(4)])
    engine.submit([request_of(id=i) for i in range(3)])
    assert engine.free == 0
    with pytest.raises(ValueError, match="1 requests for 0 free slots of 3"):
        engine.submit([request_of(id=9)])


def test_nothing_is_sampled_before_weights_are_there():
    model = tiny_model()
    engine = engine_module.TorchEngine(model.config, seed=0, slots=4, max_len=64, stop_ids=[EOS])
    assert engine.version is None
    assert engine.step() == []
    with pytest.raises(ValueError, match="no weights are installed"):
        engine.submit([request_of()])


def test_weights_whose_logits_are_not_finite_end_the_engine_by_version():
    model = tiny_model()
    engine = make_engine(model)
    engine.install(V1, {name: tensor * 1e18 for name, tensor in state_tensors(model).items()})
    engine.submit([request_of()])
    with pytest.raises(EngineError, match="version 1@1 gives logits that are not finite"):
        engine.step()


def test_pinned_requests_keep_their_version_while_others_follow_the_newest():
    old, new, rng = tiny_model(), tiny_model(seed=1), np.random.default_rng(6)
    requests = [Request(id=i, rollout=i, prompt_ids=random_prompt(rng, 6), sampling=PLAIN) for i in range(8)]
    expected = drive(make_engine(old, stop_ids=()), requests)
    engine = make_engine(old, stop_ids=(), pinned_slots=8)
    engine.install_pinned(V0, None)
    pinned = [replace(request, id=100 + request.id, pin=V0) for request in requests]
    engine.submit([*requests, *pinned])
    assert (engine.free, engine.pinned_free) == (8, 0)
    outcomes = collect(engine, at={7: lambda: engine.install(V1, state_tensors(new))})
    for i in range(8):
        assert bits(outcomes[100 + i]) == bits(expected[i])
        assert set(outcomes[100 + i].versions) == {V0}
        # In turn: after seven steps one set had taken four and the other three.
        assert outcomes[i].versions in ([V0] * 3 + [V1] * 21, [V0] * 4 + [V1] * 20)
    assert (engine.version, engine.pinned) == (V1, V0)


def test_another_version_is_pinned_only_when_no_pinned_request_is_left():
    old, new = tiny_model(), tiny_model(seed=1)
    engine = make_engine(old, pinned_slots=2)
    engine.install_pinned(V0, state_tensors(old))
    engine.submit([request_of(pin=V0)])
    with pytest.raises(ValueError, match="1 requests pinned to 0@1 are unfinished; cannot pin 1@1"):
        engine.install_pinned(V1, state_tensors(new))
    engine.install_pinned(V0, None)  # it is that one already
    collect(engine)
    engine.install_pinned(V1, state_tensors(new))
    pinned = drive(engine, [request_of(pin=V1)])[1]
    assert bits(pinned) == bits(drive(make_engine(new), [request_of()])[1])
    assert set(pinned.versions) == {V1}
    with pytest.raises(ValueError, match="cannot pin 5@1 without its tensors: 0@1 is installed"):
        engine.install_pinned(PolicyVersion(1, 5), None)


def test_an_engine_without_pinned_slots_says_so():
    engine = make_engine(tiny_model())
    assert (engine.pinned_capacity, engine.pinned_free, engine.pinned) == (0, 0, None)
    with pytest.raises(ValueError, match="without pinned slots"):
        engine.install_pinned(V0, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"slots": 0}, "slots >= 1"), ({"max_len": 1}, "max_len >= 2"), ({"stop_ids": [34]}, "stop token 34 is outside")],
)
def test_an_engine_of_impossible_size_is_refused(changes, says):
    settings = {"seed": 0, "slots": 4, "max_len": 64, "stop_ids": [EOS], **changes}
    with pytest.raises(ValueError, match=says):
        engine_module.TorchEngine(tiny_model().config, **settings)


def test_close_drops_every_request():
    engine = make_engine(tiny_model())
    engine.submit([request_of()])
    engine.close()
    assert not engine.busy
    assert engine.free == engine.capacity == 16


@pytest.mark.parametrize(
    ("n", "width"), [(0, 16), (1, 16), (16, 16), (17, 32), (65, 80), (128, 128), (129, 160), (300, 320)]
)
def test_bucket(n, width):
    assert bucket(n) == width


def test_the_demo_shape_is_independent_of_width_here():
    # Not a promise for every machine; where it fails, the engine falls back, and this says that it is slower there.
    assert make_engine(tiny_model(), slots=128).independent


def test_sampling_settings_of_the_past_leave_an_empty_row_plain():
    engine = make_engine(tiny_model(), slots=16)
    filtered = Sampling(temperature=0.5, top_p=0.5, top_k=3, max_tokens=4)
    drive(engine, [request_of(id=i, sampling=filtered) for i in range(16)])
    slots = engine._main.slots
    assert slots.settings(16) is None
    assert torch.equal(slots.positions, torch.zeros(16, dtype=torch.long))
