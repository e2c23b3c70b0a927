//! Leases: who gets which rollout, what a chunk does, what a lost lease costs.

mod common;

use common::{GENERATOR, OTHER_GENERATOR, Run, SCORER, settings, with_bound};
use r1async_core::{
    Announcement, ChunkAck, ChunkError, ChunkRef, DropReason, Finish, HolderId, LeaseId,
    PolicyVersion, RolloutId, Settings, Verdict, VerdictAck, VersionRun,
};

fn rollouts(leases: &[r1async_core::RolloutLease]) -> Vec<u64> {
    leases.iter().map(|lease| lease.rollout.0).collect()
}

#[test]
fn a_new_group_is_offered_whole_to_one_generator() {
    let mut run = Run::new(with_bound(
        2,
        Settings {
            group_size: 4,
            ..settings()
        },
    ));
    let leases = run.lease(0, 7);
    assert_eq!(rollouts(&leases), [0, 1, 2, 3]); // Room for 3 more, but a group is 4.
    assert!(
        leases
            .iter()
            .all(|lease| lease.prompt.ordinal == 0 && lease.resume.is_empty())
    );
    assert_eq!(rollouts(&run.lease(0, 3)), Vec::<u64>::new());
    assert_eq!(rollouts(&run.lease(0, 8)), [4, 5, 6, 7, 8, 9, 10, 11]);
}

#[test]
fn an_idle_generator_smaller_than_a_group_gets_what_it_can_hold() {
    let mut run = Run::new(Settings {
        group_size: 5,
        ..settings()
    });
    let installed = PolicyVersion::new(0, 0);
    let first = run.ledger.lease_rollouts(0.0, GENERATOR, installed, 3, 3);
    assert_eq!(rollouts(&first), [0, 1, 2]);
    let rest = run
        .ledger
        .lease_rollouts(0.0, OTHER_GENERATOR, installed, 3, 3);
    assert_eq!(rollouts(&rest), [3, 4]);
}

#[test]
fn places_limit_the_groups_on_their_way_until_their_weights_are_installed() {
    let mut run = Run::new(with_bound(
        1,
        Settings {
            groups_per_step: 2,
            ..settings()
        },
    ));
    // w = 1, B = 2: 4 places.
    assert_eq!(run.lease(0, 100).len(), 8);
    run.ledger.release_all(GENERATOR);
    let leases = run.lease(0, 100);
    for lease in &leases {
        run.finish(lease.lease, 0, &[(0, 1)]);
    }
    run.score(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    assert_eq!(run.lease(0, 100).len(), 0); // Ready groups keep their places,
    run.batch(0);
    assert_eq!(run.lease(0, 100).len(), 0); // and so do those of a batch,
    run.step(0);
    assert_eq!(run.lease(0, 100).len(), 0); // until the generator has its weights.
    assert_eq!(run.lease(1, 100).len(), 4);
    assert_eq!(run.ledger.stats().places, 4);
}

#[test]
fn a_published_but_uncommitted_batch_takes_no_place() {
    let mut run = Run::new(settings());
    for step in 0..10 {
        run.complete_group(step, 1, &[0.0, 1.0]);
        run.batch(step);
        run.step(step); // Never committed: the checkpoint interval is not a deadlock.
    }
    assert_eq!(run.ledger.stats().groups_bound, 10);
    assert!(run.ledger.is_finished());
}

#[test]
fn no_more_groups_are_opened_than_the_remaining_steps_train() {
    let mut run = Run::new(with_bound(
        8,
        Settings {
            groups_per_step: 2,
            steps: 3,
            ..settings()
        },
    ));
    assert_eq!(run.lease(0, 100).len(), 6 * 2);
    assert!(run.ledger.wanted_prompts().is_empty());
    assert_eq!(run.ledger.audit().prompts.incoming, 6);
}

#[test]
fn a_generator_that_lags_more_than_the_pacing_gets_nothing() {
    let mut run = Run::new(Settings {
        max_staleness: 3,
        pacing: 1,
        ..settings()
    });
    for step in 0..2 {
        run.complete_group(step, 1, &[0.0, 1.0]);
        run.batch(step);
        run.step(step);
    }
    assert_eq!(run.lease(0, 2).len(), 0);
    assert_eq!(run.lease(1, 2).len(), 2);
}

#[test]
fn nothing_is_lent_before_a_learner_has_connected() {
    let mut ledger = r1async_core::Ledger::new(settings()).unwrap();
    ledger.admit(0, vec![1], Vec::new()).unwrap();
    assert!(
        ledger
            .lease_rollouts(0.0, GENERATOR, PolicyVersion::new(0, 0), 8, 8)
            .is_empty()
    );
}

#[test]
fn a_chunk_sent_twice_or_overlapping_counts_once() {
    let mut run = Run::new(settings());
    let lease = run.lease(0, 2)[0].lease;
    assert_eq!(run.send(lease, 0, &[(0, 4)]), ChunkAck::Held(4));
    assert_eq!(run.send(lease, 0, &[(0, 4)]), ChunkAck::Held(4));
    assert_eq!(run.send(lease, 2, &[(0, 5)]), ChunkAck::Held(7));
    assert_eq!(run.send(lease, 9, &[(0, 1)]), ChunkAck::Held(7)); // Leaves out two: not filed.
    assert_eq!(run.finish(lease, 7, &[(0, 1)]), ChunkAck::Held(8));
    assert_eq!(run.finish(lease, 7, &[(0, 1)]), ChunkAck::Held(8)); // The end, sent again.
    assert_eq!(run.ledger.audit().tokens.incoming, 8);
    assert_eq!(run.ledger.stats().gaps, 1);
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 9);
    assert_eq!(scoring.len(), 1);
    assert_eq!(
        run.ledger.completion(scoring[0].lease),
        (0..8).collect::<Vec<i32>>()
    );
}

