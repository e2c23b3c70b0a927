"""A copy of the policy that is not trained: the reference of the KL term, or the weights last published."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from r1async.learner.distributed import Ranks, shard


class FrozenCopy:
    """The policy's weights as they were when it was made or last refreshed; sharded like the policy.

    Args:
        model: the policy, not sharded yet.
    """

    def __init__(self, model: PreTrainedModel, ranks: Ranks) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        shard(self.model, ranks, trained=False)

    @torch.no_grad()
    def refresh(self, model: PreTrainedModel) -> None:
        """Take the policy's weights of now; shard by shard, so no rank needs the whole."""
        for own, current in zip(self.model.parameters(), model.parameters(), strict=True):
            own.copy_(current)
