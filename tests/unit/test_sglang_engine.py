"""The SGLang engine against a server that is played: what the real one does not do on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from r1async.engines import EngineVersionError
from r1async.generator.engine import EngineError, EngineSpec, Request, WeightsError
from r1async.generator.sglang_engine import SglangEngine
from r1async.generator.sglang_server import command_line, environment
from r1async.models.loading import load_model, state_tensors
from r1async.types import PolicyVersion

from tests.engine_runs import PLAIN, Outcome, engine_spec
from tests.played_sglang import DEADLINE_S, PlayedSglang
from tests.tiny_models import save_tiny

V1 = PolicyVersion(1, 1)
DONE = b"data: [DONE]\n\n"


def event(tokens: list[int], total: int, **meta: object) -> dict[str, Any]:
    return {
        "output_ids": tokens,
        "meta_info": {
            "finish_reason": None,
            "weight_version": "1@1",
            "output_token_logprobs": [[-token / 8, token, None] for token in tokens],
            "completion_tokens": total,
            **meta,
        },
    }


def last(tokens: list[int], total: int, kind: str = "length", label: str = "1@1", **meta: object) -> dict[str, Any]:
    spans = [{"version": label, "start": 0, "end": total}]
    reason = {"type": kind, "matched": tokens[-1]} if kind == "stop" else {"type": kind}
    return event(tokens, total, **{"finish_reason": reason, "weight_versions": spans, "weight_version": label, **meta})


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sglang") / "model", "qwen2", tied=True)


@pytest.fixture
def spec(model_dir: Path, tmp_path: Path) -> EngineSpec:
    return engine_spec(model_dir, tmp_path, lambda: None, DEADLINE_S, slots=8, chunk_tokens=2)


@dataclass
class Played:
    """An engine on a server that is played."""

    server: PlayedSglang
    engine: SglangEngine
    arrived: threading.Event

    def ask(self, **changes: Any) -> Outcome:
        """One request of up to 4 tokens, to its end."""
        prompt = np.arange(5, 10, dtype=np.int32)
        plain = Request(id=1, rollout=1, prompt_ids=prompt, sampling=replace(PLAIN, max_tokens=4))
        self.engine.submit([replace(plain, **changes)])
        return self.collect(1)

    def collect(self, request_id: int) -> Outcome:
        outcome = Outcome()
        while outcome.finish is None:
            assert self.arrived.wait(DEADLINE_S), "nothing came"
            self.arrived.clear()
            for progress in self.engine.step():
                assert progress.id == request_id
                outcome.take(progress)
        return outcome

    def bodies(self) -> list[dict[str, Any]]:
        return [body for path, body in self.server.calls if path == "/generate"]


@pytest.fixture
def play(spec: EngineSpec) -> Iterator[Callable[..., Played]]:
    """An engine on a played server, with weights in it."""
    made: list[SglangEngine | PlayedSglang] = []

    def start(*, changed: Mapping[str, Any] | None = None, install: bool = True, **script: Any) -> Played:
        arrived = threading.Event()
        server = PlayedSglang(**script)
        made.append(server)
        engine = SglangEngine(
            replace(spec, notify=arrived.set, **(changed or {})), url=server.url, python=None, args=()
        )
        made.append(engine)
        if install:
            engine.install(V1, weights(spec))
        return Played(server, engine, arrived)

    yield start
    for each in reversed(made):
        each.close()


def weights(spec: EngineSpec) -> dict[str, torch.Tensor]:
    return state_tensors(load_model(spec.model_path))


def replies(*streams: list[object] | None) -> Callable[[Mapping[str, Any]], list[object] | None]:
    """One after the other."""
    left = list(streams)
    return lambda body: left.pop(0)


def test_a_request_says_all_that_matters(play):
    played = play(generate=replies([event([5], 1), event([6, 7], 3), last([8], 4), DONE]))
    outcome = played.ask(sampling=replace(PLAIN, max_tokens=6, temperature=0.7), resume_ids=np.array([3, 4], np.int32))
    assert (outcome.tokens, outcome.finish) == ([5, 6, 7, 8], "length")
    assert outcome.versions == [V1] * 4
    (body,) = played.bodies()
    assert body["input_ids"] == [5, 6, 7, 8, 9, 3, 4]
    assert body["sampling_params"] == {
        "max_new_tokens": 4,
        "temperature": 0.7,
        "stop_token_ids": [2],
        "stream_interval": 2,
    }
    assert (body["stream"], body["return_logprob"], len(body["rid"])) == (True, True, 32)


def test_a_request_that_the_server_ends_goes_on_unnoticed(play):
    """Twice: ended in the middle, and ended before it had begun. Its tokens go in again with the rest of its budget."""
    played = play(
        generate=replies(
            [event([5], 1), last([6], 2, "abort"), DONE],
            [last([], 0, "abort"), DONE],
            [last([7, 2], 2, "stop"), DONE],
        )
    )
    outcome = played.ask()
    assert (outcome.tokens, outcome.finish, outcome.versions) == ([5, 6, 7, 2], "stop", [V1] * 4)
    bodies = played.bodies()
    assert [body["input_ids"][5:] for body in bodies] == [[], [5, 6], [5, 6]]
    assert [body["sampling_params"]["max_new_tokens"] for body in bodies] == [4, 2, 2]
    assert len({body["rid"] for body in bodies}) == 3


def test_a_request_that_is_never_let_begin_is_an_error(play):
    played = play(generate=lambda body: [last([], 0, "abort"), DONE])
    with pytest.raises(EngineError, match=r"ended request 1 21 times before its first token"):
        played.ask()


def test_a_request_ended_at_its_stop_token_is_not_put_in_again(play):
    """The server looks whether it was aborted before it looks at the token."""
    outcome = play(generate=replies([last([5, 2], 2, "abort"), DONE])).ask()
    assert (outcome.tokens, outcome.finish) == ([5, 2], "stop")


def test_a_stop_token_at_the_limit_is_a_stop(play):
    outcome = play(generate=replies([last([5, 6, 7, 2], 4, "length"), DONE])).ask()
    assert (outcome.tokens, outcome.finish) == ([5, 6, 7, 2], "stop")


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        ([{"error": {"message": "Duplicate request ID detected: a"}}, DONE], "refused a request: Duplicate"),
        ([event([5], 1)], "broke off"),
        ([event([5], 1), event([8], 4), DONE], "hole"),
        ([b"data: <html>\n\n"], "not JSON"),
        ([last([5, 6], 2, "length"), DONE], "2 tokens before its limit"),
        ([event([5], 1, finish_reason={"type": "length"}), DONE], "does not say the versions"),
        ([last([5, 6, 7, 8], 4, weight_versions=[{"version": "1@1", "start": 0, "end": 3}]), DONE], "version of 3"),
        ([last([5, 6, 7, 8], 4, label="9@9"), DONE], "'9@9', which we did not install"),
    ],
)
def test_what_a_server_may_not_answer_ends_the_engine(play, stream, says):
    played = play(generate=replies(stream))
    with pytest.raises(EngineError, match=says):
        played.ask()
    assert played.engine.busy
    with pytest.raises(EngineError, match=says):
        played.engine.step()


def test_spans_that_contradict_what_was_reported_end_the_engine(play):
    """Two tokens came under the label of version 1; at the end the server says that the second was of version 2."""
    played = play(generate=lambda body: None)
    played.engine.install(PolicyVersion(1, 2), weights(played.engine._spec))
    spans = [{"version": "1@1", "start": 0, "end": 1}, {"version": "2@1", "start": 1, "end": 4}]
    played.engine._label = "1@1"
    played.server.generate = replies(
        [event([5], 1), event([6], 2), last([7, 8], 4, label="2@1", weight_versions=spans), DONE]
    )
    with pytest.raises(EngineError, match=r"token 1 was taken for version 1@1, the engine says 2@1"):
        played.ask()


def test_tokens_under_a_new_label_wait_for_the_last_word(play):
    """They were sampled before the install, and came to the server's front end after."""
    played = play(generate=lambda body: None)
    played.engine.install(PolicyVersion(1, 2), weights(played.engine._spec))
    spans = [{"version": "1@1", "start": 0, "end": 3}, {"version": "2@1", "start": 3, "end": 4}]
    two = {"weight_version": "2@1"}
    # As if it had been posted before that install.
    played.engine._label = "1@1"
    played.server.generate = replies(
        [
            event([5], 1),
            event([6], 2, **two),
            event([7], 3, **two),
            last([8], 4, label="2@1", weight_versions=spans),
            DONE,
        ]
    )
    outcome = played.ask()
    assert outcome.tokens == [5, 6, 7, 8]
    assert outcome.versions == [V1, V1, V1, PolicyVersion(1, 2)]
    assert outcome.reports == 1


