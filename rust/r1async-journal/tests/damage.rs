//! Whole files and whole records that are not where they were written.

mod common;

use std::fs;
use std::path::Path;

use common::{Buffer, identity, options, settings};
use r1async_core::journal::{Chain, Damage, first};
use r1async_journal::{History, Identity, Journal, JournalError, Options, RunAudit};

const KEEP: fn() -> Options = || Options {
    keep_all: true,
    ..options()
};

/// One step trained, a snapshot, another step trained.
fn run(folder: &Path) {
    let mut buffer = Buffer::create(folder, KEEP());
    buffer.sample(0, 40);
    buffer.train(0);
    let snapshot = buffer.ledger.snapshot();
    buffer.journal.snapshot(&snapshot).unwrap();
    buffer.sample(1, 40);
    buffer.train(1);
}

fn records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut chain, mut records) = (&bytes[..], Chain::default(), Vec::new());
    while let Some((_, _, behind)) = first(rest, &mut chain).unwrap() {
        records.push(rest[..rest.len() - behind.len()].to_vec());
        rest = behind;
    }
    records
}

fn open(folder: &Path) -> Result<Journal, JournalError> {
    Journal::open(folder, identity(), KEEP(), settings()).map(|(journal, ..)| journal)
}

/// Reads to the end, or to what is wrong.
fn read(mut history: History) -> Result<u64, JournalError> {
    while history.next()?.is_some() {}
    assert!(history.next()?.is_none(), "it goes on behind its end");
    Ok(history.count())
}

#[test]
fn a_whole_record_that_is_gone_moved_or_doubled_is_an_error_that_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    for name in ["events", "payload-000000"] {
        let path = folder.path().join(name);
        let whole = records(&path);
        let (mut gone, mut moved, mut doubled) = (whole.clone(), whole.clone(), whole.clone());
        gone.remove(3);
        moved.swap(3, 4);
        doubled.insert(3, whole[2].clone());
        for records in [gone, moved, doubled] {
            fs::write(&path, records.concat()).unwrap();
            let error = History::whole(folder.path()).and_then(read).unwrap_err();
            let JournalError::Damaged {
                path: named,
                offset,
                damage,
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((named, damage), (path.clone(), Damage::Head));
            assert_eq!(offset, whole[..3].concat().len() as u64);
        }
        fs::write(&path, whole.concat()).unwrap();
    }
    let events = History::whole(folder.path()).and_then(read).unwrap();
    assert_eq!(events, RunAudit::read(folder.path()).unwrap().events);
}

#[test]
fn a_history_that_has_ended_stays_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let all = History::whole(folder.path()).and_then(read).unwrap();
    for name in ["events", "payload-000001"] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        // In the middle of its third record: what follows must not be taken for a record.
        let cut = records(&path)[..2].concat().len() + 20;
        fs::write(&path, &whole[..cut]).unwrap();
        let told = History::whole(folder.path()).and_then(read).unwrap();
        assert!(told > 0 && told < all, "{told} of {all}");
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn payload_that_ends_too_early_is_not_made_up_from_the_next_file() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let path = folder.path().join("payload-000000");
    let whole = records(&path);
    // Every rollout has 40 tokens: the next file's first would fit.
    fs::write(&path, whole[..whole.len() - 1].concat()).unwrap();
    let error = History::whole(folder.path()).and_then(read).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("payload-000000: it ends before the payload of the event at byte"),
        "{text}"
    );
}

#[test]
fn a_file_of_another_generation_or_run_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let payload = folder.path().join("payload-000001");
    let other = folder.path().join("payload-000000");
    let whole = fs::read(&payload).unwrap();
    fs::copy(&other, &payload).unwrap();
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(
        text.ends_with("\"payload\" of generation 0; want \"payload\" of 1"),
        "{text}"
    );
    fs::write(&payload, whole).unwrap();
    let foreign = tempfile::tempdir().unwrap();
    let identity = Identity {
        run: "other".to_owned(),
        ..identity()
    };
    drop(Journal::create(foreign.path(), identity, KEEP(), settings()).unwrap());
    fs::copy(foreign.path().join("payload-000000"), &other).unwrap();
    let text = History::whole(folder.path()).unwrap_err().to_string();
    assert!(
        text.contains("payload-000000: the run's name was"),
        "{text}"
    );
}

