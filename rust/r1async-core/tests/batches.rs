//! Batches: which groups a step trains, what becomes of old tokens, when a step is held.

mod common;

use common::{Run, settings, with_bound};
use r1async_core::{Bind, DropReason, Finish, OverAge, Settings, Step, WaitReason};

/// Does step `step` with one group made for it on the spot, so that versions move on.
fn advance(run: &mut Run, step: u64) {
    run.complete_group(step, 1, &[0.0, 1.0]);
    run.batch(step);
    run.step(step);
}

#[test]
fn a_batch_has_what_the_learner_needs() {
    let mut run = Run::new(with_bound(2, settings()));
    let leases = run.lease(0, 2);
    run.finish(leases[0].lease, 0, &[(0, 4)]);
    run.try_send(leases[1].lease, 0, &[(0, 2)], Some(Finish::Length))
        .unwrap();
    run.score(&[1.0, 0.0]);
    let batch = run.batch(0);
    assert_eq!((batch.step, batch.groups.len()), (Step(0), 1));
    let group = &batch.groups[0];
    assert_eq!(group.prompt.tokens, [1, 2, 3]);
    assert_eq!(
        (
            group.statistics.mean,
            group.statistics.std,
            group.statistics.pass_rate
        ),
        (0.5, 0.5, 0.5)
    );
    let [good, bad] = &group.rollouts[..] else {
        panic!("two members")
    };
    assert_eq!((good.rollout.0, bad.rollout.0), (0, 1));
    assert_eq!(
        (good.tokens.as_slice(), good.logprobs.as_slice()),
        ([0, 1, 2, 3].as_slice(), [-0.5; 4].as_slice())
    );
    assert!((good.advantage - 0.5 / (0.5 + 1e-6)).abs() < 1e-12);
    assert_eq!(bad.advantage, -good.advantage);
    assert_eq!((good.finish, bad.finish), (Finish::Stop, Finish::Length));
    assert_eq!(
        (good.score.total, good.score.parts[0].0.as_str()),
        (1.0, "accuracy")
    );
    assert_eq!(
        (good.finish_version, good.over_age.as_slice()),
        (run.version(0), [false].as_slice())
    );
}

#[test]
fn asked_again_it_is_the_same_batch() {
    let mut run = Run::new(settings());
    run.complete_group(0, 3, &[0.0, 1.0]);
    let first = run.batch(0);
    assert_eq!(first, run.batch(0));
    assert!(run.ledger.bind_batch(0.0, Step(1)).is_err());
    run.step(0);
    assert!(run.ledger.bind_batch(0.0, Step(0)).is_err());
}

#[test]
fn a_wait_for_groups_says_how_many() {
    let mut run = Run::new(Settings {
        groups_per_step: 3,
        ..settings()
    });
    run.complete_group(0, 1, &[0.0, 1.0]);
    let open = run.lease(0, 4).len() / 2;
    assert_eq!(open, 2);
    assert_eq!(
        run.wait(0),
        WaitReason::Groups {
            step: Step(0),
            ready: 1,
            want: 3,
            open: 2
        }
    );
    assert!(run.ledger.waits(0.0).iter().any(|wait| wait.text
        == "groups: 1 of 3 ready for step 0, 2 open"
        && wait.groups.len() == 2));
}

#[test]
fn groups_train_in_order_of_deadline_then_number_however_they_finish() {
    let mut run = Run::new(with_bound(2, settings()));
    let leases = run.lease(0, 6); // Groups 0, 1, 2 at version 0.
    for pair in [4, 2, 0] {
        run.finish(leases[pair].lease, 0, &[(0, 1)]);
        run.finish(leases[pair + 1].lease, 0, &[(0, 1)]);
        run.score(&[0.0, 1.0]);
    }
    assert_eq!(run.groups(0), [0]);
    run.step(0);
    assert_eq!(run.complete_group(1, 1, &[0.0, 1.0]), 3);
    assert_eq!(run.groups(1), [1]); // Deadline 2 before deadline 3.
    run.step(1);
    assert_eq!(run.groups(2), [2]);
}

