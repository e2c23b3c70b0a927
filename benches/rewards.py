"""What rule rewards cost, in processor time: `python benches/rewards.py [PART ...]`, of those below; all without.

    fast_path  answers a second that need no algebra, extraction from 2 kB included, none twice, so that no cache helps
    lengths    milliseconds by length from 1k to 128k tokens, and of completions written to make a scan slow
    towers     what 16 power towers do to the other 496 of a batch
    hung       how long a verifier that hangs in a C call holds its worker
    crashes    what a verifier that brings down its worker in 5 % of its calls does to the advantages

Fails where a figure is beyond what docs/rewards.md promises.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from r1async._core import advantages
from r1async.answers import extract_answer
from r1async.config import RewardConfig, ScorerConfig
from r1async.inbox import DeadlineExceeded, Inbox
from r1async.rewards.format import in_format
from r1async.rewards.language import consistency
from r1async.rewards.math import Equivalence, grade
from r1async.rewards.pool import Job, Report, Settled
from r1async.rewards.pools import Pools
from r1async.rewards.words import repetition
from r1async.tasks.meta import Question, encode_meta

EXACT = Equivalence(symbolic=False, before_slow=lambda: None)
SENTENCE = "So we add the two numbers and get $x^{{{0}}} + {0}$, which is what number {0} of the list asked for. "
"""About 32 tokens."""
HANGS = """
import ctypes
ctypes.pythonapi.PyErr_CheckSignals.argtypes = []
def hang(prompt, completion):
    ctypes.PyDLL(None).pause()
"""
CRASHES = """
import os, random
def grade(prompt, completion):
    if random.random() < 0.05:
        os._exit(1)
    return float(completion.text)