#[test]
fn an_empty_last_chunk_ends_a_rollout() {
    let mut run = Run::new(settings());
    let lease = run.lease(0, 2)[0].lease;
    run.send(lease, 0, &[(0, 4)]);
    assert_eq!(run.finish(lease, 4, &[]), ChunkAck::Held(4));
    assert_eq!(run.ledger.stats().rollouts_unscored, 1);
}

#[test]
fn a_chunk_that_cannot_be_changes_nothing_but_a_counter() {
    let mut run = Run::new(settings());
    let lease = run.lease(0, 2)[0].lease;
    run.send(lease, 0, &[(0, 3)]);
    let run_of = |number, count| [VersionRun::new(PolicyVersion::new(0, number), count)];
    let (good, unmade, too_many) = (run_of(0, 2), run_of(1, 2), run_of(0, 3));
    let sent = |tokens, logprobs, runs| ChunkRef {
        lease,
        offset: 3,
        tokens,
        logprobs,
        runs,
        finish: None,
    };
    let (long, long_probs, long_runs) = (vec![1; 98], vec![-1.0; 98], run_of(0, 98));
    let refused = [
        (sent(&[1, 2], &[-1.0], &good), "2 tokens, 1 logprobs"),
        (sent(&[1, 2], &[-1.0; 2], &too_many), "version runs of 3"),
        (sent(&[1, -2], &[-1.0; 2], &good), "token -2 at position 4"),
        (
            sent(&[1, 2], &[-1.0, f32::NAN], &good),
            "logprob NaN at position 4",
        ),
        (
            sent(&[1, 2], &[f32::NEG_INFINITY, 0.0], &good),
            "logprob -inf at position 3",
        ),
        (sent(&[1, 2], &[-1.0; 2], &unmade), "tokens of version 1@0"),
        (
            sent(&long, &long_probs, &long_runs),
            "101 completion tokens; want at most max_tokens = 100",
        ),
        (
            ChunkRef {
                offset: usize::MAX,
                ..sent(&[1, 2], &[-1.0; 2], &good)
            },
            "at most max_tokens",
        ),
        (
            ChunkRef {
                offset: 0,
                finish: Some(Finish::Stop),
                ..sent(&[1, 2], &[-1.0; 2], &good)
            },
            "ends at 2 tokens where 3",
        ),
    ];
    let count = refused.len() as u64;
    for (chunk, text) in refused {
        let error = run
            .ledger
            .chunk(0.0, GENERATOR, chunk)
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{error:?} should contain {text:?}");
    }
    assert_eq!(run.ledger.stats().invalid, count);
    assert_eq!(run.ledger.audit().tokens.incoming, 3);
    run.finish(lease, 3, &[(0, 1)]);
    assert!(matches!(
        run.try_send(lease, 4, &[(0, 1)], None),
        Err(ChunkError::End {
            end: 5,
            held: 4,
            ..
        })
    ));
}

