//! Holds: when a step waits for unfinished rollouts, for which, and for how long.

mod common;

use common::{Run, settings, with_bound};
use r1async_core::{Settings, WaitReason};

/// B = 1, e = 1; group 0 ready, group 1 with one finished and one generating member, all of version 0.
fn one_ready_one_unfinished(waste_budget: f64) -> (Run, Vec<r1async_core::RolloutLease>) {
    let rule = Settings {
        waste_budget,
        hold_deadline_s: 30.0,
        ..settings()
    };
    let mut run = Run::new(with_bound(1, rule));
    run.complete_group(0, 10, &[0.0, 1.0]); // Group 0 trains in step 0.
    let leases = run.lease(0, 2); // Group 1, at version 0: its last chance is step 1.
    run.send(leases[0].lease, 0, &[(0, 6)]);
    run.finish(leases[1].lease, 0, &[(0, 4)]);
    run.score(&[1.0]);
    run.batch(0);
    run.step(0);
    run.complete_group(1, 10, &[0.0, 1.0]); // Group 2, ready for step 1.
    (run, leases)
}

#[test]
fn a_step_is_held_for_tokens_of_unfinished_rollouts_at_their_last_chance() {
    let (mut run, leases) = one_ready_one_unfinished(0.0);
    run.now = 2.0;
    let wait = run.wait(1);
    assert_eq!(
        wait.to_string(),
        "hold: step 1 waits for 1 rollouts of groups 1 (10 tokens dying), 0.0 s"
    );
    run.now = 5.0;
    assert_eq!(
        run.ledger.waits(5.0)[0].text,
        "hold: step 1 waits for 1 rollouts of groups 1 (10 tokens dying), 3.0 s"
    );
    run.finish(leases[0].lease, 6, &[(1, 1)]);
    assert!(matches!(run.wait(1), WaitReason::Hold { rollouts: 1, .. })); // Being scored is unfinished, too.
    run.score(&[0.0]);
    assert_eq!(run.groups(1), [1]); // Oldest first: nothing died.
    let stats = run.ledger.stats();
    assert_eq!(
        (stats.holds, stats.held_s, stats.hold_timeouts, stats.waste),
        (1, 3.0, 0, 0.0)
    );
}

#[test]
fn a_hold_ends_at_its_deadline_and_the_tokens_are_counted_as_waste() {
    let (mut run, _) = one_ready_one_unfinished(0.0);
    run.wait(1);
    assert_eq!(run.ledger.next_deadline(), Some(30.0));
    run.ledger.take_news();
    run.pass(30.0);
    assert!(run.ledger.take_news().batch);
    assert_eq!(run.groups(1), [2]);
    let stats = run.ledger.stats();
    assert_eq!(
        (stats.holds, stats.hold_timeouts, stats.held_s),
        (1, 1, 30.0)
    );
    // 20 tokens came before step 0, 10 of group 1 before and 20 of group 2 after it, then one decay each;
    // the 10 that die decay with the last.
    let (dead, generated) = (10.0 * 0.97, ((20.0 + 10.0) * 0.97 + 20.0) * 0.97);
    assert!(
        (stats.waste - dead / generated).abs() < 1e-12,
        "{}",
        stats.waste
    );
}

#[test]
fn the_budget_says_how_many_tokens_may_die() {
    // 10 dying of 30 * 0.97 + 20 = 49.1 generated: 20.4 %.
    let (mut run, _) = one_ready_one_unfinished(0.21);
    assert_eq!(run.groups(1), [2]);
    let (mut run, _) = one_ready_one_unfinished(0.2);
    assert!(matches!(run.wait(1), WaitReason::Hold { tokens: 10, .. }));
    let (mut run, _) = one_ready_one_unfinished(1.0);
    assert_eq!(run.groups(1), [2]);
}

#[test]
fn no_step_is_held_for_tokens_of_ready_groups() {
    // Two groups of version 0 are ready for step 0, and both again for step 1, where only one can train.
    let rule = Settings {
        waste_budget: 0.0,
        oversample: 2.0,
        ..settings()
    };
    let mut run = Run::new(with_bound(1, rule));
    for _ in 0..3 {
        run.complete_group(0, 5, &[0.0, 1.0]);
    }
    run.batch(0);
    run.step(0);
    assert_eq!(run.groups(1), [1]); // Group 2 dies: waiting would not have saved it.
    run.step(1);
    assert!(matches!(run.wait(2), WaitReason::Groups { ready: 0, .. }));
    assert_eq!(run.ledger.stats().holds, 0);
}

#[test]
fn at_bound_0_no_budget_holds_a_step() {
    let mut run = Run::new(Settings {
        waste_budget: 0.0,
        oversample: 3.0,
        ..settings()
    });
    let leases = run.lease(0, 6);
    for lease in &leases[2..] {
        run.send(lease.lease, 0, &[(0, 3)]);
    }
    for lease in &leases[..2] {
        run.finish(lease.lease, 0, &[(0, 3)]);
    }
    run.score(&[0.0, 1.0]);
    assert_eq!(run.groups(0), [0]);
}
