"""Slow rewards beside fast ones: `python benches/slow_rewards.py [STEPS [PAIRS]]`, from the root of the repository.

Runs configs/demo.yaml in turns, with smaller batches and a quarter of the problems of the source `slow`: their rollouts
are also put before a judge on this machine that answers at once in every other run, and in those between after 50 steps
of the first one (lognormal, sigma 0.7, at most five times that), as test suites of a repository do. Its answers weigh
nothing, so that all learn from the same rewards. Prints throughput, the slow source's share of trained groups, and the
staleness of each source, all of the second halves: in the first the slow source's window fills. Under 500 steps
few slow verdicts are there by then, and the figures say only that everything works.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median
from typing import NamedTuple

from aiohttp import web
from r1async.config import load_config
from r1async.monitor.rundata import load_run
from r1async.simulate.observe import events_of
from r1async.tasks.chain_mod import ChainModSource

SHARE, BOUND, FACTOR, SIGMA, LONGEST = 0.25, 320, 50.0, 0.7, 5.0
SMALL = [
    "learner.groups_per_step=4", "group.group_size=4", "learner.checkpoint_every=50", f"data.slow_share={SHARE}",
    "eval.every=0", "eval.prompts=40", "eval.samples=1", "eval.greedy=false", "eval.deadline_s=600",
    "reward.domain_key=source", "reward.domains.slow={weights: {accuracy: 1.0, format: 0.2, judge: 0.0}}",
    f"staleness.windows.judge={{max_staleness: {BOUND}, share: {SHARE}}}", "monitor.terminal=quiet",
    "reward.judge.endpoint.model=played", "reward.judge.endpoint.concurrency=4096", "scorer.pools.judge.queue=8192",
    "reward.judge.endpoint.request_s=3600", "reward.judge.endpoint.deadline_s=3600", "progress.limit_s=3700",
    "progress.end_s=3700", "generator.eval_slots=16", "reward.judge.sees=response",
]  # fmt: skip


class Judge:
    """Says RIGHT after a while."""

    def __init__(self) -> None:
        self.median_s = 0.0
        self.asked = 0
        self._random = random.Random(0)
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait(30)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await asyncio.Event().wait()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        text = (await request.json())["messages"][-1]["content"]
        draw = math.exp(SIGMA * self._random.gauss(0.0, 1.0))
        await asyncio.sleep(self.median_s * min(LONGEST, draw))
        code = re.findall(r"the code (\w{8}), then", text)[-1]
        message = {"role": "assistant", "content": f"VERDICT {code}: RIGHT"}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def main() -> None:
    steps, pairs = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 640), (2, 3)))
    judge = Judge()
    with tempfile.TemporaryDirectory() as folder:
        instant = [played(judge, Path(folder), "instant-0", steps)]
        verdict_s = FACTOR * instant[0].step_s
        print(f"verdicts of the slow source take {verdict_s:.1f} s, {FACTOR:g} steps (median)", flush=True)
        slow: list[Played] = []
        for pair in range(pairs):
            judge.median_s = verdict_s
            slow.append(played(judge, Path(folder), f"slow-{pair}", steps))
            judge.median_s = 0.0
            instant.append(played(judge, Path(folder), f"instant-{pair + 1}", steps))
    # Each slow run between its neighbours: a machine that grows slower meanwhile is none of the judge's doing.
    ratios = [(before.step_s + after.step_s) / 2 / each.step_s
              for before, each, after in zip(instant, slow, instant[1:], strict=False)]  # fmt: skip
    print(
        f"throughput beside slow verdicts: {median(ratios):.3f} of that beside instant ones (wanted: 0.95); "
        f"{', '.join(f'{ratio:.3f}' for ratio in ratios)}"
    )
    waited = [median(each.waited for each in runs) for runs in (instant, slow)]
    print(
        f"the learner waited for batches {waited[1]:.3f} of the run beside slow verdicts, {waited[0]:.3f} beside "
        "instant ones"
    )
    groups, of_slow, wanted = (sum(getattr(each, name) for each in slow) for name in ("groups", "slow", "wanted"))
    print(f"share of the slow source: {of_slow / groups:.4f} of {groups} groups, {of_slow / wanted:.3f} of its "
          "share of the data (0.95 to 1.05)")  # fmt: skip
    print(f"oldest token of the slow source that was trained: {max(each.oldest[True] for each in slow)} steps (its "
          f"bound: {BOUND})")  # fmt: skip
    print(
        f"oldest token of the others: {max(each.oldest[False] for each in slow)} steps (their bound: {slow[0].bound})"
    )


class Played(NamedTuple):
    """What a run was like in its second half."""

    step_s: float
    groups: int
    """Trained."""
    slow: int
    """Of them those of the slow source."""
    wanted: float
    """How many that would be by its share of all prompts that the run was given."""
    waited: float
    """Share of the learner's whole run in which it waited for a batch."""
    oldest: dict[bool, int]
    """By source (slow or not) the most steps that any token was behind which had a loss."""
    bound: int
    """`staleness.max_staleness`."""