#[test]
fn an_empty_completion_is_refused() {
    let mut run = Run::new(settings());
    let lease = run.lease(0, 2)[0].lease;
    assert!(matches!(
        run.try_send(lease, 0, &[], Some(Finish::Stop)),
        Err(ChunkError::End { end: 0, .. })
    ));
}

#[test]
fn weights_may_be_installed_before_the_step_is_reported_but_not_before_its_batch_is_out() {
    let mut run = Run::new(with_bound(2, settings()));
    run.complete_group(0, 1, &[0.0, 1.0]);
    let lease = run.lease(0, 2)[0].lease;
    assert!(matches!(
        run.try_send(lease, 0, &[(1, 1)], None),
        Err(ChunkError::Version { .. })
    ));
    run.batch(0);
    assert_eq!(run.send(lease, 0, &[(0, 1), (1, 1)]), ChunkAck::Held(2));
    assert!(matches!(
        run.try_send(lease, 2, &[(2, 1)], None),
        Err(ChunkError::Version { .. })
    ));
}

#[test]
fn a_lost_rollout_goes_on_elsewhere_with_its_tokens_and_their_versions() {
    let mut run = Run::new(with_bound(2, settings()));
    let old = run.lease(0, 2)[0].lease;
    run.send(old, 0, &[(0, 3)]);
    run.ledger.holder_lost(GENERATOR);
    let leases = run
        .ledger
        .lease_rollouts(1.0, OTHER_GENERATOR, run.version(0), 2, 64);
    assert_eq!(rollouts(&leases), [0, 1]);
    assert_eq!(leases[0].resume, [0, 1, 2]);
    assert_eq!(run.send(old, 3, &[(0, 1)]), ChunkAck::Lost); // The first holder can no longer finish it.
    assert_eq!(run.finish(old, 3, &[(0, 1)]), ChunkAck::Lost);
    let runs = [VersionRun::new(run.version(0), 2)];
    let chunk = ChunkRef {
        lease: leases[0].lease,
        offset: 3,
        tokens: &[7, 8],
        logprobs: &[-1.0; 2],
        runs: &runs,
        finish: Some(Finish::Stop),
    };
    assert_eq!(
        run.ledger.chunk(1.0, OTHER_GENERATOR, chunk),
        Ok(ChunkAck::Held(5))
    );
    assert_eq!(run.ledger.stats().late_chunks, 2);
    assert_eq!(run.ledger.audit().tokens.incoming, 5);
}

#[test]
fn a_lost_rollout_too_old_to_train_starts_again() {
    let mut run = Run::new(with_bound(
        1,
        Settings {
            groups_per_step: 1,
            ..settings()
        },
    ));
    let lease = run.lease(0, 2)[0].lease;
    run.send(lease, 0, &[(0, 5)]);
    for step in 0..2 {
        run.complete_group(step, 1, &[0.0, 1.0]);
        run.batch(step);
        run.step(step);
    }
    run.ledger.holder_lost(GENERATOR); // At step 2 a token of version 0 would be 2 steps old.
    let again = run.lease(2, 2);
    assert_eq!((again[0].rollout, again[0].resume.len()), (RolloutId(0), 0));
    let audit = run.ledger.audit();
    assert_eq!(audit.tokens.dropped_for(DropReason::Superseded), 5);
    assert!(audit.is_balanced());
}

