"""Programs run by a SandboxFusion server: its `run_code`, with retries and a deadline.

Source: github.com/bytedance/SandboxFusion, sandbox/server/sandbox_api.py.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from r1async.rewards.languages import HARNESSES, RESULT_FILE
from r1async.rewards.runners import Task, Trial, call_files
from r1async.rewards.sandbox import SandboxError

log = logging.getLogger(__name__)

TRAVEL_S = 10.0
"""For a request beyond what its program may take: travel, and the server's queue."""
FIRST_PAUSE_S = 0.5
"""Before the second request; doubled before each further one."""
MAX_ANSWER_BYTES = 64 * 2**20


class RemoteRunner:
    """A SandboxFusion server.

    Args:
        url: http://HOST:PORT.
        compile_s: seconds for compiling.
        tries: requests for one run.
        output_bytes: a longer output is status `output`.
        pause_s: before the second request.
    """

    def __init__(
        self, url: str, *, compile_s: float, tries: int, output_bytes: int, pause_s: float = FIRST_PAUSE_S
    ) -> None:
        self._url = url.rstrip("/") + "/run_code"
        self._compile_s, self._tries, self._output_bytes = compile_s, tries, output_bytes
        self._pause_s = pause_s

    def close(self) -> None:
        """Nothing is held between requests."""

    def run(self, task: Task) -> Trial:
        """One request, repeated while the server fails and there is time.

        Raises:
            SandboxError: it failed at every try, or answers what makes no sense, or too late.
        """
        until = time.monotonic() + task.answer_s
        request = json.dumps(self._request(task)).encode()
        seconds = task.time_limit_s + self._compile_s + TRAVEL_S
        pause, why = self._pause_s, ""
        for number in range(self._tries):
            if number:
                time.sleep(min(pause, max(0.0, until - time.monotonic())))
                pause *= 2
            left = min(seconds, until - time.monotonic())
            if left <= 0:
                why = f"no answer within {task.answer_s:.1f} s; {why}"
                break
            try:
                return self._trial(self._ask(request, left), task)
            except (SandboxError, OSError, http.client.HTTPException, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
                log.warning("%s, try %d of %d: %s", self._url, number + 1, self._tries, why)
                if isinstance(error, urllib.error.HTTPError) and error.code in (400, 401, 403, 404, 405, 422):
                    break  # it will say the same again
        raise SandboxError(f"{self._url} failed: {why}")

    def _request(self, task: Task) -> dict[str, object]:
        language = task.language
        files: Mapping[str, bytes] = {}
        code = task.source.decode()
        if task.call is not None:
            files, code = call_files(task, task.call), HARNESSES[language.harness]
        return {
            "language": language.remote,
            "code": code,
            "stdin": task.stdin.decode(),
            "compile_timeout": self._compile_s,
            "run_timeout": task.time_limit_s,
            "memory_limit_MB": task.memory_limit_mib,
            "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
            "fetch_files": [RESULT_FILE] if task.call else [],
        }

    def _ask(self, request: bytes, seconds: float) -> Mapping[str, object]:
        headers = {"Content-Type": "application/json"}
        message = urllib.request.Request(self._url, request, headers, method="POST")
        until, body = time.monotonic() + seconds, bytearray()
        with urllib.request.urlopen(message, timeout=seconds) as response:
            # The timeout holds for each read alone, and a server may send a byte at a time.
            while part := response.read1(2**16):
                body += part
                if len(body) > MAX_ANSWER_BYTES or time.monotonic() > until:
                    raise SandboxError(f"the answer is too long or too slow, {len(body)} bytes so far")
        answer = json.loads(body)
        if not isinstance(answer, dict):
            raise SandboxError(f"the answer is no JSON object: {answer!r:.200}")
        return answer

    def _trial(self, answer: Mapping[str, object], task: Task) -> Trial:
        compiled, ran = answer.get("compile_result"), answer.get("run_result")
        if answer.get("status") not in ("Success", "Failed"):
            raise SandboxError(f"status {answer.get('status')!r}: {answer.get('message')!r:.400}")
        if isinstance(compiled, dict) and (compiled.get("status") != "Finished" or compiled.get("return_code")):
            _finished(compiled)
            return Trial("compile", detail=str(compiled.get("stderr"))[-400:])
        if not isinstance(ran, dict):
            raise SandboxError(f"no run_result in {answer!r:.400}")
        _finished(ran)
        wall_s, detail = float(ran.get("execution_time") or 0.0), str(ran.get("stderr") or "")[-400:]
        if ran["status"] == "TimeLimitExceeded":
            return Trial("timeout", b"", wall_s, detail)
        if ran.get("return_code") != 0:
            marks = any(mark.decode() in detail for mark in task.language.memory_marks)
            return Trial("memory" if marks else "runtime", b"", wall_s, detail)
        output = str(ran.get("stdout") or "").encode()
        if task.call is not None:
            files = answer.get("files")
            text = files.get(RESULT_FILE) if isinstance(files, dict) else None
            output = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        return Trial("ok" if len(output) <= self._output_bytes else "output", output, wall_s, detail)


def _finished(result: Mapping[str, object]) -> None:
    """A command that the server could not run is its own failure.

    Raises:
        SandboxError: it was neither finished nor out of time.
    """
    if result.get("status") not in ("Finished", "TimeLimitExceeded"):
        raise SandboxError(f"a command ended with {result.get('status')!r}: {result.get('stderr')!r:.400}")
