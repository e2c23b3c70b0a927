"""What engines have in common that compute elsewhere and keep one weight set: the books, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from r1async.generator.engine import EngineSpec, KVPolicy, Progress, Request, WeightsError, check_request
from r1async.generator.flights import Flights
from r1async.models.loading import ModelError, check_tensors, load_config, state_tensors
from r1async.types import PolicyVersion
from r1async.weights.direct import Direct


class Elsewhere:
    """The part of an `Engine` that asks nobody. A request pinned to the version served is an ordinary one.

    Args:
        spec: what it is made with.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.kv_policy: KVPolicy = spec.kv_policy
        self._spec = spec
        self._flights = Flights(spec.slots, spec.chunk_tokens, spec.notify)
        self._version: PolicyVersion | None = None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(load_config(spec.model_path))
        self._shapes = {name: tensor.shape for name, tensor in state_tensors(model).items()}

    @property
    def capacity(self) -> int:
        return self._flights.capacity

    @property
    def pinned_capacity(self) -> int:
        return 0

    @property
    def free(self) -> int:
        return self._flights.free

    @property
    def pinned_free(self) -> int:
        return 0

    @property
    def version(self) -> PolicyVersion | None:
        return self._version

    @property
    def pinned(self) -> PolicyVersion | None:
        return None

    @property
    def busy(self) -> bool:
        return self._flights.busy

    @property
    def computes(self) -> bool:
        return False

    def step(self) -> list[Progress]:
        return self._flights.collect()

    def flush(self) -> list[Progress]:
        return self._flights.flush()

    def _admit(self, requests: Sequence[Request]) -> None:
        """Takes requests into the books, all or none; raises as `Engine.submit`."""
        ids: set[int] = set()
        for request in requests:
            self._check(request)
            if request.id in ids or request.id in self._flights:
                raise ValueError(f"request {request.id} is in the engine already")
            ids.add(request.id)
        if len(requests) > self.free:
            raise ValueError(f"{len(requests)} requests for {self.free} free slots of {self.capacity}")
        self._flights.begin(requests)

    def _check(self, request: Request) -> None:
        check_request(request, max_len=self._spec.max_len, vocabulary=self._spec.vocabulary)
        if self._version is None:
            raise ValueError("no weights are installed")
        if request.pin is not None and request.pin != self._version:
            raise ValueError(
                f"request {request.id} is pinned to {request.pin}; the engine keeps one weight set and serves "
                f"{self._version}"
            )

    def _check_shapes(self, direct: Direct) -> None:
        """
        Raises:
            WeightsError: other tensors than the model's.
        """
        theirs = {tensor.name: tensor.shape for tensor in direct.tensors}
        for name in sorted(self._shapes.keys() | theirs.keys()):
            wanted, got = self._shapes.get(name), theirs.get(name)
            if wanted is None or got is None or tuple(wanted) != got:
                raise WeightsError(
                    f"version {direct.version} refused: tensor {name!r} has shape {got}, wanted {wanted}"
                )

    def _check_weights(self, version: PolicyVersion, tensors: Mapping[str, Tensor]) -> None:
        """
        Raises:
            WeightsError: a tensor missing, foreign, mis-shaped or not finite.
        """
        try:
            check_tensors(self._shapes, tensors)
        except ModelError as error:
            raise WeightsError(f"version {version} refused, {self._version or 'none'} still served: {error}") from error
