"""Code rewards without a sandbox: what is a program, a problem, an equal output, and a server's answer."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from r1async.config import CodeConfig
from r1async.rewards.code import CodeGrader, Problem, last_fence, parse_problem
from r1async.rewards.languages import LANGUAGES, find_language
from r1async.rewards.outputs import read_value, same_text, same_value
from r1async.rewards.remote import RemoteRunner
from r1async.rewards.runners import Task, Trial
from r1async.rewards.sandbox import SandboxError

ADD = {"type": "stdin", "tests": [["1 2", "3"], ["4 5", "9"], ["6 7", "13"]]}


class Played:
    """A runner that answers from a list, and remembers what it was asked."""

    def __init__(self, *trials: Trial | SandboxError) -> None:
        self.trials, self.tasks = list(trials), []

    def run(self, task: Task) -> Trial:
        self.tasks.append(task)
        trial = self.trials.pop(0)
        if isinstance(trial, SandboxError):
            raise trial
        return trial

    def close(self) -> None: ...


def wrote(text: str, seconds: float = 0.1) -> Trial:
    return Trial("ok", text.encode(), seconds)


def grade(runner: Played, settings: CodeConfig | None = None, **item: object):
    fields = {"problem": ADD, "completion": "```python\nx\n```", **item}
    return CodeGrader(settings or CodeConfig(), runner).grade(fields)


@pytest.mark.parametrize(
    ("text", "source", "tag"),
    [
        ("```python\nx\n```", "x\n", "python"),
        ("a\n```\nx\n```\nb\n```cpp\ny\n\nz\n```\nend", "y\n\nz\n", "cpp"),
        ("~~~js\nx\n~~~", "x\n", "js"),
        ("````md\n```\nx\n```\n````", "```\nx\n```\n", "md"),
        ("```python title=a\nx\n``` \n", "x\n", "python"),
        ("```python\r\nx\r\n```", "x\r\n", "python"),
        ("  ```\n  x\n  ```", "  x\n", ""),
    ],
)
def test_program_is_in_the_last_code_fence(text: str, source: str, tag: str):
    assert last_fence(text) == (source, tag)


@pytest.mark.parametrize("text", ["", "x", "```python\nx", "```\nx\n```\n```python\ny", "`x`", "```x```"])
def test_fence_that_is_missing_or_cut_off_is_no_program(text: str):
    assert last_fence(text) is None
    assert grade(Played(), completion=text).verdict.status == "wrong"


@pytest.mark.parametrize(
    ("got", "expected", "equal"),
    [
        ("3\n", "3", True),
        ("3  \r\n4\n\n\n", "3\n4", True),
        ("1  2\t3", "1 2 3", True),
        ("  1 2", "1 2", True),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("1", "1\n2", False),
        ("1\n2\n3", "1\n2", False),
        ("", "1", False),
        ("", "", True),
        ("\n", "", True),
        ("3.0", "3", True),
        ("+3", "3", True),
        ("3.0000000001", "3", False),
        ("0.30000000000000004", "0.3", True),
        ("0.3000001", "0.3", False),
        ("0.333333", "0.3333333333", False),
        ("1e-10", "0.0", False),
        ("2e-20", "1e-20", False),
        ("0", "0.0", True),
        ("1000", "1e3", True),
        ("３", "3", False),
        ("1_0", "10", False),
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("inf", "1.0", False),
        ("0x3", "3", False),
        ("Yes", "YES", False),
        ("True", "1", False),
        ("1\x0c2", "1\n2", False),
        ("1\u2028" + "2", "1\n2", False),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 4999 + "8", "9" * 5000, False),
        ("1e999999999999", "1.5", False),
        ("1e99999999999999999999", "1", False),
        ("1", "1e99999999999999999999", False),
        ("0e-99999999999999999999", "0.0", False),
    ],
)
def test_output_equals_by_lines_and_tokens(got: str, expected: str, equal: bool):
    assert same_text(got, expected, 1e-9) is equal


@given(*2 * (st.from_regex(r"[+-]?([0-9]{1,9}[.]?[0-9]{0,9}|[.][0-9]+)([eE][+-]?[0-9]{1,40})?", fullmatch=True),))
def test_no_number_breaks_the_comparison(got: str, expected: str):
    """What raises here takes the worker down, and the program gets no verdict instead of 0."""
    assert same_text(got, expected, 1e-9) in (True, False)
    assert same_text(got, got, 1e-9)


def test_tolerance_is_relative_and_can_be_switched_off():
    assert same_text("1000000.5", "1000000.4999999", 1e-9)
    assert not same_text("1000000.6", "1000000.4999999", 1e-9)
    assert same_text("0.3333", "0.33333333", 1e-3)
    assert not same_text("0.30000000000000004", "0.3", 0.0)


@pytest.mark.parametrize(
    ("got", "expected", "equal"),
    [
        ("3", 3, True),
        ("3.0", 3, True),
        ("3.0000000001", 3, False),
        ("0.30000000000000004", 0.3, True),
        ("3", 3.0, True),
        ("true", True, True),
        ("1", True, False),
        ("true", 1, False),
        ("null", None, True),
        ("null", False, False),
        ('"a"', "a", True),
        ('"3"', 3, False),
        ("3", "3", False),
        ("[1, [2]]", [1, [2]], True),
        ("[1, 2]", [2, 1], False),
        ("[1]", 1, False),
        ("[]", None, False),
        ('{"a": 1}', {"a": 1}, True),
        ('{"a": 1, "b": 2}', {"a": 1}, False),
        ("1e999", 1.5, False),
    ],
)
def test_value_equals_by_structure(got: str, expected: object, equal: bool):
    assert same_value(read_value(got), expected, 1e-9) is equal


@pytest.mark.parametrize("text", ["", "NaN", "[Infinity]", "1 2", "[" * 100_000, "{", b"\xff"])
def test_result_that_is_no_value_is_refused(text: str | bytes):
    with pytest.raises(ValueError):
        read_value(text)


def test_number_of_a_million_digits_costs_no_time_and_equals_itself():
    number = read_value("9" * 10**6)
    assert same_value(number, read_value("9" * 10**6), 1e-9)
    assert not same_value(number, 9, 1e-9)


@pytest.mark.parametrize(
    ("problem", "parsed"),
    [
        ({"tests": [["1", "2"]]}, ("stdin", "", [("1", "2")])),
        ({"type": "stdin", "tests": [[["a", "b"], ["c", "d"]]]}, ("stdin", "", [("a\nb", "c\nd")])),
        ({"tests": [{"input": "1", "output": "2", "testtype": "stdin"}]}, ("stdin", "", [("1", "2")])),
        ({"inputs": ["1"], "outputs": ["2"]}, ("stdin", "", [("1", "2")])),
        ('{"tests": [["1", "2"]]}', ("stdin", "", [("1", "2")])),
        ({"tests": '[["1", "2"]]'}, ("stdin", "", [("1", "2")])),
        ({"type": "call", "fn_name": "f", "tests": [[[1, "a"], "b"]]}, ("call", "f", [('[1, "a"]', "b")])),
        ({"fn_name": "f", "tests": [['1\n"a"\n', '"b"']]}, ("call", "f", [('[1, "a"]', "b")])),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[2]]}, ("call", "f", [("[1]", 2)])),
        (
            {"fn_name": "f", "inputs": [[1], [1]], "outputs": [[2], [3, 4]]},
            ("call", "f", [("[1]", [2]), ("[1]", [3, 4])]),
        ),
    ],
)
def test_problem_comes_in_the_shapes_of_data_sets(problem: object, parsed: tuple[str, str, list[object]]):
    assert parse_problem(problem) == Problem(*parsed)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"problem": None}, "problem must be an object, got NoneType"),
        ({"problem": "{"}, "problem must be JSON"),
        ({"problem": {"tests": []}}, "at least one"),
        ({"problem": {"tests": [["1"]]}}, r"a test must be \[input, output\]"),
        ({"problem": {"tests": [[1, 2]]}}, "must be texts"),
        ({"problem": {"type": "spj", "tests": [["1", "2"]]}}, "must be stdin or call"),
        ({"problem": {"fn_name": "f(); import os", "tests": [[[1], 2]]}}, "fn_name must be the name"),
        ({"problem": {"fn_name": "f", "tests": [["x y", "2"]]}}, "an argument must be JSON"),
        ({"problem": {"inputs": ["1"], "outputs": []}}, "of the same number"),
        ({"language": "cobol"}, "language 'cobol' is not known here"),
        ({"time_limit_s": -1}, "time_limit_s must be a number above 0"),
        ({"memory_limit_mib": "many"}, "memory_limit_mib must be JSON"),
        ({"completion": 3}, "completion must be a text"),
        ({"language": "cpp", "problem": {"fn_name": "f", "tests": [[[1], 2]]}}, "cannot be called in cpp"),
    ],
)
def test_item_that_cannot_be_read_abstains(item: Mapping[str, object], why: str):
    graded = grade(Played(), None, **item)
    assert (graded.verdict.total, graded.verdict.status) == (None, "ungradable")
    assert re.search(why, graded.detail)


def test_all_tests_have_to_pass_and_the_first_failure_ends_it():
    runner = Played(wrote("3"), wrote("8"))
    graded = grade(runner)
    assert (graded.verdict.total, graded.verdict.status, graded.tests) == (0.0, "wrong", 2)
    assert grade(Played(wrote("3"), wrote("9\n"), wrote(" 13"))).verdict.total == 1.0


def test_fraction_runs_all_and_names_the_first_failure():
    runner = Played(wrote("3"), Trial("timeout"), wrote("1"))
    graded = grade(runner, CodeConfig(credit="fraction"))
    assert (graded.verdict.total, graded.verdict.status, graded.tests) == (pytest.approx(1 / 3), "timeout", 3)


def test_program_that_does_not_compile_is_not_tried_again():
    graded = grade(Played(Trial("compile")), CodeConfig(credit="fraction"))
    assert (graded.verdict.total, graded.verdict.status) == (0.0, "compile")


def test_expected_outputs_are_in_no_task():
    problem = {"fn_name": "f", "tests": [[[n], f"expected-{n}"] for n in range(3)]}
    runner = Played(*(wrote(f'"expected-{n}"') for n in range(3)))
    assert grade(runner, problem=problem).verdict.total == 1.0
    assert "expected" not in repr(runner.tasks)


def test_all_tests_together_have_a_deadline():
    runner = Played(wrote("3", 4.0), wrote("9", 4.0))
    graded = grade(runner, CodeConfig(deadline_s=7.0, time_limit_s=6.0))
    assert (graded.verdict.total, graded.verdict.status) == (0.0, "timeout")
    assert [task.time_limit_s for task in runner.tasks] == [6.0, 3.0]


def test_limits_of_the_problem_win_and_time_has_a_factor():
    runner = Played(wrote("0"))
    grade(runner, CodeConfig(time_factor=2.0), time_limit_s="1.5", memory_limit_mib=64)
    assert (runner.tasks[0].time_limit_s, runner.tasks[0].memory_limit_mib) == (3.0, 64)


@pytest.mark.parametrize(
    ("item", "language"),
    [
        ({"completion": "```cpp\n```"}, "cpp"),
        ({"completion": "```\n```"}, "python"),
        ({"completion": "```plaintext\n```"}, "python"),
        ({"completion": "```cpp\n```", "language": "JS"}, "javascript"),
        ({"completion": "int main() {}", "raw": True, "language": "c++"}, "cpp"),
    ],
)
def test_language_is_the_rows_else_the_fences_else_the_default(item: Mapping[str, object], language: str):
    runner = Played(wrote("0"))
    grade(runner, None, **item)
    assert runner.tasks[0].language.name == language


def test_program_that_is_too_long_trips_a_guard():
    graded = grade(Played(), completion="x" * 300_000, raw=True)
    assert (graded.verdict.total, graded.verdict.status) == (0.0, "guard")


def test_sandbox_that_fails_abstains():
    graded = grade(Played(SandboxError("gone")))
    assert (graded.verdict.total, graded.verdict.status, graded.detail) == (None, "infra_error", "gone")


def test_names_of_languages_are_unique():
    names = [name for language in LANGUAGES.values() for name in (language.name, *language.aliases)]
    assert len(names) == len(set(names))
    assert find_language("Python3") is LANGUAGES["python"]
    assert find_language("brainfuck") is None


Answer = Mapping[str, object] | int


class Server:
    """SandboxFusion, played: answers from a list, then with the last for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[dict[str, object]] = []
        played = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                played.requests.append({"path": self.path, **json.loads(body)})
                answer = played.answers.pop(0) if len(played.answers) > 1 else played.answers[0]
                self.send_response(answer if isinstance(answer, int) else 200)
                self.end_headers()
                self.wfile.write(b"" if isinstance(answer, int) else json.dumps(answer).encode())

            def log_message(self, format: str, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def ran(stdout: str = "", code: int | None = 0, status: str = "Finished", **more: object) -> dict[str, object]:
    result = {"status": status, "return_code": code, "stdout": stdout, "stderr": "", "execution_time": 0.25}
    overall = "Success" if code == 0 and status == "Finished" else "Failed"
    return {"status": overall, "message": "", "compile_result": None, "run_result": result, "files": {}, **more}


def remote(server: Server, tries: int = 3) -> RemoteRunner:
    return RemoteRunner(server.url, compile_s=7.0, tries=tries, output_bytes=1000, pause_s=0.0)


def task(**fields) -> Task:
    given = {"language": LANGUAGES["python"], "source": b"x", "stdin": b"1 2", "time_limit_s": 3.0}
    return Task(**{**given, "memory_limit_mib": 64, **fields})


def test_server_gets_the_fields_of_run_code(server: Server):
    server.answers = [ran("3\n")]
    assert remote(server).run(task()) == Trial("ok", b"3\n", 0.25, "")
    assert server.requests == [
        {
            "path": "/run_code",
            "language": "python",
            "code": "x",
            "stdin": "1 2",
            "compile_timeout": 7.0,
            "run_timeout": 3.0,
            "memory_limit_MB": 64,
            "files": {},
            "fetch_files": [],
        }
    ]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (ran(code=1), "runtime"),
        (ran(code=None, status="TimeLimitExceeded"), "timeout"),
        (ran("x" * 1001), "output"),
        (
            ran(code=1, compile_result={"status": "Finished", "return_code": 1, "stderr": "no"}, run_result=None),
            "compile",
        ),
        (ran(code=1, compile_result={"status": "TimeLimitExceeded", "return_code": None}, run_result=None), "compile"),
    ],
)
def test_server_says_what_the_program_did(server: Server, answer: Answer, status: str):
    server.answers = [answer]
    assert remote(server).run(task()).status == status
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "failure",
    [
        500,
        429,
        504,
        {"status": "SandboxError", "message": "no worker"},
        ran(status="Error"),
        {"status": "Success"},
        {},
    ],
)
def test_server_that_fails_is_asked_again_and_then_the_program_abstains(server: Server, failure: Answer):
    server.answers = [failure, ran("3\n")]
    assert remote(server).run(task()).output == b"3\n"
    server.requests.clear()
    server.answers = [failure]
    with pytest.raises(SandboxError, match="run_code failed"):
        remote(server).run(task())
    assert len(server.requests) == 3
    graded = CodeGrader(CodeConfig(), remote(server)).grade({"problem": ADD, "completion": "x", "raw": True})
    assert (graded.verdict.total, graded.verdict.status) == (None, "infra_error")


