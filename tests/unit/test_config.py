"""Settings: from YAML and overrides to a Config, and what is refused on the way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import r1async
from r1async.checks import RANGES
from r1async.config import Config, ConfigError, ipc_dir, load_config
from r1async.settings import all_fields, to_yaml

WORKS = ("data.task=chain-mod", "cold_start.enabled=true")
"""Overrides with which the defaults make a run."""


def load(*overrides: str) -> Config:
    return load_config(None, [*WORKS, *overrides])


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_file_overrides_defaults_and_command_line_overrides_file(tmp_path):
    path = write(tmp_path, "steps: 7\nseed: 3\ndata: {task: chain-mod}\ncold_start: {enabled: true}\n")
    config = load_config(path, ["seed=5"])
    assert (config.steps, config.seed, config.group.group_size) == (7, 5, 8)


def test_resolved_yaml_loads_back_to_an_equal_config(tmp_path):
    config = load("loss.clip_low=0.1", "learner.betas=[0.9, 0.95]", "sampling.stop=[a, b]", "resume=true", "seed=4")
    assert config.learner.betas == (0.9, 0.95)
    assert config.sampling.stop == ("a", "b")
    assert load_config(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("stepz=3", "stepz", "steps"),
        ("learner.groups_per_stp=3", "learner.groups_per_stp", "learner.groups_per_step"),
        ("max_staleness=3", "max_staleness", "staleness.max_staleness"),
        ("generator.max_tokens=3", "generator.max_tokens", "sampling.max_tokens"),
        ("lerner.lr=3", "lerner", "learner"),
    ],
)
def test_unknown_key_names_the_nearest_one(override, key, nearest):
    assert refusal(override) == f"{key}: unknown key; did you mean {nearest}?"


def test_unknown_keys_of_a_file_are_all_named(tmp_path):
    path = write(tmp_path, "stepz: 3\ngroup: {group_sise: 8}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, WORKS)
    assert str(caught.value).splitlines() == [
        "stepz: unknown key; did you mean steps?",
        "group.group_sise: unknown key; did you mean group.group_size?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=many", "steps: must be a whole number, got 'many'"),
        ("steps=1.5", "steps: must be a whole number, got 1.5"),
        ("steps=true", "steps: must be a whole number, got True"),
        ("learner.lr=fast", "learner.lr: must be a number, got 'fast'"),
        ("steps=null", "steps: must be a whole number, got null"),
        ("staleness.over_age=keep", "staleness.over_age: must be one of mask, drop, train, got 'keep'"),
        ("learner.betas=[0.9]", "learner.betas: must be a list of 2 values, each a number, got [0.9]"),
        ("reward.weights={accuracy: much}", "reward.weights.accuracy: must be a number, got 'much'"),
        ("loss.kl_coef=no-kl", "loss.kl_coef: must be a number or null, got 'no-kl'"),
        ("learner=3", "learner: must be a table of settings, got 3"),
        ("steps.x=3", "steps.x: steps is a value, not a table of settings"),
        ("steps", "override 'steps': must be key=value, as in staleness.max_staleness=4"),
    ],
)
def test_wrong_value_names_key_wanted_and_got(override, message):
    assert refusal(override) == message


def test_missing_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_broken_yaml_says_so(tmp_path):
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(write(tmp_path, "steps: [1"))


def test_list_instead_of_settings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got a list"):
        load_config(write(tmp_path, "- steps\n"))


def test_override_of_a_whole_table_of_weights_replaces_it():
    assert load("reward.weights={accuracy: 2}").reward.weights == {"accuracy": 2.0}


def test_override_of_one_weight_keeps_the_others():
    assert load("reward.weights.accuracy=2").reward.weights == {"accuracy": 2.0, "format": 0.2}


def test_weights_in_a_file_replace_the_defaults_and_one_override_extends_the_file(tmp_path):
    path = write(tmp_path, "reward: {weights: {accuracy: 3}}\n")
    config = load_config(path, [*WORKS, "reward.weights.my.rewards:length=0.5"])
    assert config.reward.weights == {"accuracy": 3.0, "my.rewards:length": 0.5}


def test_every_number_has_a_range():
    plain = {int, float, int | None, float | None, tuple[float, float], tuple[float, ...]}
    assert {key for key, hint in all_fields() if hint in plain} == set(RANGES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=-1", "steps: must be 0 to 10000000, got -1"),
        ("sampling.temperature=0", "sampling.temperature: must be above 0 and at most 10, got 0.0"),
        ("learner.lr=.nan", "learner.lr: must be above 0, got nan"),
        ("loss.is_cap=0.5", "loss.is_cap: must be at least 1, got 0.5"),
        ("learner.betas=[0.9, 1.0]", "learner.betas: must be 0 to 0.999999, got 1.0"),
        ("reward.weights={accuracy: .inf}", "reward.weights.accuracy: must be a finite number, got inf"),
    ],
)
def test_number_out_of_range_names_the_range(override, message):
    assert refusal(override) == message


def test_all_problems_are_reported_at_once():
    assert len(refusal("steps=-1", "seed=-1").splitlines()) == 2


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("group.group_size=1",), "group.group_size: 1 leaves baseline=std nothing to compare with"),
        (("group.group_size=1", "group.baseline=leave_one_out"), "nothing to compare with"),
        (("group.group_size=1", "group.baseline=mean"), "with 1 the mean is the rollout itself"),
        (("sampling.top_p=0.9",), "sampling.top_p: 0.9 samples from another distribution"),
        (("sampling.top_k=40",), "sampling.top_k: 40 samples from another distribution"),
        (("staleness.max_staleness=0", "weights.publish_every=2"), "set weights.publish_every=1"),
        (("staleness.max_staleness=1", "weights.publish_every=3"), "pacing=1 opens 2: the run would stop"),
        (("staleness.pacing=3",), "staleness.pacing: 3 must be at most staleness.max_staleness=2"),
        (("staleness.max_staleness=0", "staleness.over_age=train"), "staleness.over_age: train"),
        (("group.min_group_size=9",), "9 scored members never come from group_size=8"),
        (("group.std=sample", "group.min_group_size=1"), "sample needs two scored members"),
        # 600 s for a rollout and 2 tries of 10 s for its verdict.
        (("group.group_deadline_s=619",), "= 620 s"),
        (("group.lease_s=601",), "group.lease_s: 601 s outlives rollout_deadline_s=600"),
        (("group.zero_variance=drop", "group.max_refills=0"), "drop without refill"),
        (("learner.micro_batch_tokens=2047",), "= 2048 tokens"),
        (("learner.part_groups=16",), "is all of a batch of 16"),
        (("learner.ranks=129",), "129 ranks for 128 rollouts a step"),
        (("reward.weights={}",), "reward.weights: must name at least one part"),
        (
            ("reward.weights={accurcy: 1}",),
            "reward.weights.accurcy: must be accuracy, format, code, swe, language, overlong",
        ),
        (("data.task=file",), "data.path: data.task=file needs"),
        (("cold_start.enabled=false",), "model.path: must be the folder of a Hugging Face causal LM"),
        (("model.path=here",), "cold_start.enabled: makes the start model itself"),
        (("name=../up",), "name: must be a folder name"),
        (("name=",), "name: must be a folder name"),
        (("endpoints.rollouts=tcp://10.0.0.1:5555",), "leaves this machine without keys"),
        (("endpoints.weights=tcp://learner:5555",), "`r1async keys --out DIR` and set security.keys=DIR"),
        (("endpoints.rollouts=tcp://*:5555",), "leaves this machine without keys"),
        (("endpoints.rollouts=tcp://127.0.0.1",), "must be tcp://HOST:PORT"),
        (("endpoints.rollouts=udp://127.0.0.1:1",), "must be ipc://PATH or tcp://127.0.0.1:PORT"),
        (("endpoints.relay=tcp://learner:5555",), "leaves this machine without keys"),
        (("weights.medium=directory",), "weights.directory: must name a folder"),
        (("weights.directory=/mnt/w",), "is not used with weights.medium=zmq"),
        (
            ("weights.medium=directory", "weights.directory=/mnt/w", "endpoints.relay=tcp://127.0.0.1:9"),
            "a relay would have nobody to serve",
        ),
        (("weights.medium=post",), "weights.medium"),
        (("weights.medium=nccl",), "weights.medium: nccl is a transfer of vllm and sglang, and generator.engine=torch"),
        (("weights.medium=ipc", "generator.engine=sglang"), "ipc is a transfer of vllm, and generator.engine=sglang"),
        (("weights.medium=sparse_nccl", "generator.engine=vllm+sglang"), "SGLang has no sparse_nccl"),
        (
            ("weights.medium=nccl", "generator.engine=vllm", "endpoints.relay=tcp://127.0.0.1:9"),
            "endpoints.relay: with weights.medium=nccl the learner sends engines their weights",
        ),
        (("weights.chunk_bytes=1048576",), "weights.chunk_bytes: must be"),
        (("weights.window=-1",), "weights.window: must be"),
        (("weights.threads=0",), "weights.threads: must be"),
        (("endpoints.rollouts=ipc:///tmp/x", "endpoints.batches=ipc:///tmp/x"), "each socket needs its own"),
        ((f"endpoints.events=ipc:///{'x' * 110}",), "107 bytes at most, got 111"),
    ],
)
def test_impossible_combination_is_refused_with_the_reason(overrides, reason):
    assert reason in refusal(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("group.group_size=1", "group.baseline=none"),
        ("group.group_deadline_s=620",),
        ("staleness.max_staleness=2", "weights.publish_every=3"),
        ("learner.micro_batch_tokens=2048",),
        ("endpoints.rollouts=tcp://127.0.0.1:5555",),
        ("endpoints.rollouts=tcp://10.0.0.1:5555", "security.keys=keys"),
        ("endpoints.rollouts=tcp://[::1]:5555",),
        ("loss.correction=none",),
    ],
)
def test_combination_at_the_edge_is_accepted(overrides):
    load(*overrides)


def test_derived_settings():
    config = load("group.rollout_deadline_s=100", "reward.deadline_s=5", "reward.retries=2", "group.group_size=5")
    assert config.pacing == 2
    assert config.min_group_size == 2
    assert config.scoring_deadline_s == 15
    assert config.group_deadline_s == 125
    assert config.correction == "behavior_clip"
    assert load("staleness.max_staleness=0").correction == "none"


def test_default_endpoints_fit_a_unix_socket_however_deep_the_run_lies(tmp_path):
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 10)
    config = load(f"runs_dir={deep}")
    assert len(config.endpoint("rollouts").removeprefix("ipc://")) < 107
    assert ipc_dir(deep / "run") != ipc_dir(deep / "other")


def test_every_setting_is_read_somewhere():
    """A field that nothing reads is a promise to the user that nothing keeps."""
    package = Path(r1async.__file__).parent
    skipped = {"config.py", "checks.py", "settings.py"}
    read = set()
    for path in package.rglob("*.py"):
        if path.name not in skipped:
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    # Derived settings read these in config.py itself; what they derive is read outside.
    derived = {
        "pacing": ("pacing",),
        "min_group_size": ("min_group_size",),
        "group_deadline_s": ("group_deadline_s",),
        "correction": ("correction",),
        "run_dir": ("runs_dir", "name"),
        "weights_directory": ("medium", "directory"),
        "direct_medium": ("medium",),
        "endpoint": ("rollouts", "batches", "events", "weights"),
    }
    read |= {name for source, names in derived.items() if source in read for name in names}
    unread = [key for key, _ in all_fields() if key.rpartition(".")[2] not in read]
    assert unread == []


def test_windows_of_slow_sources_are_a_table_of_tables(tmp_path):
    config = load("staleness.windows={slow: {max_staleness: 4}, swe: {share: 0.2}}")
    windows = config.staleness.windows
    assert {name: (window.max_staleness, window.share) for name, window in windows.items()} == {
        "slow": (4, 0.1),
        "swe": (16, 0.2),
    }
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("staleness.windows={slow: 3}", "staleness.windows.slow: must be a table of settings, got 3"),
        ("staleness.windows={slow: {shar: 1}}", "staleness.windows.slow.shar: unknown key; did you mean"),
        ("staleness.windows={slow: {share: x}}", "staleness.windows.slow.share: must be a number, got 'x'"),
        ("staleness.windows={main: {}}", "staleness.windows.main: must be named after a source of prompts"),
        ("staleness.windows={a: {share: 0}}", "staleness.windows.a.share: must be above 0 and at most 1, got 0"),
        ("staleness.windows={a: {share: 0.6}, b: {share: 0.6}}", "the shares of all sources must add up to at most 1"),
    ],
)
def test_window_that_cannot_work_is_refused_by_name(override, problem):
    with pytest.raises(ConfigError) as refused:
        load(override)
    assert problem in str(refused.value)


def test_sources_at_bound_0_must_fit_into_a_batch():
    with pytest.raises(ConfigError, match="open 18 groups, a step trains 16 and the surplus would be lost"):
        load("staleness.max_staleness=0", "staleness.windows={slow: {max_staleness: 0}}")
    load("staleness.max_staleness=0", "staleness.windows={slow: {max_staleness: 1}}")


def test_one_setting_of_a_named_table_is_set_and_the_others_stay():
    config = load(
        "scorer.pools.rules={workers: 2}",
        "scorer.pools.rules.queue=7",
        "reward.domains.mine.weights.accuracy=2",
        "staleness.windows.slow.share=0.5",
    )
    assert (config.scorer.pools["rules"].workers, config.scorer.pools["rules"].queue) == (2, 7)
    assert config.reward.domains["mine"].weights == {"accuracy": 2.0}
    assert (config.staleness.windows["slow"].share, config.staleness.windows["slow"].max_staleness) == (0.5, 16)
    with pytest.raises(ConfigError, match=r"scorer\.pools\.rules\.wrokers: unknown key"):
        load("scorer.pools.rules.wrokers=2")
