"""One optimizer step after another on examples that are there. A step is deterministic: same examples, same bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from r1async.config_finetune import TrainConfig
from r1async.finetune.objectives import Objective, Sequences, means
from r1async.learner.core import NotFiniteError, make_optimizer, prepare
from r1async.learner.distributed import Ranks, shard, whole
from r1async.learner.schedule import lr_factor
from r1async.learner.statistics import Metrics


class Finetuner:
    """Model and optimizer; `learner.checkpoint` saves and restores it.

    Args:
        model: on the ranks' device, not sharded yet; becomes this object's. What needs no gradient stays as it is.
        steps: of the whole run, for the schedule.
    """

    reference = None
    """No reference model, for checkpoints."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        settings: TrainConfig,
        *,
        steps: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.settings = settings
        self.steps = steps
        self.ranks = ranks or Ranks()
        self.version = 0
        """Optimizer steps done."""
        prepare(model, checkpointing=settings.gradient_checkpointing)
        shard(model, self.ranks)
        self.optimizer = make_optimizer(model, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)

    def step(self, passes: Sequence[Sequences]) -> Metrics:
        """One optimizer step on this rank's share; collective over ranks, which must have as many passes each.

        Returns:
            Means over the whole step, `weight` (learned tokens or pairs), `grad_norm` and `lr`; the same on every rank.

        Raises:
            NotFiniteError: the weights are not touched.
        """
        lr = self._set_lr()
        self.optimizer.zero_grad()
        sums = torch.zeros(len(self.objective.sums) + 1, dtype=torch.float64, device=self.ranks.device)
        for sequences in passes:
            with self._autocast():
                each = self.objective.loss(self.model, sequences, self.ranks.device)
            # FSDP averages gradients over ranks; the shares of a sum add up.
            (each[0] * self.ranks.world).backward()
            sums[:-1] += each.detach()
            sums[-1] += self.objective.weight(sequences)
        *values, weight = self.ranks.sum(sums).tolist()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= weight
        limit = self.settings.max_grad_norm or math.inf
        grad_norm = float(whole(nn.utils.clip_grad_norm_(self.model.parameters(), limit)))
        metrics = {**means(self.objective.sums, values, weight), "grad_norm": grad_norm, "lr": lr, "weight": weight}
        if not (math.isfinite(grad_norm) and math.isfinite(metrics["loss"])):
            raise NotFiniteError(
                f"step {self.version}: loss {metrics['loss']}, gradient norm {grad_norm}; the weights are those of "
                f"before it. A lower train.lr or train.autocast=false usually cures it"
            )
        self.optimizer.step()
        self.version += 1
        return metrics

    @torch.no_grad()
    def look(self, passes: Sequence[Sequences]) -> tuple[Metrics, float]:
        """The objective on examples that are not trained, and what they weigh; collective over ranks."""
        sums = torch.zeros(len(self.objective.sums) + 1, dtype=torch.float64, device=self.ranks.device)
        for sequences in passes:
            with self._autocast():
                sums[:-1] += self.objective.loss(self.model, sequences, self.ranks.device)
            sums[-1] += self.objective.weight(sequences)
        *values, weight = self.ranks.sum(sums).tolist()
        return dict(means(self.objective.sums, values, weight)), weight

    def _set_lr(self) -> float:
        settings = self.settings
        warmup = math.ceil(settings.warmup_ratio * self.steps)
        factor = lr_factor(settings.schedule, self.version, warmup_steps=warmup, steps=self.steps)
        if self.version >= warmup:
            factor = settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * factor
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * factor
        return settings.lr * factor

    def _autocast(self) -> AbstractContextManager:
        if not self.settings.autocast:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16)
