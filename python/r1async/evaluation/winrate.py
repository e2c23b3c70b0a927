"""`r1async eval winrate A B`: how often a judge prefers A's responses to B's, as AlpacaEval and ArenaHard ask.

The judge sees the responses alone, without the thought (DeepSeek-R1, section 3: only the final summary, so that length
does not pay). Each pair is judged in both orders, A first and B first: a judge that prefers what comes first prefers
both once, which is a draw. A pair that has not both verdicts is left out and counted.

Sources: Li et al., AlpacaEval; Li et al., "From crowdsourced data to high-quality benchmarks" (arXiv 2406.11939).
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from r1async.answers import response_of
from r1async.checks_rewards import ENDPOINT, endpoint_problems
from r1async.config import ConfigError
from r1async.config_endpoint import EndpointConfig
from r1async.evaluation.metrics import Z95, estimate
from r1async.evaluation.samples import read_samples
from r1async.files import write_json
from r1async.rewards.endpoint import Chat, ChatClient, EndpointError, Reply

HELP = """Pairwise win rate of A over B by a judge behind an OpenAI-compatible endpoint, both orders of each pair.

  r1async eval winrate A.jsonl B.jsonl --url http://HOST:PORT/v1 --model NAME
  r1async eval winrate runs/a/evaluations/v0/ifeval.jsonl runs/b/evaluations/v0/ifeval.jsonl --url URL --model NAME

A and B are samples of one benchmark, or JSONL files of {id, prompt, completion}. Of several samples of a problem the
first is taken. --set KEY=VALUE changes the endpoint's other settings: key_env, concurrency, deadline_s, temperature.