#[test]
fn only_a_new_token_renews_a_lease() {
    let mut run = Run::new(Settings {
        lease_s: 10.0,
        ..settings()
    });
    let leases = run.lease(0, 2);
    run.pass(9.0);
    run.send(leases[0].lease, 0, &[(0, 1)]); // Until 19.
    run.pass(1.0); // 10: the other one is lost.
    assert_eq!(
        (
            run.ledger.stats().leases_lost,
            run.ledger.stats().rollouts_waiting
        ),
        (1, 1)
    );
    run.pass(8.0);
    run.send(leases[0].lease, 0, &[(0, 1)]); // The same token again.
    run.pass(1.5);
    assert_eq!(run.ledger.stats().leases_lost, 2);
}

#[test]
fn a_rollout_abstains_when_it_has_lost_its_last_attempt() {
    let mut run = Run::new(Settings {
        max_attempts: 2,
        min_group_size: 2,
        ..settings()
    });
    run.lease(0, 2);
    run.ledger.holder_lost(GENERATOR);
    run.lease(0, 2);
    run.ledger.holder_lost(GENERATOR);
    // Nobody else gets it, and whoever is gone may come back until the lease runs out.
    assert!(run.lease(0, 2).is_empty());
    run.pass(run.ledger.settings().lease_s - 1.0);
    assert_eq!(run.ledger.stats().groups_open, 1);
    run.pass(1.0);
    assert_eq!(run.ledger.stats().abstentions["lost"], 2);
    assert_eq!(
        run.ledger.stats().groups_dropped[&DropReason::Quarantined],
        1
    );
}

#[test]
fn a_rollout_on_its_last_attempt_goes_on_with_the_holder_that_comes_back() {
    let mut run = Run::new(Settings {
        max_attempts: 1,
        ..settings()
    });
    let leases = run.lease(0, 2);
    let (kept, stolen) = (&leases[0], &leases[1]);
    run.send(kept.lease, 0, &[(0, 3)]);
    run.ledger.holder_lost(GENERATOR);
    assert_eq!(run.ledger.holder_of(kept.lease), None);
    assert!(!run.ledger.release(GENERATOR, kept.lease));
    assert_eq!(run.send(kept.lease, 3, &[(0, 1)]), ChunkAck::Lost);
    let announced = Announcement {
        lease: kept.lease,
        rollout: kept.rollout,
        offset: 3,
    };
    let wrong = Announcement {
        rollout: stolen.rollout,
        ..announced
    };
    let mut announce = |holder, it| run.ledger.announce(1.0, holder, it);
    assert_eq!(announce(GENERATOR, wrong), ChunkAck::Lost);
    assert_eq!(announce(GENERATOR, announced), ChunkAck::Held(3));
    assert_eq!(announce(OTHER_GENERATOR, announced), ChunkAck::Lost);
    assert_eq!(run.finish(kept.lease, 3, &[(0, 2)]), ChunkAck::Held(5));
    assert_eq!(run.ledger.stats().leases_lost, 0);
    assert_eq!(run.ledger.audit().difference(), None);
}

#[test]
fn a_release_on_purpose_costs_no_attempt() {
    let mut run = Run::new(Settings {
        max_attempts: 1,
        ..settings()
    });
    for _ in 0..3 {
        let lease = run.lease(0, 2)[0].lease;
        assert!(!run.ledger.release(OTHER_GENERATOR, lease));
        assert!(run.ledger.release(GENERATOR, lease));
        assert!(!run.ledger.release(GENERATOR, lease));
        run.ledger.release_all(GENERATOR);
    }
    assert_eq!(run.ledger.stats().groups_open, 1);
}

