//! Closing: which scores make a group, what its deadline does, what equal rewards come to.

mod common;

use common::{GENERATOR, Run, SCORER, settings};
use r1async_core::{
    Baseline, DropReason, Finish, Settings, StdKind, Verdict, WaitReason, ZeroVariance,
};

#[test]
fn abstentions_leave_the_statistics_and_a_batch_counts_groups() {
    let mut run = Run::new(Settings {
        group_size: 4,
        min_group_size: 2,
        ..settings()
    });
    let leases = run.lease(0, 4);
    for lease in &leases {
        run.finish(lease.lease, 0, &[(0, 2)]);
    }
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 4);
    run.verdict(scoring[0].lease, 1.0);
    run.abstain(scoring[1].lease);
    run.verdict(scoring[2].lease, f64::NAN);
    run.verdict(scoring[3].lease, 0.0);
    let batch = run.batch(0); // Three groups of abstentions would not have stopped it: 2 of 4 rollouts are a group.
    assert_eq!(
        (
            batch.groups[0].statistics.count,
            batch.groups[0].statistics.mean
        ),
        (2, 0.5)
    );
    assert_eq!(
        batch
            .rollouts()
            .map(|(_, rollout)| rollout.rollout.0)
            .collect::<Vec<_>>(),
        [0, 3]
    );
    run.step(0);
    run.commit(1);
    let audit = run.ledger.audit();
    assert_eq!(
        (
            audit.rollouts.trained,
            audit.rollouts.dropped_for(DropReason::Abstained)
        ),
        (2, 2)
    );
    assert_eq!(
        (
            audit.tokens.trained,
            audit.tokens.dropped_for(DropReason::Abstained)
        ),
        (4, 4)
    );
    assert_eq!(run.ledger.stats().abstentions["nan"], 1);
}

#[test]
fn a_group_with_too_few_scores_is_dropped_whole() {
    let mut run = Run::new(Settings {
        min_group_size: 2,
        ..settings()
    });
    for lease in run.lease(0, 2) {
        run.finish(lease.lease, 0, &[(0, 2)]);
    }
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 2);
    run.verdict(scoring[0].lease, 1.0);
    run.abstain(scoring[1].lease);
    let audit = run.ledger.audit();
    assert_eq!(audit.rollouts.dropped_for(DropReason::TooFewScored), 2);
    assert_eq!(audit.tokens.dropped_for(DropReason::TooFewScored), 4);
}

#[test]
fn a_cut_rollout_abstains_where_that_is_the_rule() {
    let mut run = Run::new(Settings {
        drop_truncated: true,
        ..settings()
    });
    let leases = run.lease(0, 2);
    run.try_send(leases[0].lease, 0, &[(0, 5)], Some(Finish::Length))
        .unwrap();
    run.finish(leases[1].lease, 0, &[(0, 1)]);
    run.score(&[1.0]);
    run.batch(0);
    run.step(0);
    run.commit(1);
    let audit = run.ledger.audit();
    assert_eq!(audit.tokens.dropped_for(DropReason::Truncated), 5);
    assert_eq!(audit.rollouts.dropped_for(DropReason::Truncated), 1);
}

#[test]
fn equal_rewards_are_dropped_and_refilled_up_to_the_cap_then_trained() {
    let rule = Settings {
        zero_variance: ZeroVariance::Drop,
        max_refills: 2,
        ..settings()
    };
    let mut run = Run::new(rule);
    for refills in 1..=2 {
        run.complete_group(0, 1, &[1.0, 1.0]);
        assert!(matches!(run.wait(0), WaitReason::Groups { ready: 0, .. }));
        assert_eq!(run.ledger.stats().refills, refills);
    }
    let third = run.complete_group(0, 1, &[1.0, 1.0]);
    let batch = run.batch(0);
    assert_eq!(batch.groups[0].group.0, third);
    assert!(
        batch
            .rollouts()
            .all(|(_, rollout)| rollout.advantage == 0.0)
    );
    assert_eq!(run.ledger.stats().zero_variance_trained, 1);
    run.step(0);
    run.complete_group(1, 1, &[0.0, 0.0]); // The next step has its own two.
    assert_eq!(
        run.ledger
            .audit()
            .prompts
            .dropped_for(DropReason::ZeroVariance),
        3
    );
}