def played(judge: Judge, folder: Path, name: str, steps: int) -> Played:
    """Runs and tells."""
    overrides = [
        f"name={name}",
        f"runs_dir={folder}",
        f"steps={steps}",
        f"reward.judge.endpoint.url={judge.url}",
        *SMALL,
    ]
    subprocess.run([sys.executable, "-m", "r1async", "run", "configs/demo.yaml", *overrides], check=True)
    run = load_run(folder / name)
    settled = [record["time"] for record in run.steps if record["step"] >= steps // 2]
    step_s = (settled[-1] - settled[0]) / (len(settled) - 1)
    groups, slow, data, stale = told(folder / name, steps // 2)
    whole_s = run.steps[-1]["time"] - run.steps[0]["time"]
    bins = run.bins["learner"]
    waited = sum(each["wait"].get("batch", 0.0) for each in bins) / sum(each["span_s"] for each in bins)
    print(
        f"{name}: a step takes {step_s:.4f} s ({16 / step_s:.1f} completions/s), all {whole_s:.0f} s; "
        f"{slow / groups:.4f} of {groups} groups are slow ones, of the data {data:.4f}; oldest trained token: slow "
        f"{stale[True]} steps, others {stale[False]}; the learner waited for batches {waited:.3f} of "
        f"the run; judge asked {judge.asked} times",
        flush=True,
    )
    bound = load_config(folder / name / "config.yaml").staleness.max_staleness
    return Played(step_s, groups, slow, data * groups, waited, stale, bound)


class NoTokenizer:
    """For who wants to know where a problem comes from, not its tokens."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [0]

    def render_chat(self, messages: object) -> str:
        return ""


def told(run_dir: Path, warm: int) -> tuple[int, int, float, dict[bool, int]]:
    """Groups trained from step `warm` on and the slow ones among them, the share of slow ones among all prompts, and by
    source (slow or not) the most steps that any token was behind which had a loss."""
    config = load_config(run_dir / "config.yaml")
    source = ChainModSource(seed=config.seed, tokenizer=NoTokenizer(), slow_share=config.data.slow_share)
    slow: set[int] = set()
    admitted = 0
    trained: list[int] = []
    oldest: dict[int, int] = {}
    stale = {True: 0, False: 0}
    for _, event in events_of(run_dir):
        match event["what"]:
            case "admitted":
                admitted += 1
                if source.prompt(event["ordinal"]).source:
                    slow.add(event["group"])
            case "tokens":
                versions = [run["version"]["number"] for run in event["runs"]]
                oldest[event["rollout"]] = min([oldest.get(event["rollout"], 1 << 30), *versions])
            case "bound" if event["step"] >= warm:
                trained.append(event["group"])
            case "taken" if event["loss_tokens"] == event["tokens"]:
                of_slow = event["rollout"] // config.group.group_size in slow
                stale[of_slow] = max(stale[of_slow], event["step"] - oldest[event["rollout"]])
    return len(trained), sum(group in slow for group in trained), len(slow) / admitted, stale


if __name__ == "__main__":
    main()