#[test]
fn mask_takes_old_tokens_out_of_the_loss_and_keeps_them_as_context() {
    let mut run = Run::new(with_bound(1, settings()));
    let leases = run.lease(0, 2);
    run.send(leases[0].lease, 0, &[(0, 3)]);
    run.finish(leases[1].lease, 0, &[(0, 2)]);
    run.score(&[0.0]);
    advance(&mut run, 0);
    run.send(leases[0].lease, 3, &[(1, 4)]);
    advance(&mut run, 1);
    run.finish(leases[0].lease, 7, &[(2, 2)]);
    run.score(&[1.0]);
    let batch = run.batch(2); // Version 0 is 2 steps old, the bound is 1.
    let group = &batch.groups[0];
    // Member 1 has nothing young enough: it gave its reward to the statistics, and does not train.
    assert_eq!(group.rollouts.len(), 1);
    assert_eq!(group.statistics.count, 2);
    let long = &group.rollouts[0];
    assert_eq!(
        (long.over_age.as_slice(), long.loss_tokens()),
        ([true, false, false].as_slice(), 6)
    );
    assert_eq!(long.tokens.len(), 9);
    run.step(2);
    let stats = run.ledger.stats();
    assert_eq!(
        stats.staleness.counts().collect::<Vec<_>>(),
        [(0, 6), (1, 4)]
    );
    assert_eq!((stats.staleness.max(), stats.staleness.p95()), (1, 1));
    run.commit(3);
    let audit = run.ledger.audit();
    assert_eq!(audit.tokens.dropped_for(DropReason::Stale), 3 + 2);
    assert_eq!(audit.rollouts.dropped_for(DropReason::Stale), 1);
    assert_eq!(
        (
            audit.tokens.trained,
            audit.rollouts.trained,
            audit.prompts.trained
        ),
        (10, 5, 3)
    );
}

/// Group 0 with a token of version 0 in one member, the rest of versions 1 and 2; at step 2.
fn group_with_one_old_token(over_age: OverAge) -> Run {
    let mut run = Run::new(with_bound(
        1,
        Settings {
            over_age,
            retries: 1,
            ..settings()
        },
    ));
    let leases = run.lease(0, 2);
    run.send(leases[0].lease, 0, &[(0, 1)]);
    advance(&mut run, 0);
    run.finish(leases[0].lease, 1, &[(1, 3)]);
    run.score(&[1.0]);
    advance(&mut run, 1);
    run.finish(leases[1].lease, 0, &[(2, 2)]);
    run.score(&[0.0]);
    run
}

#[test]
fn drop_takes_the_whole_group_and_its_prompt_returns_as_often_as_said() {
    let mut run = group_with_one_old_token(OverAge::Drop);
    assert!(matches!(run.wait(2), WaitReason::Groups { ready: 0, .. }));
    let audit = run.ledger.audit();
    assert_eq!(audit.prompts.dropped_for(DropReason::Stale), 1);
    assert_eq!(audit.rollouts.dropped_for(DropReason::Stale), 2);
    assert_eq!(audit.tokens.dropped_for(DropReason::Stale), 6);
    // It comes back at the end of the queue, as a new group.
    let returned = (2..9).find_map(|step| {
        let leases = run.lease(step, 2);
        for lease in &leases {
            run.finish(lease.lease, 0, &[(step, 1)]);
        }
        run.score(&[0.0, 1.0]);
        run.batch(step);
        run.step(step);
        (leases[0].prompt.ordinal == 0).then_some(leases[0].group.0)
    });
    assert_eq!(returned, Some(5)); // 0 to 4 were queued when group 0 was dropped.
}

