//! Closing early: groups at their last chance train with the members that are scored; the others come late.

mod common;

use common::{GENERATOR, Run, settings, with_bound};
use r1async_core::{Baseline, DropReason, LeaseId, RolloutLease, Settings, VerdictAck, WaitReason};

/// B = 1, G = 4, e = 1, two scored members at least; the advantage is the distance from the mean.
fn rule() -> Settings {
    with_bound(
        1,
        Settings {
            group_size: 4,
            min_group_size: 2,
            baseline: Baseline::Mean,
            ..settings()
        },
    )
}

/// Group 0 is trained by step 0. Group 1, of version 0, has two members scored with `rewards` (10 and 20
/// tokens), one that has sampled 6 tokens, and one that no generator has had.
fn one_unfinished(rule: Settings, rewards: [f64; 2]) -> (Run, Vec<RolloutLease>) {
    let mut run = Run::new(rule);
    run.complete_group(0, 5, &[0.0, 1.0, 0.0, 1.0]);
    run.admit();
    let installed = run.version(0);
    let leases = run.ledger.lease_rollouts(0.0, GENERATOR, installed, 3, 3);
    assert_eq!(leases.len(), 3);
    run.finish(leases[0].lease, 0, &[(0, 10)]);
    run.finish(leases[1].lease, 0, &[(0, 20)]);
    run.score(&rewards);
    run.send(leases[2].lease, 0, &[(0, 6)]);
    run.batch(0);
    run.step(0);
    (run, leases)
}

/// Trains group 1 without its third member, which goes on.
fn closed_early() -> (Run, LeaseId) {
    let (mut run, leases) = one_unfinished(rule(), [1.0, 0.0]);
    run.batch(1);
    run.step(1);
    (run, leases[2].lease)
}

#[test]
fn a_group_at_its_last_chance_trains_what_is_scored_and_gives_up_what_was_never_leased() {
    let (mut run, _) = one_unfinished(rule(), [1.0, 0.0]);
    let batch = run.batch(1);
    assert_eq!(batch.groups.len(), 1);
    let group = &batch.groups[0];
    assert_eq!((group.group.0, group.statistics.count), (1, 2));
    let members: Vec<(u64, f64, usize)> = group
        .rollouts
        .iter()
        .map(|rollout| (rollout.rollout.0, rollout.advantage, rollout.tokens.len()))
        .collect();
    assert_eq!(members, [(4, 0.5, 10), (5, -0.5, 20)]);
    assert!(batch.late.is_empty());
    let stats = run.ledger.stats();
    assert_eq!((stats.closed_early, stats.late_waiting), (1, 1));
    assert_eq!((stats.rollouts_waiting, stats.groups_open), (0, 0));
    run.step(1);
    run.commit(2);
    let audit = run.ledger.audit();
    assert_eq!(audit.difference(), None);
    assert_eq!((audit.prompts.trained, audit.rollouts.trained), (2, 6));
    assert_eq!(audit.rollouts.dropped_for(DropReason::Cancelled), 1);
    assert_eq!((audit.tokens.trained, audit.tokens.live), (20 + 30, 6));
}

#[test]
fn a_late_member_trains_with_the_next_batch_against_all_members_scored_by_then() {
    let (mut run, lease) = closed_early();
    run.finish(lease, 6, &[(1, 4)]);
    run.score(&[1.0]);
    assert_eq!(
        run.ledger.audit().rollouts.live,
        4 + 2 + 1 + 1 + 4,
        "two batches (one member cancelled in the second), a late member, a queued group"
    );
    assert!(matches!(run.wait(2), WaitReason::Groups { ready: 0, .. })); // It is not counted in B.
    let next = run.complete_group(2, 5, &[0.0, 1.0, 0.0, 1.0]);
    let batch = run.batch(2);
    assert_eq!(batch.groups.len(), 1);
    assert_eq!(batch.groups[0].group.0, next);
    assert_eq!(batch.late.len(), 1);
    let late = &batch.late[0];
    assert_eq!((late.group.0, late.statistics.count), (1, 3));
    let rollout = &late.rollouts[0];
    assert!((rollout.advantage - 1.0 / 3.0).abs() < 1e-15); // 1 - mean(1, 0, 1)
    // Version 0 is two steps old, the bound is one; the length that divides the loss is the full one.
    assert_eq!(rollout.over_age, [true, false]);
    assert_eq!((rollout.tokens.len(), rollout.loss_tokens()), (10, 4));
    run.step(2);
    run.commit(3);
    let audit = run.ledger.audit();
    assert_eq!(
        (audit.prompts.trained, audit.rollouts.trained),
        (3, 4 + 2 + 1 + 4)
    );
    assert_eq!(audit.tokens.dropped_for(DropReason::Stale), 6);
    let stats = run.ledger.stats();
    assert_eq!((stats.late_members, stats.late_waiting), (1, 0));
}

