"""The data card: what came from where, and why things were dropped; card.json for programs, card.md for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1async.config import Config
from r1async.files import write_atomic, write_json
from r1async.monitor.metrics import read_metrics
from r1async.monitor.rundata import Record, load_run
from r1async.sample.prompts import Asked
from r1async.sample.select import Account, data_hash

Card = dict[str, Any]


def make_card(config: Config, asked: Asked, account: Account, folder: Path) -> Card:
    """Everything that the card says."""
    completions = dict(sorted(account.completions.items()))
    kept = completions.pop("kept", 0)
    prompts = dict(sorted(account.prompts.items()))
    sampled = prompts.pop("sampled", 0)
    sample = config.sample
    return {
        "model": config.model.path,
        "data": config.data.path or config.data.task,
        "seed": config.seed,
        "settings": asdict(sample),
        "prompts": {"all": asked.main, "sampled": sampled, "left_out": prompts},
        "completions": {
            "sampled": sampled * sample.samples, "tokens": account.tokens, "kept": kept, "dropped": completions,
            "by_domain": {name: _of_domain(counts) for name, counts in sorted(account.domains.items())},
        },
        "mixed_in": {name: dict(counts) for name, counts in account.sources.items()},
        "rows": kept + sum(counts["taken"] for counts in account.sources.values()),
        "evaluation_sets": {name: {"texts": texts} for name, texts in asked.overlap.texts.items()},
        "contaminated": _by_set(account),
        "sha256": data_hash(folder),
        "throughput": throughput(config.run_dir),
    }  # fmt: skip


def _of_domain(counts: Mapping[str, int]) -> Card:
    dropped = {reason: count for reason, count in sorted(counts.items()) if reason != "kept"}
    return {"sampled": sum(counts.values()), "kept": counts.get("kept", 0), "dropped": dropped}


def _by_set(account: Account) -> dict[str, int]:
    """Prompts, completions and mixed-in rows that share a run of words with each evaluation set."""
    found: Counter[str] = Counter()
    for counts in (account.prompts, account.completions, *account.sources.values()):
        for reason, count in counts.items():
            if reason.startswith("contaminated:"):
                found[reason.partition(":")[2]] += count
    return dict(sorted(found.items()))


def throughput(run_dir: Path) -> Card:
    """Completion tokens a second, and how busy generators were while they had anything left to do.

    Of the newest life of the run alone: between lives nobody sampled.
    """
    lines = list(read_metrics(run_dir / "metrics" / "samples.jsonl", "life"))
    if not lines:
        return {}
    last = lines[-1]
    seconds = last["last_at"] - last["first_at"]
    bins = load_run(run_dir).bins
    return {
        "seconds": round(seconds, 2),
        "tokens": last["tokens"],
        "tokens_per_s": round(last["tokens"] / seconds, 1) if seconds > 0 else None,
        "generator_busy": {
            name: busy_share(records, last["began_at"])
            for name, records in bins.items()
            if name.startswith("generator")
        },
    }


def busy_share(records: Sequence[Record], since: float) -> float | None:
    """Share of its time that a generator did not wait for work, from its first decoded token to its last; None if
    there are none. What it sampled in a second over what it could have: 1 means that nothing ever kept it waiting."""
    decoding = [i for i, r in enumerate(records) if r["start"] >= since and r["busy"].get("decode")]
    if not decoding:
        return None
    # The bins in which it began and ended are part start-up and part end.
    window = records[decoding[0] + 1 : decoding[-1]] or records[decoding[0] : decoding[-1] + 1]
    waited = sum(sum(r["wait"].values()) for r in window)
    return round(1.0 - waited / sum(r["span_s"] for r in window), 4)


def write_card(run_dir: Path, card: Card) -> Path:
    """Both files; returns the one for people."""
    write_json(run_dir / "card.json", card)
    path = run_dir / "card.md"
    write_atomic(path, markdown(card).encode())
    return path


def markdown(card: Card) -> str:
    """The card for people."""
    prompts, completions, settings = card["prompts"], card["completions"], card["settings"]
    lines = [
        f"# Data card: {card['rows']:,} rows",
        "",
        f"{completions['kept']:,} completions sampled from `{card['model']}` on prompts of `{card['data']}`, "
        f"{settings['samples']} a prompt at temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, seed "
        f"{card['seed']}; {card['rows'] - completions['kept']:,} rows mixed in from files.",
        "",
        "## Prompts",
        "",
        *_table({"all": prompts["all"], **prompts["left_out"], "sampled": prompts["sampled"]}),
        "## Completions",
        "",
        "The first reason that holds is the one that is counted.",
        "",
        *_table({"sampled": completions["sampled"], **completions["dropped"], "kept": completions["kept"]}),
        *_domains_table(completions["by_domain"]),
    ]
    if card["mixed_in"]:
        lines += ["## Mixed in", ""]
        for name, counts in card["mixed_in"].items():
            lines += [f"`{name}`, from `{settings['mix'][name]['path']}`:", "", *_table(counts)]
    lines += [
        "## Decontamination",
        "",
        f"Tokens in a row that must not be shared: {settings['decontaminate']['ngram']}.",
        "",
        "| evaluation set | texts | what was dropped for it |",
        "|---|---|---|",
        *(
            f"| {name} | {told['texts']:,} | {card['contaminated'].get(name, 0):,} |"
            for name, told in card["evaluation_sets"].items()
        ),
        "",
        f"SHA-256 of the rows: `{card['sha256']}`",
        "",
    ]
    return "\n".join(lines)


def _domains_table(domains: Mapping[str, Card]) -> list[str]:
    """The same by domain, where there is more than one."""
    if len(domains) < 2:
        return []
    reasons = sorted({reason for told in domains.values() for reason in told["dropped"]})
    lines = [f"| | {' | '.join(domains)} |", "|---|" + "---|" * len(domains)]
    for row in ("sampled", *reasons, "kept"):
        counts = [told.get(row, told["dropped"].get(row, 0)) for told in domains.values()]
        lines.append(f"| {row.replace('_', ' ')} | {' | '.join(f'{count:,}' for count in counts)} |")
    return ["By domain:", "", *lines, ""]


def _table(counts: Mapping[str, int]) -> list[str]:
    rows = [f"| {name.replace('_', ' ')} | {count:,} |" for name, count in counts.items()]
    return ["| | count |", "|---|---|", *rows, ""]
