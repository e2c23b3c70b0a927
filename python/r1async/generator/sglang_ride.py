"""One request on an SGLang server."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field

from r1async.generator.flights import Flight
from r1async.types import VersionRun


@dataclass(slots=True, eq=False)
class Ride:
    """One request on the server."""

    id: int
    flight: Flight
    task: asyncio.Task[None] | None = None
    rid: str = ""
    key: str = ""
    """Of the prefixes that this part may share."""
    posted: str = ""
    """Label of what was served when it was posted."""
    got: int = 0
    """Tokens of this part."""
    doubtful: int = 0
    """Those of them that came under another label."""
    runs: list[VersionRun] = field(default_factory=list)
    """Of the parts before."""
    barren: int = 0
    """Parts in a row that ended before a token."""
    gone: bool = False
    """Nobody wants its tokens any more."""
    void: bool = False
    """Nobody wants those of this part."""
    cut: bool = False
    """This part is being ended for the sake of its versions."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """This part."""

    def begin(self, key: str, label: str) -> None:
        # Aborting ends every request whose rid begins with the given one: all are of one length.
        self.rid, self.key, self.posted = uuid.uuid4().hex, key, label
        self.got, self.doubtful, self.void, self.cut = 0, 0, False, False
        self.ended.clear()