#[test]
fn late_members_take_no_place() {
    let (run, _) = closed_early();
    assert_eq!(run.ledger.stats().places, 0);
}

#[test]
fn a_late_member_that_abstains_is_dropped_alone() {
    let (mut run, lease) = closed_early();
    run.finish(lease, 6, &[(1, 4)]);
    let scoring = run.ledger.lease_scoring(0.0, common::SCORER, 1);
    assert_eq!(run.abstain(scoring[0].lease), VerdictAck::Held);
    let audit = run.ledger.audit();
    assert_eq!(audit.difference(), None);
    assert_eq!(run.ledger.stats().late_waiting, 0);
    run.commit(2);
    let audit = run.ledger.audit();
    assert_eq!(audit.tokens.dropped_for(DropReason::Abstained), 10);
    assert_eq!(audit.rollouts.dropped_for(DropReason::Abstained), 1);
    assert_eq!(
        (audit.prompts.trained, audit.prompts.dropped_total()),
        (2, 0)
    );
}

#[test]
fn a_late_member_lives_no_longer_than_its_deadlines() {
    let (mut run, lease) = closed_early();
    run.commit(2); // Its group is trained: what becomes of it is its own account.
    run.pass(59.0);
    run.send(lease, 6, &[(1, 1)]); // Still at work when its group's time is over.
    run.pass(571.0);
    let audit = run.ledger.audit();
    assert_eq!(audit.difference(), None);
    assert_eq!(run.ledger.stats().late_waiting, 0);
    assert_eq!(audit.rollouts.dropped_for(DropReason::Deadline), 1);
    assert_eq!(audit.tokens.dropped_for(DropReason::Deadline), 7);
}

#[test]
fn a_late_member_without_a_young_token_is_dropped_stale() {
    let (mut run, lease) = closed_early();
    run.finish(lease, 6, &[(0, 1)]);
    run.score(&[1.0]);
    run.complete_group(2, 5, &[0.0, 1.0, 0.0, 1.0]);
    assert!(run.batch(2).late.is_empty());
    run.step(2);
    run.commit(3);
    let audit = run.ledger.audit();
    assert_eq!(audit.rollouts.dropped_for(DropReason::Stale), 1);
    assert_eq!(audit.tokens.dropped_for(DropReason::Stale), 7);
    assert_eq!(audit.difference(), None);
}

#[test]
fn a_lost_late_member_goes_on_with_another_generator() {
    let (mut run, _) = closed_early();
    run.ledger.holder_lost(GENERATOR);
    let installed = run.version(2);
    let again = run
        .ledger
        .lease_rollouts(0.0, common::OTHER_GENERATOR, installed, 1, 1);
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].rollout.0, again[0].group.0), (6, 1));
    assert!(
        again[0].resume.is_empty(),
        "its tokens are too old to go on from"
    );
    assert_eq!(
        run.ledger
            .audit()
            .tokens
            .dropped_for(DropReason::Superseded),
        6
    );
}

#[test]
fn a_restarted_learner_gets_the_same_batches_with_the_same_late_members() {
    let (mut run, lease) = closed_early();
    run.finish(lease, 6, &[(1, 4)]);
    run.score(&[1.0]);
    run.complete_group(2, 5, &[0.0, 1.0, 0.0, 1.0]);
    let before = run.batch(2);
    run.commit(1);
    run.restart_learner(1);
    assert_eq!(run.groups(1), [1]);
    run.step(1);
    assert_eq!(run.batch(2), before);
    run.step(2);
    run.commit(3);
    let audit = run.ledger.audit();
    assert_eq!((audit.trained_twice, audit.difference()), (0, None));
    assert_eq!(audit.rollouts.trained, 4 + 2 + 1 + 4);
}

