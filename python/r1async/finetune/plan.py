"""Which rows are trained in which step, by which rank, in which forward pass: a function of the seed, nothing kept.

So a run that goes on from step s trains what an uninterrupted one would have trained from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every row once an epoch, `batch_size` a step; an epoch's last step has what is left."""

    examples: int
    batch_size: int
    epochs: int
    max_steps: int
    """0: no limit but the epochs."""
    seed: int
    shuffle: bool

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        whole = self.epochs * self.steps_per_epoch
        return min(whole, self.max_steps) if self.max_steps else whole

    def examples_of(self, step: int) -> NDArray[np.int64]:
        """The rows of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.arange(self.examples)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.examples)
        return order[place * self.batch_size : (place + 1) * self.batch_size]


def micro_batches(
    examples: Sequence[int], lengths: NDArray[np.int64], *, ranks: int, tokens: int, padded: bool
) -> list[list[list[int]]]:
    """The examples of a step as forward passes, for each rank as many; some may be empty.

    Args:
        examples: of the step.
        lengths: (all examples, width) tokens of each sequence.
        tokens: of one pass at most, padding included; one example has its pass however long it is.
        padded: sequences of one pass are padded to its longest; False: they lie one after another.
    """
    longest_first = sorted(examples, key=lambda i: (-int(lengths[i].sum()), i))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for example in longest_first:
        rank = loads.index(min(loads))
        shares[rank].append(example)
        loads[rank] += int(lengths[example].sum())
    passes = [_passes(share, lengths, tokens, padded) for share in shares]
    count = max(map(len, passes))
    return [each + [[]] * (count - len(each)) for each in passes]


def _passes(share: Sequence[int], lengths: NDArray[np.int64], tokens: int, padded: bool) -> list[list[int]]:
    """Similar lengths together, so that little is padding."""
    width = lengths.shape[1]
    passes: list[list[int]] = []
    used, longest = 0, 0
    for example in share:
        own, most = int(lengths[example].sum()), int(lengths[example].max())
        wide = (len(passes[-1]) + 1) * width * max(longest, most) if passes and padded else used + own
        if passes and wide <= tokens:
            passes[-1].append(example)
            used, longest = used + own, max(longest, most)
        else:
            passes.append([example])
            used, longest = own, most
    return passes
