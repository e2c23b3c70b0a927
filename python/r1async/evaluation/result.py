"""What a benchmark says about a version: figures, by problem and in all, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1async.config import ConfigError
from r1async.evaluation.benchmark import Asked
from r1async.evaluation.codeforces import percentile, rating_of
from r1async.evaluation.metrics import Sample, answer_of, evaluate
from r1async.evaluation.samples import BenchmarkSample
from r1async.files import write_json
from r1async.rewards.choice import chosen_letter
from r1async.types import PolicyVersion

FULL_MARKS = 1.0 - 1e-6
VOTES = ("math", "choice")
"""Graders whose answers can be the same: the others' samples have no majority."""

Record = dict[str, object]


def about(asked: Asked, pin: PolicyVersion, digest: str, model: str) -> Record:
    """What samples are of; the first line of their file and part of the result.

    Args:
        digest: of the weights as they are served.
        model: the model's folder, for people.
    """
    made = asked.benchmark
    return {
        "kind": "benchmark",
        "benchmark": made.name,
        "title": made.title,
        "version": pin.number,
        "epoch": pin.epoch,
        "hash": digest,
        "model": model,
        "data": asked.data,
        "digest": asked.digest,
        "protocol": {
            "k": made.k,
            "temperature": made.temperature,
            "top_p": made.top_p,
            "max_tokens": made.max_tokens,
            "source": made.source,
        },
        "problems": [
            {"id": problem.id, "prompt": prompt.text, "answer": prompt.answer, "rating": problem.rating}
            for problem, prompt in zip(asked.problems, asked.prompts, strict=True)
        ],
    }


def result_of(asked: Asked, described: Mapping[str, object], samples: Sequence[BenchmarkSample]) -> Record:
    """The figures of a benchmark's samples, complete or not.

    An unfinished sample is in none of the figures; `unfinished` is the share of them.
    """
    graded = [_sample(asked, sample) for sample in samples]
    metrics = evaluate(graded, asked.benchmark.k)
    votes = asked.benchmark.grader in VOTES
    expected = len(asked.problems) * asked.benchmark.k
    record: Record = {
        **{key: value for key, value in described.items() if key != "problems"},
        **metrics.as_record(),
        "cons_at_k": metrics.cons_at_k if votes else None,
        "cons_at_k_stderr": metrics.cons_at_k_stderr if votes else None,
        "problems": metrics.problems,
        "asked": len(asked.problems),
        "unfinished": 1.0 - len(samples) / expected,
        "headline": asked.benchmark.headline,
        "statuses": _statuses(samples),
        "by_problem": _by_problem(asked, graded),
    }
    for unused in ("format", "reward"):
        del record[unused]
    return {**record, **_rating(asked, graded)}


def _sample(asked: Asked, sample: BenchmarkSample) -> Sample:
    passed = None if sample.score is None else sample.score >= FULL_MARKS
    return Sample(
        prompt=sample.problem,
        member=sample.member,
        passed=passed,
        format=None,
        reward=sample.score,
        answer=vote_of(asked, sample),
        tokens=sample.tokens,
        truncated=sample.truncated,
    )


def vote_of(asked: Asked, sample: BenchmarkSample) -> str:
    """What a sample votes for: its answer, "" where it has none or was cut."""
    if sample.truncated:
        return ""
    match asked.benchmark.grader:
        case "choice":
            options = json.loads(asked.prompts[sample.problem].extra["options"])
            return chosen_letter(sample.text, options)
        case "math":
            return answer_of(sample.text)
        case _:
            return ""


def _statuses(samples: Sequence[BenchmarkSample]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.status] = counts.get(sample.status, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _by_problem(asked: Asked, graded: Sequence[Sample]) -> list[Record]:
    """Samples and passes of each problem: what two versions are compared by."""
    rows: list[Record] = [
        {"id": problem.id, "samples": 0, "passed": 0, "abstained": 0, "truncated": 0} for problem in asked.problems
    ]
    for sample in graded:
        row = rows[sample.prompt]
        key = "abstained" if sample.passed is None else "samples"
        for name, amount in ((key, 1), ("passed", bool(sample.passed)), ("truncated", sample.truncated)):
            count = row[name]
            assert isinstance(count, int), "made above"
            row[name] = count + int(amount)
    return rows


def _rating(asked: Asked, graded: Sequence[Sample]) -> Record:
    """Rating on Codeforces' scale, where all problems have one."""
    ratings = [problem.rating for problem in asked.problems]
    if any(rating is None for rating in ratings):
        return {}
    rates: dict[int, list[bool]] = {}
    for sample in graded:
        if sample.passed is not None:
            rates.setdefault(sample.prompt, []).append(sample.passed)
    solved = [(float(ratings[i] or 0), sum(each) / len(each)) for i, each in sorted(rates.items())]
    if not solved:
        return {}
    rating = rating_of(solved)
    return {"rating": rating, "percentile": None if rating is None else percentile(rating)}


def folder_of(run_dir: Path, version: int) -> Path:
    """Where the results of a version are."""
    return run_dir / "evaluations" / f"v{version}"


def write_result(folder: Path, record: Record) -> None:
    write_json(folder / f"{record['benchmark']}.json", record)


def read_results(path: Path) -> dict[str, Record]:
    """Results by benchmark: of one file, of a version's folder, or of the newest version in a run's folder.

    Raises:
        ConfigError: there are none, or a file is no result.
    """
    if (path / "evaluations").is_dir():
        versions = sorted((path / "evaluations").glob("v*"), key=lambda each: int(each.name[1:]))
        path = versions[-1] if versions else path
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    found: dict[str, Record] = {}
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found[str(record["benchmark"])] = {**record, "file": str(file)}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: not a benchmark's result: {error!r}") from error
    if not found:
        raise ConfigError(f"{path}: no results; give a run's folder, RUN/evaluations/vN, or one of its .json files")
    return found
