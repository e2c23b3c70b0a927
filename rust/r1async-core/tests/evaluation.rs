//! Evaluation: pinned, outside pacing, in accounts of its own.

mod common;

use common::{GENERATOR, OTHER_GENERATOR, Run, SCORER, settings};
use r1async_core::{
    ChunkError, DropReason, EVALUATION_BIT, EvaluateError, EvaluationRequest, Finish, Outcome,
    PolicyVersion, Prompt, Sampling,
};

const SAMPLING: Sampling = Sampling {
    temperature: 0.6,
    top_p: 0.95,
    top_k: 0,
    max_tokens: 5,
    greedy: false,
};

fn request(id: &str, pin: u64, prompts: u64, samples: usize) -> EvaluationRequest {
    let prompts = (0..prompts)
        .map(|ordinal| Prompt {
            ordinal,
            tokens: vec![9],
            meta: Vec::new(),
            pool: 0,
        })
        .collect();
    EvaluationRequest {
        id: id.to_owned(),
        pin: PolicyVersion::new(0, pin),
        samples,
        sampling: SAMPLING,
        first: None,
        prompts,
    }
}

#[test]
fn an_evaluator_that_numbers_its_completions_has_the_same_numbers_again() {
    let mut run = Run::new(settings());
    let numbered = |id: &str| EvaluationRequest {
        first: Some(10),
        ..request(id, 0, 2, 2)
    };
    for id in ["first life", "second life"] {
        assert_eq!(run.ledger.evaluate(numbered(id)), Ok(2));
        let leases = run.ledger.lease_evaluation(0.0, GENERATOR, 10);
        let numbers: Vec<u64> = leases
            .iter()
            .map(|lease| lease.rollout.0 ^ EVALUATION_BIT)
            .collect();
        assert_eq!(numbers, [10, 11, 12, 13]);
        assert!(run.ledger.cancel_evaluation(id));
    }
}

#[test]
fn an_evaluation_is_delivered_group_by_group_and_takes_no_place() {
    let mut run = Run::new(settings());
    assert_eq!(run.ledger.evaluate(request("before", 0, 2, 2)), Ok(2));
    let leases = run.ledger.lease_evaluation(0.0, GENERATOR, 10);
    let numbers: Vec<u64> = leases
        .iter()
        .map(|lease| lease.rollout.0 ^ EVALUATION_BIT)
        .collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
    assert!(
        leases
            .iter()
            .all(|lease| lease.pin == Some(run.version(0)) && lease.sampling == SAMPLING)
    );
    assert_eq!(run.lease(0, 2).len(), 2); // Training goes on beside it.
    for lease in &leases[2..] {
        run.finish(lease.lease, 0, &[(0, 3)]);
    }
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 9);
    run.verdict(scoring[0].lease, 1.0);
    assert!(run.ledger.take_evaluated().is_empty());
    run.abstain(scoring[1].lease);
    let [group] = &run.ledger.take_evaluated()[..] else {
        panic!("one group is complete")
    };
    assert_eq!(
        (group.id.as_str(), group.prompt_index, group.done, group.of),
        ("before", 1, 1, 2)
    );
    assert!(matches!(&group.members[0].outcome, Outcome::Score(score) if score.total == 1.0));
    assert_eq!(
        group.members[1].outcome,
        Outcome::Abstain("lost".to_owned())
    );
    assert_eq!(
        (group.members[0].tokens.len(), group.members[0].finish),
        (3, Some(Finish::Stop))
    );
    let audit = run.ledger.audit();
    assert_eq!(
        (
            audit.evaluation_tokens.trained,
            audit.evaluation_rollouts.trained
        ),
        (6, 2)
    );
    assert_eq!((audit.tokens.incoming, audit.rollouts.incoming), (0, 4));
    assert!(audit.is_balanced());
}

