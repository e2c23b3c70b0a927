//! What is on the disk after a crash, and what a start makes of it.

mod common;

use std::fs;
use std::path::Path;

use common::{Buffer, identity, options, settings};
use r1async_core::BindPart;
use r1async_core::Step;
use r1async_journal::{Durability, History, Identity, Journal, JournalError, Options, RunAudit};

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Three steps trained, the fourth stepped, the fifth sampled.
fn run(folder: &Path, options: Options) -> Buffer {
    let mut buffer = Buffer::create(folder, options);
    for step in 0..4 {
        buffer.sample(step, 40);
        buffer.train(step);
    }
    buffer.commit(3);
    buffer.sample(4, 40);
    buffer
}

#[test]
fn a_killed_buffer_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let before = run(folder.path(), options());
    let audit = before.ledger.audit();
    let batch = before.ledger.batch_part(Step(3), 0).unwrap().0.clone();
    drop(before.journal); // A kill leaves what was handed to the operating system.
    let mut after = Buffer::open(folder.path(), options());
    assert_eq!(after.ledger.audit().prompts, audit.prompts);
    assert_eq!(after.ledger.audit().tokens, audit.tokens);
    assert_eq!(after.ledger.committed_steps(), 3);
    let again = after.ledger.bind_part(100.0, Step(3), 0).unwrap();
    assert_eq!(
        again,
        BindPart::Ready(&batch, batch.whole()),
        "the same batch, to the last bit"
    );
    after.train(3);
    after.train(4);
    after.commit(5);
    let account = RunAudit::read(folder.path()).unwrap();
    assert_eq!(account.differences, Vec::<String>::new());
    assert_eq!((account.prompts.trained, account.trained_twice), (10, 0));
    assert_eq!((account.lives, account.trained.mean()), (2, Some(40.0)));
}

#[test]
fn a_file_cut_anywhere_is_cut_to_what_is_whole() {
    let source = tempfile::tempdir().unwrap();
    drop(run(source.path(), options()).journal);
    let (events, payload) = (
        source.path().join("events"),
        source.path().join("payload-000000"),
    );
    let target = tempfile::tempdir().unwrap();
    let mut totals = std::collections::BTreeSet::new();
    for (file, other) in [(&events, &payload), (&payload, &events)] {
        // Not the header, which a start of the run waits for.
        for cut in (300..size(file)).step_by(61) {
            let name = |path: &Path| target.path().join(path.file_name().unwrap());
            fs::copy(file, name(file)).unwrap();
            fs::copy(other, name(other)).unwrap();
            let cut_file = fs::OpenOptions::new().write(true).open(name(file)).unwrap();
            cut_file.set_len(cut).unwrap();
            let opened = Journal::open(target.path(), identity(), options(), settings());
            let (journal, ledger, recovery) = opened.unwrap();
            assert_eq!(ledger.audit().difference(), None);
            totals.insert(recovery.events);
            drop(journal);
            // What was cut is gone: a second start finds nothing torn.
            let (_, again, recovery) =
                Journal::open(target.path(), identity(), options(), settings()).unwrap();
            assert_eq!((again.audit(), recovery.torn), (ledger.audit(), 0));
        }
    }
    assert!(
        totals.len() > 20,
        "the cuts fell on {} events",
        totals.len()
    );
}

#[test]
fn zeros_that_a_power_cut_left_are_cut_too() {
    let folder = tempfile::tempdir().unwrap();
    let before = run(folder.path(), options());
    let audit = before.ledger.audit();
    drop(before.journal);
    let events = folder.path().join("events");
    let file = fs::OpenOptions::new().write(true).open(&events).unwrap();
    file.set_len(size(&events) + 9000).unwrap();
    let (_, ledger, recovery) =
        Journal::open(folder.path(), identity(), options(), settings()).unwrap();
    assert_eq!((ledger.audit(), recovery.torn), (audit, 9000));
}

#[test]
fn a_flipped_bit_is_an_error_that_names_the_place() {
    let source = tempfile::tempdir().unwrap();
    let mut buffer = run(source.path(), options());
    let snapshot = buffer.ledger.snapshot();
    buffer.journal.snapshot(&snapshot).unwrap();
    buffer.train(4);
    buffer.sample(5, 40);
    drop(buffer.journal);
    for name in ["events", "payload-000001", "snapshot-000001"] {
        let path = source.path().join(name);
        let whole = fs::read(&path).unwrap();
        // Of the events a start reads what follows the snapshot; an audit reads all.
        for at in (0..whole.len()).step_by(whole.len() / 97 + 1) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let error = match name {
                "events" => RunAudit::read(source.path()).map(drop).unwrap_err(),
                _ => Journal::open(source.path(), identity(), options(), settings())
                    .map(drop)
                    .unwrap_err(),
            };
            let JournalError::Damaged {
                path: named,
                offset,
                ..
            } = error
            else {
                panic!("byte {at} of {name}: {error}");
            };
            assert_eq!(named, path);
            assert!(offset <= at as u64);
        }
        fs::write(&path, &whole).unwrap();
    }
    assert!(Journal::open(source.path(), identity(), options(), settings()).is_ok());
}

