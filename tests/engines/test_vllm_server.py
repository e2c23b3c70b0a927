"""The HTTP side against a server of ours that says what a vLLM started wrongly says, or breaks off."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from r1async.engines import EngineVersionError
from r1async.generator.engine import EngineError, EngineSpec, Request
from r1async.models.loading import state_tensors
from r1async.types import PolicyVersion

from tests.engine_runs import PLAIN, engine_spec
from tests.tiny_models import tiny_model

pytest.importorskip("aiohttp", reason="comes with vLLM")
from r1async.generator.vllm_server import VllmServer

WAIT_S = 30.0
SETTINGS = {
    "logprobs_mode": "processed_logprobs",
    "dtype": "float32",
    "max_model_len": 64,
    "max_num_seqs": 4,
    "enable_prefix_caching": True,
    "enable_chunked_prefill": False,
    "block_size": 16,
    "backend": "r1async",
    "device": "cpu",
}
STATE = {"pid": 1, "intact": True, "loaded": None, "staged": True, "refusal": None}
TOKEN = {"index": 0, "token_ids": [7], "finish_reason": None, "logprobs": {"content": [{"token_id": 7, "logprob": -1}]}}
FIT = {
    "/version": {"version": "0.32.1"},
    "/is_paused": {"is_paused": False},
    "/weight_info": {"weight_version": "default"},
    "r1async_settings": {"results": [SETTINGS]},
    "r1async_stage": {"results": [None]},
    "r1async_state": {"results": [STATE]},
    "/pause": {},
    "/start_weight_update": {},
    "/update_weights": {},
    "/finish_weight_update": {},
    "/resume": {},
    "/inference/v1/abort_requests": {},
    "/inference/v1/generate": [{"request_id": "x", "choices": [TOKEN]}],
}


@contextmanager
def serving(answers: Mapping[str, object]) -> Iterator[str]:
    """A server that answers a path, or a method of collective_rpc, with JSON; a list is a stream of events."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(self.path.partition("?")[0])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null") or {}
            self.answer(body["method"] if self.path == "/collective_rpc" else self.path.partition("?")[0], body)

        def answer(self, key: str, body: Mapping | None = None) -> None:
            said = answers.get(key)
            status = 404 if said is None else said if isinstance(said, int) else 200
            if isinstance(said, list) and not body:
                status = 400
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if isinstance(said, list) and status == 200:
                self.wfile.write("".join(f"data: {json.dumps(event)}\n\n" for event in said).encode())
            else:
                self.wfile.write(json.dumps(said).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Not into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(WAIT_S)
        server.server_close()


def spec(model_dir: Path, folder: Path, arrived: threading.Event, start_deadline_s: float = WAIT_S) -> EngineSpec:
    return engine_spec(model_dir, folder, arrived.set, WAIT_S, start_deadline_s=start_deadline_s)


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("/is_paused", "VLLM_SERVER_DEV_MODE=1"),
        ("/inference/v1/generate", "was started without --enable-scale-out"),
        ("r1async_settings", "has not our worker extension"),
    ],
)
def test_a_server_without_what_we_need_is_told_how_to_start(model_dir, tmp_path, lacks, says):
    with (
        serving({key: value for key, value in FIT.items() if key != lacks}) as url,
        pytest.raises(EngineError, match=says) as caught,
    ):
        VllmServer(spec(model_dir, tmp_path, threading.Event()), url)
    for word in ("VLLM_SERVER_DEV_MODE=1 vllm serve", "--worker-extension-cls", "docs/engines.md", url):
        assert word in str(caught.value)


def test_a_server_on_a_cpu_that_cuts_prompts_is_refused(model_dir, tmp_path):
    answers = FIT | {"r1async_settings": {"results": [SETTINGS | {"enable_chunked_prefill": True}]}}
    says = r"enable_chunked_prefill=True, want False \(on a CPU\)"
    with serving(answers) as url, pytest.raises(EngineError, match=says):
        VllmServer(spec(model_dir, tmp_path, threading.Event()), url)


def test_a_server_of_another_version_is_refused(model_dir, tmp_path):
    with serving({"/version": {"version": "0.31.0"}}) as url, pytest.raises(EngineVersionError, match=r"vllm 0\.31\.0"):
        VllmServer(spec(model_dir, tmp_path, threading.Event()), url)


def test_a_server_that_is_not_there_is_waited_for_until_the_deadline(model_dir, tmp_path):
    with serving({}) as url:
        pass
    with pytest.raises(EngineError, match=r"did not start within 1 s \(generator.start_deadline_s\)"):
        VllmServer(spec(model_dir, tmp_path, threading.Event(), start_deadline_s=1.0), url)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([{"choices": [TOKEN]}], "closed its stream before its end"),
        ([{"error": {"message": "out of memory"}}], "out of memory"),
        ([{"choices": [TOKEN | {"token_ids": [8]}]}], "logprobs of other tokens"),
        (503, "refused request generator-0-1-1: 503"),
    ],
    ids=["breaks off", "error", "other tokens", "refused"],
)
def test_what_a_server_should_not_say_is_an_error(model_dir, tmp_path, events, says):
    arrived = threading.Event()
    answers = dict(FIT)
    with serving(answers) as url:
        engine = VllmServer(spec(model_dir, tmp_path, arrived), url)
        try:
            engine.install(PolicyVersion(1, 1), state_tensors(tiny_model()))
            answers["/inference/v1/generate"] = events
            engine.submit([Request(id=1, rollout=1, prompt_ids=np.array([5, 6], np.int32), sampling=PLAIN)])

            def collect() -> None:
                while True:
                    arrived.clear()
                    engine.step()
                    assert arrived.wait(WAIT_S)

            with pytest.raises(EngineError, match=says):
                collect()
        finally:
            engine.close()
