"""What a configuration must satisfy, beyond types: ranges, combinations that cannot work, and what it implies.

Every function takes a Config and returns sentences; only `missing_files` looks at the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from r1async.benchmarks import SAMPLE, load_benchmark
from r1async.checks_rewards import RANGES as REWARD_RANGES
from r1async.checks_rewards import pools_out_of_range, reward_problems_of_parts
from r1async.config import TARGET_LANGUAGES, ConfigError, DirectMedium
from r1async.engines import ENGINES, kinds, python_for
from r1async.ranges import COUNT, MAYBE, POSITIVE, SECONDS, SHARE, Range
from r1async.reward_pools import lines_of, pools_of, weights_of

if TYPE_CHECKING:
    from r1async.config import Config


MAX_STALENESS = 1_000_000

RANGES: dict[str, Range] = {
    "seed": Range(0, 2**31 - 1),
    "steps": Range(0, 10_000_000),
    "data.max_prompt_tokens": COUNT,
    "data.epochs": MAYBE,
    "data.slow_share": SHARE,
    "cold_start.target_accuracy": SHARE,
    "cold_start.max_steps": COUNT,
    "cold_start.attempts": COUNT,
    "cold_start.eval_every": COUNT,
    "cold_start.batch_size": COUNT,
    "cold_start.lr": POSITIVE,
    "cold_start.warmup_steps": MAYBE,
    "sampling.temperature": Range(0, 10, above=True),
    "sampling.top_p": Range(0, 1, above=True),
    "sampling.top_k": MAYBE,
    "sampling.max_tokens": COUNT,
    "generator.count": Range(1, 1024),
    "generator.slots": Range(1, 65536),
    "generator.eval_slots": Range(1, 65536),
    "generator.chunk_tokens": COUNT,
    "generator.threads": Range(1, 1024),
    "generator.restarts": MAYBE,
    "generator.start_deadline_s": SECONDS,
    "generator.stall_deadline_s": SECONDS,
    "generator.canary_every": MAYBE,
    "reward.code.time_limit_s": Range(0, 3600, above=True),
    "reward.code.time_factor": Range(0, 1000, above=True),
    "reward.code.memory_limit_mib": Range(16, 2**20),
    "reward.code.compile_s": SECONDS,
    "reward.code.deadline_s": SECONDS,
    "reward.code.output_kib": Range(1, 2**20),
    "reward.code.files_mib": Range(1, 2**20),
    "reward.code.processes": Range(1, 32768),
    "reward.code.tolerance": Range(0, 0.1),
    "reward.code.url_tries": Range(1, 100),
    **REWARD_RANGES,
    "reward.deadline_s": SECONDS,
    "reward.retries": Range(0, 100),
    "reward.overlong_cache": COUNT,
    "reward.overlong_max": MAYBE,
    "reward.repetition_row": Range(2, 1000),
    "scorer.count": Range(1, 1024),
    "scorer.workers": Range(1, 1024),
    "scorer.queue": COUNT,
    "scorer.worker_memory_mb": MAYBE,
    "scorer.restarts": MAYBE,
    "group.group_size": Range(1, 65536),
    "group.min_group_size": Range(0, 65536),
    "group.eps": Range(0, 1),
    "group.oversample": Range(1, 16),
    "group.max_refills": MAYBE,
    "group.rollout_deadline_s": SECONDS,
    "group.lease_s": SECONDS,
    "group.group_deadline_s": Range(0, 30 * 86400),
    "group.max_attempts": Range(1, 1000),
    "staleness.max_staleness": Range(0, MAX_STALENESS),
    "staleness.pacing": Range(-1, 1_000_000),
    "staleness.ess_floor": SHARE,
    "staleness.retries": Range(0, 1000),
    "staleness.waste_budget": SHARE,
    "staleness.hold_deadline_s": SECONDS,
    "buffer.max_message_bytes": Range(2**16, 2**31),
    "buffer.outbox": COUNT,
    "buffer.peer_deadline_s": SECONDS,
    "buffer.connect_deadline_s": SECONDS,
    "buffer.restarts": MAYBE,
    "journal.interval_ms": Range(0.1, 60_000),
    "journal.sync_mb": Range(0, 2**20, above=True),
    "journal.snapshot_mb": Range(0, 2**20, above=True),
    "loss.clip_low": Range(0, 1),
    "loss.clip_high": POSITIVE,
    "loss.kl_coef": Range(0),
    "loss.ref_refresh_steps": MAYBE,
    "loss.is_cap": Range(1),
    "learner.groups_per_step": Range(1, 65536),
    "learner.part_groups": Range(0, 65535),
    "learner.ranks": Range(1, 4096),
    "learner.threads": Range(1, 1024),
    "learner.micro_batch_tokens": Range(1, 2**31),
    "learner.lr": POSITIVE,
    "learner.betas": Range(0, 0.999999),
    "learner.weight_decay": Range(0),
    "learner.max_grad_norm": Range(0),
    "learner.warmup_steps": MAYBE,
    "learner.checkpoint_every": COUNT,
    "learner.keep_checkpoints": COUNT,
    "learner.restarts": MAYBE,
    "learner.shared_memory_mb": Range(0, 2**20, above=True),
    "learner.batch_deadline_s": SECONDS,
    "learner.converge.window": COUNT,
    "learner.converge.gain": Range(0),
    "learner.converge.patience": COUNT,
    "weights.publish_every": COUNT,
    "weights.chunk_bytes": Range(4 * 2**20, 32 * 2**20),
    "weights.window": Range(0, 1024),
    "weights.threads": Range(1, 256),
    "weights.deadline_s": SECONDS,
    "eval.every": MAYBE,
    "eval.prompts": MAYBE,
    "eval.samples": Range(1, 65536),
    "eval.temperature": Range(0, 10, above=True),
    "eval.top_p": Range(0, 1, above=True),
    "eval.deadline_s": SECONDS,
    "eval.protocol.samples": Range(0, 65536),
    "eval.protocol.temperature": Range(0, 10),
    "eval.protocol.top_p": Range(0, 1, above=True),
    "eval.protocol.max_tokens": Range(0, 10_000_000),
    "eval.protocol.max_prompt_tokens": COUNT,
    "eval.protocol.problems": MAYBE,
    "eval.protocol.seed": Range(0, 2**63 - 1),
    "monitor.interval_s": Range(0.05, 3600),
    "progress.limit_s": SECONDS,
    "progress.end_s": Range(0, 30 * 86400),
    "progress.role_s": SECONDS,
    "progress.quarantine_after": Range(1, 1000),
    "progress.filtered_batches": COUNT,
    "sample.prompts": MAYBE,
    "sample.samples": Range(1, 65536),
    "sample.temperature": Range(0, 10, above=True),
    "sample.top_p": Range(0, 1, above=True),
    "sample.ahead": MAYBE,
    "sample.part_rows": COUNT,
    "sample.part_s": SECONDS,
    "sample.ratio": POSITIVE,
    "sample.reasoning": MAYBE,
    "sample.keep.min_language": SHARE,
    "sample.keep.max_paragraph_chars": MAYBE,
    "sample.keep.per_prompt": COUNT,
    "sample.decontaminate.ngram": Range(2, 1000),
    "sample.decontaminate.short": Range(1, 1000),
    "simulate.hours": Range(0, 24 * 366),
    "simulate.warmup_steps": Range(-1, 10_000_000),
    "simulate.tokens_per_unit": Range(0, 1_000_000),
    "simulate.tokens_per_s": POSITIVE,
    "simulate.tokens_per_s_alone": Range(0),
    "simulate.turnaround_s": Range(0),
    "simulate.start_s": Range(0),
    "simulate.length_median": POSITIVE,
    "simulate.length_sigma": Range(0, 5),
    "simulate.lengths": POSITIVE,
    "simulate.length_shared": SHARE,
    "simulate.prompt_tokens": Range(0),
    "simulate.verdict_s": Range(0),
    "simulate.verdict_sigma": Range(0, 5),
    "simulate.verdicts_s": Range(0),
    "simulate.verdict_travel_s": Range(0),
    "simulate.verdict_failure_rate": SHARE,
    "simulate.pass_a": POSITIVE,
    "simulate.pass_b": POSITIVE,
    "simulate.step_base_s": Range(0),
    "simulate.step_group_s": Range(0),
    "simulate.step_token_s": Range(0),
    "simulate.checkpoint_s": Range(0),
    "simulate.transfer_s": Range(0),
    "simulate.install_s": Range(0),
    "simulate.cores": Range(0, 4096),
    "simulate.other_load": Range(0, 4096),
    "simulate.failures_per_hour": Range(0, 3600),
    "simulate.back_s": SECONDS,
}


def value_of(config: object, key: str) -> object:
    """The setting with this full key."""
    node = config
    for name in key.split("."):
        node = getattr(node, name)
    return node


def problems(config: Config) -> list[str]:
    """Why this configuration cannot work; empty when it can. Combinations are looked at once all ranges hold."""
    # Benchmarks decide which pools there are: none of the others can be looked at without them.
    return (
        out_of_range(config)
        or _benchmark_problems(config)
        or [
            *_source_problems(config),
            *reward_problems(config),
            *_group_problems(config),
            *_staleness_problems(config),
            *_window_problems(config),
            *_learning_problems(config),
            *_evaluation_problems(config),
            *_endpoint_problems(config),
            *_medium_problems(config),
            *_progress_problems(config),
            *_engine_problems(config),
        ]
    )


def ranges_broken(config: object, ranges: Mapping[str, Range]) -> list[str]:
    """Numbers among the settings that are not in their range."""
    found = []
    for key, allowed in ranges.items():
        value = value_of(config, key)
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, int | float) and not allowed.holds(number):
                found.append(f"{key}: must be {allowed}, got {number}")
    return found


def out_of_range(config: Config) -> list[str]:
    found = ranges_broken(config, RANGES)
    for key, weights in _weights(config):
        found += [
            f"{key}.{part}: must be a finite number, got {weight}"
            for part, weight in weights.items()
            if not math.isfinite(weight)
        ]
    return [*found, *pools_out_of_range(config)]


def _weights(config: Config) -> list[tuple[str, dict[str, float]]]:
    domains = config.reward.domains.items()
    return [
        ("reward.weights", config.reward.weights),
        *((f"reward.domains.{name}.weights", domain.weights) for name, domain in domains),
    ]


def _source_problems(config: Config) -> list[str]:
    found = []
    parts = config.name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        found.append(f"name: must be a folder name such as demo or sweeps/demo, got {config.name!r}")
    if config.data.task == "file" and not config.data.path:
        found.append("data.path: data.task=file needs a JSONL or parquet file or a data set folder; set data.path=FILE")
    if config.data.task == "swe" and not config.data.path:
        found.append("data.path: data.task=swe needs a JSONL file of instances; set data.path=FILE")
    if config.rollout.tool == "shell":
        found += _shell_problems(config)
    if config.data.slow_path and (config.data.task != "chain-mod" or not config.data.slow_share):
        found.append("data.slow_path: takes the place of problems of data.task=chain-mod; set data.slow_share above 0")
    if config.cold_start.enabled and config.data.task != "chain-mod":
        found.append("cold_start.enabled: only data.task=chain-mod has demonstrations; set model.path=DIR")
    if config.cold_start.enabled and config.model.path:
        found.append(
            f"cold_start.enabled: makes the start model itself, but model.path={config.model.path} is set; drop one"
        )
    if not config.cold_start.enabled and not config.model.path:
        found.append("model.path: must be the folder of a Hugging Face causal LM (or set cold_start.enabled=true)")
    return found


def _shell_problems(config: Config) -> list[str]:
    """Why rollouts of several turns cannot work."""
    found, swe = [], config.resolved_reward.swe
    if config.data.task != "swe":
        found.append("rollout.tool: shell needs an instance for every prompt; set data.task=swe")
    if "{observation}" not in config.rollout.observation:
        found.append("rollout.observation: must hold {observation}")
    if swe.turn_s >= config.group.lease_s:
        found.append(
            f"reward.swe.turn_s: {swe.turn_s:g} s without a token would lose the lease (group.lease_s="
            f"{config.group.lease_s:g}); make it shorter, or the lease longer"
        )
    return found


def reward_problems(config: Config) -> list[str]:
    """Why the reward cannot work, whatever else is configured."""
    reward, found = config.resolved_reward, reward_problems_of_parts(config)
    if reward.format == "special_token" and not reward.special_token.strip():
        found.append("reward.special_token: must not be blank for reward.format=special_token")
    if "language" in reward.parts and reward.target_language not in TARGET_LANGUAGES:
        found.append(
            f"reward.target_language: must be one of {', '.join(TARGET_LANGUAGES)}, got {reward.target_language!r}"
        )
    if "overlong" in reward.parts and reward.overlong_cache > reward.overlong_max:
        found.append(
            f"reward.overlong_cache: {reward.overlong_cache} tokens are more than the maximum of {reward.overlong_max} "
            "(reward.overlong_max, or sampling.max_tokens)"
        )
    if "swe" in reward.parts and not reward.swe.instances:
        found.append("reward.swe.instances: the part swe needs a JSONL file of instances")
    if reward.code.url and not reward.code.url.startswith(("http://", "https://")):
        found.append(f"reward.code.url: must begin with http:// or https://, got {reward.code.url!r}")
    return found


def missing_files(config: Config) -> list[str]:
    """Files and folders that the settings name and that are not there."""
    found = []
    model = config.model.path
    if model and not Path(model, "config.json").is_file():
        what = "has no config.json; a Hugging Face model folder has one" if Path(model).is_dir() else "no such folder"
        found.append(f"model.path: {model}: {what}")
    data, instances = config.data, config.reward.swe.instances
    named = {"data.path": data.path, "data.eval_path": data.eval_path} if data.task != "chain-mod" else {}
    named["data.slow_path"] = data.slow_path
    named["reward.swe.instances"] = instances if "swe" in config.reward.parts else ""
    found += [
        f"{key}: {path}: no such file or folder" for key, path in named.items() if path and not Path(path).exists()
    ]
    for name, path in config.eval.data.items():
        if path != SAMPLE and not Path(path).exists():
            found.append(
                f"eval.data.{name}: {path}: no such file or folder; `{SAMPLE}` takes the dozen that come along"
            )
    keys = config.security.keys
    if keys and not Path(keys).is_dir():
        found.append(f"security.keys: {keys}: no such folder; `r1async keys --out {keys}` makes it")
    return found


def missing_engines(config: Config) -> list[str]:
    """Engines that this machine's generators want and that are not installed here."""
    found = []
    for engine in sorted(set(kinds(config.generator.engine)) - {"torch"}):
        url = config.generator.vllm.url if engine == "vllm" else config.generator.sglang.url
        if not url:
            try:
                python_for(config, engine)
            except ValueError as error:
                found.append(str(error))
    return found


