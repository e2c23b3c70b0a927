//! Scoring pools: rollouts with slow verdicts wait in a line of their own, with deadlines of their own.

mod common;

use common::{Run, SCORER, settings, with_bound};
use r1async_core::{AdmitError, Ledger, RolloutId, ScoringPool, Settings};

/// Even prompts are graded in the first pool, odd ones in `judge`.
fn with_judge(retries: u32) -> Settings {
    let judge = ScoringPool {
        name: "judge".into(),
        deadline_s: 100.0,
        retries,
    };
    Settings {
        scoring_deadline_s: 10.0,
        score_retries: 0,
        slow_pools: vec![judge],
        group_deadline_s: 10_000.0,
        ..with_bound(3, settings())
    }
}

/// A run with four groups, all of them finished and none scored.
fn finished(settings: Settings) -> Run {
    let mut ledger = Ledger::new(settings).unwrap();
    ledger.connect_learner(0, 0).unwrap();
    for ordinal in ledger.wanted_prompts() {
        let pool = (ordinal % 2) as usize;
        ledger
            .admit_to(ordinal, vec![1], Vec::new(), 0, pool)
            .unwrap();
    }
    ledger.end_of_prompts(100);
    let mut run = Run {
        ledger,
        epoch: 0,
        now: 0.0,
    };
    run.publish(0);
    let installed = run.version(0);
    let leases = run
        .ledger
        .lease_rollouts(0.0, common::GENERATOR, installed, 8, 64);
    assert_eq!(leases.len(), 8, "four groups of two");
    for lease in leases {
        run.finish(lease.lease, 0, &[(0, 1)]);
    }
    run
}

fn rollouts(run: &mut Run, pool: usize, max: usize) -> Vec<u64> {
    let leases = run.ledger.lease_scoring_of(run.now, SCORER, pool, max);
    leases.iter().map(|lease| lease.rollout.0).collect()
}

#[test]
fn each_pool_has_a_line_of_its_own_in_the_order_in_which_rollouts_finished() {
    let mut run = finished(with_judge(0));
    let stats = run.ledger.stats();
    assert_eq!(stats.rollouts_unscored, 8);
    assert_eq!(stats.unscored_by_pool["rules"], 4);
    assert_eq!(stats.unscored_by_pool["judge"], 4);
    assert_eq!(rollouts(&mut run, 1, 1), [2]);
    assert_eq!(rollouts(&mut run, 0, 9), [0, 1, 4, 5]);
    assert_eq!(rollouts(&mut run, 1, 9), [3, 6, 7]);
    assert_eq!(rollouts(&mut run, 1, 9), [0; 0]);
}

#[test]
fn what_waits_for_a_scorer_is_named_by_pool() {
    let mut run = finished(with_judge(0));
    rollouts(&mut run, 0, 9);
    let waits = run.ledger.waits(0.0);
    let scorer = waits.iter().find(|wait| wait.name == "scorer").unwrap();
    let text = "scorer: 4 finished rollouts wait for one (4 of pool judge)";
    assert_eq!(scorer.text, text);
}

#[test]
fn a_lease_runs_out_at_its_pools_deadline_and_is_tried_as_often_as_the_pool_says() {
    let mut run = finished(with_judge(1));
    rollouts(&mut run, 0, 1);
    rollouts(&mut run, 1, 1);
    run.pass(16.0); // 10 s and 5 s for the way.
    assert_eq!(run.ledger.stats().score_leases_lost, 1);
    assert_eq!(run.ledger.stats().abstentions["scorer_lost"], 1);
    run.pass(90.0); // 100 s and 5 s for the way.
    assert_eq!(run.ledger.stats().score_leases_lost, 2);
    assert_eq!(
        run.ledger.stats().abstentions["scorer_lost"],
        1,
        "once more"
    );
    let again = run.ledger.lease_scoring_of(run.now, SCORER, 1, 1);
    assert_eq!(again[0].rollout, RolloutId(2), "at its old place");
    assert!(run.ledger.audit().is_balanced());
}

#[test]
fn a_pool_that_is_not_there_is_refused() {
    let mut ledger = Ledger::new(with_judge(0)).unwrap();
    let refused = ledger.admit_to(0, vec![1], Vec::new(), 0, 2).unwrap_err();
    assert_eq!(refused, AdmitError::Pool { got: 2, pools: 2 });
    assert_eq!(
        refused.to_string(),
        "pool 2; want below 2: 0 for the first one, or one above the place of a slow pool"
    );
}

#[test]
fn pools_that_cannot_work_are_refused() {
    let judge = || with_judge(0).slow_pools.remove(0);
    let named = |name: &str| ScoringPool {
        name: name.into(),
        ..judge()
    };
    let timed = |deadline_s: f64| ScoringPool {
        deadline_s,
        ..judge()
    };
    let pools = [
        vec![named("")],
        vec![judge(), judge()],
        vec![timed(0.0)],
        vec![timed(f64::NAN)],
    ];
    for slow_pools in pools {
        let settings = Settings {
            slow_pools,
            ..with_judge(0)
        };
        assert_eq!(settings.validate().unwrap_err().name, "slow_pools");
    }
    let short = Settings {
        group_deadline_s: 699.0, // 600 s for a rollout, 100 s for the slowest verdict
        ..with_judge(0)
    };
    assert_eq!(short.validate().unwrap_err().name, "group_deadline_s");
}

#[test]
fn in_a_new_life_groups_keep_their_pool_by_its_name() {
    let named = |names: &[&str]| Settings {
        slow_pools: names
            .iter()
            .map(|name| ScoringPool {
                name: (*name).into(),
                deadline_s: 50.0,
                retries: 0,
            })
            .collect(),
        ..with_judge(0)
    };
    let mut run = finished(named(&["judge"]));
    run.ledger.reopen(named(&["code", "judge"])).unwrap();
    assert_eq!(rollouts(&mut run, 1, 9), [0; 0]);
    assert_eq!(rollouts(&mut run, 2, 2), [2, 3]);
    // A pool that is no more: the first one takes its rollouts, those that were lent too.
    run.ledger.reopen(named(&[])).unwrap();
    assert_eq!(rollouts(&mut run, 0, 9), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(run.ledger.contradiction(), None);
}
