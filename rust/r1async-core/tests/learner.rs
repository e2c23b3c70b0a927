//! The learner's life: steps, publications, commits, and what a restart hands out again.

mod common;

use common::{Run, settings, with_bound};
use r1async_core::{
    Bind, ChunkAck, ChunkError, DropReason, GroupId, LearnerError, Ledger, PolicyVersion, Settings,
    Step,
};

/// `steps` steps done, none committed; then one batch handed out that is not reported.
fn run_with_steps(e: u64, steps: u64) -> Run {
    let mut run = Run::new(with_bound(e, settings()));
    for step in 0..=steps {
        run.complete_group(step, 2, &[0.0, 1.0]);
        run.batch(step);
        if step < steps {
            run.step(step);
        }
    }
    run
}

#[test]
fn a_commit_trains_every_step_in_the_checkpoint_and_no_other() {
    let mut run = run_with_steps(0, 3);
    run.commit(2);
    let audit = run.ledger.audit();
    assert_eq!(
        (
            audit.prompts.trained,
            audit.rollouts.trained,
            audit.tokens.trained
        ),
        (2, 4, 8)
    );
    assert_eq!((audit.prompts.live, audit.tokens.live), (3, 8)); // Two in batches, one queued.
    run.commit(2); // Said twice, it counts once.
    assert_eq!(run.ledger.audit(), audit);
    let error = run.ledger.committed(0, 4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "checkpoint of step 4; want at most 3, the steps reported"
    );
}

#[test]
fn stepped_but_untrained_batches_are_handed_out_again_in_order_with_the_same_members() {
    let mut run = run_with_steps(0, 3);
    run.commit(1);
    run.restart_learner(1);
    for step in 1..=3 {
        assert_eq!(run.groups(step), [step]);
        run.step(step);
    }
    run.commit(4);
    let audit = run.ledger.audit();
    assert_eq!((audit.prompts.trained, audit.trained_twice), (4, 0));
}

#[test]
fn a_new_life_has_done_and_made_nothing_before_it_had_its_batch() {
    let mut run = run_with_steps(2, 2);
    let lease = run.lease(2, 2)[0].lease;
    run.restart_learner(0);
    assert!(run.ledger.stepped(1, Step(0)).is_err());
    assert!(matches!(
        run.try_send(lease, 0, &[(1, 1)], None),
        Err(ChunkError::Version { .. })
    ));
    run.batch(0);
    assert_eq!(run.send(lease, 0, &[(1, 1)]), ChunkAck::Held(1));
    run.ledger.stepped(1, Step(0)).unwrap();
}

#[test]
fn steps_in_the_checkpoint_are_trained_at_connect_even_if_never_reported() {
    let mut run = run_with_steps(0, 1);
    run.restart_learner(2); // The checkpoint holds step 1, whose report was lost with the learner.
    assert_eq!(run.ledger.audit().prompts.trained, 2);
    assert_eq!(run.ledger.steps_done(), 2);
    let error = run.ledger.connect_learner(9, 3).unwrap_err();
    assert_eq!(error, LearnerError::CheckpointTooNew { got: 3, known: 2 });
    let error = run.ledger.connect_learner(9, 1).unwrap_err();
    assert_eq!(
        error,
        LearnerError::CheckpointTooOld {
            got: 1,
            committed: 2
        }
    );
}

#[test]
fn everything_of_an_older_epoch_is_refused_and_changes_nothing() {
    let mut run = run_with_steps(0, 1);
    run.restart_learner(0);
    let audit = run.ledger.audit();
    let seen = |error| {
        matches!(
            error,
            Err(LearnerError::Epoch {
                got: 0,
                seen: 1,
                ..
            })
        )
    };
    assert!(seen(run.ledger.stepped(0, Step(0))));
    assert!(seen(run.ledger.committed(0, 0)));
    assert!(seen(run.ledger.published(PolicyVersion::new(0, 0), "hash")));
    assert!(seen(run.ledger.connect_learner(0, 0)));
    assert!(seen(run.ledger.reconnect_learner(0)));
    assert_eq!(run.ledger.audit(), audit);
    assert_eq!(run.ledger.reconnect_learner(1), Ok(()));
}