"""
DEADLINE_S = 1.0


def main() -> None:
    parts = {each.__name__: each for each in (fast_path, lengths, towers, hung, crashes)}
    for name in sys.argv[1:] or parts:
        parts[name]()


def fast_path(rows: int = 50_000, repeats: int = 5) -> None:
    """The mix: integers, decimals, LaTeX fractions, thousands separators; half of the integers are wrong."""
    rng = random.Random(0)
    body = SENTENCE.format(7) * 19
    cases = []
    for i in range(rows * repeats):
        a = rng.randrange(10**9)
        answer, gold = [
            (f"{a}", f"{a + i % 8 // 4}"),
            (f"{a / 1000}", f"\\frac{{{a}}}{{1000}}"),
            (f"\\frac{{{a}}}{{{a + 7}}}", f"{a}/{a + 7}"),
            (f"{a:,}", f"{a}"),
        ][i % 4]
        cases.append((f"{body}The answer is \\boxed{{{answer}}}.", gold))
    rates = []
    for part in range(repeats):
        start = time.process_time()
        for text, gold in cases[part * rows : (part + 1) * rows]:
            grade(extract_answer(text) or "", gold, EXACT)
        rates.append(rows / (time.process_time() - start))
    print(f"math, fast path: {statistics.median(rates):,.0f}/s of CPU (best {max(rates):,.0f}/s), 2 kB a completion")


def milliseconds(work: Callable[[], object], repeats: int = 7) -> float:
    best = 1e9
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best * 1e3


HOSTILE = {
    "braces": "{" * 98_000,
    "boxes": "\\boxed{1} " * 9_800,
    "open boxes": "\\boxed{" * 14_000,
    "backslashes": "\\" * 98_000,
    "answers": "<answer>1</answer>" * 5_400,
    "thoughts": "<think>" * 14_000,
    "Chinese": "首先把两个数相加，然后把和除以三。" * 1_900,
    "dollars": "$x " * 32_000,
    "one word": "a" * 98_000,
    "links": "https://a.b/c?" * 7_000,
}
"""Completions of about 32,000 tokens that somebody wrote to make a scan slow."""


def lengths() -> None:
    """Fails if a reward takes 5 ms at 32k tokens, or more than twice its share of time at any length."""
    print(f"{'tokens':>7} {'chars':>7} {'math ms':>8} {'format ms':>9} {'language ms':>11} {'repetition ms':>13}")
    consistency("to be or not to be", "en")
    taken: dict[int, tuple[float, ...]] = {}
    for tokens in (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000):
        thought = "".join(SENTENCE.format(i) for i in range(tokens // 32))
        text = f"<think>{thought}</think><answer>\\boxed{{5}}</answer>"
        taken[tokens] = of_text(text, thought)
        print(f"{tokens:>7} {len(text):>7} " + "{:>8.2f} {:>9.2f} {:>11.2f} {:>13.2f}".format(*taken[tokens]))
    for name, text in HOSTILE.items():
        hostile = of_text(text, text)
        print(f"{name:>15} " + "{:>8.2f} {:>9.2f} {:>11.2f} {:>13.2f}".format(*hostile))
        assert max(hostile[:3]) < LIMIT_MS, f"{name}: {max(hostile[:3]):.1f} ms at 32k tokens, {LIMIT_MS:g} allowed"
    assert max(taken[32_000][:3]) < LIMIT_MS, f"{max(taken[32_000][:3]):.1f} ms at 32k tokens, {LIMIT_MS:g} allowed"
    for reward in range(4):
        # A tenth of a millisecond at most is spent whatever the length.
        per_token = [(times[reward] - 0.1) / tokens for tokens, times in taken.items() if times[reward] > 0.5]
        assert not per_token or max(per_token) < 2 * min(per_token), f"not linear: ms a token {per_token}"


LIMIT_MS = 5.0


def of_text(text: str, thought: str) -> tuple[float, ...]:
    """Milliseconds of math, format, language (without the identifier) and repetition."""
    return (
        milliseconds(lambda: grade(extract_answer(text) or "", "5", EXACT)),
        milliseconds(lambda: in_format(text, "r1_zero")),
        milliseconds(lambda: consistency(thought, "en")),
        milliseconds(lambda: repetition(text, 20)),
    )


class Driver:
    """A pool of workers, and the wait for all it was given."""

    def __init__(self, reward: RewardConfig, workers: int) -> None:
        self.inbox = Inbox()
        self.pool = Pools(reward, ScorerConfig(workers=workers), self.inbox)
        self.pool.start()
        while not self.pool.ready:
            self.step()
        self.workers = psutil.Process().children()
        """Those there are now."""

    def step(self) -> list[int]:
        return [each.key for each in self.settle()]

    def settle(self) -> list[Settled]:
        settled = []
        try:
            report = self.inbox.get("a report", max(0.0, min(1.0, self.pool.next_deadline() - time.monotonic())))
            assert isinstance(report, Report)
            settled = self.pool.handle(report)
        except DeadlineExceeded:
            settled = self.pool.expire(time.monotonic())
        return settled

    def verdicts(self, texts: list[str]) -> dict[int, float | None]:
        """The total of each text's verdict."""
        meta, found = encode_meta(Question(text="?", answer="")), {}
        self.pool.submit([Job(i, meta, text, 9, "stop") for i, text in enumerate(texts)])
        while len(found) < len(texts):
            found |= {each.key: each.verdict.total for each in self.settle()}
        return found

    def grade(self, answers: list[str], gold: str) -> dict[int, tuple[float, float]]:
        """Seconds of the clock, and of the workers' processor time, until each had its verdict."""
        meta = encode_meta(Question(text="?", answer=gold))
        begun, used, found = time.monotonic(), self.cpu_s(), {}
        self.pool.submit([Job(i, meta, f"\\boxed{{{text}}}", 9, "stop") for i, text in enumerate(answers)])
        while len(found) < len(answers):
            if settled := self.step():
                found |= dict.fromkeys(settled, (time.monotonic() - begun, self.cpu_s() - used))
        return found

    def cpu_s(self) -> float:
        """Processor time of the workers so far."""
        times = [each.cpu_times() for each in self.workers]
        return sum(each.user + each.system for each in times)


OTHERS, TOWERS, MOST = 496, 16, 1.10


