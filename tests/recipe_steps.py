"""Functions that recipes of the tests make things with."""

import time
from pathlib import Path


def number(folder: Path, *, value: int, plus: str = "") -> None:
    """Writes value, and what the file `plus` holds added to it; counts its calls."""
    total = value + (int(Path(plus).read_text()) if plus else 0)
    (folder / "number.txt").write_text(str(total))
    with (folder.parent / "calls.txt").open("a") as calls:
        calls.write(f"{folder.name.rpartition('-')[0]}\n")


def slow(folder: Path, *, steps: int, until: str = "") -> None:
    """Goes on where it was; waits for the file `until` before its last step."""
    done = folder / "steps.txt"
    at = int(done.read_text()) if done.exists() else 0
    for step in range(at, steps):
        done.write_text(str(step + 1))
        deadline = time.monotonic() + 60
        while until and step == 1 and not Path(until).exists():
            assert time.monotonic() < deadline, f"waited 60 s for {until}"
            time.sleep(0.02)
    print(f"slow: steps {at} to {steps}")


def nothing(folder: Path) -> None:
    """Ends well and makes nothing."""


def breaks(folder: Path, *, fixed: str) -> None:
    """Raises unless the file `fixed` is there."""
    if not Path(fixed).exists():
        raise RuntimeError("the disk of the oracle is full")
    (folder / "number.txt").write_text("1")


def table(folder: Path, *, of: dict[str, str]) -> None:
    """Writes the numbers of several stages, by name."""
    lines = [f"{name} {Path(path).read_text()}" for name, path in of.items()]
    (folder / "table.txt").write_text("\n".join(lines))


def meets(folder: Path, *, mine: str, theirs: str) -> None:
    """Ends once another stage has begun."""
    Path(mine).touch()
    deadline = time.monotonic() + 60
    while not Path(theirs).exists():
        assert time.monotonic() < deadline, f"waited 60 s for {theirs}"
        time.sleep(0.02)
    (folder / "met.txt").touch()
