"""The report's figures, each an SVG to put inside a page.

Text and axes take the page's own colours, so that one file reads well in light and in dark; series keep colours of
middle brightness. Nothing in a figure points outside the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.typing import RcKeyType

from r1async.monitor.rundata import Histogram, Record, RunData, staleness_histogram

SERIES = ("#3f86d0", "#e0762f", "#2f9e6e", "#a266c4", "#d1495b", "#1f9aa8", "#a08a1c", "#c45aa0", "#7a8699")
WAITING = "#8f98a833"
"""A wait is the colour of the background, a little darker."""
_TEXT, _FAINT, _GRID = "#010203", "#010204", "#010205"
"""Stand-ins that `_page_colours` turns into the page's own; no drawing uses colours so close to black."""


@dataclass(frozen=True, slots=True)
class Chart:
    name: str
    """Its id in the page."""
    title: str
    caption: str
    svg: str
    wide: bool = False


def charts(run: RunData) -> list[Chart]:
    """Every figure that the run has data for, in the order a reader wants them."""
    made = [
        accuracy_chart(run.evaluations),
        reward_chart(run),
        length_chart(run),
        staleness_chart(staleness_histogram(run.steps)),
        trust_chart(run),
        optimisation_chart(run),
        timeline_chart(run.bins, run.started),
    ]
    return [chart for chart in made if chart is not None]


def accuracy_chart(evaluations: Sequence[Record]) -> Chart | None:
    """Held-out accuracy over policy versions, with one standard error."""
    passes = {
        name: [r for r in evaluations if r["pass"] == name and r.get("accuracy") is not None]
        for name in ("sampled", "greedy")
    }
    if not any(passes.values()):
        return None
    figure, axes = _axes(xlabel="policy version", ylabel="accuracy")
    for colour, (name, records) in zip(SERIES, passes.items(), strict=False):
        versions = [r["version"] for r in records]
        errors = [r.get("stderr") or 0.0 for r in records]
        axes.errorbar(
            versions, [r["accuracy"] for r in records], errors, label=name, color=colour, marker="o", capsize=3
        )
    formats = [(r["version"], r["format"]) for r in passes["sampled"] if r.get("format") is not None]
    if formats:
        versions, values = zip(*formats, strict=True)
        axes.errorbar(versions, values, label="format (sampled)", color=SERIES[2], ls="--", marker=".")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _legend(axes)
    k = max((r.get("k") or 1 for r in passes["sampled"]), default=1)
    caption = (
        f"Problems never trained on; sampled: mean of {k} sample{'s' * (k > 1)} a problem. "
        "Bars are one standard error over problems."
    )
    return _chart("accuracy", "Held-out accuracy", caption, figure)


def reward_chart(run: RunData) -> Chart | None:
    names = [name for name in run.names("reward/") if not name.endswith(("/std", "/min", "/max"))]
    if not names:
        return None
    figure, axes = _axes(xlabel="step", ylabel="reward")
    for colour, name in zip(SERIES, names, strict=False):
        _smooth_line(axes, *run.curve(name), label=name.removeprefix("reward/"), colour=colour)
    _legend(axes)
    return _chart("reward", "Reward", "Mean over the completions of each step: the total and its parts.", figure)


def length_chart(run: RunData) -> Chart | None:
    steps, lengths = run.curve("length/mean")
    if not steps:
        return None
    figure, axes = _axes(xlabel="step", ylabel="tokens")
    _smooth_line(axes, steps, lengths, label="completion length", colour=SERIES[0])
    axes.set_ylim(bottom=0)
    truncated_steps, truncated = run.curve("truncated")
    if any(truncated):
        share = _right_axis(axes, "cut at max_tokens")
        _smooth_line(share, truncated_steps, truncated, label="cut at max_tokens", colour=SERIES[1])
        share.set_ylim(0, 1)
        share.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _legend(axes, share)
    return _chart("length", "Completion length", "Mean tokens of the completions of each step.", figure)


def staleness_chart(histogram: Histogram) -> Chart | None:
    if not histogram.total:
        return None
    figure, axes = _axes(xlabel="staleness (optimizer steps)", ylabel="share of trained tokens")
    top = histogram.max or 0
    shares = [histogram.tokens.get(s, 0) / histogram.total for s in range(top + 1)]
    bars = axes.bar(range(top + 1), shares, width=0.72, color=SERIES[0])
    if top <= 12:
        axes.bar_label(bars, [f"{100 * share:.1f} %" for share in shares], padding=3, color=_TEXT, fontsize=9)
    axes.set_ylim(0, 1.12 * max(shares))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(-0.6, max(top, 2) + 0.6)
    p95 = histogram.quantile(0.95)
    caption = (
        "Steps between the policy that sampled a token and the step that trained it: "
        f"mean {histogram.mean:.2f}, p95 {p95}, max {top}."
    )
    return _chart("staleness", "Staleness of trained tokens", caption, figure)


