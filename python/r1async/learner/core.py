"""One optimizer step after another, without sockets: what the learner does to a batch once it has it."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from r1async.config import LearnerConfig
from r1async.learner.batch import MicroBatch, micro_batch
from r1async.learner.distributed import Ranks, shard, whole
from r1async.learner.frozen import FrozenCopy
from r1async.learner.loss import SUM, LossSettings, LossTerms, policy_loss
from r1async.learner.schedule import lr_factor
from r1async.learner.statistics import BatchSums, Metrics, TokenSums, token_metrics
from r1async.models.forward import packed_logprobs
from r1async.monitor.timeline import Timeline
from r1async.types import Batch


class NotFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the weights are still those of before the step."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """A micro-batch's completion tokens under one policy."""

    logprobs_N: Tensor
    entropy_N: Tensor | None


@dataclass(slots=True)
class _Filling:
    """A step whose batch is coming in. Gradients and losses are sums until its totals are known."""

    tokens: TokenSums
    rollouts: BatchSums = field(default_factory=BatchSums)
    seconds: Counter[str] = field(default_factory=Counter)


class LearnerCore:
    """Model, optimizer and the policies beside them. A step is deterministic: same parts of batches, same bits.

    Args:
        model: on the ranks' device, not sharded yet; becomes this object's.
        loss: the resolved loss.
        settings: of the learner.
        steps: of the whole run, for the schedule.
        publish_every: optimizer steps between two publications: `decoupled` needs the weights last published.
        timeline: where a step's seconds go.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        loss: LossSettings,
        settings: LearnerConfig,
        *,
        steps: int,
        publish_every: int = 1,
        ranks: Ranks | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.settings = settings
        self.steps = steps
        self.ranks = ranks or Ranks()
        self.timeline = timeline or Timeline("learner")
        self.version = 0
        """Optimizer steps done: the number of the policy version that the model is."""
        self.staleness: dict[int, int] = {}
        """Loss tokens of the batch last trained by their staleness."""
        self._filling: _Filling | None = None
        self.reference = FrozenCopy(model, self.ranks) if loss.kl_coef > 0 else None
        lags = loss.correction == "decoupled" and publish_every > 1
        self.proximal = FrozenCopy(model, self.ranks) if lags else None
        """The weights last published; None while those are the current ones at the start of every step."""
        prepare(model, checkpointing=settings.gradient_checkpointing)
        shard(model, self.ranks)
        self.optimizer = make_optimizer(model, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)

    def step(self, batch: Batch) -> Metrics:
        """`accumulate` and `update`: a batch that is handed out whole."""
        self.accumulate(batch)
        return self.update()

    def accumulate(self, batch: Batch) -> None:
        """Add the gradients of this rank's share of the next part of the step's batch; collective over ranks.

        The first part begins the step: what was accumulated for one that got no last part is forgotten.

        Raises:
            ValueError: a batch of another step than the next, or another part than the next.
        """
        if batch.step != self.version:
            raise ValueError(f"the next step is {self.version}, got a batch of step {batch.step}")
        before = self.timeline.stats()
        with self.timeline.busy("prepare"):
            if batch.part == 0 or self._filling is None:
                self._filling = _Filling(TokenSums(self.ranks.device))
                self.optimizer.zero_grad()
            filling = self._filling
            if batch.part != filling.rollouts.parts:
                raise ValueError(f"the next part of step {batch.step} is {filling.rollouts.parts}, got {batch.part}")
            filling.rollouts.add(batch, self.ranks)
        for start, stop in batch.micro_batches:
            self._add_micro_batch(batch, start, stop, filling.tokens)
        filling.seconds.update(self._seconds(before))

    def update(self) -> Metrics:
        """The optimizer step of the batch that is accumulated; collective over ranks.

        Returns:
            Metrics of the whole batch, the same on every rank.

        Raises:
            ValueError: nothing was accumulated.
            NotFiniteError: the weights are not touched.
        """
        filling, self._filling = self._filling, None
        if filling is None:
            raise ValueError(f"step {self.version} has no batch yet")
        before, step = self.timeline.stats(), self.version
        with self.timeline.busy("optimizer"):
            lr = self._set_lr()
            histogram = filling.rollouts.histogram
            self.staleness = {int(age): int(histogram[age]) for age in histogram.nonzero()[0]}
            metrics = filling.rollouts.metrics() | self._update(filling)
            self._refresh_reference()
        filling.seconds.update(self._seconds(before))
        return metrics | {"lr": lr, "step": step, "version": self.version} | filling.seconds

    def published(self) -> None:
        """The current weights are now the ones last published."""
        if self.proximal is not None:
            self.proximal.refresh(self.model)

    def _set_lr(self) -> float:
        factor = lr_factor(
            self.settings.schedule, self.version, warmup_steps=self.settings.warmup_steps, steps=self.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        return self.settings.lr * factor

    def _add_micro_batch(self, batch: Batch, start: int, stop: int, sums: TokenSums) -> None:
        if start == stop:
            self._dummy(batch.temperature)
            return
        with self.timeline.busy("forward"):
            part = micro_batch(batch, start, stop, self.ranks.device)
            current = self._score(self.model, part, batch.temperature, entropy=True)
            terms = self._loss(part, current.logprobs_N, batch.temperature)
            assert current.entropy_N is not None
            sums.add(part, current.logprobs_N, current.entropy_N, terms)
        with self.timeline.busy("backward"):
            # FSDP averages gradients over ranks; the shares of a sum add up.
            ((terms.policy + self.loss.kl_coef * terms.kl) * self.ranks.world).backward()

    def _loss(self, part: MicroBatch, logprobs_N: Tensor, temperature: float) -> LossTerms:
        proximal, reference = (
            None if policy is None else self._score_frozen(policy, part, temperature)
            for policy in (self.proximal, self.reference)
        )
        return policy_loss(
            self.loss,
            logprobs_N,
            part.behavior_logprobs_N,
            part.advantages_n,
            part.lengths_n,
            part.loss_mask_N,
            SUM,
            proximal_logprobs_N=proximal,
            ref_logprobs_N=reference,
        )

    @torch.no_grad()
    def _score_frozen(self, policy: FrozenCopy, part: MicroBatch, temperature: float) -> Tensor:
        return self._score(policy.model, part, temperature).logprobs_N

    def _score(self, model: nn.Module, part: MicroBatch, temperature: float, *, entropy: bool = False) -> _Scored:
        with self._autocast():
            scored = packed_logprobs(
                model, part.token_ids_T, part.cu_seqlens, prompt_lens=part.prompt_lens_n, temperature=temperature,
                entropy=entropy,
            )  # fmt: skip
        entropy_N = None if scored.entropy_T is None else scored.entropy_T[part.completion_T]
        return _Scored(scored.logprobs_T[part.completion_T], entropy_N)

    def _autocast(self) -> AbstractContextManager:
        if not self.settings.autocast:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16)

    def _dummy(self, temperature: float) -> None:
        """No rollouts here, but other ranks have some: the same passes and collectives, a gradient of zero."""
        if self.ranks.world == 1:
            return
        with self.timeline.busy("forward"), self._autocast():
            tokens = torch.zeros(2, dtype=torch.int32, device=self.ranks.device)
            bounds = torch.tensor([0, 2], dtype=torch.int32, device=self.ranks.device)
            logprobs_T = packed_logprobs(self.model, tokens, bounds, temperature=temperature).logprobs_T
            with torch.no_grad():
                for policy in (self.proximal, self.reference):
                    if policy is not None:
                        packed_logprobs(policy.model, tokens, bounds, temperature=temperature)
        with self.timeline.busy("backward"):
            (0.0 * logprobs_T.sum()).backward()

    def _update(self, filling: _Filling) -> Metrics:
        """Divide by the totals, clip, look at everything in one transfer from the device, then step."""
        totals, sums = filling.rollouts.totals, filling.tokens
        divisor = totals.divisor(self.loss.aggregation)
        sums.divide_losses(divisor)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= divisor
        limit = self.settings.max_grad_norm or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), limit)).double()
        self.ranks.sum(sums.sums)
        self.ranks.max(sums.maxima)
        grad_norm, *rest = torch.cat([norm.reshape(1), sums.sums, sums.maxima]).tolist()
        count = len(sums.sums)
        metrics = token_metrics(rest[:count], rest[count:], totals.loss_tokens, self.loss.kl_coef)
        loss = metrics["loss"]
        if not (math.isfinite(grad_norm) and math.isfinite(loss)):
            raise NotFiniteError(
                f"step {self.version}: loss {loss}, gradient norm {grad_norm}; the weights are those of version "
                f"{self.version}. A lower learner.lr or learner.autocast=false usually cures it"
            )
        self.optimizer.step()
        self.version += 1
        return metrics | {"grad_norm": grad_norm}

    def _refresh_reference(self) -> None:
        every = self.loss.ref_refresh_steps
        if self.reference is not None and every and self.version % every == 0:
            self.reference.refresh(self.model)

    def _seconds(self, before: dict[str, float]) -> Metrics:
        after = self.timeline.stats()
        seconds: Metrics = {
            f"{name}_s": after.get(key, 0.0) - before.get(key, 0.0)
            for name in ("prepare", "forward", "backward", "optimizer")
            for key in (f"busy_s:{name}",)
        }
        return seconds | {"step_s": after["wall_s"] - before["wall_s"], "cpu_s": after["cpu_s"] - before["cpu_s"]}


def make_optimizer(
    model: PreTrainedModel, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over what is trained; to be made after `shard`, which replaces the parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def prepare(model: PreTrainedModel, *, checkpointing: bool) -> None:
    """Train mode without dropout: its noise would make the ratio of a policy to itself differ from 1.

    Train mode, because transformers recomputes activations in no other.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif "attention_dropout" in vars(module):
            vars(module)["attention_dropout"] = 0.0
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