exit codes: 0 done, 1 the judge answered nothing, 2 a mistake in the files or on the command line"""

INSTRUCTION = """You compare two answers to one request. Judge how helpful, correct, relevant and concise each is.
Neither the order in which they stand nor their length is a merit. Explain in a few sentences, then end with one line
that holds your verdict alone: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if neither is."""

_VERDICT = re.compile(r"\[\[([ABC])\]\]")


class Response(NamedTuple):
    """What one of the two said."""

    prompt: str
    text: str
    """Without the thought."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """Of A over B: 1 for a win, 0.5 for a draw, over both orders."""

    rate: float | None
    stderr: float | None
    """Over problems."""
    wins: int
    """Problems that A wins over both orders together."""
    draws: int
    losses: int
    problems: int
    left_out: int
    """Problems without two verdicts."""
    first_preferred: float | None
    """Share of verdicts, draws aside, for the answer that stood first: 0.5 for a judge without position bias."""
    mean_chars_a: float
    mean_chars_b: float


def chat_of(prompt: str, first: str, second: str) -> list[dict[str, str]]:
    """What the judge is asked. Tags with a mark that nobody knows before fence the two answers: none can close one."""
    mark = secrets.token_hex(4)
    data = {"request": prompt, "answer_a": first, "answer_b": second}
    text = "\n\n".join(f"<{name}_{mark}>\n{each}\n</{name}_{mark}>" for name, each in data.items())
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]


def parse_verdict(text: str) -> str:
    """A, B or C; "" unless the last line is one verdict alone."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    match = _VERDICT.fullmatch(lines[-1].strip("*_` .")) if lines else None
    return match[1] if match else ""


def rate_of(verdicts: Sequence[tuple[str, str]], responses: Sequence[tuple[Response, Response]]) -> WinRate:
    """The win rate of A.

    Args:
        verdicts: of each problem, with A first and with B first; "" where there is none.
        responses: of A and B.
    """
    points, left_out, firsts = [], 0, []
    for forward, backward in verdicts:
        firsts += [each == "A" for each in (forward, backward) if each in ("A", "B")]
        if not forward or not backward:
            left_out += 1
            continue
        points.append((_POINTS[forward] + 1.0 - _POINTS[backward]) / 2)
    found = estimate(points)
    return WinRate(
        rate=found.value,
        stderr=found.stderr,
        wins=sum(each > 0.5 for each in points),
        draws=sum(each == 0.5 for each in points),
        losses=sum(each < 0.5 for each in points),
        problems=len(points),
        left_out=left_out,
        first_preferred=sum(firsts) / len(firsts) if firsts else None,
        mean_chars_a=sum(len(a.text) for a, _ in responses) / len(responses),
        mean_chars_b=sum(len(b.text) for _, b in responses) / len(responses),
    )


_POINTS = {"A": 1.0, "B": 0.0, "C": 0.5}
"""For the answer that stands first."""


def read_responses(path: Path) -> dict[str, Response]:
    """Responses by problem: the first sample of each.

    Raises:
        ConfigError: no such file, or none of a known form.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    with path.open(encoding="utf-8") as lines:
        try:
            first = json.loads(next(lines, "null"))
        except ValueError as error:
            raise ConfigError(f"{path}:1: not JSON: {error}") from error
    if isinstance(first, dict) and first.get("kind") == "benchmark":
        return _of_benchmark(path)
    found: dict[str, Response] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, prompt, completion = str(row["id"]), row["prompt"], row["completion"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}:{number}: must have id, prompt and completion: {error!r}") from error
            found.setdefault(name, Response(str(prompt), response_of(str(completion))))
    if not found:
        raise ConfigError(f"{path}: no lines")
    return found


def _of_benchmark(path: Path) -> dict[str, Response]:
    about, samples = read_samples(path)
    problems = about["problems"]
    assert isinstance(problems, list), "written by `result.about`"
    found: dict[str, Response] = {}
    for sample in samples:
        problem = problems[sample.problem]
        found.setdefault(str(problem["id"]), Response(str(problem["prompt"]), response_of(sample.text)))
    return found


def judge(pairs: Sequence[tuple[Response, Response]], client: ChatClient) -> tuple[list[tuple[str, str]], list[str]]:
    """Verdicts on both orders of each pair, and why those that are missing are."""
    chats: list[Chat] = []
    for a, b in pairs:
        chats += [chat_of(a.prompt, a.text, b.text), chat_of(a.prompt, b.text, a.text)]
    verdicts, failures = [], []
    for reply in client.ask(chats):
        verdict = parse_verdict(reply.text) if isinstance(reply, Reply) else ""
        if not verdict:
            failures.append(str(reply) if isinstance(reply, EndpointError) else f"no verdict in {reply.text[-80:]!r}")
        verdicts.append(verdict)
    return list(zip(verdicts[::2], verdicts[1::2], strict=True)), failures


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="r1async eval winrate", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A", help="responses of the first")
    parser.add_argument("b", type=Path, metavar="B", help="responses of the second")
    parser.add_argument("--url", required=True, help="of the judge, with its version: http://HOST:PORT/v1")
    parser.add_argument("--model", required=True, help="the judge's name on that server")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="more of the endpoint's settings"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures there, as JSON")
    options = parser.parse_args(arguments)
    first, second = read_responses(options.a), read_responses(options.b)
    common = [name for name in first if name in second and first[name].prompt == second[name].prompt]
    if not common:
        raise ConfigError(f"{options.a} and {options.b} have no problem in common (same id and prompt)")
    pairs = [(first[name], second[name]) for name in common]
    with ChatClient(_endpoint(options.url, options.model, options.set)) as client:
        verdicts, failures = judge(pairs, client)
        counts, cost = dict(client.counts), client.cost
    rate = rate_of(verdicts, pairs)
    alone = len(first) + len(second) - 2 * len(common)
    _print(rate, failures, alone, counts, cost)
    if options.out:
        record = {**asdict(rate), "a": str(options.a), "b": str(options.b), "judge": options.model, "requests": counts}
        write_json(options.out, {**record, "cost": cost})
    return 0 if rate.problems else 1


def _endpoint(url: str, model: str, words: Sequence[str]) -> EndpointConfig:
    kinds = {
        each.name: type(each.default) for each in fields(EndpointConfig) if each.name not in ("url", "model", "body")
    }
    given: dict[str, object] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in kinds:
            raise ConfigError(f"--set {word}: must be one of {', '.join(kinds)}")
        try:
            given[name] = kinds[name](value)
        except ValueError as error:
            raise ConfigError(f"--set {word}: {error}") from error
    for name, value in given.items():
        allowed = ENDPOINT.get(name)
        if allowed is not None and not allowed.holds(float(str(value))):
            raise ConfigError(f"--set {name}: must be {allowed}, got {value}")
    endpoint = EndpointConfig(**{"url": url, "model": model, **given})  # pyright: ignore[reportArgumentType]
    if problems := endpoint_problems(endpoint, "--set"):
        raise ConfigError("; ".join(problems))
    return endpoint


def _print(rate: WinRate, failures: Sequence[str], alone: int, counts: Mapping[str, int], cost: float) -> None:
    console = Console(highlight=False)
    if rate.rate is None:
        console.print("no pair has two verdicts")
    else:
        error = "" if rate.stderr is None else f" ± {100 * rate.stderr:.1f} % (95 %: ± {100 * Z95 * rate.stderr:.1f})"
        console.print(f"A wins {100 * rate.rate:.1f} %{error} over {rate.problems} problems")
        console.print(f"wins {rate.wins}, draws {rate.draws}, losses {rate.losses}; judged in both orders")
    if rate.first_preferred is not None:
        console.print(f"the answer that stood first was preferred in {100 * rate.first_preferred:.1f} % of verdicts")
    console.print(f"mean characters: A {rate.mean_chars_a:,.0f}, B {rate.mean_chars_b:,.0f}")
    if rate.left_out:
        console.print(f"left out, without two verdicts: {rate.left_out}; first reason: {failures[0]}", markup=False)
    if alone:
        console.print(f"problems that only one of them has: {alone}")
    tokens = f"{counts.get('prompt_tokens', 0):,} + {counts.get('completion_tokens', 0):,} tokens"
    console.print(f"judge: {counts.get('requests', 0)} requests, {tokens}, cost {cost:.4f}")