def test_a_request_with_many_tokens_in_doubt_is_cut_and_goes_on_with_its_own_cache(play):
    two, both = (
        PolicyVersion(1, 2),
        [{"version": "1@1", "start": 0, "end": 1}, {"version": "2@1", "start": 1, "end": 3}],
    )
    played = play(generate=lambda body: None)
    first_key = played.engine._key
    played.engine.install(two, weights(played.engine._spec))
    played.engine._label, played.engine._key, played.engine.doubt_tokens = "1@1", first_key, 2
    cut = threading.Event()

    def generate(body):
        if len(played.bodies()) == 1:
            played.engine._label, played.engine._key = "2@1", "another"
            return [
                event([5], 1),
                event([6, 7], 3, weight_version="2@1"),
                cut,
                last([], 3, "abort", weight_versions=both),
                DONE,
            ]
        return [last([8], 1, label="2@1"), DONE]

    played.server.generate, played.server.on_abort = generate, cut.set
    outcome = played.ask()
    assert (outcome.tokens, outcome.versions) == ([5, 6, 7, 8], [V1, two, two, two])
    assert played.engine.cuts == 1
    first, rest = played.bodies()
    assert (first["extra_key"], rest["extra_key"]) == (first_key, first_key)
    assert rest["input_ids"][5:] == [5, 6, 7]


