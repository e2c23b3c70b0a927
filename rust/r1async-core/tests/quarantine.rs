//! Prompts that fail everywhere, filters that take everything, and faults by name.

mod common;

use common::{GENERATOR, OTHER_GENERATOR, Run, SCORER, settings, with_bound};
use r1async_core::{
    DropReason, GroupId, HolderId, RolloutId, RolloutLease, Settings, ZeroVariance,
};

fn groups(leases: &[RolloutLease]) -> Vec<u64> {
    leases.iter().map(|lease| lease.group.0).collect()
}

fn lend(run: &mut Run, holder: HolderId) -> Vec<RolloutLease> {
    let installed = run.version(0);
    run.ledger.lease_rollouts(run.now, holder, installed, 4, 64)
}

#[test]
fn a_group_that_brings_down_its_generators_is_found_alone_and_set_aside() {
    let mut run = Run::new(with_bound(1, settings()));
    for _ in 0..2 {
        assert_eq!(groups(&lend(&mut run, GENERATOR)), [0, 0, 1, 1]);
        run.ledger.holder_lost(GENERATOR);
    }
    // Each of them may have been the one: on its last try it is alone with its generator.
    assert_eq!(groups(&lend(&mut run, GENERATOR)), [0, 0]);
    assert!(lend(&mut run, GENERATOR).is_empty());
    run.now = 30.0;
    let innocent = lend(&mut run, OTHER_GENERATOR);
    assert_eq!(groups(&innocent), [1, 1]);
    run.ledger.holder_lost(GENERATOR);
    assert_eq!(
        run.ledger.quarantined(),
        [],
        "it may come back for a last attempt"
    );
    run.now = 61.0;
    run.ledger.tick(run.now);

    let quarantined = run.ledger.quarantined();
    assert_eq!((quarantined[0].ordinal, quarantined[0].group), (0, 0));
    assert_eq!(
        (quarantined[0].why.as_str(), quarantined.len()),
        ("generators", 1)
    );
    let incident = run.ledger.take_incidents().pop().unwrap();
    assert_eq!(
        (&*incident.name, incident.prompts),
        ("poison_prompt", vec![0])
    );
    assert_eq!(incident.rollouts, [RolloutId(0), RolloutId(1)]);

    run.ledger.holder_lost(OTHER_GENERATOR); // Group 1 falls by itself too, and then nobody is suspected.
    run.now = 91.0;
    run.ledger.tick(run.now);
    run.admit();
    assert_eq!(groups(&lend(&mut run, GENERATOR)), [2, 2, 3, 3]);
    assert!(run.ledger.audit().is_balanced());
    assert_eq!(
        run.ledger
            .audit()
            .rollouts
            .dropped_for(DropReason::Quarantined),
        4
    );
}

#[test]
fn a_generator_that_works_runs_empty_before_it_gets_a_suspect() {
    let mut run = Run::new(with_bound(2, settings()));
    for _ in 0..2 {
        let installed = run.version(0);
        run.ledger
            .lease_rollouts(run.now, GENERATOR, installed, 2, 64);
        run.ledger.holder_lost(GENERATOR);
        let installed = run.version(0);
        if run.ledger.leases_of(OTHER_GENERATOR).is_empty() {
            // Its own group 1: group 0 is lent first, so it is taken and given back.
            for lease in run
                .ledger
                .lease_rollouts(run.now, OTHER_GENERATOR, installed, 4, 64)
            {
                if lease.group == GroupId(0) {
                    run.ledger.release(OTHER_GENERATOR, lease.lease);
                }
            }
        }
    }
    assert_eq!(run.ledger.stats().rollouts_waiting, 2); // Group 0, suspected.
    assert!(lend(&mut run, OTHER_GENERATOR).is_empty()); // Busy, and nothing new until that is lent.
    run.ledger.release_all(OTHER_GENERATOR);
    assert_eq!(groups(&lend(&mut run, OTHER_GENERATOR)), [0, 0]);
}

