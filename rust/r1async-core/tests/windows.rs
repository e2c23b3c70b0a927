//! Sources with windows of their own: slow verdicts that hold nobody up.

mod common;

use common::{Run, settings, with_bound};
use r1async_core::{HolderId, Ledger, PolicyVersion, Settings, WaitReason, Window};

/// B = 2, main bound e; every third prompt is of a source with bound 3 and ceil(4 * 0.25 * 2) = 2 places.
fn run(e: u64, waste_budget: f64) -> Run {
    let slow = Window {
        name: "slow".to_owned(),
        max_staleness: 3,
        share: 0.25,
    };
    let rule = Settings {
        groups_per_step: 2,
        windows: vec![slow],
        waste_budget,
        ..settings()
    };
    let mut ledger = Ledger::new(with_bound(e, rule)).unwrap();
    ledger.connect_learner(0, 0).unwrap();
    let mut run = Run {
        ledger,
        epoch: 0,
        now: 0.0,
    };
    run.publish(0);
    admit(&mut run);
    run
}

fn admit(run: &mut Run) {
    while !run.ledger.wanted_prompts().is_empty() {
        for ordinal in run.ledger.wanted_prompts() {
            let source = usize::from(ordinal % 3 == 2);
            run.ledger
                .admit_from(ordinal, vec![1, 2], Vec::new(), source)
                .unwrap();
        }
    }
}

/// All that a generator with room for everything gets, prompts admitted as they are wanted.
fn lease(run: &mut Run, version: u64) -> Vec<r1async_core::RolloutLease> {
    let installed = run.version(version);
    let mut leases = Vec::new();
    loop {
        let more = run
            .ledger
            .lease_rollouts(run.now, common::GENERATOR, installed, 64, 64);
        admit(run);
        if more.is_empty() {
            return leases;
        }
        leases.extend(more);
    }
}

fn groups(leases: &[r1async_core::RolloutLease]) -> Vec<u64> {
    let mut groups: Vec<u64> = leases.iter().map(|lease| lease.group.0).collect();
    groups.dedup();
    groups
}

/// Finishes the members of `group`; the scorer has not looked at them yet.
fn finish(run: &mut Run, leases: &[r1async_core::RolloutLease], group: u64, version: u64) {
    for lease in leases.iter().filter(|lease| lease.group.0 == group) {
        run.finish(lease.lease, 0, &[(version, 4)]);
    }
}

#[test]
fn each_source_opens_groups_in_its_own_window() {
    let mut run = run(0, 1.0);
    let leases = lease(&mut run, 0);
    // The main window has two places; 3 and 4 wait for one. The slow group 2 needs none of them.
    assert_eq!(groups(&leases), [0, 1, 2]);
    assert_eq!(run.ledger.stats().places, 2);
    let waits = run.ledger.waits(0.0);
    let text = "places: 2 of 2 taken, seen from version 0@0, waiting on group 0";
    assert!(waits.iter().any(|wait| wait.text == text), "{waits:?}");
}

#[test]
fn a_slow_group_never_holds_a_step_and_takes_a_place_once_it_is_ready() {
    let mut run = run(0, 0.0);
    let leases = lease(&mut run, 0);
    for group in [0, 1, 2] {
        finish(&mut run, &leases, group, 0);
    }
    run.score(&[0.0, 1.0, 0.0, 1.0]); // 0 and 1; group 2 is with its slow grader.
    assert_eq!(run.groups(0), [0, 1]);
    run.step(0);
    let next = lease(&mut run, 1);
    assert_eq!(groups(&next), [3, 4, 5]);
    run.score(&[1.0, 0.0]); // Group 2 is ready: a place of the main window.
    assert_eq!(run.ledger.stats().places, 3);
    finish(&mut run, &next, 3, 1);
    finish(&mut run, &next, 4, 1);
    run.score(&[0.0, 1.0, 0.0, 1.0]);
    // Of bound 0 first: their last chance is now. Group 2 may wait until step 3.
    assert_eq!(run.groups(1), [3, 4]);
    run.step(1);
    let next = lease(&mut run, 2);
    assert_eq!(
        groups(&next),
        [6],
        "one of the two places is group 2's; the slow window is full"
    );
    finish(&mut run, &next, 6, 2);
    run.score(&[0.0, 1.0]);
    let batch = run.batch(2);
    let sources: Vec<(u64, usize)> = batch
        .groups
        .iter()
        .map(|group| (group.group.0, group.source))
        .collect();
    assert_eq!(sources, [(6, 0), (2, 1)]);
    assert!(
        batch.groups[1]
            .rollouts
            .iter()
            .all(|rollout| rollout.over_age == [false]),
        "two steps old, within the bound of its source"
    );
}

