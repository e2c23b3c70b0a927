"""Every setting with its unit and range. YAML holds only what differs from these defaults.

Imports neither torch nor an engine: ``r1async run --dry-run`` answers at once.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from r1async.config_eval import EvalConfig as EvalConfig
from r1async.config_rewards import DomainConfig, JudgeConfig, PoolConfig, RewardModelConfig
from r1async.config_rollout import RolloutConfig
from r1async.config_sample import SampleConfig
from r1async.config_swe import SweConfig
from r1async.reward_pools import lines_of, pools_of

DirectMedium = Literal["nccl", "ipc", "sparse_nccl"]


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, what it got and what it wants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    path: str = ""
    """Directory of a Hugging Face causal LM (config.json, safetensors, tokenizer). Empty: the cold start makes it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights that generators serve; the learner keeps float32 masters."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """Attention of the learner; auto takes FlashAttention where its kernel exists, else padded SDPA."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    task: Literal["chain-mod", "file", "swe", "none"] = "file"
    """chain-mod: the embedded arithmetic task. file: prompts and answers from `data.path`. swe: `data.path` has
    software-engineering instances, each asked in one shot with the files that matter; their source is `swe`.
    none: nothing to train on, for evaluations on benchmarks alone."""
    path: str = ""
    """JSONL or parquet file, or a directory saved by `datasets`, for task=file."""
    eval_path: str = ""
    """Held-out prompts in the same form. Empty: the last `eval.prompts` rows of `data.path` are held out."""
    prompt_key: str = "prompt"
    """Column that holds the prompt: a string, or a list of chat messages."""
    answer_key: str = "answer"
    """Column that holds the reference answer."""
    template: Literal["none", "chat", "r1_zero"] = "chat"
    """none: the prompt as it is. chat: the tokenizer's chat template. r1_zero: R1-Zero's plain template."""
    max_prompt_tokens: int = 1024
    """A longer prompt is refused at the border and counted `invalid`."""
    epochs: int = 0
    """Passes over the data; 0 repeats until `steps` are done. The order is shuffled anew, by seed, in each."""
    shuffle: bool = True
    """Shuffle the rows by `seed`; false keeps the file's order."""
    slow_share: float = 0.0
    """Share of chain-mod's problems that belong to the source `slow` (a file names its rows' in a column `source`)."""
    slow_path: str = ""
    """Rows that take the place of chain-mod's slow problems, in the form of `data.path`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColdStartConfig:
    enabled: bool = False
    """Make the start checkpoint by supervised fine-tuning of a tiny model on the task's demonstrations."""
    target_accuracy: float = 0.85
    """Stop when greedy completions that begin with <think> reach this accuracy on the dev problems."""
    max_steps: int = 1200
    """Optimizer steps of one attempt; about one initialisation in ten never learns the task."""
    attempts: int = 3
    """Initialisations tried; an error, not a start checkpoint, if none of them reaches the target."""
    eval_every: int = 25
    """Optimizer steps between two looks at the stop criterion."""
    batch_size: int = 64
    """Demonstrations a step."""
    lr: float = 4e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 20
    """Linear warm-up."""
    cache_dir: str = "runs/cold_start"
    """A checkpoint made from the same settings and seed is taken from here instead of being made again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    temperature: float = 1.0
    """Logits are divided by it in the engine and, identically, in the learner. Greedy evaluation has its own switch."""
    top_p: float = 1.0
    """Nucleus; below 1 is refused for training: the learner would train another distribution than was sampled."""
    top_k: int = 0
    """0 is off; anything else is refused for training, for the same reason."""
    max_tokens: int = 1024
    """Completion tokens at most; a rollout that reaches it is finished with reason `length`. The model's context must
    hold them after `data.max_prompt_tokens`."""
    stop: tuple[str, ...] = ()
    """Extra stop tokens (each one token of the vocabulary) besides the model's end-of-sequence token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmConfig:
    url: str = ""
    """A vLLM server that somebody else started, http://HOST:PORT. Empty: an engine in each generator's own process."""
    args: tuple[str, ...] = ()
    """More of vLLM's AsyncEngineArgs, as name=value: gpu_memory_utilization=0.8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SglangConfig:
    url: str = ""
    """An SGLang server that somebody else started, http://HOST:PORT. Empty: each generator starts one of its own."""
    args: tuple[str, ...] = ()
    """More words of SGLang's command line: --mem-fraction-static, 0.8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    engine: str = "torch"
    """torch (embedded, runs anywhere), vllm or sglang; several joined by + are given to the generators in turn."""
    python: dict[str, str] = field(default_factory=dict)
    """Interpreter with the packages of an engine, by engine. Without: this one, else .venv-ENGINE/bin/python."""
    kv_policy: Literal["keep", "recompute", "abort"] = "keep"
    """Rollouts in flight when weights change. keep: they go on with the KV cache of the old weights. recompute: it is
    computed again under the new ones. abort: their requests end and are put in again. Tokens sampled stay in each."""
    start_deadline_s: float = 600.0
    """Seconds that an engine may take to start."""
    stall_deadline_s: float = 300.0
    """Seconds without a token, with requests in it, after which an engine in another process is given up."""
    canary_every: int = 16
    """Weight installs after which an engine has to prove on a canary prompt that it serves them; the first is always
    proven. 0: never."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    sglang: SglangConfig = field(default_factory=SglangConfig)
    count: int = 1
    """Generator processes that `r1async run` starts."""
    slots: int = 128
    """Rollouts that one engine decodes at a time."""
    eval_slots: int = 64
    """Slots kept for evaluation at a pinned version; stepped in turn with the training slots."""
    chunk_tokens: int = 64
    """Tokens of an unfinished rollout after which they are streamed to the buffer."""
    threads: int = 1
    """Torch threads of one generator."""
    restarts: int = 3
    """Times `r1async run` starts a generator again after it died."""