def _group_problems(config: Config) -> list[str]:
    group, found = config.group, []
    if group.group_size == 1 and group.baseline in ("std", "leave_one_out"):
        found.append(
            f"group.group_size: 1 leaves baseline={group.baseline} nothing to compare with, all advantages would be 0; "
            "set group.group_size=2 or more, or group.baseline=none"
        )
    if group.group_size == 1 and group.baseline == "mean":
        found.append(
            "group.group_size: with 1 the mean is the rollout itself, each advantage is 0; set group.baseline=none"
        )
    if group.baseline == "std" and group.std == "sample" and config.min_group_size < 2:
        found.append("group.std: sample needs two scored members; set group.min_group_size=2 or group.std=population")
    if group.min_group_size > group.group_size:
        found.append(
            f"group.min_group_size: {group.min_group_size} scored members never come from group_size={group.group_size}"
        )
    needed = group.rollout_deadline_s + config.scoring_deadline_s
    if group.group_deadline_s and group.group_deadline_s < needed:
        found.append(
            f"group.group_deadline_s: {group.group_deadline_s:g} s is shorter than a rollout and its verdict may take: "
            f"rollout_deadline_s {group.rollout_deadline_s:g} + one verdict, all its tries, "
            f"{config.scoring_deadline_s:g} = {needed:g} s; 0 sets it from these"
        )
    if group.lease_s > group.rollout_deadline_s:
        found.append(
            f"group.lease_s: {group.lease_s:g} s outlives rollout_deadline_s={group.rollout_deadline_s:g}: no lost "
            "lease could be given to another generator"
        )
    if group.zero_variance == "drop" and group.max_refills == 0:
        found.append(
            "group.zero_variance: drop without refill would leave batches short for ever; set group.max_refills above 0"
            " or zero_variance=train"
        )
    if group.zero_variance == "drop" and group.group_size == 1:
        found.append("group.zero_variance: a group of 1 has no variance, drop would drop every group; set train")
    return found