def trust_chart(run: RunData) -> Chart | None:
    """What lag does to the importance weights, and whether engine and learner agree about probabilities."""
    ess, mismatch = run.curve("is/ess"), run.curve("mismatch/mean")
    if not ess[0] and not mismatch[0]:
        return None
    figure, axes = _axes(xlabel="step", ylabel="effective sample size")
    if ess[0]:
        _smooth_line(axes, *ess, label="effective sample size", colour=SERIES[0])
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if mismatch[0]:
        right = _right_axis(axes, "mismatch (nats)")
        _smooth_line(right, *mismatch, label="engine–learner mismatch", colour=SERIES[1])
        right.set_ylim(0, 1.6 * max(mismatch[1]) or 1.0)
        right.yaxis.set_major_formatter("{x:.1e}")
        _legend(axes, right)
    caption = (
        "Effective sample size of the importance weights (100 % on-policy), and the mean difference of a token's "
        "logprob between engine and learner."
    )
    return _chart("trust", "Off-policy correction", caption, figure)


def optimisation_chart(run: RunData) -> Chart | None:
    curves = {name: run.curve(name) for name in ("entropy", "grad_norm", "kl/behavior")}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if not curves:
        return None
    figure, axes = _axes(xlabel="step", ylabel="nats, gradient norm")
    for colour, (name, (steps, values)) in zip(SERIES, curves.items(), strict=False):
        _smooth_line(axes, steps, values, label=name.replace("_", " "), colour=colour)
    _legend(axes)
    caption = (
        "Entropy of the policy per token, KL from the sampling to the current policy, and the gradient's norm "
        "before clipping."
    )
    return _chart("optimisation", "Optimisation", caption, figure)


def timeline_chart(bins: Mapping[str, Sequence[Record]], started: float | None) -> Chart | None:
    """One lane per process: the share of each moment spent in each activity; what it waited for on the right."""
    lanes = {name: records for name, records in bins.items() if records}
    if not lanes:
        return None
    first = min(r["start"] for records in lanes.values() for r in records)
    last = max(r["start"] + r["span_s"] for records in lanes.values() for r in records)
    origin = first if started is None else min(started, first)
    figure = Figure(figsize=(11.2, 0.72 * len(lanes) + 0.7))
    rows = np.atleast_1d(np.asarray(figure.subplots(len(lanes), 1, sharex=True)))
    edges = np.linspace(first, last, 241) if last > first else np.array([first, first + 1])
    for axes, (name, records) in zip(rows, lanes.items(), strict=True):
        _lane(axes, name, records, edges, origin)
    rows[-1].set_xlabel("seconds of wall time", color=_FAINT)
    rows[-1].set_xlim(edges[0] - origin, edges[-1] - origin)
    figure.subplots_adjust(left=0.1, right=0.7, top=0.98, bottom=0.5 / figure.get_figheight(), hspace=0.28)
    caption = (
        "Each lane is a process, full height is all of its time: coloured is work, grey is waiting by name, "
        "empty is neither."
    )
    return _chart("timelines", "Where each role's time went", caption, figure, wide=True)


def _lane(axes: Axes, name: str, records: Sequence[Record], edges: np.ndarray, origin: float) -> None:
    width = edges[1] - edges[0]
    level = np.zeros(len(edges) - 1)
    notes: list[tuple[str, str]] = []
    wall = sum(r["span_s"] for r in records)
    for kind in ("busy", "wait"):
        totals: dict[str, float] = {}
        for record in records:
            for activity, seconds in record[kind].items():
                totals[activity] = totals.get(activity, 0.0) + seconds
        order = sorted(totals, key=lambda activity: -totals[activity])
        for index, activity in enumerate(order):
            share = _rebin(records, kind, activity, edges) / width
            colour = SERIES[index % len(SERIES)] if kind == "busy" else WAITING
            axes.stairs(level + share, edges - origin, baseline=level, fill=True, color=colour, lw=0)
            level = level + share
        prefix = "" if kind == "busy" else "waits: "
        notes += [
            (
                f"{prefix}{activity} {100 * totals[activity] / wall:.0f} %",
                SERIES[i % len(SERIES)] if kind == "busy" else _FAINT,
            )
            for i, activity in enumerate(order[:3])
            if totals[activity] >= 0.005 * wall
        ]
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel(name, rotation=0, ha="right", va="center", color=_TEXT, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_FAINT, labelsize=9)
    for index, (note, colour) in enumerate(notes[:6]):
        column, row = divmod(index, 3)
        axes.annotate(
            note,
            (1.015 + 0.215 * column, 0.83 - 0.33 * row),
            xycoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=colour,
        )


