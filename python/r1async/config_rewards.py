"""Settings of rewards that ask somebody else, of rewards by domain, and of the pools of workers that grade."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from r1async.config_endpoint import EndpointConfig

POOL_OF = {
    "accuracy": "rules",
    "format": "rules",
    "code": "code",
    "swe": "swe",
    "language": "rules",
    "overlong": "rules",
    "repetition": "rules",
    "judge": "judge",
    "helpfulness": "reward_model",
    "harmlessness": "reward_model",
    "math": "rules",
    "choice": "rules",
    "ifeval": "rules",
}
"""Parts of a reward that come with r1async, and the pool of workers that grades each. Functions of your own are graded
in `rules`, unless a pool names them."""

REWARD_PARTS = tuple(POOL_OF)
BUILT_IN_POOLS = tuple(dict.fromkeys(POOL_OF.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainConfig:
    weights: dict[str, float] = field(default_factory=dict)
    """Parts that add up to the reward of this domain's rows, instead of `reward.weights`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    template: str = ""
    """What the judge is asked, with {question}, {reference} and {prediction} in it. Empty: whether the prediction
    agrees with the reference."""
    sees: Literal["answer", "summary", "response"] = "summary"
    """What of a completion is the prediction. answer: what the part `accuracy` would compare. summary: what comes after
    the thought. response: all of it."""
    max_chars: int = 16_384
    """A longer prediction scores 0 with status `guard` and is not asked about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelConfig:
    path: str = ""
    """Directory of a Hugging Face sequence classifier with one label and a chat template, run in the pool's worker."""
    url: str = ""
    """Instead: whole address of a server that scores a chat, such as vLLM's http://HOST:PORT/classify or /pooling."""
    model: str = ""
    """Name of the model, as the server of `url` knows it."""
    key_env: str = ""
    """Environment variable that holds the server's key. Empty: no key is sent."""
    body: tuple[str, ...] = ()
    """More fields of a request to `url`, name=value, the value read as JSON: use_activation=false."""
    concurrency: int = 32
    """Requests to `url` in flight at most."""
    tries: int = 5
    """Requests to `url` for one score at most."""
    request_s: float = 60.0
    """Seconds that one request to `url` may take."""
    deadline_s: float = 180.0
    """Seconds that one score of `url` may take, with all tries and pauses."""
    worst: float = 0.0
    """Score of a response that the model is not asked about: there is none, or it is too long. Below what it gives."""
    max_chars: int = 65_536
    """A longer response is `worst`, status `guard`."""
    activation: Literal["sigmoid", "none"] = "sigmoid"
    """Of the logit of `path`: sigmoid gives 0 to 1. What `url` gives is taken as it is."""
    max_tokens: int = 8192
    """Of question and response together, for `path`; what is longer is `worst`, status `guard`."""
    batch_tokens: int = 32_768
    """Padded tokens of one forward pass of `path` at most."""
    template: Literal["chat", "none", "r1_zero"] = "chat"
    """How `path` was shown question and response: in its chat template, one after the other, or as R1-Zero's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights of `path`."""
    device: str = "cpu"
    """Where `path` runs: cpu, cuda, cuda:1."""
    threads: int = 1
    """Torch threads of one worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    workers: int = 0
    """Worker processes of one scorer in this pool. 0: scorer.workers; 1 for judge and reward_model, whose workers
    grade many rollouts at a time."""
    queue: int = 0
    """Rollouts of this pool that one scorer holds at most. 0: scorer.queue."""
    deadline_s: float = 0.0
    """Seconds one verdict may take in this pool; then the worker is killed and replaced. 0: reward.deadline_s, more
    by what the part itself may take (reward.code, an endpoint's deadline)."""
    retries: int = -1
    """Times a verdict that ran out of time or lost its worker is tried on another. -1: reward.retries."""
    memory_mb: int = -1
    """Address space of one worker; 0: unlimited. -1: scorer.worker_memory_mb, and 0 for reward_model."""
    parts: tuple[str, ...] = ()
    """`module:function` parts that this pool grades instead of `rules`."""
