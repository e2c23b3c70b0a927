"""The evaluator as a process of its own, against a buffer and a learner that the test plays on real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from r1async.config import Config, load_config
from r1async.launch.folders import make_ipc_dir, remove_ipc_dir
from r1async.monitor.metrics import read_metrics
from r1async.settings import to_yaml
from r1async.tasks.chain_mod import encode, hf_tokenizer
from r1async.wire import PROTOCOL, Message, pack, unpack

PROMPTS, SAMPLES = 6, 2
DEADLINE_S = 60.0


class PlayedRun:
    """Buffer (rollouts, events) and learner (weights) in one thread; what it was sent is in `log`."""

    def __init__(self, config: Config) -> None:
        self.log: list[Message] = []
        self.missing: set[int] = set()
        """Version numbers that the learner does not have."""
        self.silent = False
        """Evaluations are accepted, and nothing comes of them."""
        self.answers = 10**9
        """Evaluations that are answered before it falls silent."""
        self.forget_once = False
        """The first evaluation is answered as by a buffer that has just started."""
        self.epoch, self.published, self.final = 1, 0, -1
        self._changed = threading.Condition()
        self._context = zmq.Context()
        self._rollouts = self._bind(zmq.ROUTER, config.endpoint("rollouts"))
        self._weights = self._bind(zmq.ROUTER, config.endpoint("weights"))
        self._events = self._bind(zmq.PUB, config.endpoint("events"))
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        end = self._context.socket(zmq.PAIR)
        end.connect("inproc://stop")
        end.send(b"")
        self._thread.join(DEADLINE_S)
        self._context.destroy(linger=0)

    def wait(self, kind: str, count: int = 1) -> list[Message]:
        """The first `count` messages of a type, once they are there."""
        with self._changed:
            there = self._changed.wait_for(lambda: len(self.of(kind)) >= count, DEADLINE_S)
        assert there, f"wanted {count} x {kind}, got {[m.type for m in self.log]}"
        return self.of(kind)[:count]

    def of(self, kind: str) -> list[Message]:
        return [message for message in self.log if message.type == kind]

    def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.bind(endpoint)
        return socket

    def _serve(self) -> None:
        poller = zmq.Poller()
        for socket in (self._rollouts, self._weights, self._stop):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop in ready:
                return
            for socket, answer in ((self._rollouts, self._as_buffer), (self._weights, self._as_learner)):
                if socket in ready:
                    peer, frame = socket.recv_multipart()
                    message = unpack(frame)
                    for header, columns in answer(message):
                        socket.send_multipart([peer, pack(header, columns)])
                    with self._changed:
                        self.log.append(message)
                        self._changed.notify_all()

    def _as_buffer(self, message: Message) -> list[tuple[dict, dict]]:
        common = {"epoch": self.epoch, "version": self.published, "published": self.published, "state": "running"}
        common["final"] = self.final
        header = message.header
        match message.type:
            case "hello":
                welcome = {"t": "welcome", "protocol": PROTOCOL, "peer_deadline_s": 0.8, "group_size": 8, "seed": 0}
                return [({**welcome, **common}, {})]
            case "heartbeat":
                return [({"t": "alive", **common}, {})]
            case "bye":
                return [({"t": "gone", **common}, {})]
            case "evaluate" if self.forget_once:
                self.forget_once = False
                return [({"t": "error", "code": "hello", "message": "who are you", "about": "evaluate", **common}, {})]
            case "evaluate":
                accepted = ({"t": "accepted", "id": header["id"], "groups": len(header["metas"]), **common}, {})
                self.answers -= 1
                silent = self.silent or self.answers < 0
                return [accepted] if silent else [accepted, *self._evaluated(message, common)]
        return [({"t": "alive", **common}, {})]

    def _evaluated(self, message: Message, common: dict) -> Iterator[tuple[dict, dict]]:
        """One message a problem, last problem first. Greedy is always right; sampled is right in member 0 of the
        even problems, and abstains in member 1 of problem 0."""
        header = message.header
        metas = [json.loads(meta) for meta in header["metas"]]
        for done, (prompt, meta) in enumerate(reversed(list(enumerate(metas))), 1):
            items, tokens = [], []
            for member in range(header["samples"]):
                right = header["sampling"]["greedy"] or (prompt % 2 == 0 and member == 0)
                abstains = not header["sampling"]["greedy"] and (prompt, member) == (0, 1)
                answer = meta["answer"] if right else "x"
                completion = [*encode(f"<think>1</think><answer>{answer}</answer>"), 2]
                parts = {} if abstains else {"accuracy": float(right), "format": 1.0}
                total = None if abstains else 1.2 if right else 0.2
                status = "worker_lost" if abstains else "ok"
                items.append([prompt, member, total, parts, status, "stop", len(completion)])
                tokens += completion
            yield (
                {"t": "evaluated", "id": header["id"], "done": done, "of": len(metas), "items": items, **common},
                {"tokens": np.array(tokens, np.int32)},
            )

    def _as_learner(self, message: Message) -> list[tuple[dict, dict]]:
        match message.header:
            case {"t": "look", "pin": [epoch, number]} if epoch == self.epoch and number not in self.missing:
                return [({"t": "held", "version": [epoch, number], "hash": f"hash-{number}"}, {})]
            case {"t": "look", "pin": pin}:
                return [({"t": "missing", "version": pin, "newest": [self.epoch, self.published], "pinned": True}, {})]
            case {"t": "release", "pin": pin}:
                return [({"t": "released", "pin": pin}, {})]
        raise AssertionError(f"the learner does not expect {message.header}")

    def publish_event(self) -> None:
        """A hint, as the buffer sends it; PUB sockets are not the thread's."""
        header = {"t": "state", "epoch": self.epoch, "published": self.published, "final": self.final}
        self._events.send(pack({**header, "state": "running"}))