def _staleness_problems(config: Config) -> list[str]:
    staleness, found = config.staleness, []
    e, w, published = staleness.max_staleness, config.pacing, config.weights.publish_every
    if staleness.pacing > e:
        found.append(f"staleness.pacing: {staleness.pacing} must be at most staleness.max_staleness={e}")
    if e == 0 and published != 1:
        found.append(
            f"weights.publish_every: max_staleness=0 trains only tokens of the newest weights: every step publishes; "
            f"got {published}; set weights.publish_every=1 or staleness.max_staleness={published - 1} or more"
        )
    elif published > w + 1:
        found.append(
            f"weights.publish_every: {published} steps need {published} batches open before the next publication, but "
            f"pacing={w} opens {w + 1}: the run would stop; set weights.publish_every={w + 1} or "
            f"staleness.max_staleness={published - 1} or more"
        )
    if e == 0 and staleness.over_age == "train":
        found.append("staleness.over_age: train with max_staleness=0 would not be synchronous; set over_age=mask")
    if places(config) < config.learner.groups_per_step:
        found.append(
            f"learner.groups_per_step: a batch of {config.learner.groups_per_step} groups is larger than the "
            f"{places(config)} that pacing={w} and oversample={config.group.oversample:g} open"
        )
    if config.learner.part_groups >= config.learner.groups_per_step:
        found.append(
            f"learner.part_groups: a part of {config.learner.part_groups} groups is all of a batch of "
            f"{config.learner.groups_per_step} (learner.groups_per_step); set fewer, or 0 to wait for the whole batch"
        )
    return found