#[test]
fn a_rollout_ends_at_its_deadline_however_busy() {
    let deadlines = Settings {
        rollout_deadline_s: 30.0,
        group_deadline_s: 60.0,
        lease_s: 20.0,
        ..settings()
    };
    let mut run = Run::new(deadlines);
    let lease = run.lease(0, 2)[0].lease;
    run.ledger.release_all(GENERATOR); // The deadline runs from the first lease, whoever has the rollout.
    let again = run.lease(0, 2);
    assert_eq!(run.send(lease, 0, &[(0, 1)]), ChunkAck::Lost);
    for position in 0..2 {
        run.pass(14.0);
        run.send(again[0].lease, position, &[(0, 1)]);
        run.send(again[1].lease, position, &[(0, 1)]);
    }
    run.finish(again[1].lease, 2, &[(0, 1)]);
    run.pass(2.0);
    assert_eq!(run.send(again[0].lease, 2, &[(0, 1)]), ChunkAck::Lost);
    assert_eq!(run.ledger.stats().abstentions["deadline"], 1);
    run.score(&[1.0]);
    assert_eq!(run.ledger.stats().groups_ready, 1);
}

#[test]
fn a_generator_that_connects_again_goes_on_unless_somebody_else_has_the_rollout() {
    let mut run = Run::new(with_bound(1, settings()));
    let leases = run.lease(0, 2);
    run.send(leases[0].lease, 0, &[(0, 3)]);
    run.ledger.holder_lost(GENERATOR);
    let back = HolderId(3);
    let announce = |index: usize, offset| Announcement {
        lease: leases[index].lease,
        rollout: leases[index].rollout,
        offset,
    };
    assert_eq!(
        run.ledger.announce(0.0, back, announce(0, 3)),
        ChunkAck::Held(3)
    );
    assert_eq!(
        run.ledger.announce(0.0, back, announce(0, 3)),
        ChunkAck::Held(3)
    );
    assert_eq!(run.lease(0, 1).len(), 1); // Somebody else takes the other one,
    assert_eq!(
        run.ledger.announce(0.0, back, announce(1, 0)),
        ChunkAck::Lost
    );
    let stranger = Announcement {
        lease: LeaseId(99),
        rollout: RolloutId(1),
        offset: 0,
    };
    assert_eq!(run.ledger.announce(0.0, back, stranger), ChunkAck::Lost);
    let wrong = Announcement {
        lease: leases[0].lease,
        rollout: RolloutId(1),
        offset: 0,
    };
    assert_eq!(run.ledger.announce(0.0, back, wrong), ChunkAck::Lost);
    assert_eq!(run.ledger.leases_of(back), [leases[0].lease]);
}

#[test]
fn a_lost_scorer_costs_a_try_and_the_rollout_keeps_its_place_in_line() {
    let mut run = Run::new(Settings {
        score_retries: 1,
        ..settings()
    });
    for lease in run.lease(0, 2) {
        run.finish(lease.lease, 0, &[(0, 1)]);
    }
    let first = run.ledger.lease_scoring(0.0, SCORER, 1);
    run.ledger.holder_lost(SCORER);
    let second = run.ledger.lease_scoring(0.0, SCORER, 1);
    assert_eq!(second[0].rollout, first[0].rollout);
    assert_eq!(run.verdict(first[0].lease, 1.0), VerdictAck::Lost);
    assert_eq!(run.ledger.stats().late_verdicts, 1);
    run.ledger.holder_lost(SCORER);
    assert_eq!(run.ledger.stats().abstentions["scorer_lost"], 1);
    assert_eq!(
        run.ledger.lease_scoring(0.0, SCORER, 9)[0].rollout,
        RolloutId(1)
    );
}