#[test]
fn a_prompt_all_of_whose_rollouts_abstain_is_set_aside_after_so_many_groups() {
    let settings = Settings {
        quarantine_after: 2,
        ..with_bound(2, settings())
    };
    let mut run = Run::new(settings);
    let row = |run: &mut Run| {
        let ordinal = run.ledger.wanted_prompts()[0];
        run.ledger
            .admit(ordinal, vec![9], b"the same row".to_vec())
            .unwrap()
    };
    // The prompts admitted at the start are lent first.
    for _ in 0..3 {
        let leases = lend(&mut run, GENERATOR);
        for lease in leases {
            run.finish(lease.lease, 0, &[(0, 1)]);
        }
        let scoring = run.ledger.lease_scoring(0.0, SCORER, 9);
        for lease in scoring {
            run.abstain(lease.lease);
        }
    }
    assert!(run.ledger.quarantined().is_empty()); // Different rows, one group each.
    let mut refused = 0;
    for _ in 0..4 {
        if row(&mut run).is_none() {
            refused += 1;
            continue;
        }
        for lease in lend(&mut run, GENERATOR) {
            run.finish(lease.lease, 0, &[(0, 1)]);
        }
        for lease in run.ledger.lease_scoring(0.0, SCORER, 9) {
            run.abstain(lease.lease);
        }
    }
    assert_eq!(run.ledger.quarantined().len(), 1);
    assert_eq!(run.ledger.quarantined()[0].why, "abstained");
    assert_eq!(refused, 2);
    assert_eq!(
        run.ledger
            .audit()
            .prompts
            .dropped_for(DropReason::Quarantined),
        1 + 2
    );
    assert!(run.ledger.audit().is_balanced());
}

#[test]
fn filters_are_counted_until_a_group_trains() {
    let mut run = Run::new(Settings {
        zero_variance: ZeroVariance::Drop,
        ..with_bound(1, settings())
    });
    for _ in 0..3 {
        run.complete_group(0, 1, &[1.0, 1.0]);
    }
    assert_eq!(run.ledger.filtered().count, 3);
    assert_eq!(
        run.ledger.filtered().groups,
        [GroupId(0), GroupId(1), GroupId(2)]
    );
    assert_eq!(run.ledger.filtered().reasons[&DropReason::ZeroVariance], 3);
    run.complete_group(0, 1, &[0.0, 1.0]);
    assert_eq!(run.ledger.filtered().count, 0);
}

#[test]
fn deadlines_that_pass_are_named_with_what_they_hit_and_told_as_one() {
    let mut run = Run::new(Settings {
        lease_s: 10.0,
        max_attempts: 2,
        ..settings()
    });
    run.lease(0, 2);
    run.pass(10.5);
    let incidents = run.ledger.take_incidents();
    assert_eq!(incidents.len(), 1);
    let lost = &incidents[0];
    assert_eq!(
        (&*lost.name, &*lost.act, lost.count),
        ("lost_rollout", "requeued", 2)
    );
    assert_eq!(
        (lost.holder, lost.groups.as_slice()),
        (Some(GENERATOR), [GroupId(0)].as_slice())
    );
    assert_eq!((lost.deadline_s, lost.named_after_s), (10.0, 10.5));
    run.lease(0, 2);
    run.pass(10.0);
    assert_eq!(&*run.ledger.take_incidents()[0].act, "given up");
}

#[test]
fn a_wait_names_the_groups_and_rollouts_it_is_about() {
    let mut run = Run::new(settings());
    let lease = run.lease(0, 2)[0].lease;
    run.finish(lease, 0, &[(0, 1)]);
    let waits = run.ledger.waits(0.0);
    let named = |name: &str| waits.iter().find(|wait| wait.name == name).unwrap();
    assert_eq!(named("groups").groups, [GroupId(0)]);
    assert_eq!(named("scorer").rollouts, [RolloutId(0)]);
    assert!(named("places").text.ends_with("waiting on group 0"));
}