#[test]
fn a_step_is_reported_once_its_batch_is_out_and_counts_once() {
    let mut run = Run::new(settings());
    run.complete_group(0, 1, &[0.0, 1.0]);
    let error = run.ledger.stepped(0, Step(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "step 0; want 0, once its batch was handed out"
    );
    run.batch(0);
    assert!(run.ledger.stepped(0, Step(1)).is_err());
    run.ledger.stepped(0, Step(0)).unwrap();
    run.ledger.stepped(0, Step(0)).unwrap();
    assert_eq!(run.ledger.steps_done(), 1);
}

#[test]
fn versions_are_published_in_order_and_never_before_their_step() {
    let mut run = Run::new(settings());
    assert!(
        run.ledger
            .published(PolicyVersion::new(0, 1), "hash")
            .is_err()
    );
    run.complete_group(0, 1, &[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    let error = run
        .ledger
        .published(PolicyVersion::new(0, 0), "hash")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "version 0; want 1 to 1, the steps reported"
    );
    assert_eq!(
        run.ledger.published_version(),
        Some((PolicyVersion::new(0, 1), "hash"))
    );
}

#[test]
fn tokens_of_a_life_that_has_ended_still_count_but_only_versions_it_made() {
    let mut run = run_with_steps(2, 2);
    let lease = run.lease(2, 2)[0].lease;
    run.send(lease, 0, &[(2, 3)]);
    run.restart_learner(0);
    run.epoch = 0; // The generator has not heard of it yet; the batch of step 2 was out.
    assert_eq!(run.send(lease, 3, &[(2, 1), (3, 1)]), ChunkAck::Held(5));
    assert!(matches!(
        run.try_send(lease, 5, &[(4, 1)], None),
        Err(ChunkError::Version { .. })
    ));
    assert!(run.lease(2, 9).is_empty()); // It gets nothing new before it has weights of the new life.
    run.epoch = 1;
    assert_eq!(run.send(lease, 5, &[(0, 1)]), ChunkAck::Held(6));
}

#[test]
fn a_batch_is_asked_for_only_by_a_learner_that_connected() {
    let mut ledger = Ledger::new(settings()).unwrap();
    assert!(ledger.bind_batch(0.0, Step(0)).is_err());
    assert_eq!(ledger.waits(0.0)[0].text, "learner: none has connected");
    ledger.connect_learner(3, 0).unwrap();
    assert_eq!(
        ledger.waits(0.0)[0].text,
        "weights: the learner of epoch 3 has published none"
    );
    ledger.learner_lost();
    assert_eq!(
        ledger.waits(0.0)[0].text,
        "learner: the one of epoch 3 is gone"
    );
    assert!(matches!(ledger.bind_batch(0.0, Step(0)), Ok(Bind::Wait(_))));
}

#[test]
fn a_reopened_ledger_has_everything_but_the_loans() {
    let mut run = run_with_steps(2, 3); // Groups 0 to 3 in batches,
    let leases = run.lease(3, 2); // group 4 open,
    run.send(leases[0].lease, 0, &[(3, 2)]); // two tokens of its first member received,
    run.commit(2); // groups 0 and 1 trained.
    let before = run.ledger.audit();
    let settings = Settings {
        incarnation: 5,
        ..run.ledger.settings().clone()
    };
    run.ledger.reopen(settings).unwrap();
    assert_eq!(run.ledger.audit(), before);
    assert!(run.ledger.connect_learner(0, 2).is_err()); // Epochs go on, too.
    run.ledger.connect_learner(1, 2).unwrap();
    run.epoch = 1;
    run.publish(2);
    let Ok(Bind::Ready(batch)) = run.ledger.bind_batch(0.0, Step(2)) else {
        panic!("the batch that was stepped but not trained is handed out again");
    };
    assert_eq!(batch.groups[0].group.0, 2);
    let again = run.lease(2, 2);
    let lent: Vec<(u64, usize)> = again
        .iter()
        .map(|lease| (lease.rollout.0, lease.resume.len()))
        .collect();
    assert_eq!(
        lent,
        [(8, 2), (9, 0)],
        "the tokens received are gone on from"
    );
    assert_eq!(
        again[0].lease.0 >> 40,
        5,
        "leases of the life before are never mistaken for new ones"
    );
    assert_eq!(run.ledger.audit().difference(), None);
}

#[test]
fn a_ledger_is_not_reopened_with_another_group_size() {
    let mut ledger = Ledger::new(settings()).unwrap();
    let other = Settings {
        group_size: 4,
        ..settings()
    };
    assert_eq!(
        ledger.reopen(other).unwrap_err().to_string(),
        "group_size must be 2, as the rollouts of this run are numbered by it, got 4"
    );
}

#[test]
fn a_rejected_prompt_is_counted_and_its_place_in_the_order_is_used_up() {
    let mut ledger = Ledger::new(settings()).unwrap();
    assert_eq!(ledger.wanted_prompts(), [0]);
    ledger.reject_prompt(0).unwrap();
    assert_eq!(ledger.wanted_prompts(), [1]);
    let error = ledger.admit(0, vec![1], Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "prompt 0; want Some(1), the first of the prompts asked for"
    );
    assert!(ledger.admit(1, Vec::new(), Vec::new()).is_err());
    assert_eq!(
        ledger.admit(1, vec![1], Vec::new()).unwrap(),
        Some(GroupId(0))
    );
    let audit = ledger.audit();
    assert_eq!(
        (
            audit.prompts.incoming,
            audit.prompts.dropped_for(DropReason::Invalid)
        ),
        (2, 1)
    );
    assert_eq!(audit.rollouts.incoming, 2);
}