#[test]
fn tokens_of_a_slow_source_have_its_own_bound() {
    let mut run = run(0, 1.0);
    let leases = lease(&mut run, 0);
    finish(&mut run, &leases, 2, 0);
    let grader = run.ledger.lease_scoring(0.0, common::SCORER, 2);
    for step in 0..4 {
        let mut open = leases.clone();
        if step > 0 {
            open = lease(&mut run, step);
        }
        for group in groups(&open) {
            if group % 3 != 2 {
                finish(&mut run, &open, group, step);
                run.score(&[0.0, 1.0]);
            }
        }
        run.batch(step);
        run.step(step);
    }
    run.verdict(grader[0].lease, 0.0);
    run.verdict(grader[1].lease, 1.0);
    // Version 0 trains up to step 3: at step 4 the group is too old.
    assert_eq!(run.ledger.stats().groups_ready, 1);
    assert!(matches!(run.wait(4), WaitReason::Groups { ready: 0, .. }));
    let stats = run.ledger.stats();
    let waste = &stats.waste_by_source;
    assert_eq!((waste[0].1.of_age(), waste[1].1.of_age()), (0, 8));
    assert_eq!(waste[1].0, "slow");
    assert_eq!(stats.waste, 0.0, "the budget is about the main sources");
}

#[test]
fn at_bound_0_a_slow_group_takes_no_place_that_an_open_main_group_needs() {
    let mut run = run(0, 1.0);
    let leases = lease(&mut run, 0);
    for group in [0, 2] {
        finish(&mut run, &leases, group, 0);
    }
    run.score(&[0.0, 1.0, 0.0, 1.0]);
    // Two groups are ready for a batch of two, but group 1, without a token yet, could not train in step 1.
    assert!(matches!(run.wait(0), WaitReason::Groups { ready: 1, .. }));
    finish(&mut run, &leases, 1, 0);
    run.score(&[0.0, 1.0]);
    assert_eq!(run.groups(0), [0, 1]);
}

#[test]
fn slow_groups_alone_take_the_main_places() {
    // Six slow prompts and no other: a window of one place could not fill a batch of two.
    let slow = Window {
        name: "slow".to_owned(),
        max_staleness: 2,
        share: 0.1,
    };
    let settings = Settings {
        groups_per_step: 2,
        steps: 3,
        windows: vec![slow],
        ..settings()
    };
    assert_eq!(settings.window_limit(1), 1);
    let mut ledger = Ledger::new(settings).unwrap();
    ledger.end_of_prompts(6);
    ledger.connect_learner(0, 0).unwrap();
    ledger.published(PolicyVersion::new(0, 0), "hash").unwrap();
    while let Some(&ordinal) = ledger.wanted_prompts().first() {
        ledger.admit_from(ordinal, vec![1], Vec::new(), 1).unwrap();
    }
    let leases = ledger.lease_rollouts(0.0, HolderId(1), PolicyVersion::new(0, 0), 64, 64);
    let groups: std::collections::BTreeSet<u64> =
        leases.iter().map(|lease| lease.group.0).collect();
    assert!(groups.len() >= 2, "{groups:?}");
}
