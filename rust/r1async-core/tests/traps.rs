//! The six ways in which a staleness rule stops a run or leaks, each found in a simulation.

mod common;

use common::{Run, settings, with_bound};
use r1async_core::{DropReason, Settings, WaitReason, Window};

/// Tokens in ready groups cannot be saved by waiting: a hold for them would never end.
#[test]
fn trap_1_a_hold_for_dying_tokens_of_ready_groups_never_ends() {
    let patient = Settings {
        waste_budget: 0.0,
        oversample: 2.0,
        ..settings()
    };
    let mut run = Run::new(with_bound(1, patient));
    for _ in 0..3 {
        run.complete_group(0, 5, &[0.0, 1.0]);
    }
    run.batch(0);
    run.step(0);
    assert_eq!(run.groups(1), [1]); // Group 2 has its last chance here and is left behind.
    assert_eq!(run.ledger.stats().holds, 0);
}

/// A drop at packing frees a place; if nothing wakes admission, the run waits for ever.
#[test]
fn trap_2_a_drop_at_packing_wakes_admission() {
    let wide = Settings {
        oversample: 2.0,
        ..settings()
    };
    let mut run = Run::new(wide);
    run.complete_group(0, 5, &[0.0, 1.0]);
    run.complete_group(0, 5, &[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    run.ledger.take_news();
    assert!(matches!(run.wait(1), WaitReason::Groups { ready: 0, .. })); // Group 1 was too old.
    assert_eq!(run.ledger.stats().groups_dropped[&DropReason::Stale], 1);
    let news = run.ledger.take_news();
    assert!(news.rollouts && news.prompts);
    assert_eq!(run.lease(1, 4).len(), 4);
}

/// Sorted by deadline alone, groups past their last chance would push out those that can still train.
#[test]
fn trap_3_over_age_groups_do_not_push_out_fresh_ones() {
    let wide = Settings {
        oversample: 2.0,
        ..settings()
    };
    let mut run = Run::new(wide);
    run.complete_group(0, 5, &[0.0, 1.0]);
    run.complete_group(0, 5, &[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    let fresh = run.complete_group(1, 5, &[0.0, 1.0]);
    assert_eq!(run.groups(1), [fresh]);
}

/// Members that no generator has had would wait for one after their group has trained.
#[test]
fn trap_4_members_never_leased_are_cancelled_when_their_group_closes_early() {
    let rule = Settings {
        group_size: 3,
        min_group_size: 2,
        ..settings()
    };
    let mut run = Run::new(with_bound(1, rule));
    run.complete_group(0, 5, &[0.0, 1.0, 0.0]);
    run.admit();
    let installed = run.version(0);
    let leases = run
        .ledger
        .lease_rollouts(0.0, common::GENERATOR, installed, 2, 2);
    for lease in &leases {
        run.finish(lease.lease, 0, &[(0, 4)]);
    }
    run.score(&[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    assert_eq!(run.ledger.stats().rollouts_waiting, 1);
    assert_eq!(run.groups(1), [1]);
    let stats = run.ledger.stats();
    assert_eq!((stats.rollouts_waiting, stats.late_waiting), (0, 0));
    run.step(1);
    run.commit(2);
    let cancelled = run.ledger.audit();
    assert_eq!(cancelled.rollouts.dropped_for(DropReason::Cancelled), 1);
}

/// Counted in rollouts, a batch with three abstentions would wait for rollouts that no place lets in.
#[test]
fn trap_5_abstentions_at_bound_0_do_not_stop_the_run() {
    let rule = Settings {
        group_size: 4,
        groups_per_step: 2,
        ..settings()
    };
    let mut run = Run::new(rule);
    for _ in 0..2 {
        for lease in run.lease(0, 4) {
            run.finish(lease.lease, 0, &[(0, 2)]);
        }
    }
    run.score(&[0.0, 1.0, 0.0, 1.0, 1.0]);
    for lease in run.ledger.lease_scoring(0.0, common::SCORER, 3) {
        run.abstain(lease.lease);
    }
    let batch = run.batch(0);
    assert_eq!((batch.groups.len(), batch.rollouts().count()), (2, 5));
    run.step(0);
    assert_eq!(run.lease(1, 8).len(), 8);
}

/// At bound 0 what is over a batch is lost: two such sources must fit into one.
#[test]
fn trap_6_two_sources_at_bound_0_with_windows_beyond_a_batch_are_refused() {
    let slow = |max_staleness, share| Window {
        name: format!("slow {share}"),
        max_staleness,
        share,
    };
    let with = |e, windows| {
        let rule = Settings {
            groups_per_step: 4,
            windows,
            ..settings()
        };
        with_bound(e, rule).validate()
    };
    let refused = with(0, vec![slow(0, 0.25)]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "windows must be at most groups_per_step = 4 groups of all sources with max_staleness = 0: the surplus \
         would be lost, got 5"
    );
    assert!(with(1, vec![slow(0, 0.5), slow(0, 0.49)]).is_ok()); // ceil(2) + ceil(1.96) = 4
    assert!(with(2, vec![slow(0, 0.6), slow(0, 0.3)]).is_err()); // ceil(2.4) + ceil(1.2) = 5
    assert!(with(0, vec![slow(5, 0.25)]).is_ok());
}
