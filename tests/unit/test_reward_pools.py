"""Pools resolved from settings, verdicts of several pools joined, figures and alarms."""

import pytest
from r1async.config import Config, ConfigError, RewardConfig, ScorerConfig, load_config
from r1async.config_endpoint import EndpointConfig
from r1async.config_rewards import DomainConfig, JudgeConfig, PoolConfig, RewardModelConfig
from r1async.reward_pools import Router, domain_of, line_of, lines_of, pools_of, route
from r1async.rewards.compose import join
from r1async.rewards.pools import FEWEST, Alarm, Figures, shown
from r1async.types import Verdict

WORKS = ["data.task=chain-mod", "cold_start.enabled=true"]
MIXED = RewardConfig(
    weights={"accuracy": 1.0, "format": 0.2},
    deadline_s=10.0,
    retries=2,
    domains={
        "general": DomainConfig(weights={"judge": 1.0, "format": 0.1}),
        "code": DomainConfig(weights={"code": 1.0}),
        "repo": DomainConfig(weights={"tests.reward_functions:flagged": 1.0, "format": 0.1}),
    },
    judge=JudgeConfig(endpoint=EndpointConfig(url="http://127.0.0.1:1/v1", model="j", deadline_s=180.0, concurrency=7)),
)
SCORER = ScorerConfig(
    workers=3,
    queue=100,
    worker_memory_mb=512,
    pools={
        "judge": PoolConfig(retries=0, queue=9),
        "repo": PoolConfig(workers=2, deadline_s=1800.0, memory_mb=0, parts=("tests.reward_functions:flagged",)),
    },
)


def test_each_part_has_a_pool_with_settings_of_its_own():
    pools = pools_of(MIXED, SCORER)
    assert list(pools) == ["rules", "code", "judge", "repo"]  # rules, then by deadline
    rules, code, judge, repo = pools.values()
    assert rules.weights == {
        "": {"accuracy": 1.0, "format": 0.2},
        "general": {"format": 0.1},
        "repo": {"format": 0.1},
    }
    assert (rules.workers, rules.queue, rules.deadline_s, rules.retries, rules.memory_mb) == (3, 100, 10.0, 2, 512)
    assert (rules.asking, rules.timeout_is) == ("one", "zero")
    assert (code.deadline_s, code.weights) == (10.0 + 60.0 + 30.0, {"code": {"code": 1.0}})
    # One process with seven questions at a time, which gives up before it is killed.
    assert (judge.workers, judge.asking, judge.at_once, judge.queue, judge.retries) == (1, "many", 7, 9, 0)
    assert (judge.deadline_s, judge.timeout_is) == (10.0 + 180.0 + 5.0, "abstain")
    assert (repo.workers, repo.deadline_s, repo.retries, repo.memory_mb) == (2, 1800.0, 2, 0)


def test_a_rollout_waits_in_the_line_of_its_slowest_pool():
    pools = pools_of(MIXED, SCORER)
    assert route(pools, "general") == ["rules", "judge"]
    assert [line_of(pools, domain) for domain in ("", "general", "code", "repo")] == ["rules", "judge", "code", "repo"]
    lines = lines_of(pools)
    assert list(lines) == ["rules", "code", "judge", "repo"]
    assert (lines["judge"].deadline_s, lines["judge"].retries, lines["judge"].queue) == (195.0, 0, 9)
    assert lines["repo"].deadline_s == 3 * 1800.0
    config = Config(reward=MIXED, scorer=SCORER)
    assert config.scoring_deadline_s == 5400.0
    assert Router(config).line({"domain": "general"}) == "judge"
    assert Router(config).lines.index("judge") == 2


def test_rows_of_other_domains_have_the_weights_of_all():
    assert domain_of(MIXED, {"domain": "general"}) == "general"
    assert domain_of(MIXED, {"domain": "poetry"}) == ""
    assert domain_of(MIXED, {}) == ""


def test_the_first_line_is_there_even_if_nothing_waits_in_it():
    lines = lines_of(pools_of(RewardConfig(weights={"code": 1.0}), ScorerConfig()))
    assert list(lines) == ["rules", "code"]


def test_verdicts_of_pools_add_up():
    rules = Verdict(total=0.1, parts={"format": 1.0})
    judge = Verdict(total=0.0, parts={"judge": 0.0}, status="wrong")
    both = join({"rules": rules, "judge": judge})
    assert (both.total, both.parts, both.status) == (0.1, {"format": 1.0, "judge": 0.0}, "wrong")


def test_a_pool_that_abstains_takes_the_rollout_along_unless_its_parts_weigh_nothing():
    rules, judge = Verdict(total=1.0, parts={"format": 1.0}), Verdict.abstain("infra_error")
    assert join({"rules": rules, "judge": judge}).status == "infra_error"
    assert join({"rules": rules, "judge": judge}).total is None
    assert join({"rules": rules, "judge": judge}, weightless=["judge"]).total == 1.0