#[test]
fn payload_on_disk_is_bounded_by_what_is_live() {
    let folder = tempfile::tempdir().unwrap();
    let small = Options {
        snapshot_bytes: 4000,
        ..options()
    };
    let mut buffer = Buffer::create(folder.path(), small);
    let (mut written, mut largest) = (0, 0);
    for step in 0..40 {
        buffer.sample(step, 200);
        buffer.train(step);
        buffer.commit(step + 1);
        written += 4 * 200 * 8;
        if buffer.journal.wants_snapshot() {
            let snapshot = buffer.ledger.snapshot();
            buffer.journal.snapshot(&snapshot).unwrap();
        }
        let files = fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
        let held: u64 = files
            .filter(|file| file.file_name() != "events")
            .map(|file| file.metadata().unwrap().len())
            .sum();
        largest = largest.max(held);
    }
    assert!(
        written > 250_000 && largest < 30_000,
        "{largest} of {written}"
    );
    drop(buffer.journal);
    let after = Buffer::open(folder.path(), small);
    assert_eq!(after.ledger.committed_steps(), 40);
    assert!(RunAudit::read(folder.path()).unwrap().is_balanced());
}

#[test]
fn a_snapshot_that_fails_leaves_nothing_that_a_later_power_cut_trips_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = run(folder.path(), options());
    let snapshot = buffer.ledger.snapshot();
    let in_the_way = folder.path().join("snapshot-000001");
    fs::create_dir(&in_the_way).unwrap(); // The last of its steps cannot be done.
    let error = buffer.journal.snapshot(&snapshot).unwrap_err();
    assert!(error.to_string().contains("snapshot-000001"), "{error}");
    fs::remove_dir(&in_the_way).unwrap();
    buffer.train(4);
    buffer.sample(5, 40);
    drop(buffer.journal);
    let payload = folder.path().join("payload-000000");
    let file = fs::OpenOptions::new().write(true).open(&payload).unwrap();
    file.set_len(size(&payload) - 100).unwrap(); // The events came to the disk before it.
    let (mut journal, ledger, recovery) =
        Journal::open(folder.path(), identity(), options(), settings()).unwrap();
    assert!(recovery.torn > 0);
    assert_eq!(ledger.audit().difference(), None);
    journal.snapshot(&ledger.snapshot()).unwrap(); // This time it can.
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 3, "events, one snapshot and the payload since");
}

#[test]
fn a_run_that_keeps_all_is_replayed_to_the_same_batches() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Options {
        snapshot_bytes: 1000,
        keep_all: true,
        ..options()
    };
    let mut buffer = run(folder.path(), keep);
    let snapshot = buffer.ledger.snapshot();
    buffer.journal.snapshot(&snapshot).unwrap();
    let sampled = buffer.ledger.bind_part(99.0, Step(4), 0).unwrap();
    let BindPart::Ready(last, _) = sampled else {
        panic!("{sampled:?}")
    };
    let last = last.clone();
    buffer.write();
    drop(buffer.journal);
    let mut history = History::whole(folder.path()).unwrap();
    let mut steps = Vec::new();
    while let Some(told) = history.next().unwrap() {
        steps.extend(told.bound.map(|(step, ..)| step.0));
    }
    assert_eq!(steps, [0, 1, 2, 3, 4]);
    let whole = last.whole();
    assert_eq!(
        history.replay().batch_part(Step(4), 0),
        Some((&last, whole))
    );
}

#[test]
fn a_run_goes_on_only_with_what_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    drop(run(folder.path(), options()).journal);
    let other = Identity {
        data: "def".to_owned(),
        ..identity()
    };
    let error = Journal::open(folder.path(), other, options(), settings()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("the data's fingerprint was \"abc\" when this run began, is \"def\" now"),
        "{text}"
    );
    let missing = Journal::open(
        &folder.path().join("none"),
        identity(),
        options(),
        settings(),
    );
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .ends_with("holds no journal")
    );
}

#[test]
fn what_waits_for_the_disk_is_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let sync = Options {
        durability: Durability::Sync,
        ..options()
    };
    let buffer = run(folder.path(), sync);
    let (events, payload) = buffer.journal.bytes();
    assert_eq!(events, size(&folder.path().join("events")));
    assert_eq!(payload, size(&folder.path().join("payload-000000")));
}