def test_no_request_goes_out_on_a_connection_that_the_server_may_be_closing(play):
    played = play(generate=replies([last([2], 1, "stop"), DONE]))
    played.ask()
    assert len(played.server.peers) == len(set(played.server.peers)) >= 8


def test_a_silent_server_is_an_error(play):
    played = play(changed={"stall_deadline_s": 0.2}, generate=lambda body: None)
    with pytest.raises(EngineError, match=r"1 requests and sampled nothing for .*stall_deadline_s=0.2"):
        played.ask()


@pytest.mark.parametrize(
    ("policy", "mode", "flush"), [("keep", "in_place", False), ("recompute", "retract", True), ("abort", "abort", True)]
)
def test_an_install_pauses_as_the_policy_says(play, policy, mode, flush):
    played = play(install=False)
    played.engine.kv_policy = policy
    assert played.engine.install(V1, weights(played.engine._spec)) > 0
    calls = [call for call in played.server.calls if call[1] is not None]
    calls = calls[[path for path, _ in calls].index("/pause_generation") :]
    paths = ["/pause_generation", "/update_weights_from_disk", "/continue_generation"]
    assert [path for path, _ in calls] == paths
    assert calls[0][1] == {"mode": mode}
    assert (calls[1][1]["flush_cache"], calls[1][1]["weight_version"]) == (flush, "1@1")


def test_a_failed_update_goes_on_and_is_an_error(play):
    """A server that says no may have changed its weights all the same: it is not asked again."""
    message = "Weights were updated, but the cache was not flushed"
    played = play(install=False, answers={"/update_weights_from_disk": (400, {"success": False, "message": message})})
    with pytest.raises(EngineError, match=message):
        played.engine.install(V1, weights(played.engine._spec))
    assert played.server.paths().count("/update_weights_from_disk") == 1
    assert played.server.paths()[-1] == "/continue_generation"
    assert played.engine.version is None
    assert played.engine.busy


def test_a_server_that_serves_something_else_after_an_install_is_an_error(play):
    played = play(install=False, answers={"/model_info": (200, {"weight_version": "default"})})
    with pytest.raises(EngineError, match="took version 1@1 and says that it serves 'default'"):
        played.engine.install(V1, weights(played.engine._spec))


