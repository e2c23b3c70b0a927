"""What the sampler asks of the buffer: each prompt's completions wait in the line of its domain's slowest pool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1async.config import load_config
from r1async.inbox import Inbox
from r1async.monitor.timeline import Timeline
from r1async.sample.identity import open_parts
from r1async.sample.prompts import open_asked, sampling_config
from r1async.sample.sampler import Sampler

from tests.tiny_models import save_tiny


class Heard:
    """In the place of the connection to the buffer."""

    def __init__(self) -> None:
        self.headers: list[Mapping[str, Any]] = []

    def send(self, header: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        self.headers.append(header)


def test_slow_verdicts_wait_in_lines_of_their_own(tmp_path: Path, monkeypatch):
    model = save_tiny(tmp_path / "model", hidden=32, mlp=48)
    domains = ["math", "open", "", "programs", "open", "general"]
    rows = [{"prompt": f"{i}=", "answer": "1", "domain": domain} for i, domain in enumerate(domains)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = sampling_config(
        load_config(
            None,
            [f"runs_dir={tmp_path}", f"model.path={model}", f"data.path={tmp_path}/rows.jsonl", "data.template=none",
             "data.shuffle=false", "reward.domains.open.weights={judge: 1, format: 0}",
             "reward.domains.programs.weights={code: 1}",
             "reward.judge.endpoint={url: 'http://h/v1', model: m}"],
        )
    )  # fmt: skip
    timeline = Timeline("sampler", tmp_path / "sampler.jsonl", started=0.0)
    sampler = Sampler(config, open_asked(config), open_parts(config), Inbox(), timeline)
    heard = Heard()
    monkeypatch.setattr(sampler, "_buffer", heard, raising=False)
    sampler._fill(sampler._runs())
    timeline.close()
    asked = [(meta["text"], line) for header in heard.headers for meta, line in
             zip(map(json.loads, header["metas"]), header["pools"], strict=True)]  # fmt: skip
    assert asked == [
        ("0=", "rules"), ("1=", "judge"), ("2=", "rules"), ("3=", "code"), ("4=", "judge"), ("5=", "rules"),
    ]  # fmt: skip
