"""`r1async grade KIND IN.jsonl OUT.jsonl`: verdicts on completions without a run, by the workers that a run uses.

Takes: a line a completion. Gives: a line a verdict, in the order of the input. Waits for: reports of the workers,
until the deadline of the line that one is busy with. A line that cannot be graded gets null and a status. What OUT
has already is kept, so the same command goes on after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TextIO

from r1async.answers import extract_answer
from r1async.config import ConfigError, RewardConfig, ScorerConfig
from r1async.inbox import DeadlineExceeded, Inbox, Stopped, stop_on_signals
from r1async.reward_pools import weights_of
from r1async.rewards.pool import Job, PoolError, Report, Settled
from r1async.rewards.pools import Pools
from r1async.settings import load_reward
from r1async.tasks.meta import Question, encode_meta
from r1async.types import FinishReason, Verdict

LOOK_S = 1.0
"""Seconds between two looks at the clock: for deadlines and progress."""
HELD_PER_WORKER = 256
"""Lines read ahead of the first one without a verdict."""
REMEMBERED = 100_000
"""Verdicts kept for lines that ask the same again."""
NO_ANSWER = frozenset(("worker_lost", "error", "infra_error"))
"""Abstentions that another try may mend: not remembered."""


class Line(NamedTuple):
    """One completion, as read."""

    id: object
    question: Question
    text: str
    num_tokens: int
    finish: FinishReason


@dataclass(slots=True)
class Result:
    """What becomes a line of OUT."""

    id: object
    verdict: Verdict | None = None
    elapsed_s: float = 0.0
    more: Mapping[str, object] = field(default_factory=dict)
    """Fields of the line of IN that stand in OUT again."""
    line: str = ""
    """Digest of the line of IN."""


class Kind(NamedTuple):
    """What KIND means. A new kind is one entry of `KINDS`."""

    weights: Mapping[str, float]
    """`reward.weights`; the score of a line is their sum."""
    needs: tuple[str, ...] = ()
    """Fields that a line must have besides `id` and `completion`."""
    same: Callable[[Line], Hashable] | None = None
    """Lines that agree in this have the same verdict; None: those that agree in all but `id`."""
    reader: Callable[[bytes], tuple[Line, Mapping[str, object]] | Result] | None = None
    """Reads a line of IN that has other fields, and what of it stands in OUT again; None: `parse_line`."""

    per_worker: int = 8
    """Lines that are worth a worker process."""

    def read(self, line: bytes) -> tuple[Line, Mapping[str, object]] | Result:
        if self.reader is not None:
            return self.reader(line)
        found = parse_line(line, self.needs)
        return found if isinstance(found, Result) else (found, {})


def _answer_of(line: Line) -> Hashable:
    return line.question.answer, extract_answer(line.text), line.finish


KINDS: dict[str, Kind] = {
    "math": Kind({"accuracy": 1.0}, ("answer",), _answer_of),
    "format": Kind({"format": 1.0}),
    "language": Kind({"language": 1.0}),
    "code": Kind({"code": 1.0}, ("problem",)),
    "judge": Kind({"judge": 1.0}, ("answer",)),
}


def grade_file(kind: str, source: Path, target: Path, overrides: Sequence[str], *, workers: int = 0) -> int:
    """Grades IN into OUT; returns the exit code.

    Args:
        kind: one of `KINDS`, or a YAML file with a reward.
        workers: processes; 0: one for each processor.

    Raises:
        ConfigError: a kind, a setting or a file that cannot work; the message names it.
    """
    return grade_with(*_reward_of(kind, overrides), source, target, workers=workers)


def grade_with(
    how: Kind,
    reward: RewardConfig,
    scorer: ScorerConfig,
    source: Path,
    target: Path,
    *,
    workers: int = 0,
    command: str = "grade",
) -> int:
    """As `grade_file`, with a reward that is there already.

    Args:
        scorer: pools and memory of the workers.
        command: as messages name it.

    Raises:
        ConfigError: a file that cannot work; the message names it.
    """
    if not source.exists() or source.is_dir():
        raise ConfigError(f"{source}: no such file")
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: OUT must be another file than IN")
    done = resume(source, target, how, list(reward.parts))
    total = sum(1 for line in source.open("rb") if line.strip()) if source.is_file() else 0
    if source.is_file() and done >= total:
        target.touch()  # of an IN without lines there is an OUT without lines
        print(f"r1async {command}: {target} has all {total} verdicts", file=sys.stderr)
        return 0
    workers = workers or len(os.sched_getaffinity(0))
    if total:
        workers = min(workers, math.ceil((total - done) / how.per_worker))
    inbox = Inbox()
    pool = Pools(reward, replace(scorer, workers=workers), inbox)
    try:
        with stop_on_signals(inbox), target.open("a", encoding="utf-8") as out:
            pool.start()
            grading = Grading(pool, inbox, out, how, reward, Progress(total, done, command=command))
            grading.run(lines_of(source, done))
    except Stopped:
        print(f"r1async {command}: stopped; the same command goes on with {target}", file=sys.stderr)
        return 130
    except PoolError as error:
        print(f"r1async {command}: {error}", file=sys.stderr)
        return 1
    finally:
        pool.close()
    return 0


def _reward_of(kind: str, overrides: Sequence[str]) -> tuple[Kind, RewardConfig, ScorerConfig]:
    if kind in KINDS:
        how = KINDS[kind]
        reward, scorer = load_reward(None, overrides, how.weights)
        return how, reward, scorer
    path = Path(kind)
    if not path.is_file():
        raise ConfigError(f"KIND: must be {', '.join(KINDS)}, or a YAML file with a reward, got {kind!r}")
    reward, scorer = load_reward(path, overrides)
    every = set.intersection(*(set(weights) for weights in weights_of(reward).values()))
    needs = [need for part, need in (("accuracy", "answer"), ("overlong", "num_tokens")) if part in every]
    return Kind(reward.weights, tuple(needs)), reward, scorer


def lines_of(source: Path, skip: int = 0) -> Iterator[bytes]:
    """Lines that are not blank, without the first `skip`."""
    with source.open("rb") as file:
        seen = 0
        for line in file:
            if line.strip():
                seen += 1
                if seen > skip:
                    yield line


def parse_line(line: bytes, needs: Sequence[str]) -> Line | Result:
    """What to grade, or why it cannot be."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return invalid(None, f"not JSON: {error}")
    if not isinstance(row, dict):
        return invalid(None, f"must be an object, got {type(row).__name__}")
    name = row.get("id")
    try:
        json.dumps(name, allow_nan=False)
    except ValueError:
        return invalid(None, "id: has NaN or infinity, which OUT could not say")
    completion = row.get("completion")
    if not isinstance(completion, str):
        return invalid(name, f"completion: must be a text, got {type(completion).__name__}")
    missing = [need for need in ("id", *needs) if row.get(need) is None]
    if missing:
        return invalid(name, f"{missing[0]}: is missing")
    finish, num_tokens, answer = row.get("finish", "stop"), row.get("num_tokens", 0), row.get("answer", "")
    if finish not in ("stop", "length"):
        return invalid(name, f"finish: must be stop or length, got {finish!r:.100}")
    if not isinstance(num_tokens, int) or isinstance(num_tokens, bool) or not 0 <= num_tokens < 2**63:
        return invalid(name, f"num_tokens: must be a whole number below 2^63, got {num_tokens!r:.100}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return invalid(name, f"answer: must be a text or a number, got {type(answer).__name__}")
    if isinstance(answer, float) and not math.isfinite(answer):
        return invalid(name, f"answer: must be a finite number or a text, got {answer}")
    rest = {key: value for key, value in row.items() if key not in _OWN and value is not None}
    extra = {clean(key): clean(_as_text(value)) for key, value in rest.items()}
    question = Question(text=clean(_as_text(row.get("prompt", ""))), answer=clean(_as_text(answer)), extra=extra)
    return Line(name, question, clean(completion), num_tokens, finish)


_OWN = ("id", "completion", "finish", "num_tokens", "answer", "prompt")


def digest_of(line: bytes) -> str:
    """Of a line of IN: one that was overwritten under the same id is another line."""
    return hashlib.blake2b(line.strip(), digest_size=8).hexdigest()


def invalid(name: object, why: str) -> Result:
    """What becomes of a line that cannot be read."""
    return Result(name, Verdict(total=None, status="invalid", detail=why))


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def clean(text: str) -> str:
    """A text that UTF-8 can hold: JSON may escape half a character."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def to_json(result: Result, weights: Sequence[str]) -> str:
    """A line of OUT. A part that has no value is null."""
    verdict = result.verdict
    assert verdict is not None, "a line is written when it has its verdict"
    line = {
        "id": result.id,
        "score": verdict.total,
        "status": verdict.status,
        "parts": {**dict.fromkeys(weights), **verdict.parts},
        "elapsed_s": round(result.elapsed_s, 6),
        "detail": verdict.detail,
        "line": result.line,
        **result.more,
    }
    return json.dumps(line) + "\n"


def resume(source: Path, target: Path, how: Kind, weights: Sequence[str]) -> int:
    """Verdicts that OUT has already; a torn last line is cut off.

    Raises:
        ConfigError: OUT is of another input or of another reward.
    """
    if not target.exists():
        return 0
    if not target.is_file():
        raise ConfigError(f"{target}: must be a file")
    done, good = 0, 0
    asked = lines_of(source)
    with target.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                if file.read(1):
                    raise ConfigError(f"{target}: line {done + 1} is no verdict; move the file away to grade anew")
                break  # torn: the machine stopped while it was written
            _refuse_another(target, done, row, next(asked, None), how, weights)
            done, good = done + 1, good + len(line)
    os.truncate(target, good)
    return done


def _refuse_another(
    target: Path, done: int, row: Mapping[str, object], line: bytes | None, how: Kind, weights: Sequence[str]
) -> None:
    parts = row.get("parts")
    name = None
    if line is not None:
        read = how.read(line)
        name = read.id if isinstance(read, Result) else read[0].id
    if line is None or row.get("id") != name:
        raise ConfigError(f"{target}: line {done + 1} is not of this input; move the file away to grade anew")
    if row.get("line", digest_of(line)) != digest_of(line):
        raise ConfigError(f"{target}: line {done + 1} is of another content of the input; move it away to grade anew")
    if not isinstance(parts, dict) or not set(weights) <= set(parts):
        raise ConfigError(f"{target}: line {done + 1} is of another reward; move the file away to grade anew")


@dataclass(slots=True)
class Progress:
    """What is told on stderr while it goes on: in place on a terminal, else now and then."""

    total: int
    """Lines; 0 if not known."""
    done: int
    command: str = "grade"
    statuses: Counter[str] = field(default_factory=Counter)
    started_at: float = field(default_factory=time.monotonic)
    _told_at: float = field(default_factory=time.monotonic)
    _before: int = -1

    def tell(self, *, last: bool = False) -> None:
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if not last and now - self._told_at < (0.2 if terminal else 10.0):
            return
        self._told_at = now
        self._before = self.done if self._before < 0 else self._before
        counted = sum(self.statuses.values())
        rate = counted / max(now - self.started_at, 1e-9)
        of = f" of {self.total}" if self.total else ""
        statuses = ", ".join(f"{status} {number}" for status, number in self.statuses.most_common())
        text = f"r1async {self.command}: {self.done}{of} lines, {rate:.0f}/s; {statuses}"
        end = "\n" if last or not terminal else ""
        print(f"\r\x1b[K{text}" if terminal else text, end=end, file=sys.stderr, flush=True)


class Grading:
    """The loop: read ahead, have graded, write in order."""

    def __init__(
        self, pool: Pools, inbox: Inbox, out: TextIO, kind: Kind, reward: RewardConfig, progress: Progress
    ) -> None:
        self._pool, self._inbox, self._out, self._kind = pool, inbox, out, kind
        self._weights, self._abstains = list(reward.parts), reward.truncated == "abstain"
        self._progress = progress
        self._held: OrderedDict[int, Result] = OrderedDict()
        """Lines that are read and not written, in their order."""
        self._waiting: dict[int, tuple[Hashable, list[int]]] = {}
        """Lines that wait for a job, by its key, and what it is remembered as."""
        self._asked: dict[Hashable, int] = {}
        """Jobs in work, by what they are remembered as."""
        self._known: OrderedDict[Hashable, Verdict] = OrderedDict()
        self._window = HELD_PER_WORKER * max(1, pool.workers)
        self._count = 0

    def run(self, lines: Iterator[bytes]) -> None:
        """Until the last line has its verdict.

        Raises:
            Stopped: by a signal; what was written stays.
            PoolError: workers cannot be started.
        """
        more = True
        while more or self._held:
            more = self._read(lines) if more else False
            self._write()
            if self._waiting:
                self._settle(self._reports())
            self._progress.tell()
        self._out.flush()
        os.fsync(self._out.fileno())
        self._progress.tell(last=True)

    def _read(self, lines: Iterator[bytes]) -> bool:
        jobs: list[Job] = []
        more = True
        while len(self._held) < self._window:
            line = next(lines, None)
            if line is None:
                more = False
                break
            jobs += self._take(line)
        self._pool.submit(jobs)
        return more

    def _take(self, raw: bytes) -> list[Job]:
        place = self._count
        self._count += 1
        read = self._kind.read(raw)
        if isinstance(read, Result):
            read.line = digest_of(raw)
            self._held[place] = read
            return []
        line, more = read
        result = self._held[place] = Result(line.id, more=more, line=digest_of(raw))
        if self._abstains and line.finish == "length":
            result.verdict = Verdict(total=None, status="truncated", detail="the completion was cut")
            return []
        same = self._kind.same(line) if self._kind.same else _all_of(line)
        if (verdict := self._known.get(same)) is not None:
            result.verdict = verdict
        elif same in self._asked:
            self._waiting[self._asked[same]][1].append(place)
        else:
            self._asked[same] = place
            self._waiting[place] = same, [place]
            return [Job(place, encode_meta(line.question), line.text, line.num_tokens, line.finish)]
        return []

    def _reports(self) -> list[Settled]:
        wait_s = min(LOOK_S, max(0.0, self._pool.next_deadline() - time.monotonic()))
        try:
            arrivals = [self._inbox.get("verdicts", wait_s), *self._inbox.take()]
        except DeadlineExceeded:
            arrivals = []
        settled: list[Settled] = []
        for arrival in arrivals:
            assert isinstance(arrival, Report), "nothing else is put into this inbox"
            settled += self._pool.handle(arrival)
        settled += self._pool.expire(time.monotonic())
        self._pool.take_faults()
        return settled

    def _settle(self, settled: Sequence[Settled]) -> None:
        for key, verdict, elapsed_s in settled:
            same, places = self._waiting.pop(key)
            del self._asked[same]
            for place in places:
                self._held[place].verdict = verdict
            self._held[places[0]].elapsed_s = elapsed_s
            if verdict.total is not None or verdict.status not in NO_ANSWER:
                self._known[same] = verdict
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)

    def _write(self) -> None:
        """Everything up to the first line without a verdict."""
        written = 0
        while self._held:
            place, result = next(iter(self._held.items()))
            if result.verdict is None:
                break
            self._out.write(to_json(result, self._weights))
            self._progress.statuses[result.verdict.status] += 1
            del self._held[place]
            written += 1
        if written:
            self._progress.done += written
            self._out.flush()


def _all_of(line: Line) -> Hashable:
    question = line.question
    extra = tuple(sorted(question.extra.items()))
    return question.text, question.answer, extra, line.text, line.num_tokens, line.finish
