"""Learner lives only follow each other: what an older one publishes after a newer has been seen is refused."""

from __future__ import annotations

import logging
import threading

from r1async.types import PolicyVersion

log = logging.getLogger(__name__)


class Fence:
    """Thread-safe. Remembers the newest epoch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._epoch = 0
        self.refused = 0
        """Versions of dead learners."""

    def accepts(self, version: PolicyVersion) -> bool:
        """Whether the version's learner has not been replaced by one that was seen before."""
        with self._lock:
            if version.epoch < self._epoch:
                self.refused += 1
                log.warning("refused version %s: epoch %d has begun", version, self._epoch)
                return False
            self._epoch = version.epoch
            return True
