"""The report of a made-up run: what is on the page, and that the page needs nothing else."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from monitor_run import make_run
from r1async.monitor.charts import smoothed
from r1async.monitor.report import audit_table, flat, samples_table, write_report

FIGURES = ["accuracy", "reward", "length", "staleness", "trust", "optimisation", "timelines"]
VOID = {"meta", "link", "br", "hr", "img", "use", "path", "rect", "line", "circle"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags, ids, references and text of a page; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self._start(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._start(tag, attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def _start(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
                self.references.append(value)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "made-up"))


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report.read_text())


def test_page_refers_to_nothing_outside_itself(report, page):
    assert [r for r in page.references if not r.startswith("#")] == ["data:,"]  # the icon a browser would ask for
    assert {r.removeprefix("#") for r in page.references if r.startswith("#")} <= set(page.ids)
    assert not {"script", "iframe", "object", "embed", "img", "base"} & set(page.tags)
    text = report.read_text()
    assert "@import" not in text
    outside = re.findall(r"url\(\s*['\"]?(?!#)[^)]*\)", text)
    assert outside == []


def test_ids_are_unique_though_every_figure_is_drawn_by_itself(page):
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_is_there_in_order(page):
    assert [i for i in page.ids if i in FIGURES] == FIGURES
    assert page.tags.count("svg") == len(FIGURES)


def test_figures_take_the_pages_colours_in_light_and_dark(report):
    svgs = re.findall(r"<svg.*?</svg>", report.read_text(), re.DOTALL)
    for svg in svgs:
        assert "var(--faint)" in svg
        assert not re.findall(r"(?:fill|stroke): #(?:000000|ffffff)", svg)
        assert "#0102" not in svg


def test_completions_stand_side_by_side_and_cannot_break_out(report, page):
    assert "<script>alert" not in report.read_text()
    assert "<script>alert('no')</script>" in page.words
    assert "<think>5,1,1,0,0,5</think><answer>5</answer>" in page.words
    assert "version 0" in page.words
    assert "version 120" in page.words


def test_headline_figures_audit_and_settings_are_on_the_page(page):
    words = " ".join(page.words)
    assert "91.6 %" in words
    assert "4 min 00 s" in words
    assert "balanced: 15,520 rollouts in = 15,360 trained + 32 dropped + 128 live" in words
    assert "staleness.max_staleness" in words


def test_audit_table_has_a_row_for_each_reason_that_occurred():
    audit = {
        "prompts": {"in": 3, "trained": 2, "dropped": {"stale": 1, "evicted": 0}, "live": 0},
        "rollouts": {"in": 24, "trained": 15, "dropped": {"stale": 8, "abstained": 1}, "live": 0},
        "tokens": {"in": 100, "trained": 60, "dropped": {"stale": 40}, "live": 0},
        "balanced": True,
    }
    rows = re.findall(r"<tr>(.*?)</tr>", audit_table(audit))
    cells = {re.findall(r">([^<]*)<", row)[0]: re.findall(r"(\d[\d,]*)</td>", row) for row in rows[1:]}
    assert cells == {
        "in": ["3", "24", "100"],
        "trained": ["2", "15", "60"],
        "dropped: abstained": ["0", "1", "0"],
        "dropped: stale": ["1", "8", "40"],
        "live at the end": ["0", "0", "0"],
    }


def test_only_one_evaluation_gives_one_column():
    sample = {
        "prompt_index": 0, "prompt": "1+1=", "answer": "2", "completion": "2", "passed": True, "reward": 1.0,
        "tokens": 2, "truncated": False,
    }  # fmt: skip
    table = samples_table([{"pass": "sampled", "version": 0, "samples_shown": [sample]}])
    assert table.count("<th>") == 2
    assert "right, reward 1.00, 2 tokens" in re.sub(r"<[^>]+>", "", table)


def test_settings_are_listed_by_full_key():
    assert flat({"seed": 1, "eval": {"every": 0}}) == [("seed", "1"), ("eval.every", "0")]


def test_running_mean_is_exact_inside_and_short_at_the_ends():
    np.testing.assert_allclose(smoothed([0, 3, 6, 9], window=3), [1.5, 3, 6, 7.5])
    assert smoothed([]).size == 0


def test_run_that_wrote_nothing_still_has_a_page(tmp_path):
    (tmp_path / "empty").mkdir()
    page = Page(write_report(tmp_path / "empty").read_text())
    assert "svg" not in page.tags
    assert "empty" in page.words


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; the parser's tests above still hold")
def test_real_browser_draws_every_figure_and_fetches_nothing(report, tmp_path):
    probe = tmp_path / "probe.html"
    measure = (
        "<script>addEventListener('load', () => { const out = document.createElement('pre'); out.id = 'measured';"
        "out.textContent = JSON.stringify({sizes: [...document.querySelectorAll('figure')].map(f => {"
        "const box = f.querySelector('svg').getBoundingClientRect();"
        "return f.id + ' ' + (box.width > 200 && box.height > 100)}),"
        "fetched: performance.getEntriesByType('resource').map(e => e.name),"
        "overflow: document.documentElement.scrollWidth > innerWidth}); document.body.append(out); });</script>"
    )
    probe.write_text(report.read_text().replace("</body>", f"{measure}</body>"))
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1280,2000", "--virtual-time-budget=5000", "--dump-dom", probe.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    measured = re.search(r'<pre id="measured">(.*?)</pre>', shown)
    assert measured, shown[-2000:]
    sizes = ", ".join(f'"{name} true"' for name in FIGURES).replace(", ", ",")
    assert measured[1] == f'{{"sizes":[{sizes}],"fetched":[],"overflow":false}}'