#[test]
fn a_scorer_that_works_through_its_line_keeps_its_leases() {
    let mut run = Run::new(Settings {
        scoring_deadline_s: 10.0,
        ..with_bound(1, settings())
    });
    for lease in run.lease(0, 4) {
        run.finish(lease.lease, 0, &[(0, 1)]);
    }
    let leases = run.ledger.lease_scoring(0.0, SCORER, 4);
    run.pass(14.0);
    run.verdict(leases[0].lease, 1.0); // 10 s and 5 s for the way run from here for the others.
    run.pass(14.0);
    assert_eq!(run.ledger.stats().score_leases_lost, 0);
    run.pass(1.5);
    assert_eq!(run.ledger.stats().score_leases_lost, 3);
}

#[test]
fn a_second_verdict_is_late() {
    let mut run = Run::new(settings());
    let lease = run.lease(0, 2)[0].lease;
    run.finish(lease, 0, &[(0, 1)]);
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 1)[0].lease;
    assert_eq!(run.verdict(scoring, 1.0), VerdictAck::Held);
    assert_eq!(run.verdict(scoring, 0.0), VerdictAck::Lost);
}

#[test]
fn who_finished_a_rollout_may_grade_it_until_a_scorer_has_it() {
    let mut run = Run::new(settings());
    let leases = run.lease(0, 2);
    let score = |total| Verdict::Score {
        total,
        parts: Vec::new(),
        status: "ok".into(),
    };
    let grade = |run: &mut Run, holder, place: usize| {
        run.ledger
            .verdict(0.0, holder, leases[place].lease, score(1.0))
    };
    assert_eq!(grade(&mut run, GENERATOR, 0), VerdictAck::Lost); // Not finished yet.
    run.finish(leases[0].lease, 0, &[(0, 1)]);
    run.finish(leases[1].lease, 0, &[(0, 1)]);
    assert_eq!(grade(&mut run, OTHER_GENERATOR, 0), VerdictAck::Lost);
    assert_eq!(grade(&mut run, GENERATOR, 0), VerdictAck::Held);
    assert_eq!(grade(&mut run, GENERATOR, 0), VerdictAck::Lost);
    let scoring = run.ledger.lease_scoring(0.0, SCORER, 9);
    assert_eq!(scoring.len(), 1); // The other one.
    assert_eq!(grade(&mut run, GENERATOR, 1), VerdictAck::Lost);
    assert_eq!(run.verdict(scoring[0].lease, 0.0), VerdictAck::Held);
    assert_eq!(run.ledger.stats().groups_ready, 1);
    assert!(run.ledger.audit().is_balanced());
}

#[test]
fn a_lease_that_is_announced_and_kept_costs_no_attempt() {
    let mut run = Run::new(Settings {
        max_attempts: 2,
        ..settings()
    });
    let lease = run.lease(0, 2)[0].clone();
    for round in 0..4 {
        let holder = HolderId(10 + round);
        run.ledger.holder_lost(if round == 0 {
            GENERATOR
        } else {
            HolderId(9 + round)
        });
        let announced = Announcement {
            lease: lease.lease,
            rollout: lease.rollout,
            offset: 0,
        };
        assert_eq!(
            run.ledger.announce(0.0, holder, announced),
            ChunkAck::Held(0)
        );
        // One that was handed back had cost nothing, so nothing is given back for it.
        assert!(run.ledger.release(holder, lease.lease));
        assert_eq!(
            run.ledger.announce(0.0, holder, announced),
            ChunkAck::Held(0)
        );
    }
    assert!(run.ledger.stats().abstentions.is_empty());
}

#[test]
fn leases_of_another_life_fit_none_of_this_one() {
    let mut ids = Vec::new();
    for incarnation in [0, 5, (1 << 20) - 1] {
        let mut run = Run::new(Settings {
            incarnation,
            ..settings()
        });
        ids.push(run.lease(0, 2)[0].lease.0);
    }
    assert_eq!(ids, [1, (5 << 40) + 1, (((1 << 20) - 1) << 40) + 1]);
    assert!(ids[2] <= i64::MAX as u64);
}