#[test]
fn a_lost_snapshot_does_not_cut_what_came_after_it() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let snapshot = folder.path().join("snapshot-000001");
    let saved = fs::read(&snapshot).unwrap();
    fs::remove_file(&snapshot).unwrap();
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(
        text.ends_with("snapshot-000001: it is missing, but not the payload since"),
        "{text}"
    );
    fs::write(&snapshot, saved).unwrap();
    assert!(open(folder.path()).is_ok());
}

#[test]
fn neither_does_one_that_is_lost_with_the_header_of_its_payload() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    fs::remove_file(folder.path().join("snapshot-000001")).unwrap();
    let payload = folder.path().join("payload-000001");
    let whole = fs::read(&payload).unwrap();
    let header = records(&payload)[0].len();
    for at in [0, 9, header / 2, header - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&payload, &bytes).unwrap();
        let text = open(folder.path()).unwrap_err().to_string();
        let named = format!("{} is damaged at byte 0", payload.display());
        assert!(text.starts_with(&named), "{at}: {text}");
    }
    // Cut within the header it looks like one that a crash left, but then the events would end before it, too.
    for length in [0, 9, header - 1] {
        fs::write(&payload, &whole[..length]).unwrap();
        let text = open(folder.path()).unwrap_err().to_string();
        assert!(
            text.ends_with("snapshot-000001: it is missing, but not the payload since"),
            "{length}: {text}"
        );
    }
}

#[test]
fn events_that_are_gone_are_missed_and_not_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let events = folder.path().join("events");
    let whole = fs::read(&events).unwrap();
    fs::write(&events, &whole[..9]).unwrap();
    assert!(Journal::exists(folder.path()).unwrap());
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(
        text.ends_with("events is not what its name says: it does not begin with a header"),
        "{text}"
    );
    fs::remove_file(&events).unwrap();
    // Whatever is left tells that there was a journal.
    for left in ["snapshot-000001", "payload-000001", "payload-000000"] {
        assert!(Journal::exists(folder.path()).unwrap());
        let text = open(folder.path()).unwrap_err().to_string();
        assert!(text.ends_with("events: it is missing"), "{text}");
        fs::remove_file(folder.path().join(left)).unwrap();
    }
    assert!(!Journal::exists(folder.path()).unwrap());
    assert!(!Journal::exists(&folder.path().join("nowhere")).unwrap());
}

#[test]
fn a_journal_that_a_crash_kept_from_its_beginning_is_none() {
    let folder = tempfile::tempdir().unwrap();
    drop(Journal::create(folder.path(), identity(), KEEP(), settings()).unwrap());
    let (events, payload) = (
        folder.path().join("events"),
        folder.path().join("payload-000000"),
    );
    for file in [&events, &payload] {
        let whole = fs::read(file).unwrap();
        for length in [whole.len() - 1, 9, 0] {
            fs::write(file, &whole[..length]).unwrap();
            assert!(!Journal::exists(folder.path()).unwrap());
        }
    }
    fs::remove_file(&events).unwrap();
    assert!(!Journal::exists(folder.path()).unwrap());
    drop(Journal::create(folder.path(), identity(), KEEP(), settings()).unwrap());
    assert!(Journal::exists(folder.path()).unwrap());
}

#[test]
fn a_crash_while_a_snapshot_is_taken_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = Buffer::create(folder.path(), KEEP());
    buffer.sample(0, 40);
    buffer.train(0);
    let audit = buffer.ledger.audit();
    drop(buffer.journal);
    let other = tempfile::tempdir().unwrap();
    run(other.path());
    let header = &records(&other.path().join("payload-000001"))[0];
    // Created, half written, whole; zeros where the disk has not got it yet.
    let zeros = vec![0; header.len()];
    for left in [
        &[][..],
        &header[..9],
        &header[..header.len() - 1],
        &zeros,
        header,
    ] {
        fs::write(folder.path().join("snapshot-000001.partial"), b"half").unwrap();
        fs::write(folder.path().join("payload-000001"), left).unwrap();
        let (journal, ledger, recovery) =
            Journal::open(folder.path(), identity(), KEEP(), settings()).unwrap();
        assert_eq!((ledger.audit(), recovery.torn), (audit.clone(), 0));
        drop(journal);
        assert!(!folder.path().join("payload-000001").exists());
    }
}