def towers(pairs: int = 9) -> None:
    """496 answers that need algebra, alone and with 16 power towers among them, turn by turn, other numbers each time.

    Two cores that others use too move the clock by more than the towers do, so what counts is the processor time that
    the workers had until the last of the 496 had its verdict; the clock stands beside it.
    """
    driver = Driver(RewardConfig(weights={"accuracy": 1.0}), workers=2)
    ratios: list[tuple[float, float]] = []
    for number in range(pairs + 1):
        spent = {}
        for hostile in (False, True) if number % 2 else (True, False):
            base = 1_000 * (2 * number + hostile)
            answers = [(f"\\sqrt{{{base + i + 2}}}", False) for i in range(OTHERS)]
            if hostile:
                for i in range(TOWERS):
                    answers.insert(32 * i, (f"9^{{9^{{9^{{{number}{i}}}}}}}", True))
            found = driver.grade([answer for answer, _ in answers], "\\sqrt{2}")
            ours = [found[i] for i, (_, is_tower) in enumerate(answers) if not is_tower]
            spent[hostile] = max(clock for clock, _ in ours), max(cpu for _, cpu in ours)
        # The first pair warms the workers up.
        ratios += [(spent[True][0] / spent[False][0], spent[True][1] / spent[False][1])] if number else []
    driver.pool.close()
    clock, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(
        f"16 power towers among 512 delay the other 496 by {cpu:.3f} in processor time of the workers, {clock:.3f} on "
        f"the clock (medians of {pairs} pairs; from {min(c for c, _ in ratios):.2f} to {max(c for c, _ in ratios):.2f})"
    )
    assert cpu < MOST, f"16 towers delay 496 answers by {cpu:.3f}, {MOST:g} allowed"


def hung() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hanging_verifier.py").write_text(HANGS)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        reward = RewardConfig(weights={"hanging_verifier:hang": 1.0}, deadline_s=DEADLINE_S, retries=0)
        driver = Driver(reward, workers=1)
        held = []
        for _ in range(5):
            found = driver.grade(["5"], "5")
            held.append(found[0])
            while not driver.pool.ready:
                driver.step()
        driver.pool.close()
    print(f"a verifier hung in C holds its worker {max(held):.2f} s at most, with a deadline of {DEADLINE_S:g} s")


def crashes(groups: int = 128, size: int = 8, draws: int = 200) -> None:
    """A verifier that brings down its worker in 5 % of its calls, at random: what becomes of the advantages.

    With workers that die, as often as a run tries again by default; and drawn, with no second try.
    """
    rng = random.Random(0)
    rewards = [[float(rng.random() < rate) for _ in range(size)] for rate in (rng.random() for _ in range(groups))]
    whole = [total for group in rewards for total in group]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "crashing_verifier.py").write_text(CRASHES)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        driver = Driver(RewardConfig(weights={"crashing_verifier:grade": 1.0}), workers=2)
        found = driver.verdicts([f"{total:g}" for total in whole])
        driver.pool.close()
    moved = shift(rewards, [found[i] for i in range(len(whole))])
    lost, missing = driver.pool.counts["worker_lost"], sum(value is None for value in found.values())
    print(
        f"5 % crashes: {lost} workers lost, {missing} of {len(whole)} verdicts missing; the mean advantage of the "
        f"others moves by {100 * moved:+.3f} % of its standard deviation"
    )
    assert abs(moved) < 0.01, "1 % allowed"
    drawn = [shift(rewards, [total if rng.random() >= 0.05 else None for total in whole]) for _ in range(draws)]
    print(
        f"without a second try (drawn {draws} times): by {100 * statistics.mean(drawn):+.3f} % in the mean, "
        f"{100 * statistics.pstdev(drawn):.2f} % standard deviation"
    )


def shift(rewards: list[list[float]], found: list[float | None]) -> float:
    """How far the mean advantage of the rollouts that have a verdict is from what it would be if all had one, in
    standard deviations of the advantage."""
    before, after = [], []
    size = len(rewards[0])
    for number, group in enumerate(rewards):
        got = found[number * size : (number + 1) * size]
        whole = advantages(np.array(group), baseline="std", std="population", eps=1e-6)
        kept = [i for i, value in enumerate(got) if value is not None]
        assert all(got[i] == group[i] for i in kept), "who has a verdict has the right one"
        if len(kept) > 1:
            before += [whole[i] for i in kept]
            after += list(advantages(np.array([group[i] for i in kept]), baseline="std", std="population", eps=1e-6))
    return (statistics.mean(after) - statistics.mean(before)) / statistics.pstdev(before)


if __name__ == "__main__":
    main()