def _window_problems(config: Config) -> list[str]:
    found = []
    windows, groups = config.staleness.windows, config.learner.groups_per_step
    for name, window in windows.items():
        key = f"staleness.windows.{name}"
        if not name or name == "main":
            found.append(f"{key}: must be named after a source of prompts, got {name!r}")
        if not 0 <= window.max_staleness <= MAX_STALENESS:
            found.append(f"{key}.max_staleness: must be 0 to {MAX_STALENESS}, got {window.max_staleness}")
        elif window.max_staleness + 1 < config.weights.publish_every:
            found.append(
                f"{key}.max_staleness: must be at least weights.publish_every - 1 = {config.weights.publish_every - 1},"
                f" got {window.max_staleness}: between two publications its groups could not train"
            )
        if not 0 < window.share <= 1:
            found.append(f"{key}.share: must be above 0 and at most 1, got {window.share:g}")
    if found:
        return found
    if sum(window.share for window in windows.values()) > 1 + 1e-9:
        found.append("staleness.windows: the shares of all sources must add up to at most 1")
    at_zero = [window_places(config, name) for name, window in windows.items() if window.max_staleness == 0]
    at_zero += [groups] if config.staleness.max_staleness == 0 else []
    if len(at_zero) > 1 and sum(at_zero) > groups:
        found.append(
            f"staleness.windows: sources with max_staleness=0 open {sum(at_zero)} groups, a step trains {groups} and "
            "the surplus would be lost; give the slow ones a max_staleness above 0"
        )
    return found