def make_config(tmp_path: Path, *overrides: str) -> Config:
    model = tmp_path / "model"
    hf_tokenizer().save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2", "eos_token_id": 2}))
    config = load_config(
        None,
        [
            "name=run",
            f"runs_dir={tmp_path / 'runs'}",
            f"model.path={model}",
            "data.task=chain-mod",
            "data.template=none",
            "steps=4",
            f"eval.prompts={PROMPTS}",
            f"eval.samples={SAMPLES}",
            *overrides,
        ],
    )
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    return config


@contextmanager
def playing(config: Config) -> Iterator[tuple[PlayedRun, subprocess.Popen[str]]]:
    make_ipc_dir(config)
    run = PlayedRun(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "r1async", "eval", str(config.run_dir / "config.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield run, process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)
        run.close()
        remove_ipc_dir(config)


def records(config: Config, kind: str = "evaluation") -> list[dict]:
    return list(read_metrics(config.run_dir / "evaluation.jsonl", kind))


def test_first_every_second_and_last_version_are_evaluated_and_it_ends(tmp_path):
    config = make_config(tmp_path, "eval.every=2")
    with playing(config) as (run, process):
        run.wait("release")
        run.published = 3
        run.wait("release", 2)
        run.published = 4
        assert process.wait(DEADLINE_S) == 0
        wanted = [(m.header["pin"], m.header["samples"], m.header["sampling"]["greedy"]) for m in run.of("evaluate")]
        released = [m.header["pin"] for m in run.of("release")]
    assert wanted == [
        ([1, number], samples, greedy) for number in (0, 2, 4) for samples, greedy in ((SAMPLES, False), (1, True))
    ]
    assert released == [[1, 0], [1, 2], [1, 4]]
    assert [(r["version"], r["pass"], r["hash"]) for r in records(config)] == [
        (number, name, f"hash-{number}") for number in (0, 2, 4) for name in ("sampled", "greedy")
    ]


def test_figures_are_those_of_the_samples(tmp_path):
    config = make_config(tmp_path)
    with playing(config) as (run, process):
        run.published = 4
        assert process.wait(DEADLINE_S) == 0
        question = run.of("evaluate")[0]
    sampled, greedy = records(config)[:2]
    # Shares by problem: 1 (its other sample abstained), 0, 1/2, 0, 1/2, 0.
    assert sampled["accuracy"] == pytest.approx(2 / 6)
    assert sampled["stderr"] == pytest.approx(float(np.std([1, 0, 0.5, 0, 0.5, 0], ddof=1)) / 6**0.5)
    assert sampled["pass_at_k"] == pytest.approx({"1": 2 / 6, "2": 2 / 5})
    # Majorities: right; wrong x 3; ties of right and wrong x 2.
    assert sampled["cons_at_k"] == pytest.approx((1 + 0.5 + 0.5) / 6)
    assert (sampled["problems"], sampled["samples"], sampled["abstained"]) == (6, 11, 1)
    assert (greedy["accuracy"], greedy["stderr"], greedy["format"]) == (1.0, 0.0, 1.0)
    first = greedy["samples_shown"][0]
    assert first["completion"] == f"<think>1</think><answer>{first['answer']}</answer>"
    assert question.columns["prompt_lens"].tolist() == [13] * PROMPTS
    assert json.loads(question.header["metas"][0])["text"] == first["prompt"]


def test_event_tells_of_a_version_sooner_than_the_next_heartbeat(tmp_path):
    config = make_config(tmp_path)
    with playing(config) as (run, process):
        run.wait("release")
        run.wait("heartbeat", 2)
        run.published = 4
        heartbeats = len(run.of("heartbeat"))
        run.publish_event()
        run.wait("look", 2)
        assert len(run.of("heartbeat")) <= heartbeats + 1
        assert process.wait(DEADLINE_S) == 0


def test_buffer_that_forgot_everything_is_asked_again_under_a_new_id(tmp_path):
    config = make_config(tmp_path)
    with playing(config) as (run, process):
        run.forget_once = True
        run.published = 4
        assert process.wait(DEADLINE_S) == 0
        ids = [m.header["id"] for m in run.of("evaluate")]
        assert len(run.of("hello")) == 2
    assert len(set(ids)) == len(ids) > 4
    assert [(r["version"], r["pass"]) for r in records(config)] == [
        (number, name) for number in (0, 4) for name in ("sampled", "greedy")
    ]


def test_learner_that_begins_a_new_life_ends_the_evaluation_of_the_former_one(tmp_path):
    config = make_config(tmp_path, "eval.every=2")
    with playing(config) as (run, process):
        run.wait("release")
        run.silent = True
        run.published = 2
        run.wait("evaluate", 4)
        run.silent = False
        run.epoch, run.published = 2, 1
        run.wait("cancel_evaluation", 2)
        run.published = 4
        assert process.wait(DEADLINE_S) == 0
    assert [(r["version"], r["epoch"]) for r in records(config) if r["pass"] == "greedy"] == [(0, 1), (2, 2), (4, 2)]


def test_version_that_the_learner_lost_is_given_up_by_name_and_the_rest_goes_on(tmp_path):
    config = make_config(tmp_path, "eval.every=2")
    with playing(config) as (run, process):
        run.missing = {2}
        run.published = 4
        assert process.wait(DEADLINE_S) == 1
        assert process.stderr is not None
        assert "version 2@1 cannot be evaluated: the learner no longer has it" in process.stderr.read()
    assert {r["version"] for r in records(config)} == {0, 4}
    assert [r["version"] for r in records(config, "evaluation_given_up")] == [2]


def test_evaluation_past_its_deadline_is_given_up_and_cancelled(tmp_path):
    config = make_config(tmp_path, "eval.deadline_s=1")
    with playing(config) as (run, process):
        run.silent = True
        run.published = 4
        assert process.wait(DEADLINE_S) == 1
        run.wait("cancel_evaluation", 4)
    reasons = [r["reason"] for r in records(config, "evaluation_given_up")]
    assert len(reasons) == 2
    assert f"{PROMPTS * (SAMPLES + 1)} samples of version 0@1" in reasons[0]


def test_what_an_earlier_process_wrote_is_not_evaluated_again(tmp_path):
    config = make_config(tmp_path)
    with playing(config) as (run, process):
        run.wait("release")
        process.kill()
        process.wait(DEADLINE_S)
    with playing(config) as (run, process):
        run.published = 4
        assert process.wait(DEADLINE_S) == 0
        assert [m.header["pin"] for m in run.of("look")] == [[1, 4]]
    assert [r["version"] for r in records(config)] == [0, 0, 4, 4]


def test_sigterm_ends_it_in_good_order_while_it_waits(tmp_path):
    config = make_config(tmp_path)
    with playing(config) as (run, process):
        run.wait("release")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5.0) == 0
        run.wait("bye")


K = 20
"""More than `collecting.MEMBERS`, so that a problem's samples come in two requests."""


def make_benchmark(tmp_path: Path, *overrides: str) -> Config:
    """Three problems in the words of chain-mod's tokenizer."""
    (tmp_path / "own.yaml").write_text(
        json.dumps(
            {
                "title": "Own",
                "source": "a test",
                "format": "plain",
                "columns": {"id": "id", "question": "q", "answer": "a"},
                "prompt": "{question}",
                "grader": "math",
                "k": K,
                "temperature": 0.5,
                "max_tokens": 99,
            }
        )
    )
    rows = [{"id": f"p{i}", "q": f"{i}+{i}=", "a": str(2 * i)} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_config(
        tmp_path,
        "eval.prompts=0",
        f"eval.benchmarks=[{tmp_path / 'own.yaml'}]",
        f"eval.data.own={tmp_path / 'rows.jsonl'}",
        "steps=0",
        *overrides,
    )


def asked_samples(run: PlayedRun) -> int:
    return sum(len(m.header["metas"]) * m.header["samples"] for m in run.of("evaluate"))


def test_benchmark_is_asked_by_its_protocol_and_its_result_is_written(tmp_path):
    config = make_benchmark(tmp_path)
    with playing(config) as (run, process):
        assert process.wait(DEADLINE_S) == 0
        first = run.of("evaluate")[0].header
        assert [(len(m.header["metas"]), m.header["samples"]) for m in run.of("evaluate")] == [(3, 16), (3, 4)]
    sampling = {"temperature": 0.5, "top_p": 0.95, "top_k": 0, "max_tokens": 99, "greedy": False}
    assert (first["pin"], first["sampling"]) == ([1, 0], sampling)
    assert json.loads(first["metas"][1]) == {"text": "1+1=", "answer": "2", "extra": {"domain": "benchmark:math"}}
    folder = config.run_dir / "evaluations" / "v0"
    result = json.loads((folder / "own.json").read_text())
    # Member 0 of each request is right in problems 0 and 2: 2 of 20; problem 0 has two abstentions, so 2 of 18.
    assert result["by_problem"] == [
        {"id": "p0", "samples": 18, "passed": 2, "abstained": 2, "truncated": 0},
        {"id": "p1", "samples": 20, "passed": 0, "abstained": 0, "truncated": 0},
        {"id": "p2", "samples": 20, "passed": 2, "abstained": 0, "truncated": 0},
    ]
    assert result["accuracy"] == pytest.approx((2 / 18 + 0 + 2 / 20) / 3, abs=1e-12)
    assert (result["hash"], result["unfinished"], result["version"]) == ("hash-0", 0.0, 0)
    (record,) = records(config, "benchmark")
    assert (record["benchmark"], record["last"], record["accuracy"]) == ("own", True, result["accuracy"])
    assert len((folder / "own.jsonl").read_text().splitlines()) == 1 + 3 * K
    assert "Own" in (folder / "index.html").read_text()


def test_interrupted_benchmark_goes_on_with_what_it_has(tmp_path):
    config = make_benchmark(tmp_path)
    with playing(config) as (run, process):
        run.answers = 1
        run.wait("evaluate", 2)
        run.wait("heartbeat", 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5.0) == 0
        assert [m.header["id"] for m in run.of("cancel_evaluation")] == [run.of("evaluate")[1].header["id"]]
    assert json.loads((config.run_dir / "evaluations/v0/own.json").read_text())["unfinished"] == pytest.approx(4 / 20)
    with playing(config) as (run, process):
        assert process.wait(DEADLINE_S) == 0
        assert asked_samples(run) == 3 * 4
    result = json.loads((config.run_dir / "evaluations/v0/own.json").read_text())
    assert (result["unfinished"], [row["samples"] + row["abstained"] for row in result["by_problem"]]) == (0, [K] * 3)


def test_killed_benchmark_goes_on_with_what_it_has(tmp_path):
    config = make_benchmark(tmp_path)
    with playing(config) as (run, process):
        run.answers = 1
        run.wait("evaluate", 2)
        run.wait("heartbeat", 2)
        process.kill()
        process.wait(DEADLINE_S)
    with playing(config) as (run, process):
        assert process.wait(DEADLINE_S) == 0
        assert asked_samples(run) == 3 * 4


def test_benchmark_without_samples_in_time_is_given_up_with_what_it_has(tmp_path):
    config = make_benchmark(tmp_path, "eval.deadline_s=1")
    with playing(config) as (run, process):
        run.answers = 1
        assert process.wait(DEADLINE_S) == 1
    (given_up,) = records(config, "evaluation_given_up")
    assert "12 samples of benchmarks at version 0@1" in given_up["reason"]
    assert given_up["last"] is False
    assert json.loads((config.run_dir / "evaluations/v0/own.json").read_text())["unfinished"] == pytest.approx(4 / 20)
    with playing(config) as (run, process):  # the same command again: it is not settled
        assert process.wait(DEADLINE_S) == 0
        assert asked_samples(run) == 3 * 4
    assert json.loads((config.run_dir / "evaluations/v0/own.json").read_text())["unfinished"] == 0


def test_buffer_that_forgot_a_benchmark_is_asked_for_the_rest(tmp_path):
    config = make_benchmark(tmp_path)
    with playing(config) as (run, process):
        run.forget_once = True
        assert process.wait(DEADLINE_S) == 0
    result = json.loads((config.run_dir / "evaluations/v0/own.json").read_text())
    assert (result["unfinished"], result["problems"]) == (0, 3)


def test_benchmark_that_cannot_be_had_is_a_mistake_before_anything_is_asked(tmp_path):
    config = make_benchmark(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"q": "1"}')
    with playing(config) as (run, process):
        assert process.wait(DEADLINE_S) == 2
        assert process.stderr is not None
        assert "own: " in (text := process.stderr.read())
        assert "row 1: no 'a' (answer)" in text
        assert not run.of("evaluate")
