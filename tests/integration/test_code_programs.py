"""Programs graded for real: honest ones in every language, and through a scorer's workers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping

import pytest
from r1async.config import CodeConfig, ConfigError, RewardConfig, ScorerConfig
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.reward_pools import pools_of
from r1async.rewards.code import CodeGrader, close_graders, grade_code
from r1async.rewards.compose import Grader
from r1async.rewards.languages import LANGUAGES
from r1async.rewards.pool import Job, Report
from r1async.rewards.pools import Pools
from r1async.rewards.sandbox import LayersMissingError, Sandbox
from r1async.tasks.meta import Question, encode_meta
from r1async.types import Completion, Verdict

WAIT_S = 120.0
PATIENT = CodeConfig(time_limit_s=30.0, compile_s=100.0, deadline_s=200.0)
ADD = {"type": "stdin", "tests": [["1 2\n", "3\n"], ["40 50\n", "90\n"]]}
JOIN = {"type": "call", "fn_name": "join", "tests": [[[[1], [2, 3]], [1, 2, 3]], [[[], []], []]]}

HONEST: Mapping[str, tuple[str, str, Mapping[str, object]]] = {
    "python": ("python", "a, b = map(int, input().split())\nprint(a + b)", ADD),
    "python_reads_all": ("python", "import sys\nprint(sum(map(int, sys.stdin.read().split())))", ADD),
    "python_opens_descriptor_0": ("python", "print(sum(map(int, open(0).read().split())))", ADD),
    "python_exits": ("python", "import sys\nprint(sum(map(int, input().split())))\nsys.exit(0)", ADD),
    "python_has_main": (
        "python",
        "def main(): print(sum(map(int, input().split())))\nif __name__ == '__main__': main()",
        ADD,
    ),
    "python_uses_the_system": (
        "python",
        "import os, tempfile, threading, subprocess, multiprocessing\n"
        "os.getcwd(); tempfile.TemporaryFile().write(b'x')\n"
        "t = threading.Thread(target=print, args=(sum(map(int, input().split())),)); t.start(); t.join()\n"
        "subprocess.run(['true'], check=True)",
        ADD,
    ),
    "python_recurses": (
        "python",
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nf(50000)\n"
        "print(sum(map(int, input().split())))",
        ADD,
    ),
    "python_prints_large_numbers": ("python", "print(10 ** 9000)", {"tests": [["", "1" + "0" * 9000]]}),
    "python_function": ("python", "def join(a, b): return a + b", JOIN),
    "python_class": (
        "python",
        "class Solution:\n  def join(self, a: List[int], b: List[int]) -> List[int]:\n    return tuple(chain(a, b))",
        JOIN,
    ),
    "python_function_that_prints": ("python", "print('hello')\ndef join(a, b):\n  print(a)\n  return a + b", JOIN),
    "cpp": ("cpp", "#include <bits/stdc++.h>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }", ADD),
    "cpp_recurses": (
        "cpp",
        "#include <cstdio>\nint f(int n, volatile char *p) { volatile char b[64]; b[n % 64] = *p; "
        "return n ? f(n - 1, b) + b[1] * 0 : 0; }\n"
        'int main() { int a, b; char c = 0; if (scanf("%d %d", &a, &b) == 2) printf("%d", a + b + f(500000, &c)); }',
        ADD,
    ),
    "cpp_threads": (
        "cpp",
        "#include <iostream>\n#include <thread>\nint main() { int a, b; std::cin >> a >> b; "
        "std::thread([&] { a += b; }).join(); std::cout << a; }",
        ADD,
    ),
    "c": ("c", '#include <stdio.h>\nint main() { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); }', ADD),
    "javascript_by_name": (
        "javascript",
        "const [a, b] = require('fs').readFileSync('/dev/stdin', 'utf8').split(' ').map(Number); console.log(a + b)",
        ADD,
    ),
    "javascript_by_line": (
        "javascript",
        "require('readline').createInterface({ input: process.stdin }).on('line', (line) => {"
        "console.log(line.split(' ').map(Number).reduce((a, b) => a + b)) })",
        ADD,
    ),
    "javascript_function": ("javascript", "const join = (a, b) => [...a, ...b]", JOIN),
    "javascript_class": ("javascript", "class Solution { join(a, b) { return a.concat(b) } }", JOIN),
    "javascript_promise": ("javascript", "async function join(a, b) { return a.concat(b) }", JOIN),
}


@pytest.fixture(scope="module")
def isolated() -> None:
    try:
        Sandbox().close()
    except LayersMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def grader(isolated: None) -> Iterator[CodeGrader]:
    grader = CodeGrader(PATIENT)
    yield grader
    grader.close()


def needs(language: str) -> None:
    if language != "python" and shutil.which(LANGUAGES[language].tool) is None:
        pytest.skip(f"{LANGUAGES[language].tool} is not installed")


@pytest.mark.parametrize("name", HONEST)
def test_honest_program_passes(name: str, grader: CodeGrader):
    language, source, problem = HONEST[name]
    needs(language)
    graded = grader.grade({"completion": f"So:\n```{language}\n{source}\n```\nDone.", "problem": problem})
    assert (graded.verdict, graded.detail) == (Verdict(total=1.0), "")


@pytest.mark.parametrize(
    ("language", "source", "status"),
    [
        ("python", "def f(:", "runtime"),
        ("python", "x = bytearray(10**11)", "memory"),
        ("python", "while True: pass", "timeout"),
        ("python", "while True: print('x' * 99)", "output"),
        ("python", "print(0)", "wrong"),
        ("cpp", "int main( {", "compile"),
        ("cpp", "#include <vector>\nint main() { std::vector<char> v(1ul << 40); }", "memory"),
        ("cpp", "int main() { return *(volatile int *)0; }", "runtime"),
        ("javascript", "const all = []; while (true) all.push(new Array(1e6).fill(1.5))", "memory"),
        ("javascript", "throw new Error()", "runtime"),
    ],
)
def test_status_says_what_the_program_did(language: str, source: str, status: str, grader: CodeGrader):
    needs(language)
    limit = {"time_limit_s": 0.5} if status == "timeout" else {}
    item = {"completion": source, "raw": True, "language": language, "problem": ADD, "memory_limit_mib": 256, **limit}
    assert grader.grade(item).verdict == Verdict(total=0.0, status=status)


def test_plain_function_grades_an_item(isolated: None):
    item = {"completion": "print(3)", "raw": True, "problem": {"tests": [["", "3"]]}}
    assert grade_code(item, PATIENT) == grade_code(item, PATIENT) == Verdict(total=1.0)
    close_graders()


def test_language_that_is_not_here_abstains(grader: CodeGrader, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("r1async.rewards.runners.find_tool", lambda word, folders: None)
    verdict = grader.grade({"completion": "x", "raw": True, "language": "javascript", "problem": ADD}).verdict
    assert verdict == Verdict.abstain("infra_error")


def test_code_is_a_part_of_the_reward(isolated: None):
    settings = RewardConfig(weights={"code": 2.0, "format": 0.5}, code=PATIENT)
    reward = Grader(settings, before_slow=lambda: None)
    text = "<think>add</think><answer>\n```python\nprint(sum(map(int, input().split())))\n```\n</answer>"
    completion = Completion(text=text, num_tokens=9, finish="stop")
    for question in (
        Question(text="?", answer="", extra={"problem": json.dumps(ADD), "time_limit_s": "25"}),
        Question(text="?", answer=json.dumps(ADD)),
    ):
        assert reward.grade(question, completion) == Verdict(total=2.5, parts={"code": 1.0, "format": 1.0})
    broken = Question(text="?", answer="7")
    assert reward.grade(broken, completion).status == "ungradable"


def test_machine_that_cannot_isolate_is_refused_with_the_setting(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **fields: object) -> None:
        raise LayersMissingError("programs cannot be isolated here: no root: because")

    monkeypatch.setattr("r1async.rewards.runners.Sandbox", refuse)
    with pytest.raises(ConfigError, match=r"reward\.weights\.code: programs cannot .*reward\.code\.unsafe"):
        Grader(RewardConfig(weights={"code": 1.0}), before_slow=lambda: None)


def test_workers_of_a_scorer_grade_programs(isolated: None):
    inbox = Inbox()
    settings = RewardConfig(weights={"code": 1.0}, code=PATIENT)
    assert pools_of(settings, ScorerConfig())["code"].deadline_s == 310.0
    # Less address space than node reserves: programs have limits of their own.
    pool = Pools(settings, ScorerConfig(workers=2, worker_memory_mb=2048), inbox)
    verdicts: dict[int, Verdict] = {}
    try:
        pool.start()
        meta = encode_meta(Question(text="?", answer="", extra={"problem": json.dumps(ADD)}))
        good, bad = "print(sum(map(int, input().split())))", "import os; os.kill(-1, 9)"
        texts = [f"```python\n{source}\n```" for source in (good, bad) * 4]
        if shutil.which("node"):
            source = "console.log(require('fs').readFileSync(0, 'utf8').split(' ').map(Number).reduce((a, b) => a + b))"
            texts += [f"```js\n{source}\n```", "```js\nprocess.exit(0)\n```"]
        pool.submit([Job(number, meta, text, 1, "stop") for number, text in enumerate(texts)])
        end = time.monotonic() + WAIT_S
        while len(verdicts) < len(texts):
            try:
                report = inbox.get("a report", end - time.monotonic())
            except DeadlineExceeded:
                pytest.fail(f"only {len(verdicts)} verdicts")
            assert isinstance(report, Report)
            verdicts.update({number: verdict for number, verdict, _ in pool.handle(report)})
    finally:
        pool.close()
    assert [verdicts[number].total for number in range(len(texts))] == [1.0, 0.0] * (len(texts) // 2)