#[test]
fn only_the_pinned_version_may_sample() {
    let mut run = Run::new(settings());
    run.complete_group(0, 1, &[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    run.ledger.evaluate(request("e", 0, 1, 1)).unwrap();
    let lease = run.ledger.lease_evaluation(0.0, GENERATOR, 1)[0].lease;
    let error = run.try_send(lease, 0, &[(1, 2)], None).unwrap_err();
    assert!(matches!(error, ChunkError::Version { .. }));
    assert!(
        error
            .to_string()
            .ends_with("tokens of version 1@0; want 0@0")
    );
    assert!(matches!(
        run.try_send(lease, 0, &[(0, 6)], None),
        Err(ChunkError::TooLong { want: 5, .. })
    ));
    run.finish(lease, 0, &[(0, 2)]);
}

#[test]
fn a_lost_rollout_of_an_evaluation_is_lent_again_with_its_tokens() {
    let mut run = Run::new(settings());
    run.ledger.evaluate(request("e", 0, 1, 1)).unwrap();
    let lease = run.ledger.lease_evaluation(0.0, GENERATOR, 1)[0].lease;
    run.send(lease, 0, &[(0, 2)]);
    run.ledger.holder_lost(GENERATOR);
    let again = run.ledger.lease_evaluation(0.0, OTHER_GENERATOR, 1);
    assert_eq!(again[0].resume, [0, 1]);
}

#[test]
fn one_generator_works_on_one_version_at_a_time() {
    let mut run = Run::new(settings());
    run.ledger.evaluate(request("first", 0, 1, 2)).unwrap();
    run.complete_group(0, 1, &[0.0, 1.0]);
    run.batch(0);
    run.step(0);
    run.ledger.evaluate(request("second", 1, 1, 1)).unwrap();
    let leases = run.ledger.lease_evaluation(0.0, GENERATOR, 10);
    assert_eq!(leases.len(), 2);
    run.finish(leases[0].lease, 0, &[(0, 1)]);
    assert!(run.ledger.lease_evaluation(0.0, GENERATOR, 10).is_empty());
    run.finish(leases[1].lease, 0, &[(0, 1)]);
    assert_eq!(
        run.ledger.lease_evaluation(0.0, GENERATOR, 10)[0].pin,
        Some(run.version(1))
    );
}

#[test]
fn a_cancelled_evaluation_lets_go_of_everything() {
    let mut run = Run::new(settings());
    run.ledger.evaluate(request("e", 0, 3, 1)).unwrap();
    let leases = run.ledger.lease_evaluation(0.0, GENERATOR, 2);
    run.finish(leases[0].lease, 0, &[(0, 4)]);
    run.send(leases[1].lease, 0, &[(0, 1)]);
    assert!(run.ledger.cancel_evaluation("e"));
    assert!(!run.ledger.cancel_evaluation("e"));
    let stats = run.ledger.stats();
    assert_eq!(
        (
            stats.rollouts_generating,
            stats.rollouts_unscored,
            stats.evaluation_groups
        ),
        (0, 0, 0)
    );
    let audit = run.ledger.audit();
    assert_eq!(
        audit.evaluation_tokens.dropped_for(DropReason::Cancelled),
        5
    );
    assert_eq!(
        audit.evaluation_rollouts.dropped_for(DropReason::Cancelled),
        3
    );
    assert!(audit.is_balanced());
    assert_eq!(run.ledger.next_deadline(), None);
}

#[test]
fn an_evaluation_that_cannot_run_is_refused() {
    let mut run = Run::new(settings());
    run.ledger.evaluate(request("e", 0, 1, 1)).unwrap();
    assert_eq!(
        run.ledger.evaluate(request("e", 0, 1, 1)),
        Err(EvaluateError::Exists("e".to_owned()))
    );
    assert!(matches!(
        run.ledger.evaluate(request("f", 7, 1, 1)),
        Err(EvaluateError::Version { .. })
    ));
    assert!(matches!(
        run.ledger.evaluate(request("g", 0, 0, 1)),
        Err(EvaluateError::Empty { .. })
    ));
    assert!(matches!(
        run.ledger.evaluate(request("h", 0, 1, 0)),
        Err(EvaluateError::Empty { .. })
    ));
    // One with more samples than memory is refused before a place is made for any of them.
    let huge = EvaluationRequest {
        samples: usize::MAX,
        ..request("i", 0, 1, 1)
    };
    assert!(matches!(
        run.ledger.evaluate(huge),
        Err(EvaluateError::TooLarge { .. })
    ));
    // What runs already counts too.
    let error = run
        .ledger
        .evaluate(request("j", 0, 1, 1 << 20))
        .unwrap_err();
    assert!(matches!(error, EvaluateError::Full { running: 1, .. }));
    assert!(
        error
            .to_string()
            .ends_with("want at most 1048576 in all: wait for one or cancel it")
    );
    assert!(
        run.ledger
            .waits(0.0)
            .iter()
            .any(|wait| wait.text == "evaluation: e of version 0@0, 0 of 1 prompts")
    );
}