def _learning_problems(config: Config) -> list[str]:
    found, sampling, learner = [], config.sampling, config.learner
    if sampling.top_p < 1:
        found.append(
            f"sampling.top_p: {sampling.top_p:g} samples from another distribution than the learner trains: the"
            " engines do not return each token's support; set sampling.top_p=1"
        )
    if sampling.top_k:
        found.append(
            f"sampling.top_k: {sampling.top_k} samples from another distribution than the learner trains: the"
            " engines do not return each token's support; set sampling.top_k=0"
        )
    longest = config.data.max_prompt_tokens + sampling.max_tokens
    rollouts = learner.groups_per_step * config.group.group_size
    if learner.micro_batch_tokens < longest:
        found.append(
            f"learner.micro_batch_tokens: {learner.micro_batch_tokens} cannot hold a rollout: data.max_prompt_tokens + "
            f"sampling.max_tokens = {longest} tokens"
        )
    if learner.ranks > rollouts:
        found.append(f"learner.ranks: {learner.ranks} ranks for {rollouts} rollouts a step leave some without work")
    if learner.schedule != "constant" and learner.warmup_steps >= config.steps:
        found.append(f"learner.warmup_steps: {learner.warmup_steps} leaves none of steps={config.steps} to decay over")
    return found


def _benchmark_problems(config: Config) -> list[str]:
    found, evaluation = [], config.eval
    if len(set(evaluation.benchmarks)) < len(evaluation.benchmarks):
        found.append(f"eval.benchmarks: each once, got {', '.join(evaluation.benchmarks)}")
    made = {}
    for name in evaluation.benchmarks:
        try:
            made[load_benchmark(name).name] = name
        except ConfigError as error:
            found.append(str(error))
    if not found and len(made) < len(evaluation.benchmarks):
        found.append("eval.benchmarks: two of them have the same name, by which their results are filed")
    found += [
        f"eval.data.{name}: is no benchmark of eval.benchmarks={list(evaluation.benchmarks)}"
        for name in evaluation.data
        if name not in made and not found
    ]
    return found


