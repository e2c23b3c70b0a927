//! A batch handed out part by part while it fills: the learner accumulates gradients meanwhile.

mod common;

use common::{GENERATOR, Run, settings, with_bound};
use r1async_core::{BatchPart, BindPart, BoundBatch, RolloutLease, Settings, Step, WaitReason};

/// B = 3, e = 1, groups of 2.
fn rule() -> Settings {
    with_bound(
        1,
        Settings {
            groups_per_step: 3,
            part_groups: 1,
            ..settings()
        },
    )
}

/// The groups of one part, whether it is the last, and the batch as far as it goes.
fn part(run: &mut Run, step: u64, part: usize) -> (Vec<u64>, bool, BoundBatch) {
    match run.ledger.bind_part(run.now, Step(step), part).unwrap() {
        BindPart::Ready(batch, BatchPart { groups, last, .. }) => {
            let ids = batch.groups[groups].iter().map(|group| group.group.0);
            (ids.collect(), last, batch.clone())
        }
        other => panic!("no part {part} of step {step}: {other:?}"),
    }
}

fn wait(run: &mut Run, step: u64, part: usize) -> WaitReason {
    match run.ledger.bind_part(run.now, Step(step), part).unwrap() {
        BindPart::Wait(reason) => reason,
        other => panic!("part {part} of step {step} does not wait: {other:?}"),
    }
}

fn complete(run: &mut Run, version: u64) -> u64 {
    run.complete_group(version, 4, &[0.0, 1.0])
}

#[test]
fn what_is_ready_is_handed_out_and_the_last_part_binds_the_rest() {
    let mut run = Run::new(rule());
    assert!(matches!(
        wait(&mut run, 0, 0),
        WaitReason::Groups { ready: 0, .. }
    ));
    complete(&mut run, 0);
    assert_eq!(part(&mut run, 0, 0).0, [0]);
    assert!(matches!(
        wait(&mut run, 0, 1),
        WaitReason::Groups {
            ready: 1,
            want: 3,
            ..
        }
    ));
    complete(&mut run, 0);
    complete(&mut run, 0);
    let (groups, last, batch) = part(&mut run, 0, 1);
    assert_eq!((groups, last, batch.groups.len()), (vec![1, 2], true, 3));
    run.step(0);
    run.commit(1);
    let audit = run.ledger.audit();
    assert_eq!((audit.prompts.trained, audit.difference()), (3, None));
}

#[test]
fn groups_of_a_batch_that_fills_keep_their_places_and_their_account() {
    let mut run = Run::new(rule());
    complete(&mut run, 0);
    let before = run.ledger.stats().places;
    part(&mut run, 0, 0);
    let stats = run.ledger.stats();
    assert_eq!(
        (stats.places, stats.groups_bound, stats.groups_ready),
        (before, 1, 0)
    );
    let audit = run.ledger.audit();
    assert_eq!((audit.difference(), audit.tokens.live), (None, 8));
}

/// Groups 3 and 4 have a token of version 0 in every rollout, and step 1 is next: they train in it or never.
fn two_groups_at_their_last_chance(run: &mut Run) -> Vec<RolloutLease> {
    for _ in 0..3 {
        complete(run, 0);
    }
    run.admit();
    let installed = run.version(0);
    let old = run.ledger.lease_rollouts(0.0, GENERATOR, installed, 4, 4);
    for lease in &old {
        run.send(lease.lease, 0, &[(0, 1)]);
    }
    run.batch(0);
    run.step(0);
    old
}

#[test]
fn places_are_kept_for_groups_at_their_last_chance() {
    let mut run = Run::new(rule());
    let old = two_groups_at_their_last_chance(&mut run);
    complete(&mut run, 1);
    complete(&mut run, 1);
    let (groups, last, _) = part(&mut run, 1, 0);
    assert_eq!(
        (groups, last),
        (vec![5], false),
        "one place of three, two are kept"
    );
    for lease in &old {
        run.finish(lease.lease, 1, &[(1, 1)]);
    }
    run.score(&[0.0, 1.0, 0.0, 1.0]);
    let (groups, last, _) = part(&mut run, 1, 1);
    assert_eq!((groups, last), (vec![3, 4], true));
}

#[test]
fn a_restarted_learner_gets_the_same_parts_or_the_whole_batch() {
    let mut run = Run::new(rule());
    complete(&mut run, 0);
    let first = part(&mut run, 0, 0);
    run.restart_learner(0);
    assert_eq!(part(&mut run, 0, 0), first);
    complete(&mut run, 0);
    complete(&mut run, 0);
    let whole = run.batch(0);
    let ids: Vec<u64> = whole.groups.iter().map(|group| group.group.0).collect();
    assert_eq!(ids, [0, 1, 2]);
    run.restart_learner(0);
    assert_eq!(part(&mut run, 0, 0).0, [0]);
    assert_eq!(part(&mut run, 0, 1), (vec![1, 2], true, whole));
    let error = run.ledger.bind_part(0.0, Step(0), 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "part 2 of step 0; want at most 2, the parts handed out"
    );
}

#[test]
fn at_bound_0_every_open_group_keeps_its_place() {
    let mut run = Run::new(with_bound(0, rule()));
    complete(&mut run, 0);
    run.lease(0, 4); // Groups 1 and 2, without a token yet.
    assert_eq!(part(&mut run, 0, 0).0, [0]);
    assert!(matches!(
        wait(&mut run, 0, 1),
        WaitReason::Groups {
            ready: 1,
            open: 2,
            ..
        }
    ));
}

#[test]
fn the_last_batch_of_the_prompts_closes_short_part_by_part() {
    let mut run = Run::with_prompts(2, rule());
    complete(&mut run, 0);
    assert_eq!(part(&mut run, 0, 0).0, [0]);
    assert!(!run.ledger.is_finished());
    complete(&mut run, 0);
    assert_eq!(part(&mut run, 0, 1).0, [1]);
    run.step(0);
    run.commit(1);
    assert!(run.ledger.is_finished());
    assert_eq!(run.ledger.audit().prompts.live, 0);
}

#[test]
fn smaller_batches_after_a_restart_of_the_buffer_end_the_one_that_is_begun() {
    let mut run = Run::new(rule());
    complete(&mut run, 0);
    complete(&mut run, 0);
    assert_eq!(part(&mut run, 0, 0).0, [0, 1]);
    let smaller = Settings {
        groups_per_step: 1,
        incarnation: 1,
        ..rule()
    };
    run.ledger.reopen(smaller).unwrap();
    let (groups, last, batch) = part(&mut run, 0, 1);
    assert_eq!((groups, last, batch.groups.len()), (vec![], true, 2));
    run.step(0);
    run.commit(1);
    assert_eq!(run.ledger.audit().prompts.trained, 2);
}

#[test]
fn a_hold_does_not_count_the_time_in_which_a_part_is_trained() {
    let mut run = Run::new(Settings {
        waste_budget: 0.0,
        ..rule()
    });
    let old = two_groups_at_their_last_chance(&mut run);
    for _ in 0..3 {
        complete(&mut run, 1);
    }
    assert!(!part(&mut run, 1, 0).1);
    assert_eq!(run.ledger.stats().holds, 1);
    run.now += 40.0;
    assert!(matches!(
        wait(&mut run, 1, 1),
        WaitReason::Hold { seconds: 0.0, .. }
    ));
    for lease in &old {
        run.finish(lease.lease, 1, &[(1, 1)]);
    }
    run.score(&[0.0, 1.0, 0.0, 1.0]);
    assert!(part(&mut run, 1, 1).1);
    assert!(run.ledger.stats().held_s < 1e-9);
}