def test_request_that_the_server_refuses_is_not_repeated(server: Server):
    server.answers = [422]
    with pytest.raises(SandboxError, match="422"):
        remote(server).run(task())
    assert len(server.requests) == 1


def test_server_that_is_not_there_abstains():
    runner = RemoteRunner("http://127.0.0.1:9", compile_s=1.0, tries=2, output_bytes=9, pause_s=0.0)
    with pytest.raises(SandboxError, match="Connection refused"):
        runner.run(task())


def test_server_that_keeps_failing_is_given_up_when_its_time_is_over(server: Server):
    server.answers = [500]
    runner = RemoteRunner(server.url, compile_s=1.0, tries=100, output_bytes=9, pause_s=0.01)
    with pytest.raises(SandboxError, match=r"no answer within 0\.2 s; .*500"):
        runner.run(task(answer_s=0.2))
    assert len(server.requests) < 10


def test_time_that_the_runner_takes_is_not_the_programs():
    runner = Played(wrote("3"), wrote("9"))
    graded = grade(runner, CodeConfig(deadline_s=1e-9, compile_s=1e-9))
    assert (graded.verdict.total, graded.verdict.status) == (None, "infra_error")


def test_function_is_called_on_the_server_without_its_expected_result(server: Server):
    server.answers = [ran(files={"result.json": base64.b64encode(b"[49]").decode()})]
    problem = {"fn_name": "f", "tests": [[[7], ["expected"]]]}
    grader = CodeGrader(CodeConfig(url=server.url))
    assert grader.grade({"problem": problem, "completion": "def f(n): ...", "raw": True}).verdict.status == "wrong"
    (request,) = server.requests
    assert "expected" not in json.dumps(request)
    files = request["files"]
    assert isinstance(files, dict)
    assert base64.b64decode(files["program.py"]) == b"def f(n): ..."
    assert json.loads(base64.b64decode(files["args.json"]))["args"] == [7]
    assert request["fetch_files"] == ["result.json"]