def test_a_neutral_pool_is_left_out_unless_it_is_all_there_is():
    neutral, judge = Verdict.abstain("no_words"), Verdict(total=1.0, parts={"judge": 1.0})
    assert join({"rules": neutral, "judge": judge}).total == 1.0
    assert join({"rules": neutral}).status == "no_words"


def test_alarm_rings_once_and_again_after_it_was_quiet():
    alarm, good, bad = Alarm(0.1), Verdict(total=1.0), Verdict.abstain("infra_error")
    assert [alarm.saw(bad) for _ in range(FEWEST - 1)] == [None] * (FEWEST - 1)
    assert alarm.saw(bad) == f"{FEWEST} of the last {FEWEST} verdicts are missing: infra_error {FEWEST}"
    assert alarm.saw(bad) is None
    for _ in range(200):
        assert alarm.saw(good) is None
    rung = [said for _ in range(30) if (said := alarm.saw(Verdict.abstain("ungradable")))]
    assert rung == ["21 of the last 200 verdicts are missing: ungradable 21"]


def test_alarm_ignores_what_completions_caused():
    alarm = Alarm(0.0)
    verdicts = [Verdict(total=0.0, status="timeout"), Verdict.abstain("no_words"), Verdict.abstain("truncated")]
    assert not any(alarm.saw(verdict) for verdict in verdicts * 40)


def test_figures_of_a_pool_name_its_slowest_rollouts():
    figures = Figures(Alarm(0.1), verdicts=3, queued=2, slowest=[(2.5, 11), (0.5, 12)])
    figures.latencies_s.extend([1.0, 2.0, 3.0])
    figures.statuses.update({"ok": 2, "infra_error": 1})
    assert shown({"judge": figures}, {11: 4711}) == {
        "pool:judge:queued": 2.0,
        "pool:judge:verdicts": 3.0,
        "pool:judge:p50_s": 2.0,
        "pool:judge:p99_s": 2.98,
        "pool:judge:status:ok": 2.0,
        "pool:judge:status:infra_error": 1.0,
        "pool:judge:slow:4711": 2.5,
        "pool:judge:slow:12": 0.5,
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.weights={judge: 1}"], "reward.judge.endpoint.url: must be http"),
        (["reward.domains={general: {weights: {}}}"], "reward.domains.general.weights: must name at least one part"),
        (["reward.domains={general: {weights: {acuracy: 1}}}"], "reward.domains.general.weights.acuracy: must be accu"),
        (["reward.domains={general: {weights: {accuracy: .nan}}}"], "reward.domains.general.weights.accuracy: must be"),
        (["reward.weights={helpfulness: 1}"], "reward.helpfulness: set path=DIR"),
        (
            ["reward.weights={helpfulness: 1}", "reward.helpfulness.url=http://x/y"],
            "reward.helpfulness.model: must name",
        ),
        (
            ["scorer.pools={jugde: {workers: 2}}"],
            "scorer.pools.jugde: must be rules, code, ",
        ),
        (["scorer.pools={rules: {deadline_s: -1}}"], "scorer.pools.rules.deadline_s: must be 0 to"),
        (["scorer.pools={mine: {parts: [accuracy]}}"], "scorer.pools.mine.parts: may only have module:function parts"),
        (["scorer.pools={mine: {parts: ['a:b']}}"], "scorer.pools.mine.parts: no domain's reward has the part 'a:b'"),
        (["scorer.serve=[judge]"], "scorer.serve: judge: no rollout waits for that pool; rollouts wait for rules"),
        (["scorer.serve=[jugde]"], "scorer.serve: jugde: there is no such pool"),
        (["reward.judge.endpoint.concurrency=0"], "reward.judge.endpoint.concurrency: must be 1 to 4096, got 0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(overrides: list[str], message: str):
    with pytest.raises(ConfigError) as error:
        load_config(None, [*WORKS, *overrides])
    assert message in str(error.value)


def test_both_reward_models_are_here_or_both_elsewhere():
    overrides = ["reward.weights={helpfulness: 1, harmlessness: 1}", "reward.helpfulness.path=x"]
    overrides += ["reward.harmlessness.url=http://x/y", "reward.harmlessness.model=m"]
    with pytest.raises(ConfigError, match="both by path or both by url"):
        load_config(None, [*WORKS, *overrides])


def test_reward_models_behind_http_need_no_worker_with_torch():
    model = RewardModelConfig(url="http://x/classify", model="m", concurrency=5)
    pool = pools_of(RewardConfig(weights={"helpfulness": 1.0}, helpfulness=model), ScorerConfig())["reward_model"]
    assert (pool.asking, pool.at_once, pool.deadline_s) == ("many", 5, 10.0 + 180.0 + 5.0)
    local = RewardConfig(weights={"helpfulness": 1.0}, helpfulness=RewardModelConfig(path="x"))
    assert pools_of(local, ScorerConfig())["reward_model"].asking == "batch"