#[test]
fn a_group_closes_at_its_deadline_with_what_is_scored() {
    let rule = Settings {
        group_size: 3,
        rollout_deadline_s: 40.0,
        group_deadline_s: 60.0,
        lease_s: 100.0,
        ..settings()
    };
    let mut run = Run::new(rule);
    // One scored, one being scored, one never leased: the generator had room for two.
    let installed = run.version(0);
    let leases = run.ledger.lease_rollouts(0.0, GENERATOR, installed, 2, 2);
    for lease in &leases {
        run.finish(lease.lease, 0, &[(0, 2)]);
    }
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 2);
    run.verdict(scoring[0].lease, 1.0);
    run.now = 55.0;
    run.verdict(scoring[0].lease, 1.0);
    run.pass(0.0);
    let again = run.ledger.lease_scoring(run.now, SCORER, 2);
    assert_eq!(again.len(), 1);
    run.pass(5.0);
    assert_eq!(run.ledger.stats().groups_ready, 1);
    assert_eq!(
        run.verdict(again[0].lease, 0.0),
        r1async_core::VerdictAck::Lost
    );
    assert_eq!(
        (
            run.ledger.stats().late_verdicts,
            run.ledger.stats().rollouts_waiting
        ),
        (2, 0)
    );
    let batch = run.batch(0);
    assert_eq!(batch.rollouts().count(), 1);
    run.step(0);
    run.commit(1);
    assert_eq!(
        run.ledger
            .audit()
            .rollouts
            .dropped_for(DropReason::Deadline),
        2
    );
}

#[test]
fn a_group_with_too_few_scores_at_its_deadline_is_dropped_for_that() {
    let rule = Settings {
        min_group_size: 2,
        rollout_deadline_s: 40.0,
        group_deadline_s: 60.0,
        ..settings()
    };
    let mut run = Run::new(rule);
    for lease in run.lease(0, 2) {
        run.finish(lease.lease, 0, &[(0, 2)]);
    }
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 1);
    run.verdict(scoring[0].lease, 1.0);
    run.pass(60.0);
    let audit = run.ledger.audit();
    assert_eq!(
        (
            audit.prompts.dropped_for(DropReason::Deadline),
            audit.rollouts.dropped_for(DropReason::Deadline)
        ),
        (1, 2)
    );
}

#[test]
fn advantages_follow_the_baseline() {
    // Mean 1/4, population variance 3/16, sample variance 1/4; the others' mean is 0.
    for (baseline, std, want) in [
        (
            Baseline::Std,
            StdKind::Population,
            0.75 / (0.1875_f64.sqrt() + 1e-6),
        ),
        (Baseline::Std, StdKind::Sample, 0.75 / (0.5 + 1e-6)),
        (Baseline::Mean, StdKind::Population, 0.75),
        (Baseline::LeaveOneOut, StdKind::Population, 1.0),
        (Baseline::None, StdKind::Population, 1.0),
    ] {
        let mut run = Run::new(Settings {
            group_size: 4,
            baseline,
            std,
            ..settings()
        });
        run.complete_group(0, 1, &[1.0, 0.0, 0.0, 0.0]);
        let got = run.batch(0).groups[0].rollouts[0].advantage;
        assert!(
            (got - want).abs() < 1e-12,
            "{baseline:?} {std:?}: {got} is not {want}"
        );
    }
}

#[test]
fn a_reward_no_statistic_could_hold_is_an_abstention() {
    let mut run = Run::new(settings());
    for lease in run.lease(0, 2) {
        run.finish(lease.lease, 0, &[(0, 1)]);
    }
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 2);
    run.verdict(scoring[0].lease, 1e31);
    let infinite = Verdict::Score {
        total: f64::INFINITY,
        parts: Vec::new(),
        status: String::new(),
    };
    run.ledger.verdict(0.0, SCORER, scoring[1].lease, infinite);
    let stats = run.ledger.stats();
    assert_eq!(
        (stats.abstentions["overflow"], stats.abstentions["nan"]),
        (1, 1)
    );
}
