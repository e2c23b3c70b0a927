"""Who sends versions directly, in the learner: a thread for each version on its way, so nobody waits for an engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from r1async.types import PolicyVersion
from r1async.weights.direct import WAYS, DirectError, Way
from r1async.weights.direct_ways import Sender, make_sender
from r1async.weights.manifest import Snapshot, read_version
from r1async.weights.store import VersionStore
from r1async.wire import WireError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Reply = Callable[[Mapping[str, object]], None]
MAX_WORKERS = 1024


@dataclass(frozen=True, slots=True)
class _Asked:
    version: PolicyVersion
    way: Way
    base: PolicyVersion | None
    workers: int
    device: str
    fresh: bool


@dataclass(slots=True)
class _Engine:
    """One receiver's engine."""

    sender: Sender | None = None
    sent: Snapshot | None = None
    """What went to it last."""
    thread: threading.Thread | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    stream: torch.cuda.Stream | None = None
    """Its own: what waits for this engine on a GPU must not lie in the training loop's stream, which is a new thread's
    unless told otherwise."""

    def apart(self) -> AbstractContextManager:
        """What is sent to it goes through its own stream."""
        import torch  # the learner has it; who only relays weights need not

        if not torch.cuda.is_available():
            return nullcontext()
        self.stream = self.stream or torch.cuda.Stream()
        return torch.cuda.stream(self.stream)


class DirectSender:
    """Answers `direct` and sends.

    Args:
        store: of the versions.
        address: of this machine, as engines reach it.
        timeout_s: seconds that an engine may take to join, or to take its part.
        make: makes an engine's end; another one in tests.
    """

    def __init__(
        self, store: VersionStore, *, address: str, timeout_s: float, make: Callable[..., Sender] = make_sender
    ) -> None:
        self._store = store
        self._address = address
        self._timeout_s = timeout_s
        self._make = make
        self._engines: dict[str, _Engine] = {}
        self.sent = 0
        """Versions that went to an engine."""
        self.failed = 0
        """Versions that did not, or not to their end."""

    def begin(self, name: str, header: Mapping[str, object], reply: Reply) -> None:
        """A receiver's question; the answer comes in a thread.

        Raises:
            WireError: not such a question.
        """
        asked = _read(header)
        engine = self._engines.setdefault(name, _Engine())
        if engine.thread is not None and engine.thread.is_alive() and engine.sender is not None:
            # It asks again, so its engine has left that transfer, or is a new one.
            log.warning("%s asks for version %s while one is on its way to it: breaking that off", name, asked.version)
            engine.sender.close()
        engine.thread = threading.Thread(
            target=self._run, args=(name, engine, asked, reply), name=f"weights to {name}", daemon=True
        )
        engine.thread.start()

    def close(self) -> None:
        for engine in self._engines.values():
            if engine.sender is not None:
                engine.sender.close()

    def _run(self, name: str, engine: _Engine, asked: _Asked, reply: Reply) -> None:
        if not engine.lock.acquire(timeout=self._timeout_s):
            reply({"error": f"the version before is still on its way to {name}"})
            return
        try:
            with engine.apart():
                sender, snapshot = self._prepare(engine, asked, reply)
                if sender is None or snapshot is None:
                    self.failed += 1
                    return
                sender.send()
            engine.sent = snapshot
            self.sent += 1
        except Exception as error:  # noqa: BLE001  of any library: the receiver's deadline says it there, the log here
            log.warning("version %s did not get to %s: %r", asked.version, name, error)
            self.failed += 1
            if engine.sender is not None:
                engine.sender.close()
            engine.sender = engine.sent = None
        finally:
            engine.lock.release()

    def _prepare(self, engine: _Engine, asked: _Asked, reply: Reply) -> tuple[Sender | None, Snapshot | None]:
        """Answers the receiver, whatever comes of it."""
        try:
            snapshot = self._store.get(asked.version)
            if snapshot is None:
                raise DirectError(f"version {asked.version} is gone; there is a newer one")
            if asked.fresh or engine.sender is None:
                if engine.sender is not None:
                    engine.sender.close()
                if not asked.fresh:
                    raise DirectError("this learner has no group with the engine yet")
                engine.sent = None
                engine.sender = self._make(
                    asked.way,
                    address=self._address,
                    workers=asked.workers,
                    device=asked.device,
                    timeout_s=self._timeout_s,
                )
            meeting = engine.sender.prepare(snapshot, self._base(engine, asked.base))
        except DirectError as error:
            reply({"error": str(error)})
            return None, None
        except Exception as error:
            reply({"error": f"the learner could not prepare it: {error!r}"})
            raise
        reply({"join": meeting.join, "update": meeting.update})
        return engine.sender, snapshot

    def _base(self, engine: _Engine, version: PolicyVersion | None) -> Snapshot | None:
        """What the engine has, if it is still here."""
        if version is None:
            return None
        if engine.sent is not None and engine.sent.version == version:
            return engine.sent
        return self._store.get(version)


def _read(header: Mapping[str, object]) -> _Asked:
    base = header.get("base")
    match header:
        case {"way": str(way), "workers": int(workers), "device": str(device), "fresh": bool(fresh)} if (
            way in WAYS and 0 < workers <= MAX_WORKERS and device in ("cpu", "cuda")
        ):
            version = read_version(header.get("version"))
            return _Asked(version, way, None if base is None else read_version(base), workers, device, fresh)
        case _:
            raise WireError(f"direct wants version, way (of {', '.join(WAYS)}), workers, device and fresh")