#[test]
fn a_reopened_ledger_goes_on_with_its_late_members() {
    for committed in [1, 2] {
        let (mut run, _) = closed_early();
        run.commit(committed);
        let before = run.ledger.audit();
        run.ledger.reopen(rule()).unwrap();
        assert_eq!(run.ledger.audit(), before);
        assert_eq!(run.ledger.contradiction(), None);
        run.ledger.connect_learner(1, committed).unwrap();
        run.epoch = 1;
        run.publish(committed);
        let again = run.lease(committed, 1);
        // Its six tokens are too old to go on from: the next step could train none of them.
        assert_eq!((again[0].group.0, again[0].resume.len()), (1, 0));
        let audit = run.ledger.audit();
        assert_eq!(audit.tokens.dropped_for(DropReason::Superseded), 6);
    }
}

#[test]
fn groups_that_agree_or_have_too_few_scores_do_not_close_early() {
    let (mut run, _) = one_unfinished(rule(), [1.0, 1.0]);
    assert!(matches!(
        run.wait(1),
        WaitReason::Groups {
            ready: 0,
            open: 1,
            ..
        }
    ));
    let three = Settings {
        min_group_size: 3,
        ..rule()
    };
    let (mut run, _) = one_unfinished(three, [1.0, 0.0]);
    assert!(matches!(
        run.wait(1),
        WaitReason::Groups {
            ready: 0,
            open: 1,
            ..
        }
    ));
}

#[test]
fn nothing_closes_early_where_that_is_switched_off() {
    let off = Settings {
        close_early: false,
        ..rule()
    };
    let (mut run, _) = one_unfinished(off, [1.0, 0.0]);
    assert!(matches!(
        run.wait(1),
        WaitReason::Groups {
            ready: 0,
            open: 1,
            ..
        }
    ));
}

#[test]
fn nothing_closes_early_at_bound_0() {
    let mut run = Run::new(with_bound(0, rule()));
    let leases = run.lease(0, 4);
    for lease in &leases[..3] {
        run.finish(lease.lease, 0, &[(0, 3)]);
    }
    run.score(&[1.0, 0.0, 1.0]);
    assert!(matches!(
        run.wait(0),
        WaitReason::Groups {
            ready: 0,
            open: 1,
            ..
        }
    ));
}

#[test]
fn a_group_before_its_last_chance_waits_for_all_its_members() {
    let mut run = Run::new(rule());
    let leases = run.lease(0, 4);
    for lease in &leases[..3] {
        run.finish(lease.lease, 0, &[(0, 3)]);
    }
    run.score(&[1.0, 0.0, 1.0]);
    assert!(matches!(
        run.wait(0),
        WaitReason::Groups {
            ready: 0,
            open: 1,
            ..
        }
    ));
}

#[test]
fn groups_at_their_last_chance_train_in_order_of_number_whether_complete_or_not() {
    // Group 1 is of version 0 and unfinished, group 2 complete: as old as that, or fresh.
    let wide = Settings {
        oversample: 2.0,
        ..rule()
    };
    for version in [0, 1] {
        let (mut run, _) = one_unfinished(wide.clone(), [1.0, 0.0]);
        run.lease(version, 1); // The fourth member of group 1.
        assert_eq!(run.complete_group(version, 5, &[0.0, 1.0, 0.0, 1.0]), 2);
        assert_eq!(run.groups(1), [1]);
    }
}

#[test]
fn a_step_is_held_for_the_unfinished_members_of_a_group_that_closes_now() {
    let patient = Settings {
        waste_budget: 0.0,
        ..rule()
    };
    let (mut run, leases) = one_unfinished(patient, [1.0, 0.0]);
    // Only the 6 tokens of the unfinished member would die: the scored ones train in this step.
    assert_eq!(
        run.wait(1).to_string(),
        "hold: step 1 waits for 1 rollouts of groups 1 (6 tokens dying), 0.0 s"
    );
    run.finish(leases[2].lease, 6, &[(1, 1)]);
    run.score(&[1.0]);
    // The group is complete but for the member that nobody ever had: it closes without it.
    let batch = run.batch(1);
    assert_eq!(batch.groups[0].rollouts.len(), 3);
    assert_eq!(run.ledger.stats().late_waiting, 0);
}

