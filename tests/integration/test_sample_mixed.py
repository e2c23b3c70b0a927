"""One `r1async sample` over three domains: a rule, a judge behind an endpoint, the tests of a repository."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from r1async.cli import main
from r1async.swe.samples import make_samples

from tests.check_kept import check
from tests.played_chat import PlayedChat
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.timeout(600)
SAMPLES = 4
GARBLED = "dd?"
"""The judge has no verdict on this one's answer."""
ANSWERS = {
    # prompt: domain, reference, what the model has learned to say
    "1+1=": ("math", "2", "2"), "1+2=": ("math", "3", "3"), "1+3=": ("math", "4", "9"),
    "ab?": ("judged", "x", "x"), "ac?": ("judged", "y", "y"), "ad?": ("judged", "x", "y"),
    GARBLED: ("judged", "x", "x"),
    # Of the instance `intervals` 1 is right, and 0 leaves the bug where it is.
    "a=": ("swe", "", "1"), "b=": ("swe", "", "0"),
}  # fmt: skip


def judged(body: Mapping[str, Any]) -> str:
    """RIGHT if the prediction is the reference."""
    text = body["messages"][-1]["content"]
    said = {name: re.findall(rf"<{name}-\w+>\n(.*?)\n</{name}-", text, re.DOTALL)[0]
            for name in ("question", "reference", "prediction")}  # fmt: skip
    if said["question"] == GARBLED:
        return "Who am I to judge?"
    code = re.findall(r"^the code (\w{8}), then a colon", text, re.MULTILINE)[-1]
    return f"VERDICT {code}: {'RIGHT' if said['prediction'] == said['reference'] else 'WRONG'}"


@pytest.fixture
def model(run_root: Path) -> Path:
    """Has learned by heart what to say."""
    rows = [
        {"prompt": prompt, "completion": f"<think>{said},{said}</think><answer>{said}</answer>"}
        for prompt, (_, _, said) in ANSWERS.items()
    ]
    (run_root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_root / "sft.yaml").write_text(f"""
runs_dir: {run_root}
name: model
model: {{path: {save_tiny(run_root / "start")}}}
data: {{path: {run_root}/rows.jsonl, template: none, max_tokens: 32}}
train: {{epochs: 150, batch_size: {len(rows)}, lr: 5.0e-3, micro_batch_tokens: 512, checkpoint_every: 1000}}
monitor: {{terminal: quiet, tensorboard: false}}
""")
    assert main(["sft", str(run_root / "sft.yaml")]) == 0
    return run_root / "model" / "model"


def prompts(folder: Path) -> Path:
    rows = []
    for prompt, (domain, reference, _) in ANSWERS.items():
        row = {"prompt": prompt, "answer": reference, "domain": domain}
        rows.append(row | {"instance_id": "acme__intervals-1", "source": "swe"} if domain == "swe" else row)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "prompts.jsonl"


def test_each_domain_is_graded_by_its_own_and_accounted_for(run_root: Path, model: Path):
    make_samples(run_root / "swe")
    with PlayedChat(judged) as server:
        (run_root / "sample.yaml").write_text(f"""
runs_dir: {run_root}
name: run
model: {{path: {model}}}
data: {{path: {prompts(run_root)}, template: none, max_prompt_tokens: 16, shuffle: false}}
sampling: {{max_tokens: 24}}
generator: {{slots: 16}}
reward:
  weights: {{accuracy: 1.0, format: 0.0}}
  domains:
    judged: {{weights: {{judge: 1.0, format: 0.0}}}}
    swe: {{weights: {{swe: 1.0, format: 0.0}}}}
  equivalence: exact
  judge: {{sees: answer, endpoint: {{url: "{server.url}", model: played, tries: 1}}}}
  swe:
    instances: {run_root}/swe/instances.jsonl
    repos: {run_root}/swe/repos
    cache: {run_root}/cache
    answer: replacement
    container: none
    controls: 1
    control_passing: 0
sample:
  samples: {SAMPLES}
  temperature: 0.1
  keep: {{parts: {{accuracy: 1.0, judge: 1.0, swe: 1.0, format: 1.0}}, per_prompt: 2}}
monitor: {{terminal: plain, tensorboard: false}}
progress: {{limit_s: 2000}}
""")
        assert main(["sample", str(run_root / "sample.yaml")]) == 0
        assert {body["model"] for body in server.requests} == {"played"}

    card = json.loads((run_root / "run" / "card.json").read_text())
    assert card["completions"]["by_domain"] == {
        "judged": {"sampled": 16, "kept": 2, "dropped": {"abstained": 4, "below:judge": 4, "duplicate": 6}},
        "math": {"sampled": 12, "kept": 2, "dropped": {"below:accuracy": 4, "duplicate": 6}},
        "swe": {"sampled": 8, "kept": 1, "dropped": {"below:swe": 4, "duplicate": 3}},
    }
    assert "| below:judge | 4 | 0 | 0 |" in (run_root / "run" / "card.md").read_text()
    kept = {row["prompt"][0]["content"]: row for row in pq.read_table(run_root / "run" / "data").to_pylist()}
    assert set(kept) == {"1+1=", "1+2=", "ab?", "ac?", "a="}
    assert kept["a="]["source"] == "swe"

    # A domain's verdicts have its own parts.
    parts = {"math": "accuracy", "judged": "judge", "swe": "swe"}
    domains = [domain for domain, _, _ in ANSWERS.values()]
    for row in pq.read_table(run_root / "run" / "samples").to_pylist():
        if row["status"] != "unparsed":
            assert parts[domains[row["ordinal"]]] in json.loads(row["parts"]), row
    assert json.loads((run_root / "run" / "audit.json").read_text())["balanced"]
    found = check(run_root / "run")
    assert not found.wrong, found.report()
    assert found.looked["not checked here: the answer needs a judge or tests"] == 3
