"""What a sandboxed run costs beside starting a bare interpreter, and what many runs leave behind.

    python benches/sandbox.py [--runs 200] [--soak 1000] [--json FILE]

Ratios of wall and CPU time, both kinds of run in turn so that a busy machine slows both. The soak starts programs that
daemonise, write files and hang, kills a third of them at their deadline, and counts processes, mounts, files, network
namespaces and descriptors before and after. Exits 1 if something was left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from r1async.rewards.sandbox import Limits, Program, Sandbox, base_python

BARE = (base_python(), "-I", "-S", "-c", "pass")
LIMITS = Limits(wall_s=60.0, memory_mib=512, address_mib=1536)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each kind, for the costs")
    parser.add_argument("--soak", type=int, default=1000, help="runs, for what is left")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with Sandbox() as sandbox:
        figures = {"layers": dict(sandbox.layers), **costs(sandbox, options.runs)}
    soaked = soak(options.soak) if options.soak else {}
    print(json.dumps({**figures, **soaked}, indent=2))
    if options.json:
        options.json.write_text(json.dumps({**figures, **soaked}))
    return int(bool(soaked.get("left")))


def costs(sandbox: Sandbox, runs: int) -> Mapping[str, float]:
    """Wall and CPU seconds of a bare interpreter and of a sandboxed one, in turn."""
    zygote = next(each for each in psutil.Process().children() if "r1async.rewards.jail" in " ".join(each.cmdline()))
    program = Program(argv=BARE, limits=LIMITS)
    walls: dict[str, list[float]] = {"bare": [], "sandboxed": []}
    cpus = {"bare": 0.0, "sandboxed": 0.0}
    kinds: Mapping[str, Callable[[], object]] = {
        "bare": lambda: subprocess.run(BARE, check=True, close_fds=False),
        "sandboxed": lambda: sandbox.run(program),
    }
    for _ in range(runs):
        for kind, start in kinds.items():
            before, began = _cpu(zygote), time.perf_counter()
            start()
            walls[kind].append(time.perf_counter() - began)
            cpus[kind] += _cpu(zygote) - before
    middle = {kind: statistics.median(times) for kind, times in walls.items()}
    return {
        "runs": runs,
        "bare_p50_ms": 1e3 * middle["bare"],
        "sandboxed_p50_ms": 1e3 * middle["sandboxed"],
        "ratio_p50": middle["sandboxed"] / middle["bare"],
        "bare_cpu_ms": 1e3 * cpus["bare"] / runs,
        "sandboxed_cpu_ms": 1e3 * cpus["sandboxed"] / runs,
        "ratio_cpu": cpus["sandboxed"] / cpus["bare"],
        "runs_per_core_s": runs / cpus["sandboxed"],
    }


def _cpu(zygote: psutil.Process) -> float:
    """Processor time of this process, the zygote, and all that they waited for."""
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    theirs = zygote.cpu_times()
    return (
        sum(each.ru_utime + each.ru_stime for each in ours)
        + theirs.user
        + theirs.system
        + theirs.children_user
        + theirs.children_system
    )


def soak(runs: int) -> Mapping[str, object]:
    """Runs that try to leave something, and what is left."""
    programs = [
        Program(argv=("/bin/sh", "-c", "setsid sleep 999 & echo x > /tmp/f; exit 0"), limits=LIMITS),
        Program(argv=("/bin/sh", "-c", "setsid sleep 999 & sleep 999"), limits=Limits(wall_s=0.02)),
        Program(argv=("/bin/sh", "-c", "kill -9 $PPID; kill -9 -1"), limits=LIMITS),
    ]
    before = _inventory()
    with Sandbox() as sandbox:
        sandbox.run(programs[0])
        began_fds = _zygote_fds()
        for number in range(runs):
            sandbox.run(programs[number % len(programs)])
        descriptors = _zygote_fds() - began_fds
    deadline = time.monotonic() + 5.0
    while (after := _inventory()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    left = {name: sorted(set(after[name]) - set(before[name])) for name in after}
    left["descriptors"] = ["of the zygote"] * descriptors
    return {"soak_runs": runs, "left": {name: what for name, what in left.items() if what}}


def _zygote_fds() -> int:
    return sum(
        each.num_fds() for each in psutil.Process().children() if "r1async.rewards.jail" in " ".join(each.cmdline())
    )


def _inventory() -> dict[str, list[str]]:
    """Processes that could be a run's, mounts, temporary files of ours, open descriptors, shared memory."""
    runs = [
        each.info["name"]
        for each in psutil.process_iter(["name", "uids", "cmdline"])
        if (each.info["uids"] and each.info["uids"].real >= 1_900_000_000) or "999" in (each.info["cmdline"] or [])
    ]
    return {
        "processes": [str(each) for each in runs],
        "children": [str(each.pid) for each in psutil.Process().children(recursive=True)],
        "mounts": Path("/proc/self/mountinfo").read_text().split("\n"),
        "files": [str(path) for path in Path(tempfile.gettempdir()).glob("r1async-box-*")],
        "segments": Path("/proc/sysvipc/shm").read_text().split("\n"),
        "open": os.listdir("/proc/self/fd"),
    }


if __name__ == "__main__":
    sys.exit(main())
