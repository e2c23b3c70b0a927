"""What a run's journal tells: its account, the life of a group, its batches again.

Takes: a run's folder, also while the run goes on. Gives: text, and batches as files. Waits for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
from rich.console import Console
from rich.table import Table

from r1async._core import JournalBatches, JournalEvents, journal_audit
from r1async.config import ConfigError, has_journal, journal_dir, load_config

KINDS = ("prompts", "rollouts", "tokens")


def print_audit(run_dir: Path) -> int:
    """The account of a run, from its journal alone: in = trained + dropped by reason + live.

    Returns:
        0, or 1 if it does not balance.

    Raises:
        ConfigError: there is no journal, or it cannot be read.
    """
    try:
        audit = journal_audit(_folder(run_dir))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{error}") from error
    console = Console(highlight=False, soft_wrap=True)
    console.print(_account_table(audit))
    lengths = ", ".join(f"{name} {length:.1f}" for name, length in audit["mean_length"].items() if length is not None)
    console.print(f"mean length of completions, tokens: {lengths or 'none finished'}")
    if audit["length_ratio"] is not None:
        console.print(f"length ratio (trained / generated): {audit['length_ratio']:.3f}")
    lives = "1 life" if audit["lives"] == 1 else f"{audit['lives']} lives"
    torn = f", {audit['torn']} bytes cut by a crash" if audit["torn"] else ""
    console.print(f"{audit['events']} events in {lives} of the buffer, {audit['seconds']:.1f} s{torn}")
    for difference in audit["differences"]:
        console.print(f"DIFFERENCE: {difference}")
    console.print(f"trained twice: {audit['trained_twice']}   balanced: {'yes' if audit['balanced'] else 'NO'}")
    return 0 if audit["balanced"] else 1


def _account_table(audit: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    reasons = sorted({reason for kind in KINDS for reason in audit[kind]["dropped"]})
    rows = [("in", "in"), ("trained", "trained"), *((f"dropped {it}", it) for it in reasons), ("live", "live")]
    for title, key in rows:
        values = [audit[kind]["dropped"].get(key, 0) if key in reasons else audit[kind][key] for kind in KINDS]
        table.add_row(title, *(f"{value:,}" for value in values))
    return table


def print_group(run_dir: Path, group: int) -> int:
    """The life of one group, event by event.

    Raises:
        ConfigError: there is no journal, it cannot be read, or the run has no such group.
    """
    found = False
    try:
        for line in group_lines(_folder(run_dir), group):
            found = True
            print(line)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{error}") from error
    if not found:
        raise ConfigError(f"group {group}: the run in {run_dir} has none of that number")
    return 0


def group_lines(folder: Path, group: int) -> Iterator[str]:
    """One line for each thing that happened to a group: seconds of the run, member, what."""
    events = JournalEvents(folder, group)
    size, names, is_live = events.group_size, {}, False
    for at, packed in events:
        event = msgpack.unpackb(packed, strict_map_key=False)
        if event["what"] == "joined":
            names[int(event["holder"])] = event["name"]
            continue
        if event["what"] == "opened":
            if is_live:
                yield f"{at:10.3f} s  {'buffer':<10} started again"
            continue
        is_live = event["what"] not in ("bound", "dropped", "trained")
        member = f"member {event['rollout'] - group * size}" if "rollout" in event else "group"
        yield f"{at:10.3f} s  {member:<10} {_words(event, names)}"


def _words(event: Mapping[str, Any], names: Mapping[int, str]) -> str:
    match event["what"]:
        case "admitted":
            return f"prompt {event['ordinal']} admitted, {event['prompt_tokens']} tokens, {event['rollouts']} rollouts"
        case "leased":
            resumed = f", going on from {event['resumed']} tokens" if event["resumed"] else ""
            return f"lent to {_name(names, event['holder'])} under lease {event['lease']}{resumed}"
        case "tokens":
            runs = ", ".join(f"{run[1]} of version {run[0][1]}@{run[0][0]}" for run in map(_run, event["runs"]))
            return f"tokens received: {runs}"
        case "finished":
            return f"finished by {event['finish'].lower()} with {event['tokens']} tokens"
        case "lost":
            return f"lease {event['lease']} lost by its {'scorer' if event['scoring'] else 'generator'}"
        case "restarted":
            return f"{event['tokens']} tokens of a lost lease are too old to go on from: superseded"
        case "scoring":
            return f"lent to {_name(names, event['holder'])} to be scored, lease {event['lease']}"
        case "ended":
            return _outcome(event["outcome"])
        case "ready":
            return f"ready: {event['scored']} scored, reward {event['mean']:.4f} +- {event['std']:.4f}"
        case "bound":
            scored, mean, std = event["scored"], event["mean"], event["std"]
            return f"in the batch of step {event['step']}: {scored} scored, reward {mean:.4f} +- {std:.4f}"
        case "taken":
            tokens = f"{event['loss_tokens']} of {event['tokens']} tokens"
            return f"trained by step {event['step']}: {tokens}, advantage {event['advantage']:.4f}"
        case "left_out":
            return f"left out, {event['reason']}: {event['tokens']} tokens"
        case "dropped":
            return f"dropped {event['reason']}: {event['rollouts']} rollouts, {event['tokens']} tokens"
        case "trained":
            return f"trained: a checkpoint holds step {event['step']}"
        case other:
            return f"{other} {dict(event)}"


def _run(run: Any) -> tuple[tuple[int, int], int]:
    version = run["version"]
    return (version["epoch"], version["number"]), run["count"]


def _name(names: Mapping[int, str], holder: int) -> str:
    return names.get(holder, f"peer {holder}")


def _outcome(outcome: Mapping[str, Any]) -> str:
    ((kind, value),) = outcome.items()
    if kind == "Abstain":
        return f"abstained: {value}"
    parts = ", ".join(f"{name} {number:g}" for name, number in value["parts"])
    return f"scored {value['total']:g} ({parts or 'no parts'}), status {value['status'] or 'none'}"


def replay(run_dir: Path, out: Path | None) -> int:
    """Every batch of a run again, from a journal that keeps all; one that differs from what was handed out is an error.

    Args:
        out: folder for the batches, one file each as it travels to a learner of one rank; None: checksums only.

    Raises:
        ConfigError: there is no journal, it does not keep all, or a batch came out otherwise.
    """
    folder = _folder(run_dir)
    config = load_config(run_dir / "config.yaml")
    count = 0
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        batches = JournalBatches(folder, config.sampling.temperature, config.learner.micro_batch_tokens)
        for step, part, groups, frame in batches:
            digest = hashlib.sha256(frame).hexdigest()
            print(f"step {step}, part {part}: {groups} groups, {len(frame)} bytes, sha256 {digest}")
            if out is not None:
                (out / f"step-{step:06d}-{part}.batch").write_bytes(frame)
            count += 1
    except (ValueError, OSError) as error:
        raise ConfigError(f"{error}") from error
    print(f"{count} parts of batches, each as it was handed out")
    return 0


def _folder(run_dir: Path) -> Path:
    if not has_journal(run_dir):
        raise ConfigError(
            f"{run_dir} holds no journal; give a run's folder, runs/<name>, with journal.durability=group or sync"
        )
    return journal_dir(run_dir)