def test_a_bad_set_of_weights_never_comes_to_the_server(play):
    played = play()
    tensors = weights(played.engine._spec)
    tensors["model.norm.weight"] = torch.full((64,), torch.inf)
    before = len(played.server.calls)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight"):
        played.engine.install(PolicyVersion(1, 2), tensors)
    assert len(played.server.calls) == before
    assert not played.engine.busy


@pytest.mark.parametrize(
    ("info", "error", "says"),
    [
        ({"version": "0.5.18"}, EngineVersionError, r"sglang 0.5.18 is not supported: want sglang.*>=0.5.19"),
        ({"dp_size": 2}, EngineError, "dp_size=2"),
        ({"tokenizer_worker_num": 2}, EngineError, "tokenizer_worker_num=2"),
        ({"context_length": 71}, EngineError, "room for 71 tokens of a request, 72 are needed"),
        ({"max_total_num_tokens": 50}, EngineError, "room for 50 tokens"),
        ({"disable_overlap_schedule": False}, EngineError, "--disable-overlap-schedule"),
    ],
)
def test_a_server_that_we_cannot_work_with_is_refused(play, info, error, says):
    with pytest.raises(error, match=says):
        play(info=info, install=False)


def test_overlap_is_no_hindrance_to_policies_that_drop_the_cache(play):
    played = play(info={"disable_overlap_schedule": False}, changed={"kv_policy": "recompute"})
    played.engine.kv_policy = "keep"
    with pytest.raises(EngineError, match="--disable-overlap-schedule"):
        played.engine.install(PolicyVersion(1, 2), weights(played.engine._spec))


def test_older_servers_are_asked_in_their_way(play):
    """0.5.19 knows neither /ready nor the version in /model_info."""
    missing = (404, {"detail": "Not Found"})
    played = play(
        info={"version": "0.5.19"},
        answers={
            "/ready": missing,
            "/health": (200, ""),
            "/model_info": (200, {"model_path": "m"}),
            "/get_weight_version": (200, {"weight_version": "1@1"}),
        },
    )
    assert played.engine.version == V1


def test_a_server_that_does_not_come_up_is_an_error(play, spec):
    with pytest.raises(EngineError, match=r"start took longer than 0.5 s"):
        play(answers={"/ready": (503, "")}, changed={"start_deadline_s": 0.5}, install=False)
    with pytest.raises(EngineError, match=r"start took longer than 0.5 s"):
        SglangEngine(replace(spec, start_deadline_s=0.5), url="http://127.0.0.1:1", python=None, args=())


def test_a_server_that_ends_while_it_starts_is_an_error_with_its_last_words(spec, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no SGLang here >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(EngineError, match=r"did not start: process \d+ ended with exit code 3; .*\nno SGLang here"):
        SglangEngine(spec, url="", python=str(python), args=())


def test_top_p_needs_few_enough_candidates(play):
    played = play(info={"sampling_mask_max_tokens": 33})
    for sampling in (replace(PLAIN, top_p=0.9), replace(PLAIN, top_k=34)):
        with pytest.raises(ValueError, match=r"set top_k to 1 \.\.\. 33"):
            played.ask(sampling=sampling)
    assert not played.engine.busy


def test_the_command_line_is_for_the_machine_and_the_policy(spec, monkeypatch):
    monkeypatch.setenv("SGLANG_RETURN_ORIGINAL_LOGPROB", "1")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    cpu = command_line(spec, 1234, ("--mem-fraction-static", "0.8"), gpu=False)
    gpu = command_line(replace(spec, kv_policy="recompute"), 1234, (), gpu=True)
    assert ("cpu" in cpu, "cpu" in gpu) == (True, False)
    assert ("--disable-overlap-schedule" in cpu, "--disable-overlap-schedule" in gpu) == (True, False)
    assert cpu[-2:] == ["--mem-fraction-static", "0.8"]
    other = command_line(replace(spec, name="generator-1"), 1234, (), gpu=True)
    seed = gpu.index("--random-seed") + 1
    assert gpu[seed] != other[seed]
    with_gpu, without = environment(spec, gpu=True), environment(spec, gpu=False)
    assert "PYTHONPATH" not in with_gpu
    assert Path(without["PYTHONPATH"], "sgl_kernel", "__init__.py").is_file()
    assert not {"SGLANG_RETURN_ORIGINAL_LOGPROB"} & {*with_gpu, *without}