def _rebin(records: Sequence[Record], kind: str, activity: str, edges: np.ndarray) -> np.ndarray:
    """Seconds of one activity between each two edges; a record's seconds are spread evenly over its span."""
    cumulative_at, cumulative = [edges[0]], [0.0]
    for record in records:
        cumulative_at += [record["start"], record["start"] + record["span_s"]]
        cumulative += [cumulative[-1], cumulative[-1] + record[kind].get(activity, 0.0)]
    return np.diff(np.interp(edges, cumulative_at, cumulative))


def _smooth_line(axes: Axes, steps: Sequence[int], values: Sequence[float], *, label: str, colour: str) -> None:
    """Every value faint, their running mean strong: single steps are noisy."""
    axes.plot(steps, values, color=colour, alpha=0.3, lw=1)
    axes.plot(steps, smoothed(values), color=colour, label=label)


def smoothed(values: Sequence[float], window: int = 9) -> np.ndarray:
    """Running mean over `window` values around each, fewer at the ends."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return array
    kernel = np.ones(min(window, len(array)))
    return np.convolve(array, kernel, "same") / np.convolve(np.ones_like(array), kernel, "same")


def line_chart(
    name: str,
    title: str,
    caption: str,
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    *,
    ylabel: str,
    smooth: bool = True,
) -> Chart | None:
    """Curves over optimizer steps; None if there are none. Few and exact values are drawn as they are: smooth=False."""
    curves = {label: curve for label, curve in curves.items() if curve[0]}
    if not curves:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(xlabel="step", ylabel=ylabel)
        for colour, (label, (steps, values)) in zip(SERIES, curves.items(), strict=False):
            if smooth:
                _smooth_line(axes, steps, values, label=label, colour=colour)
            else:
                axes.plot(steps, values, color=colour, label=label, marker="o")
        _legend(axes)
        return _chart(name, title, caption, figure)


def _axes(*, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    return figure, axes


def _right_axis(axes: Axes, label: str) -> Axes:
    right = axes.twinx()
    right.set_ylabel(label)
    right.spines[:].set_visible(False)
    return right


def _legend(axes: Axes, *more: Axes) -> None:
    """Above the plot, in a row: nothing is drawn there."""
    handles = [handle for each in (axes, *more) for handle in each.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=4, borderaxespad=0.2)


_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _FAINT,
    "axes.edgecolor": _GRID,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "grid.color": _GRID,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def _chart(name: str, title: str, caption: str, figure: Figure, *, wide: bool = False) -> Chart:
    with mpl.rc_context():
        mpl.rcParams["svg.hashsalt"] = name
        if not wide:
            figure.tight_layout()
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return Chart(name, title, caption, _inline(out.getvalue(), name, title), wide)


def styled(draw: Callable[[RunData], list[Chart]], run: RunData) -> list[Chart]:
    """The figures in this module's style, without touching the style of the process."""
    with mpl.rc_context(_STYLE):
        return draw(run)


def _inline(svg: str, name: str, title: str) -> str:
    """A stand-alone SVG made part of a page: no XML preamble, ids of its own, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id|clip-path|xlink:href|href)="(url\()?#?([^")]+)(\))?"', lambda m: _own_id(m, name), svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{title}" xmlns:xlink="http://www.w3.org/1999/xlink">',
        svg,
        count=1,
    )
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]+;?", "", svg)
    for stand_in, colour in ((_TEXT, "var(--text)"), (_FAINT, "var(--faint)"), (_GRID, "var(--grid)")):
        svg = svg.replace(stand_in, colour)
    return svg


def _own_id(match: re.Match[str], name: str) -> str:
    attribute, url, target, _ = match.groups()
    if attribute == "id":
        return f'id="{name}-{target}"'
    return f'{attribute}="url(#{name}-{target})"' if url else f'{attribute}="#{name}-{target}"'