#[test]
fn a_step_is_held_for_late_members_at_their_last_chance() {
    let patient = Settings {
        waste_budget: 0.0,
        hold_deadline_s: 30.0,
        ..rule()
    };
    let (mut run, leases) = one_unfinished(patient, [1.0, 0.0]);
    run.wait(1);
    run.pass(30.0); // The hold runs into its deadline: group 1 closes early all the same.
    assert_eq!(run.groups(1), [1]);
    run.send(leases[2].lease, 6, &[(1, 5)]);
    run.step(1);
    run.complete_group(2, 5, &[0.0, 1.0, 0.0, 1.0]);
    assert_eq!(
        run.wait(2).to_string(),
        "hold: step 2 waits for 1 rollouts of groups 1 (5 tokens dying), 0.0 s"
    );
    run.finish(leases[2].lease, 11, &[(1, 1)]);
    run.score(&[0.0]);
    assert_eq!(run.batch(2).late.len(), 1);
}

#[test]
fn the_last_batch_of_the_prompts_waits_for_late_members_and_leaves_none_behind() {
    let mut run = Run::with_prompts(3, rule());
    run.complete_group(0, 5, &[0.0, 1.0, 0.0, 1.0]);
    let leases = run.lease(0, 4);
    for lease in &leases[..3] {
        run.finish(lease.lease, 0, &[(0, 3)]);
    }
    run.score(&[1.0, 0.0, 1.0]);
    run.send(leases[3].lease, 0, &[(0, 1)]);
    run.batch(0);
    run.step(0);
    run.groups(1);
    run.step(1);
    run.complete_group(2, 5, &[0.0, 1.0, 0.0, 1.0]);
    assert_eq!(
        run.wait(2).to_string(),
        "late: step 2, the last, waits for 1 rollouts of groups 1"
    );
    let waits = run.ledger.waits(run.now);
    let names: Vec<&str> = waits.iter().map(|wait| wait.name).collect();
    assert_eq!(names, ["late"]);
    run.finish(leases[3].lease, 1, &[(1, 1)]);
    run.score(&[1.0]);
    assert_eq!(run.batch(2).late.len(), 1);
    run.step(2);
    run.commit(3);
    assert!(run.ledger.is_finished());
    assert_eq!(run.ledger.audit().rollouts.live, 0);
}

#[test]
fn the_last_step_of_the_run_leaves_nothing_alive() {
    let short = Settings { steps: 2, ..rule() };
    let (mut run, _) = one_unfinished(short, [1.0, 0.0]);
    run.batch(1);
    run.step(1);
    run.commit(2);
    let audit = run.ledger.audit();
    assert_eq!((audit.rollouts.live, audit.difference()), (0, None));
    assert_eq!(audit.rollouts.dropped_for(DropReason::Cancelled), 2);
    assert_eq!(run.ledger.next_deadline(), None);
}

#[test]
fn waste_is_told_by_why_the_tokens_aged() {
    let (mut run, lease) = closed_early();
    run.finish(lease, 6, &[(1, 3), (2, 1)]); // Version 0 was too old when the rollout ended at version 2.
    run.score(&[1.0]);
    run.complete_group(2, 5, &[0.0, 1.0, 0.0, 1.0]);
    run.batch(2);
    run.step(2);
    let stats = run.ledger.stats();
    let (name, waste) = &stats.waste_by_source[0];
    assert_eq!(name, "main");
    assert_eq!((waste.own_length, waste.siblings, waste.queue), (6, 0, 0));
    assert_eq!((waste.generated, waste.dropped), (20 + 30 + 10 + 20, 0));
    // Batches of 4, 2 and 5 rollouts; the longest of the last one, of 10 tokens, lost its first 6.
    assert_eq!(stats.prefix_coverage, 3.0 / 4.0); // 1, 2 and 1 tokens of their first tenths.
    assert_eq!(stats.length_quarters[3], (5.0 + 4.0) / (5.0 + 10.0)); // The longer of two is in the third.
}