#[test]
fn a_prompt_that_has_used_its_retries_does_not_return() {
    let mut run = Run::new(with_bound(
        1,
        Settings {
            over_age: OverAge::Drop,
            retries: 0,
            ..settings()
        },
    ));
    let leases = run.lease(0, 2);
    run.finish(leases[0].lease, 0, &[(0, 1)]);
    run.score(&[0.0]);
    advance(&mut run, 0);
    advance(&mut run, 1);
    run.finish(leases[1].lease, 0, &[(2, 1)]);
    run.score(&[1.0]);
    run.wait(2);
    assert_eq!(run.ledger.stats().groups_dropped[&DropReason::Stale], 1);
    assert!(
        run.lease(2, 100)
            .iter()
            .all(|lease| lease.prompt.ordinal != 0)
    );
}

#[test]
fn train_trains_old_tokens_and_counts_them() {
    let mut run = group_with_one_old_token(OverAge::Train);
    let batch = run.batch(2);
    assert!(
        batch
            .rollouts()
            .all(|(_, rollout)| rollout.over_age.iter().all(|over| !over))
    );
    run.step(2);
    let stats = run.ledger.stats();
    assert_eq!((stats.over_age_trained, stats.staleness.max()), (1, 2));
}

#[test]
fn a_group_with_nothing_young_is_dropped_stale_and_takes_no_place_in_the_batch() {
    let mut run = Run::new(with_bound(1, settings()));
    let leases = run.lease(0, 2);
    advance(&mut run, 0);
    advance(&mut run, 1);
    for lease in &leases {
        run.finish(lease.lease, 0, &[(0, 5)]);
    }
    run.score(&[0.0, 1.0]);
    let fresh = run.complete_group(2, 1, &[0.0, 1.0]);
    assert_eq!(run.groups(2), [fresh]);
    assert_eq!(run.ledger.audit().tokens.dropped_for(DropReason::Stale), 10);
}

#[test]
fn a_drop_at_packing_frees_its_place() {
    let mut run = Run::new(with_bound(1, settings())); // 2 places.
    let leases = run.lease(0, 2);
    advance(&mut run, 0);
    advance(&mut run, 1);
    for lease in &leases {
        run.finish(lease.lease, 0, &[(0, 5)]);
    }
    run.score(&[0.0, 1.0]);
    assert_eq!(run.lease(2, 100).len(), 2);
    run.ledger.take_news();
    run.wait(2); // Drops the stale group,
    assert!(run.ledger.take_news().rollouts); // says so,
    assert_eq!(run.lease(2, 100).len(), 2); // and another one is opened.
}

#[test]
fn a_trained_step_keeps_its_places_until_the_generator_that_asks_has_its_weights() {
    let mut run = Run::new(with_bound(1, settings())); // 2 places.
    run.complete_group(0, 5, &[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    run.commit(1); // A checkpoint that comes sooner than the weights do frees nothing.
    assert_eq!(run.lease(0, 100).len(), 2);
    assert_eq!(run.lease(0, 100).len(), 0);
    assert_eq!(run.lease(1, 100).len(), 2);
}

#[test]
fn the_last_batch_is_short_when_the_prompts_are_used_up() {
    let mut run = Run::with_prompts(
        3,
        with_bound(
            1,
            Settings {
                groups_per_step: 2,
                ..settings()
            },
        ),
    );
    for group in 0..3 {
        assert_eq!(run.complete_group(0, 1, &[0.0, 1.0]), group);
    }
    assert_eq!(run.groups(0), [0, 1]);
    run.step(0);
    assert_eq!(run.groups(1), [2]);
    run.step(1);
    assert_eq!(run.ledger.bind_batch(0.0, Step(2)).unwrap(), Bind::Finished);
    assert!(run.ledger.is_finished());
}

#[test]
fn a_run_of_n_steps_is_finished_after_them() {
    let mut run = Run::new(Settings {
        steps: 1,
        ..settings()
    });
    run.complete_group(0, 1, &[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    assert_eq!(run.ledger.bind_batch(0.0, Step(1)).unwrap(), Bind::Finished);
    assert!(run.ledger.waits(0.0).is_empty());
}
