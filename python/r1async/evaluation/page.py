"""index.html: every sample of a version's benchmarks, readable, on one page that needs no network and no server.

Samples are by problem, closed at first. A problem's texts are packed (gzip, base64) and unpacked by the browser when it
is opened: 64 samples of 32,768 tokens for each of 30 problems are 200 MB of text, which no browser lays out.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from r1async.evaluation.result import FULL_MARKS, Record, read_results
from r1async.evaluation.samples import BenchmarkSample, read_samples
from r1async.evaluation.table import figure_cells, figures_of
from r1async.files import replacing


def write_page(folder: Path) -> Path:
    """Write the page of a version's folder, from its results and samples."""
    results = read_results(folder)
    path = folder / "index.html"
    with replacing(path) as file:
        for piece in _pieces(folder, results):
            file.write(piece.encode("utf-8", "replace"))
    return path


def _pieces(folder: Path, results: Mapping[str, Record]) -> Iterator[str]:
    first = next(iter(results.values()))
    package = files("r1async.evaluation")
    style, script = (package.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    title = f"Version {first['version']}"
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title} · r1async</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1><p>{escape(_of(first))}</p></header>\n"
        f"<main>\n{_overview(results)}\n{_FILTERS}\n"
    )
    for name, result in results.items():
        yield from _benchmark(folder / f"{name}.jsonl", result)
    yield f"</main>\n<script>\n{script}</script>\n</body>\n</html>\n"


def _of(result: Record) -> str:
    return f"{result['model']} · weights {str(result['hash'])[:16]}"


def _overview(results: Mapping[str, Record]) -> str:
    names = figures_of(results.values())
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = "".join(
        f'<tr><td><a href="#{escape(name)}">{escape(str(result["title"]))}</a></td>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in figure_cells(result, names))
        + "</tr>"
        for name, result in results.items()
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


_FILTERS = (
    '<div class="filters" role="group" aria-label="show samples that are">'
    + "".join(
        f'<button type="button" data-show="{name}" aria-pressed="{str(name == "all").lower()}">{label}</button>'
        for name, label in (
            ("all", "all"),
            ("right", "right"),
            ("wrong", "wrong"),
            ("truncated", "truncated"),
            ("abstained", "not graded"),
        )
    )
    + '<input type="search" placeholder="find in problems" aria-label="find in problems"></div>'
)


def _benchmark(path: Path, result: Mapping[str, object]) -> Iterator[str]:
    about, samples = read_samples(path)
    protocol, problems = about["protocol"], about["problems"]
    assert isinstance(protocol, dict), "written by `about`"
    assert isinstance(problems, list), "written by `about`"
    by_problem: dict[int, list[BenchmarkSample]] = {}
    for sample in samples:
        by_problem.setdefault(sample.problem, []).append(sample)
    told = (
        f"{len(problems)} problems × {protocol['k']} samples, T {protocol['temperature']:g}, top-p "
        f"{protocol['top_p']:g}, {protocol['max_tokens']:,} tokens · {about['data']} · {protocol['source']}"
    )
    statuses = result["statuses"]
    assert isinstance(statuses, dict), "written by `result_of`"
    counts = ", ".join(f"{status} {number:,}" for status, number in statuses.items())
    yield (
        f'<section id="{escape(str(about["benchmark"]))}"><h2>{escape(str(about["title"]))}</h2>'
        f'<p class="note">{escape(told)}</p><p class="note">{escape(counts)}</p>\n'
    )
    for place, problem in enumerate(problems):
        yield _problem(problem, by_problem.get(place, []))
    yield "</section>\n"


def _problem(problem: Mapping[str, object], samples: Sequence[BenchmarkSample]) -> str:
    kinds = [kind_of(sample) for sample in samples]
    marks = "".join(f'<i class="{kind}" title="{kind}"></i>' for kind in kinds)
    rows = [
        {"kind": kind, "member": each.member, "status": each.status, "tokens": each.tokens, "text": each.text}
        for kind, each in zip(kinds, samples, strict=True)
    ]
    packed = base64.b64encode(
        gzip.compress(json.dumps({"prompt": problem["prompt"], "answer": problem["answer"], "samples": rows}).encode())
    ).decode()
    right = sum(kind == "right" for kind in kinds)
    first_line = " ".join(str(problem["prompt"]).split())[:140]
    return (
        f'<details data-kinds="{" ".join(sorted(set(kinds)))}"><summary><span class="count">{right}/{len(kinds)}'
        f'</span><span class="id">{escape(str(problem["id"]))}</span><span class="begin">{escape(first_line)}</span>'
        f'<span class="marks">{marks}</span></summary><div class="body"></div>'
        f'<script type="application/octet-stream">{packed}</script></details>\n'
    )


def kind_of(sample: BenchmarkSample) -> str:
    """right, wrong, truncated or abstained: what the page filters by."""
    if sample.score is None:
        return "abstained"
    if sample.truncated:
        return "truncated"
    return "right" if sample.score >= FULL_MARKS else "wrong"