def _evaluation_problems(config: Config) -> list[str]:
    found, evaluation = [], config.eval
    if not evaluation.prompts and not evaluation.benchmarks:
        found.append("eval.prompts: 0 leaves nothing to evaluate; set it, or eval.benchmarks=[NAME]")
    if config.data.task == "none" and config.steps:
        found.append(f"data.task: none has nothing to train steps={config.steps} on; set steps=0 or another task")
    if config.data.task == "none" and evaluation.prompts:
        found.append(f"eval.prompts: data.task=none holds no prompts out, got {evaluation.prompts}; set eval.prompts=0")
    if evaluation.generator == "dedicated" and config.generator.count < 2:
        found.append(
            "eval.generator: dedicated leaves none of generator.count=1 to train; set generator.count=2 or more"
        )
    return found


def _endpoint_problems(config: Config) -> list[str]:
    found, seen = [], {}
    for name in ("rollouts", "batches", "events", "weights", "relay"):
        address, key = config.endpoint(name), f"endpoints.{name}"
        problem = _address_problem(address, has_keys=bool(config.security.keys))
        if problem:
            found.append(f"{key}: {problem}")
        if address in seen:
            found.append(f"{key}: {address} is also endpoints.{seen[address]}; each socket needs its own")
        seen[address] = name
    return found