TARGET_LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "es", "ru", "ar", "hi")
"""Of the part `language`, ISO 639-1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeConfig:
    credit: Literal["all", "fraction"] = "all"
    """all: 1 if every test passes, else 0. fraction: the share of tests that pass."""
    language: str = "python"
    """Of programs where neither the row nor the code fence names one: python, cpp, c, javascript."""
    time_limit_s: float = 6.0
    """Seconds for one test of a problem that names no limit of its own, wall clock and processor."""
    time_factor: float = 1.0
    """Multiplies all time limits, those of problems too; above 1 where programs share their cores with a run."""
    memory_limit_mib: int = 1024
    """Memory of a program of a problem that names no limit of its own."""
    compile_s: float = 30.0
    """Seconds for compiling a program."""
    deadline_s: float = 60.0
    """Seconds for all tests of one program together; a program that needs more has run out of time."""
    output_kib: int = 4096
    """What a program may write in one test."""
    files_mib: int = 64
    """All files of a program together."""
    processes: int = 64
    """Processes and threads of a program at a time."""
    tolerance: float = 1e-9
    """Relative error allowed where the expected number is written with a point or an exponent; 0: exact."""
    python: str = ""
    """Interpreter that runs Python programs, with its packages. Empty: this one, with the standard library alone."""
    read_only: tuple[str, ...] = ()
    """More folders that programs may read, with compilers or libraries outside of /usr."""
    cgroup: str = ""
    """Folder of control groups that may be divided (cgroup v2 with memory and pids for its children, or v1 pids)."""
    unsafe: bool = False
    """Run programs although this machine cannot isolate them."""
    url: str = ""
    """A SandboxFusion server that runs the programs, http://HOST:PORT. Empty: this machine does."""
    url_tries: int = 4
    """Requests for one run until its rollout abstains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    weights: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.2})
    """Parts that add up to the reward: accuracy, format, code, swe, language, judge, helpfulness, harmlessness,
    overlong, repetition, or `module:function` of your own; each is logged. Penalties are parts from -1 to 0: their
    weights are above 0 too."""
    domains: dict[str, DomainConfig] = field(default_factory=dict)
    """Rewards of their own for rows by domain; rows of other domains, and of none, have `weights`."""
    domain_key: str = "domain"
    """Column that names a row's domain."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    helpfulness: RewardModelConfig = field(default_factory=RewardModelConfig)
    harmlessness: RewardModelConfig = field(default_factory=RewardModelConfig)
    code: CodeConfig = field(default_factory=CodeConfig)
    swe: SweConfig = field(default_factory=SweConfig)
    format: Literal["r1_zero", "think", "special_token"] = "r1_zero"
    """r1_zero: <think>…</think><answer>…</answer> and nothing else. think: <think>…</think> and a non-empty rest.
    special_token: DeepSeek-R1's |special_token|<reasoning>|special_token|<summary>."""
    special_token: str = "|special_token|"
    """Mark before reasoning and summary of format=special_token."""
    think_prefilled: bool = False
    """The prompt template already ends in <think> (or the mark), so the completion begins inside the thought. A row's
    column `prefilled_open_tag` goes before."""
    target_language: str = "en"
    """Language that the part `language` wants of the thought, an ISO 639-1 code: en, zh, ja, ko, fr, de, es, ru, ar,
    hi. A row's column `target_language` goes before."""
    identify_sentences: bool = True
    """The part `language` tells languages of one script apart sentence by sentence; false goes by script alone."""
    overlong_cache: int = 4096
    """L_cache of the part `overlong`: tokens before the maximum over which the penalty grows from 0 to 1."""
    overlong_max: int = 0
    """L_max of the part `overlong`, in tokens; 0 is sampling.max_tokens."""
    repetition_row: int = 20
    """Words, numbers and signs in a row that the part `repetition` counts as repeated where they stood before."""
    truncated: Literal["graded", "wrong", "mask", "abstain"] = "graded"
    """A completion cut at max_tokens. graded: like any other. wrong: its accuracy is 0. mask: its tokens leave the loss
    and its reward stays in its group's statistics. abstain: it leaves both (DAPO's overlong filtering); in an
    evaluation it is wrong."""
    equivalence: Literal["symbolic", "exact"] = "symbolic"
    """exact: answers equal as written or as exact numbers. symbolic: where that fails, math-verify decides."""
    deadline_s: float = 10.0
    """Seconds one verdict may take; then the worker process is killed and replaced. `scorer.pools` may say more."""
    retries: int = 1
    """Times a verdict that hit the grader's own deadline or lost its worker is tried on another worker."""
    timeout_is: Literal["zero", "abstain"] = "zero"
    """What a rollout whose grading timed out on every try becomes."""
    from_generators: bool = False
    """Generators may send rewards along with what they finish (an environment knows its own); scorers do the rest."""

    def prefilled(self, extra: Mapping[str, str]) -> bool:
        """Whether a row's prompt ends inside the thought. It says so itself: true, false, or the tag it ends in."""
        told = extra.get("prefilled_open_tag")
        return self.think_prefilled if told is None else told.strip().lower() not in ("", "false", "null", "none", "0")

    @property
    def parts(self) -> dict[str, float]:
        """Every part of any domain's reward, with the weight of the first that has it."""
        found = dict(self.weights)
        for domain in self.domains.values():
            found = {**domain.weights, **found}
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerConfig:
    count: int = 1
    """Scorer processes that `r1async run` starts."""
    workers: int = 1
    """Worker processes of one scorer in each pool; each grades one rollout at a time."""
    queue: int = 256
    """Rollouts of each pool that one scorer holds at most (its credits)."""
    pools: dict[str, PoolConfig] = field(default_factory=dict)
    """What differs for the workers of a pool: rules, code, judge, reward_model, or one of your own for functions."""
    serve: tuple[str, ...] = ()
    """Pools whose rollouts this scorer takes; empty: all. A rollout is of the slowest pool that its reward needs."""
    alarm_rate: float = 0.1
    """Share of a pool's last 200 verdicts that graders owe (infra_error, ungradable, nan, …) above which the run says
    so; 1: never."""
    worker_memory_mb: int = 4096
    """Address space of one worker; what needs more fails there instead of taking the machine down. 0: unlimited."""
    restarts: int = 3
    """Times `r1async run` starts a scorer again after it died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    group_size: int = 8
    """G: completions of one prompt."""
    min_group_size: int = 0
    """A group with fewer scored members is dropped `too_few_scored`. 0: half of group_size, at least 1."""
    baseline: Literal["std", "mean", "leave_one_out", "none"] = "std"
    """Advantage: (r - mean) / (std + eps), r - mean (Dr. GRPO), r - mean of the others (RLOO), or r."""
    std: Literal["population", "sample"] = "population"
    """Which standard deviation `baseline=std` divides by."""
    eps: float = 1e-6
    """Added to the standard deviation."""
    zero_variance: Literal["train", "drop"] = "train"
    """A group of equal rewards: trained (its gradient is zero), or dropped and refilled (DAPO's dynamic sampling)."""
    oversample: float = 1.0
    """Groups opened for each one wanted; above 1 hides the wait for refills at the price of age."""
    max_refills: int = 64
    """Zero-variance groups dropped for one step at most; after that they are trained and the run says so."""
    rollout_deadline_s: float = 600.0
    """Seconds from a rollout's first lease to its last token; the group closes without it after that."""
    lease_s: float = 60.0
    """Seconds without a new token after which a lease is taken back and given to another generator."""
    group_deadline_s: float = 0.0
    """Seconds from first lease to the close. 0: rollout deadline + scorer deadline x (retries + 1), with head-room."""
    max_attempts: int = 3
    """Leases one rollout may lose before it abstains with status `lost`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    max_staleness: int = 16
    """e_s: the bound of this source's tokens, in optimizer steps."""
    share: float = 0.1
    """Its share of all prompts; ceil((e_s + 1) * share * B) of its groups are open at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StalenessConfig:
    max_staleness: int = 2
    """e: no token older than this many optimizer steps has a loss. 0 is synchronous on-policy training."""
    pacing: int = -1
    """w: the typical lag, 0 <= w <= max_staleness; admission opens floor((w + 1) * B) groups. -1: max_staleness."""
    mode: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: w moves up to `pacing`: 1/4 more places when the learner starves, 1/8 fewer when groups pile up."""
    ess_floor: float = 0.5
    """mode=adaptive: 1/8 fewer places while the effective sample size (`is/ess`) of a step is below it."""
    close_early: bool = True
    """Groups at their last chance train with the members that are scored; the others train later, one by one."""
    windows: dict[str, WindowConfig] = field(default_factory=dict)
    """Sources of prompts (the column `source`) whose verdicts are slow: each paces itself and holds no step."""
    over_age: Literal["mask", "drop", "train"] = "mask"
    """Tokens older than e: leave the loss, take their whole group with them, or are trained and counted."""
    retries: int = 1
    """Times the prompt of a group dropped for age is queued again (over_age=drop)."""
    waste_budget: float = 0.05
    """Share of generated tokens that may die of age before a step is held for them. 0 waits for all, 1 never holds."""
    hold_deadline_s: float = 60.0
    """Seconds a step is held at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferConfig:
    max_message_bytes: int = 256 * 2**20
    """A larger message is refused before anything is allocated for it."""
    outbox: int = 1024
    """Messages kept for a peer that does not read; past that it is disconnected and its leases are lost."""
    peer_deadline_s: float = 20.0
    """Seconds without any message after which a peer counts as gone. Peers send a heartbeat every quarter of it."""
    connect_deadline_s: float = 600.0
    """Seconds that a role waits for the buffer's welcome, at its start or after the buffer went away; then it fails."""
    restarts: int = 3
    """Times `r1async run` starts the buffer again after it died; it goes on from its journal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalConfig:
    durability: Literal["group", "sync", "memory"] = "group"
    """What an acknowledgement means. group: with the operating system; a killed process loses nothing, a power cut at
    most what `interval_ms` and `sync_mb` allow, which is generated again. sync: on the disk. memory: nothing is kept,
    and the run cannot be resumed."""
    interval_ms: float = 20.0
    """durability=group: milliseconds between two waits for the disk at most."""
    sync_mb: float = 8.0
    """durability=group: MiB after which the disk is waited for at once."""
    snapshot_mb: float = 64.0
    """MiB written after which a snapshot is taken, or as many as the last one has; it removes what is not live."""
    keep: Literal["live", "all"] = "live"
    """all: tokens of groups that have ended stay too, and `r1async replay` gives every batch again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    kind: Literal["grpo", "r1", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo"
    """Preset of ratio, clip and normalisation; docs/losses.md has a page for each."""
    correction: Literal["auto", "none", "behavior_clip", "tis", "mis", "decoupled"] = "auto"
    """How lag is corrected. auto: behavior_clip as soon as max_staleness > 0, none needed at 0."""
    clip_low: float | None = None
    """The importance ratio is held above 1 - clip_low; None takes the preset's."""
    clip_high: float | None = None
    """And below 1 + clip_high; None takes the preset's."""
    aggregation: Literal["preset", "completion", "token", "constant"] = "preset"
    """Mean per completion (DeepSeekMath), over all tokens (DAPO), or a constant length (Dr. GRPO)."""
    kl_coef: float | None = None
    """Weight of the k3 KL to the reference model; None takes the preset's. 0 loads no reference."""
    ref_refresh_steps: int | None = None
    """Optimizer steps after which the reference becomes the current policy; None takes the preset's, 0 never."""
    is_cap: float = 2.0
    """tis: importance weights are cut at it. mis: tokens outside [1 / is_cap, is_cap] leave the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvergeConfig:
    metric: str = ""
    """Figure of a step (docs/metrics-learner.md), such as reward/mean. When it grows no more, no further prompts are
    admitted, what has begun is trained, and the run ends before `steps`. Empty: all steps are trained."""
    window: int = 20
    """Steps whose mean is compared with that of the best window of as many steps before."""
    gain: float = 0.01
    """What a window's mean must exceed the best one's by, or it is no gain."""
    patience: int = 1
    """Windows in a row without a gain that end the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    groups_per_step: int = 16
    """B: groups that one optimizer step trains."""
    part_groups: int = 0
    """Gradients accumulate while the batch fills, in parts of at least so many groups; 0 waits for the whole batch."""
    ranks: int = 1
    """Learner processes (FSDP2 over torch.distributed when more than one)."""
    threads: int = 1
    """Torch threads of one learner rank."""
    micro_batch_tokens: int = 65536
    """Padded tokens of one forward pass at most; gradients accumulate over micro-batches with exact normalisation."""
    lr: float = 1e-6
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 does not clip."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up, down to zero at the last step."""
    warmup_steps: int = 0
    """Linear warm-up."""
    autocast: bool = False
    """bfloat16 autocast in forward and backward."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    checkpoint_every: int = 20
    """Optimizer steps between two checkpoints; one is always saved at the end and on Ctrl-C."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted."""
    restarts: int = 3
    """Times `r1async run` starts the learner again from its checkpoint after it died."""
    batches: Literal["auto", "shared_memory", "socket"] = "auto"
    """How batches reach the learner: auto maps the buffer's memory where both run on one machine, shared_memory ends
    the learner where it cannot, socket sends them always."""
    shared_memory_mb: float = 2048.0
    """Memory that the buffer keeps for the batches of one learner rank at most; a batch that finds no room is sent."""
    batch_deadline_s: float = 1800.0
    """Seconds the learner waits for one batch before it ends with an error that names the wait."""
    converge: ConvergeConfig = field(default_factory=ConvergeConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsConfig:
    publish_every: int = 1
    """Optimizer steps between two publications; max_staleness=0 needs 1."""
    chunk_bytes: int = 8 * 2**20
    """Bytes of one chunk of a package: what is asked for, checked and asked for again at a time. 4 MiB for slow lines,
    32 MiB for 100 Gbit/s."""
    window: int = 16
    """Versions back from the newest from which a receiver gets a delta; 0: every version travels whole."""
    medium: Literal["zmq", "directory", "nccl", "ipc", "sparse_nccl"] = "zmq"
    """What generators take versions through: zmq (the learner's socket, or a relay's) or directory; or, between GPUs,
    the engine's own transfer, straight from the learner: nccl (vLLM, SGLang), ipc and sparse_nccl (vLLM)."""
    direct_address: str = "127.0.0.1"
    """Of the machine of the learner's rank 0, as the engines reach it, for nccl and sparse_nccl."""
    directory: str = ""
    """Folder of weights.medium=directory: seen by learner and generators (an object store's mount, a network file
    system, /dev/shm on one machine). The learner keeps RUN/ in it with the versions of its window."""
    threads: int = 2
    """Threads that encode a version in the learner, or decode it in a generator, at most."""
    deadline_s: float = 120.0
    """Seconds a receiver waits for the next chunk before it asks again from the manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointsConfig:
    rollouts: str = ""
    """Buffer's socket for generators, scorers and evaluation. Empty: ipc:// inside the run's folder."""
    batches: str = ""
    """Buffer's socket for learners."""
    events: str = ""
    """Buffer's publications: version, state, metrics."""
    weights: str = ""
    """Learner's socket for weight versions."""
    relay: str = ""
    """Relay's socket (`r1async relay`): it serves there, generators ask there. Empty: generators ask the learner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityConfig:
    keys: str = ""
    """Folder of keys that `r1async keys` made: tcp:// sockets are encrypted and let in its keys alone. Empty: none,
    and tcp:// is refused off loopback. ipc:// needs none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    terminal: Literal["auto", "live", "plain", "quiet"] = "auto"
    """live: a table that redraws. plain: a line every few seconds. auto: live on a terminal, else plain."""
    interval_s: float = 1.0
    """Seconds between two publications of the buffer's and the roles' figures."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressConfig:
    limit_s: float = 120.0
    """Seconds in which no token, verdict, batch, step, commit, install or evaluation came, after which the run says
    what blocks it and acts."""
    end_s: float = 0.0
    """Seconds without progress after which the run ends with exit code 3, its state saved. 0: five limits, or one
    more than the longest wait that has a deadline of its own."""
    role_s: float = 60.0
    """Seconds a role that the buffer lost may take to come back while its process lives; then it is started again.
    A process that somebody stopped (SIGSTOP) is started again at once."""
    quarantine_after: int = 3
    """Groups of one prompt in which every rollout abstains before the prompt is set aside as `quarantined`. One that
    brings down group.max_attempts generators is set aside at once."""
    filtered_batches: int = 4
    """Batches' worth of groups, dropped one after the other, after which the run says that filters take everything.
    It ends if that has gone on for limit_s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateConfig:
    """What `r1async simulate` takes the machines to be (docs/simulate.md); a run does not read it."""

    hours: float = 0.0
    """Virtual hours to simulate, however many steps that is; 0 simulates `steps` steps."""
    warmup_steps: int = -1
    """Steps before figures are taken; -1: a tenth of them, at least max_staleness + 1."""
    tokens_per_unit: int = 0
    """Lengths are rounded to so many tokens, for speed; 0: a thirty-second of the median, at least 1."""
    tokens_per_s: float = 40.0
    """Tokens a second of each slot while all of its generator's slots are taken."""
    tokens_per_s_alone: float = 0.0
    """Tokens a second of a slot that is alone; the time for a token is linear in between. 0: as when all are taken."""
    turnaround_s: float = 0.0
    """Seconds from the end of a rollout until its generator asks for another one."""
    start_s: float = 0.0
    """Seconds from the loan of a rollout to its first token: the message, the prompt's prefill."""
    length_median: float = 500.0
    """Completion tokens that half of all rollouts have fewer of; `sampling.max_tokens` cuts."""
    length_sigma: float = 0.8
    """Standard deviation of the logarithm of the completion length."""
    lengths: tuple[float, ...] = ()
    """Completion lengths seen, each as likely as another; given, they replace length_median and length_sigma."""
    length_shared: float = 0.3
    """Share of the length's variance that all rollouts of one prompt have in common."""
    prompt_tokens: float = 100.0
    """Tokens of a prompt: the learner computes them too."""
    verdict_s: float = 0.01
    """Seconds of grading that half of all verdicts take less than."""
    verdict_sigma: float = 0.5
    """Standard deviation of the logarithm of the grading time."""
    verdicts_s: tuple[float, ...] = ()
    """Grading times seen, in seconds; given, they replace verdict_s and verdict_sigma."""
    verdict_travel_s: float = 0.0
    """Seconds that a rollout is on its way to a scorer and its verdict back, which keep no worker busy."""
    verdict_failure_rate: float = 0.0
    """Share of verdicts that are abstentions."""
    pass_a: float = 1.0
    """The pass rate of a prompt is drawn from Beta(pass_a, pass_b); it matters where filters drop groups."""
    pass_b: float = 1.0
    """See pass_a."""
    step_base_s: float = 1.0
    """Seconds of an optimizer step however few tokens it has: optimizer, packing, copying weights out."""
    step_group_s: float = 0.0
    """Further seconds for each group of the batch."""
    step_token_s: float = 1e-5
    """Further seconds for each token of the batch, prompt and completion."""
    checkpoint_s: float = 0.0
    """Seconds that one checkpoint keeps the learner from training."""
    transfer_s: float = 0.5
    """Seconds from the end of a step until a generator has its weights whole; it decodes meanwhile."""
    install_s: float = 0.1
    """Seconds that a generator stands still to install them."""
    cores: float = 0.0
    """Processors of one machine that all generators and the learner share, each one of them while it is at work.
    Seconds above are then those of a processor that nobody else wants. 0: each has processors of its own."""
    other_load: float = 0.0
    """What else runs on that machine all the time, in processors that it would keep busy."""
    failures_per_hour: float = 0.0
    """Deaths of one generator an hour; the buffer notices after `buffer.peer_deadline_s`."""
    back_s: float = 60.0
    """Seconds until a generator that died samples again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    name: str = "run"
    """The run's folder is `runs_dir`/`name`."""
    runs_dir: str = "runs"
    """Where runs live."""
    seed: int = 0
    """Seeds prompts, sampling and initialisation."""
    steps: int = 100
    """Optimizer steps of the run; 0 trains nothing and evaluates the model."""
    resume: Literal["auto", "true", "false"] = "auto"
    """auto: go on with the run in the folder. true: insist on one. false: refuse a folder that holds one."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    group: GroupConfig = field(default_factory=GroupConfig)
    staleness: StalenessConfig = field(default_factory=StalenessConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    endpoints: EndpointsConfig = field(default_factory=EndpointsConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    progress: ProgressConfig = field(default_factory=ProgressConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def pacing(self) -> int:
        """w of DESIGN 3.3, resolved."""
        return self.staleness.max_staleness if self.staleness.pacing < 0 else self.staleness.pacing

    @property
    def training_generators(self) -> int:
        """Generators that sample for training."""
        return self.generator.count - (self.eval.generator == "dedicated")

    @property
    def min_group_size(self) -> int:
        return self.group.min_group_size or max(1, self.group.group_size // 2)

    @property
    def group_deadline_s(self) -> float:
        return self.group.group_deadline_s or self.group.rollout_deadline_s + self.scoring_deadline_s + 10.0

    @property
    def scoring_deadline_s(self) -> float:
        """The longest a verdict can take: every try runs into its deadline, in the slowest pool."""
        return max(line.deadline_s for line in lines_of(pools_of(self.resolved_reward, self.scorer)).values())

    @property
    def resolved_reward(self) -> RewardConfig:
        """reward, with what it takes from other tables. Each grader of a benchmark is a domain of its own."""
        from r1async.benchmarks import domains_of, instances_of  # which needs the classes above

        instances = self.reward.swe.instances or (self.data.path if self.data.task == "swe" else "")
        return replace(
            self.reward,
            domains={**self.reward.domains, **domains_of(self.eval.benchmarks)},
            overlong_max=self.reward.overlong_max or self.sampling.max_tokens,
            swe=replace(self.reward.swe, instances=instances or instances_of(self)),
        )

    @property
    def correction(self) -> str:
        """loss.correction, resolved."""
        if self.loss.correction != "auto":
            return self.loss.correction
        return "behavior_clip" if self.staleness.max_staleness > 0 else "none"

    @property
    def weights_directory(self) -> Path | None:
        """Where versions lie as files; None: they travel through sockets."""
        return Path(self.weights.directory) if self.weights.medium == "directory" else None

    @property
    def direct_medium(self) -> DirectMedium | None:
        """The engine's own transfer that versions travel by; None: they do not."""
        medium = self.weights.medium
        return None if medium in ("zmq", "directory") else medium

    @property
    def weights_socket(self) -> Literal["weights", "relay"]:
        """Where a generator asks for weights."""
        return "relay" if self.endpoints.relay else "weights"

    def endpoint(self, socket: Literal["rollouts", "batches", "events", "weights", "relay"]) -> str:
        """The socket's address; ipc:// in the run's folder unless configured."""
        configured: str = {
            "rollouts": self.endpoints.rollouts,
            "batches": self.endpoints.batches,
            "events": self.endpoints.events,
            "weights": self.endpoints.weights,
            "relay": self.endpoints.relay,
        }[socket]
        return configured or f"ipc://{ipc_dir(self.run_dir)}/{socket}"


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The checked settings of a run: a YAML file, then `key=value` overrides, each value read as YAML.

    Raises:
        ConfigError: a file that is missing or not YAML, an unknown key, a value of the wrong type or out of its
            range, a combination that cannot work. The text holds every problem found, one a line.
    """
    from r1async.settings import load  # which needs the classes above

    return load(path, overrides)


def journal_dir(run_dir: Path) -> Path:
    return run_dir / "journal"


def has_journal(run_dir: Path) -> bool:
    """Whether a life of the run has begun a journal in its folder; if parts of it are gone, opening it says which."""
    folder = journal_dir(run_dir)
    return any(any(folder.glob(name)) for name in ("events", "payload-*", "snapshot-*"))


def ipc_dir(run_dir: Path) -> Path:
    """Folder of the run's ipc sockets: short, because a Unix socket's path has 107 bytes at most."""
    digest = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"r1async-{os.getuid()}-{digest}"
