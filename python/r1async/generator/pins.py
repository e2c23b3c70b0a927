"""Evaluation leases: rollouts that have to be sampled under one version, while training goes on with newer ones.

Two ways, by what the engine can hold. An engine with a second weight set steps both in turn (`SecondSet`). Any other is
claimed whole (`Claim`): it hands back its training rollouts with their tokens, serves the pinned version until the
evaluation has no more for it, then goes on with the newest weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from r1async.generator.engine import Engine, Request
from r1async.monitor.timeline import Timeline
from r1async.types import PolicyVersion
from r1async.weights.direct import Direct
from r1async.weights.receiver import Receiver, WeightsReady


class Pins(Protocol):
    """Pinned leases from their arrival to their place in the engine."""

    fetching: PolicyVersion | None
    """The version whose weights are waited for."""

    @property
    def room(self) -> int:
        """Pinned leases that may come."""
        ...

    @property
    def claimed(self) -> bool:
        """Whether no training rollout may come."""
        ...

    def add(self, requests: Sequence[Request]) -> None: ...

    def serve(self) -> None:
        """Goes as far as it can: something about leases, weights or places has changed."""
        ...

    def arrived(self, ready: WeightsReady) -> None:
        """The weights asked for are here."""
        ...

    def newest(self, ready: WeightsReady | Direct) -> bool:
        """Newer training weights are here; whether they may be installed now. If not, they are, later."""
        ...

    def drop(self, leases: Collection[int]) -> None:
        """These are ours no longer."""
        ...

    def give_up(self, version: PolicyVersion) -> list[Request]:
        """The weights asked for cannot be had; returns the leases that waited for them."""
        ...


class _Parked:
    """Leases whose version the engine does not hold yet, the oldest pin first."""

    def __init__(self) -> None:
        self._by_pin: dict[PolicyVersion, list[Request]] = {}

    def __len__(self) -> int:
        return sum(len(requests) for requests in self._by_pin.values())

    def __contains__(self, pin: PolicyVersion) -> bool:
        return pin in self._by_pin

    def add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            assert request.pin is not None
            self._by_pin.setdefault(request.pin, []).append(request)

    @property
    def first(self) -> PolicyVersion | None:
        return next(iter(self._by_pin), None)

    def pop(self, pin: PolicyVersion) -> list[Request]:
        return self._by_pin.pop(pin, [])

    def drop(self, leases: Collection[int]) -> None:
        self._by_pin = {
            pin: left for pin, requests in self._by_pin.items() if (left := [r for r in requests if r.id not in leases])
        }


class SecondSet:
    """For an engine that holds a second weight set.

    Args:
        engine: that has `pinned_capacity`.
        receiver: fetches versions by name.
        timeline: charged with installs.
        offers: whether evaluation is wanted here at all.
    """

    claimed = False

    def __init__(self, engine: Engine, receiver: Receiver, timeline: Timeline, *, offers: bool = True) -> None:
        self._engine, self._receiver, self._timeline, self._offers = engine, receiver, timeline, offers
        self._parked = _Parked()
        self.fetching: PolicyVersion | None = None

    @property
    def room(self) -> int:
        return self._engine.pinned_free - len(self._parked) if self._offers else 0

    def add(self, requests: Sequence[Request]) -> None:
        self._parked.add(requests)

    def serve(self) -> None:
        engine = self._engine
        while (pin := self._parked.first) is not None and self.fetching is None:
            if engine.pinned != pin:
                if engine.pinned_free < engine.pinned_capacity:
                    return  # another version's evaluation has to end first
                if engine.version != pin:
                    self.fetching = pin
                    self._receiver.fetch(pin)
                    return
                with self._timeline.busy("install"):
                    engine.install_pinned(pin, None)
            engine.submit(self._parked.pop(pin))

    def arrived(self, ready: WeightsReady) -> None:
        self.fetching = None
        if ready.version in self._parked:  # or its leases were lost meanwhile
            with self._timeline.busy("install"):
                self._engine.install_pinned(ready.version, ready.tensors)
        self._receiver.installed(ready)
        self.serve()

    def newest(self, ready: WeightsReady | Direct) -> bool:
        return True

    def drop(self, leases: Collection[int]) -> None:
        self._parked.drop(leases)

    def give_up(self, version: PolicyVersion) -> list[Request]:
        self.fetching = None
        return self._parked.pop(version)


class Claim:
    """For an engine with one weight set.

    Args:
        engine: is claimed.
        receiver: fetches versions by name.
        hand_back: gives all training rollouts back to the buffer, and empties the engine of them.
        install: has the engine serve weights.
        offers: whether evaluation is wanted here at all.
    """

    def __init__(
        self,
        engine: Engine,
        receiver: Receiver,
        hand_back: Callable[[], None],
        install: Callable[[WeightsReady | Direct], None],
        *,
        offers: bool,
    ) -> None:
        self._engine, self._receiver = engine, receiver
        self._hand_back, self._install, self._offers = hand_back, install, offers
        self._parked = _Parked()
        self._pin: PolicyVersion | None = None
        """What the engine is claimed for."""
        self._training: WeightsReady | Direct | None = None
        """The training weights installed last."""
        self._next: WeightsReady | Direct | None = None
        """Newer ones, to be installed when the claim ends."""
        self._here: set[int] = set()
        """Leases in the engine under the claim."""
        self.fetching: PolicyVersion | None = None

    @property
    def claimed(self) -> bool:
        return self._pin is not None

    @property
    def room(self) -> int:
        if not self._offers:
            return 0
        return self._engine.capacity - len(self._here) - len(self._parked)

    def add(self, requests: Sequence[Request]) -> None:
        self._parked.add(requests)

    def serve(self) -> None:
        while (pin := self._parked.first) is not None and self.fetching is None:
            if pin != self._pin:
                if self._here:
                    return  # another version's evaluation has to end first
                if self._pin is None:
                    self._hand_back()
                self._pin = pin
            if self._engine.version != pin:
                self.fetching = pin
                self._receiver.fetch(pin)
                return
            requests = self._parked.pop(pin)
            self._engine.submit(requests)
            self._here |= {request.id for request in requests}
        if self.claimed and not self._here and not len(self._parked) and self.fetching is None:
            self._pin = None
            # Also where the evaluation had these very weights: until they are installed for training, nobody is told
            # of them, and the receiver asks for no newer ones.
            if self._next is not None:
                self._training, self._next = self._next, None
                self._install(self._training)
            elif self._training is not None and self._engine.version != self._training.version:
                self._install(self._training)

    def arrived(self, ready: WeightsReady) -> None:
        self.fetching = None
        if ready.version in self._parked:
            self._engine.install(ready.version, ready.tensors)
        self._receiver.installed(ready)
        self.serve()

    def newest(self, ready: WeightsReady | Direct) -> bool:
        if self.claimed:
            self._next = ready
        else:
            self._training = ready
        return not self.claimed

    def drop(self, leases: Collection[int]) -> None:
        self._parked.drop(leases)
        self._here.difference_update(leases)

    def give_up(self, version: PolicyVersion) -> list[Request]:
        self.fetching = None
        return self._parked.pop(version)