def _engine_problems(config: Config) -> list[str]:
    found, named = [], kinds(config.generator.engine)
    for each in named:
        if each not in ENGINES:
            found.append(
                f"generator.engine: must be {', '.join(ENGINES)}, or several of them joined by +, got {each!r}"
            )
    if len(named) > config.generator.count:
        found.append(
            f"generator.engine: {config.generator.engine} names {len(named)} engines for {config.generator.count} "
            f"generator(s); set generator.count={len(named)} or more"
        )
    for name in config.generator.python:
        if name not in ENGINES:
            found.append(f"generator.python.{name}: must be named after an engine: {', '.join(ENGINES)}")
    for name, url in (("vllm", config.generator.vllm.url), ("sglang", config.generator.sglang.url)):
        if url and not url.startswith(("http://", "https://")):
            found.append(f"generator.{name}.url: must be http://HOST:PORT, got {url!r}")
        if url and named.count(name) and -(-config.generator.count // len(named)) > 1:
            found.append(
                f"generator.{name}.url: one server serves one generator, and {config.generator.count} are wanted; two "
                "would install weights over each other"
            )
    return found


def _medium_problems(config: Config) -> list[str]:
    weights = config.weights
    if weights.medium == "directory" and not weights.directory:
        return ["weights.directory: must name a folder for weights.medium=directory; it is empty"]
    if weights.medium != "directory" and weights.directory:
        return [f"weights.directory: {weights.directory} is not used with weights.medium={weights.medium}"]
    if weights.directory and config.endpoints.relay:
        return ["endpoints.relay: generators read weights.directory; a relay would have nobody to serve"]
    return [] if config.direct_medium is None else _direct_problems(config, config.direct_medium)


def _direct_problems(config: Config, medium: DirectMedium) -> list[str]:
    """Of an engine's own transfer."""
    named = kinds(config.generator.engine)
    takers = ("vllm", "sglang") if medium == "nccl" else ("vllm",)
    found = []
    if not set(named) & set(takers):
        found.append(
            f"weights.medium: {medium} is a transfer of {' and '.join(takers)}, and generator.engine={'+'.join(named)} "
            "has none of these; set weights.medium=zmq"
        )
    elif medium != "nccl" and "sglang" in named:
        found.append(f"weights.medium: SGLang has no {medium}; set weights.medium=nccl, or zmq")
    if config.endpoints.relay:
        found.append(f"endpoints.relay: with weights.medium={medium} the learner sends engines their weights, no relay")
    return found


def _progress_problems(config: Config) -> list[str]:
    limit_s, end_s = config.progress.limit_s, config.progress.end_s
    if end_s and end_s < limit_s:
        return [
            f"progress.end_s: {end_s:g} would end the run before progress.limit_s={limit_s:g} says what blocks it; "
            "set it higher, or to 0"
        ]
    return []


def _address_problem(address: str, *, has_keys: bool) -> str | None:
    scheme, separator, path = address.partition("://")
    if scheme == "ipc" and separator and path:
        if len(path.encode()) > 107:
            return f"a Unix socket's path has 107 bytes at most, got {len(path.encode())}: {address}"
        return None
    if scheme != "tcp" or not separator:
        return f"must be ipc://PATH or tcp://127.0.0.1:PORT, got {address!r}"
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        return f"must be tcp://HOST:PORT with a port of 1 to 65535, got {address!r}"
    if not has_keys and not _is_loopback(host):
        return (
            f"{address} leaves this machine without keys: anyone on the network could send rollouts. "
            "Make keys with `r1async keys --out DIR` and set security.keys=DIR"
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def places(config: Config) -> int:
    """Groups open at a time at most (DESIGN 3.3, pacing)."""
    return int((config.pacing + 1) * config.learner.groups_per_step * config.group.oversample)


def window_places(config: Config, source: str) -> int:
    """Groups open at a time at most of a source with its own window."""
    window = config.staleness.windows[source]
    # As in Rust's `Settings::window_limit`: a rounding error above a whole number is not one more.
    return math.ceil((window.max_staleness + 1) * window.share * config.learner.groups_per_step - 1e-9)


def rollouts_in_flight(config: Config) -> int:
    """Rollouts that generators decode at a time, at most."""
    return min(config.training_generators * config.generator.slots, places(config) * config.group.group_size)


def warnings(config: Config) -> list[str]:
    """What works, but probably not as meant."""
    found, e = [], config.staleness.max_staleness
    needed = full_speed_needs(config)
    if e > 0 and config.correction == "none":
        found.append(
            f"loss.correction=none with max_staleness={e}: lag is not corrected, expect a visibly worse model; "
            "auto takes behavior_clip"
        )
    if e > 0 and config.staleness.over_age == "train":
        found.append("staleness.over_age=train: tokens beyond max_staleness are trained and only counted")
    if e == 0 and config.group.oversample > 1:
        found.append(
            f"group.oversample={config.group.oversample:g} with max_staleness=0: the surplus groups are too old for the"
            " next step and are dropped `stale`"
        )
    if e > 0 and e + 1 < needed:
        found.append(
            f"staleness.max_staleness={e}: full speed with long-tailed lengths wants e + 1 >= {needed:.1f} "
            "(3.4 x rollouts in flight / rollouts per step); expect steps held or tokens masked"
        )
    if config.training_generators * config.generator.slots < config.group.group_size:
        found.append(
            f"generator.slots: all {config.training_generators * config.generator.slots} slots hold less than one "
            f"group of {config.group.group_size}; its rollouts will age behind one another"
        )
    if "accuracy" not in config.reward.parts:
        found.append(
            "reward.weights has no accuracy: evaluation knows no accuracy, pass@k or cons@k then; "
            "a weight of 0 measures accuracy without rewarding it"
        )
    slowest = max(pool.deadline_s for pool in pools_of(config.resolved_reward, config.scorer).values())
    if config.progress.limit_s < slowest:
        found.append(
            f"progress.limit_s={config.progress.limit_s:g}: one verdict may take "
            f"{slowest:g} s (reward.deadline_s, reward.code, scorer.pools), "
            "so a healthy run may say that nothing moved"
        )
    return found


def full_speed_needs(config: Config) -> float:
    """e + 1 from which long-tailed lengths cost no speed at 5 % waste."""
    return 3.4 * rollouts_in_flight(config) / (config.learner.groups_per_step * config.group.group_size)


def implications(config: Config) -> list[str]:
    """What the settings mean in numbers: `--dry-run` prints these lines."""
    step_groups, size = config.learner.groups_per_step, config.group.group_size
    e, w = config.staleness.max_staleness, config.pacing
    return [
        *_staleness_lines(config),
        *(
            f"window of source {name!r}: max_staleness {window.max_staleness}, at most {window_places(config, name)} "
            "groups besides; it holds no step"
            for name, window in config.staleness.windows.items()
        ),
        f"places: pacing {w} opens at most {places(config)} groups = floor(({w} + 1) x {step_groups} x "
        f"{config.group.oversample:g}), {places(config) * size} rollouts",
        f"rollouts in flight: at most {rollouts_in_flight(config)} ({config.training_generators} generator(s) x "
        f"{config.generator.slots} slots)",
        f"one step: {step_groups} groups x {size} = {step_groups * size} rollouts, at most "
        f"{step_groups * size * config.sampling.max_tokens} completion tokens; {config.steps} steps: "
        f"{config.steps * step_groups * size} rollouts",
        f"full speed with long-tailed lengths: e + 1 >= 3.4 x rollouts in flight / rollouts per step = "
        f"{full_speed_needs(config):.1f}; here e + 1 = {e + 1}",
        f"correction: {config.correction}; group deadline: {config.group_deadline_s:g} s; "
        f"fewest scored members: {config.min_group_size} of {size}",
        *_reward_lines(config),
        *(f"warning: {each}" for each in warnings(config)),
    ]


def _reward_lines(config: Config) -> list[str]:
    """What adds up to each domain's reward, and which workers grade it."""
    pools, shown = pools_of(config.resolved_reward, config.scorer), []
    for domain, weights in weights_of(config.reward).items():
        parts = " + ".join(f"{weight:g} {part}" for part, weight in weights.items())
        others = "reward of other domains" if config.reward.domains else "reward"
        name = f"reward of domain {domain}" if domain else others
        shown.append(f"{name}: {parts}")
    lines = lines_of(pools)
    for pool in pools.values():
        if pool.weights:
            at_once = f", each with {pool.at_once} rollouts at a time" if pool.asking != "one" else ""
            shown.append(
                f"pool {pool.name}: {config.scorer.count} x {pool.workers} worker(s){at_once}; one verdict "
                f"{pool.deadline_s:g} s, {pool.retries} retries"
                + (f"; queue {pool.queue}" if pool.name in lines else "; its rollouts wait in a slower pool's queue")
            )
    return shown


def _staleness_lines(config: Config) -> list[str]:
    e, rule = config.staleness.max_staleness, config.staleness.over_age
    published = config.weights.publish_every
    if e == 0:
        return ["worst-case staleness: 0 optimizer steps: synchronous, every token is trained on-policy"]
    in_turn = math.ceil(places(config) / config.learner.groups_per_step) - 1
    bound = {
        "mask": f"{e} optimizer steps: older tokens stay in the context and leave the loss",
        "drop": f"{e} optimizer steps: a group with an older token is dropped whole",
        "train": "no bound: tokens older than max_staleness are trained and counted",
    }[rule]
    lines = [
        f"worst-case staleness: {bound}",
        f"staleness of a group trained in its turn: at most {in_turn} steps after the version it was leased at",
    ]
    if published > 1:
        lines.append(
            f"weights are published every {published} steps, so a freshly leased token is already up to {published - 1}"
            " steps old (versions count optimizer steps, not publications)"
        )
    return lines
