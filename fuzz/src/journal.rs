//! A journal that was written well, damaged as the fuzzer says, and everything that reads it.
//!
//! A script begins with a byte that says what the rest is: an event's body, a snapshot's body, or damages. A damage is
//! a file, a kind and two numbers; records are also removed, repeated and exchanged whole, where no checksum of one
//! record sees it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use r1async_core::journal::{Chain, HEADER_BYTES, Recorded, Replay, first};
use r1async_core::{
    Audit, BindPart, BoundBatch, ChunkRef, Finish, HolderId, PolicyVersion, RolloutLease,
    ScoreLease, Settings, Step, Verdict, VersionRun,
};
use r1async_journal::{
    Durability, History, Identity, Journal, JournalError, Options, RunAudit, Told,
};
use tempfile::TempDir;

/// What a script is, by its first byte.
pub mod reads {
    pub const EVENT: u8 = 0;
    pub const SNAPSHOT: u8 = 1;
    pub const DAMAGED: u8 = 2;
}
/// Damages of one script at most.
const MAX_DAMAGES: usize = 4;
/// Kinds of damage.
pub const DAMAGES: u8 = 12;
/// The files of the journal.
pub const NAMES: [&str; 4] = [
    "events",
    "payload-000000",
    "payload-000001",
    "snapshot-000001",
];

/// Bytes by file; one that is missing is not there.
type Files = BTreeMap<&'static str, Vec<u8>>;

/// What happened, and what a start makes of each prefix of it.
struct Truth {
    files: Files,
    told: Vec<Told>,
    /// Events that the snapshot holds.
    snapshot: usize,
    /// By the number of events that were read.
    states: Vec<State>,
}

/// All that a start of the buffer goes on with, tokens included.
#[derive(Debug, PartialEq)]
struct State {
    audit: Audit,
    epoch: Option<u64>,
    committed: u64,
    batches: Vec<BoundBatch>,
    rollouts: Vec<RolloutLease>,
    scoring: Vec<ScoreLease>,
}

/// Reads what the script says.
///
/// # Panics
/// Something was told that did not happen, or an end was taken for the end that is none.
pub fn play(script: &[u8]) {
    let Some((&what, rest)) = script.split_first() else {
        return;
    };
    match what {
        reads::EVENT => {
            if let Ok((_, command)) = Replay::read(rest) {
                let _ = (command.name(), command.has_payload());
            }
        }
        reads::SNAPSHOT => drop(Replay::load(rest)),
        _ => check(&damaged(rest)),
    }
}

/// Bodies of all events and of the snapshot, to begin with.
pub fn bodies() -> Vec<Vec<u8>> {
    let truth = truth();
    let mut bodies = Vec::new();
    for (what, name) in [(reads::EVENT, NAMES[0]), (reads::SNAPSHOT, NAMES[3])] {
        for record in &records(&truth.files[name])[1..] {
            bodies.push([&[what], &record[HEADER_BYTES..]].concat());
        }
    }
    bodies
}

fn truth() -> &'static Truth {
    static TRUTH: OnceLock<Truth> = OnceLock::new();
    TRUTH.get_or_init(Truth::new)
}

/// `life`: how often the buffer was killed before; no two lives lend under the same numbers.
fn settings(life: u64) -> Settings {
    Settings {
        incarnation: life,
        group_size: 2,
        min_group_size: 2,
        groups_per_step: 2,
        part_groups: 1,
        steps: 6,
        max_tokens: 8,
        ..Settings::default()
    }
}

fn identity() -> Identity {
    Identity {
        run: "fuzz".to_owned(),
        seed: 7,
        group_size: 2,
        data: "abc".to_owned(),
    }
}

const OPTIONS: Options = Options {
    durability: Durability::Sync,
    snapshot_bytes: 1 << 30,
    keep_all: true,
};

fn open(folder: &Path, life: u64) -> Result<(Journal, Recorded, usize), JournalError> {
    let (journal, ledger, recovery) = Journal::open(folder, identity(), OPTIONS, settings(life))?;
    Ok((journal, ledger, recovery.events as usize))
}

/// A folder in memory, if there is one.
fn folder() -> TempDir {
    let shared = Path::new("/dev/shm");
    let made = match shared.is_dir() {
        true => TempDir::new_in(shared),
        false => TempDir::new(),
    };
    made.expect("a folder can be made")
}

fn save(files: &Files) -> TempDir {
    let folder = folder();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("a small file can be written");
    }
    folder
}

/// The records of an undamaged file.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut records, mut chain) = (Vec::new(), Chain::default());
    let mut rest = bytes;
    while let Some((_, _, behind)) = first(rest, &mut chain).expect("nobody has touched it") {
        records.push(&rest[..rest.len() - behind.len()]);
        rest = behind;
    }
    records
}

impl Truth {
    fn new() -> Self {
        let folder = folder();
        let snapshot = run(folder.path());
        let read = |name| {
            (
                name,
                fs::read(folder.path().join(name)).expect("it is there"),
            )
        };
        let files: Files = NAMES.into_iter().map(read).collect();
        let mut told = Vec::new();
        let mut history = History::whole(folder.path()).expect("it is whole");
        while let Some(event) = history.next().expect("it is whole") {
            told.push(event);
        }
        let mut truth = Self {
            files,
            told,
            snapshot,
            states: Vec::new(),
        };
        truth.states = (0..=truth.told.len())
            .map(|count| truth.after(count))
            .collect();
        truth
    }

    /// What a start makes of the first `count` events.
    fn after(&self, count: usize) -> State {
        let mut files = self.files.clone();
        let events = records(&files["events"])[..=count].concat();
        files.insert("events", events);
        if count < self.snapshot {
            files.remove("payload-000001");
            files.remove("snapshot-000001");
        }
        let folder = save(&files);
        let (_, mut ledger, _) = open(folder.path(), 1).expect("a cut is no damage");
        State::of(&mut ledger)
    }
}

impl State {
    fn of(ledger: &mut Recorded) -> Self {
        let audit = ledger.audit();
        assert_eq!((audit.difference(), ledger.contradiction()), (None, None));
        let (now, epoch) = (ledger.now(), ledger.epoch());
        let newest = PolicyVersion::new(epoch.unwrap_or(0), ledger.steps_done());
        let batches = (0..6).filter_map(|step| Some(ledger.batch_part(Step(step), 0)?.0.clone()));
        let batches = batches.collect();
        let holder = ledger.new_holder("all", "all");
        Self {
            audit,
            epoch,
            committed: ledger.committed_steps(),
            batches,
            rollouts: ledger.lease_rollouts(now, holder, newest, 99, 99),
            scoring: ledger.lease_scoring(now, holder, 99),
        }
    }
}

/// Writes a run with a snapshot in its middle; answers how many events that holds.
fn run(folder: &Path) -> usize {
    let made = Journal::create(folder, identity(), OPTIONS, settings(0));
    let (mut journal, mut ledger) = made.expect("a new journal");
    let generator = ledger.new_holder("generator", "generator-0");
    let scorer = ledger.new_holder("scorer", "scorer-0");
    ledger.connect_learner(1, 0).expect("the first");
    ledger
        .published(PolicyVersion::new(1, 0), "h")
        .expect("the first");
    sample(&mut ledger, (generator, scorer), 0);
    train(&mut ledger, 0);
    write(&mut journal, &mut ledger);
    journal.snapshot(&ledger.snapshot()).expect("it is written");
    let events = fs::read(folder.join("events")).expect("it is there");
    ledger.committed(1, 1).expect("it was trained");
    sample(&mut ledger, (generator, scorer), 1);
    train(&mut ledger, 1);
    sample(&mut ledger, (generator, scorer), 2);
    ledger.holder_lost(scorer);
    ledger.tick(1000.0);
    write(&mut journal, &mut ledger);
    records(&events).len() - 1
}

fn write(journal: &mut Journal, ledger: &mut Recorded) {
    if let Some(mut pending) = ledger.take_pending() {
        journal.write(&mut pending).expect("it is written");
    }
}

/// Samples what may be sampled with the weights of `step`; of each group the second rollout comes in two chunks.
fn sample(ledger: &mut Recorded, (generator, scorer): (HolderId, HolderId), step: u64) {
    for ordinal in ledger.wanted_prompts() {
        let admitted = ledger.admit_from(ordinal, vec![ordinal as i32; 3], b"{}".to_vec(), 0);
        assert!(admitted.is_ok());
    }
    let (now, version) = (ledger.now() + 1.0, PolicyVersion::new(1, step));
    for lease in ledger.lease_rollouts(now, generator, version, 4, 4) {
        let tokens: Vec<i32> = (0..3).map(|at| at + lease.rollout.0 as i32).collect();
        let split = (lease.rollout.0 % 2) as usize * 2;
        for (from, to) in [(0, split), (split, 3)] {
            let (tokens, finish) = (&tokens[from..to], (to == 3).then_some(Finish::Stop));
            let chunk = ChunkRef {
                lease: lease.lease,
                offset: from,
                tokens,
                logprobs: &vec![-0.5; tokens.len()],
                runs: &[VersionRun::new(version, tokens.len() as u32)],
                finish,
            };
            if from < to {
                ledger.chunk(now, generator, chunk).expect("it is lent");
            }
        }
    }
    grade(ledger, scorer, 3);
}

fn grade(ledger: &mut Recorded, scorer: HolderId, max: usize) {
    let now = ledger.now() + 1.0;
    for lease in ledger.lease_scoring(now, scorer, max) {
        let verdict = Verdict::Score {
            total: (lease.rollout.0 % 2) as f64,
            parts: Vec::new(),
            status: "ok".to_owned(),
        };
        ledger.verdict(now, scorer, lease.lease, verdict);
    }
}

/// Binds the batch in parts, with what has to be scored for it between them.
fn train(ledger: &mut Recorded, step: u64) {
    let now = ledger.now() + 1.0;
    let mut part = 0;
    loop {
        match ledger
            .bind_part(now, Step(step), part)
            .expect("parts in order")
        {
            BindPart::Ready(_, part) if part.last => break,
            BindPart::Ready(..) => part += 1,
            BindPart::Wait(_) => {
                let scorer = ledger.new_holder("scorer", "scorer-1");
                grade(ledger, scorer, 9);
            }
            BindPart::Finished => unreachable!("it has more steps"),
        }
    }
    ledger
        .stepped_with(1, Step(step), None)
        .expect("it is next");
    let published = ledger.published(PolicyVersion::new(1, step + 1), "h");
    published.expect("it is next");
}

/// The rest of a script.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |all, &byte| all << 8 | byte as usize)
        };
        number(self.take(2)) % end.max(1)
    }
}

/// The files after what the script does to them.
fn damaged(script: &[u8]) -> Files {
    let mut files = truth().files.clone();
    let mut script = Script(script);
    for _ in 0..MAX_DAMAGES {
        let &[file, kind] = script.take(2) else {
            break;
        };
        let name = NAMES[usize::from(file) % NAMES.len()];
        match kind % DAMAGES {
            10 => drop(files.remove(name)),
            11 => {
                let other = NAMES[script.below(NAMES.len())];
                let (ours, theirs) = (files.remove(name), files.remove(other));
                files.extend(ours.map(|bytes| (other, bytes)));
                files.extend(theirs.map(|bytes| (name, bytes)));
            }
            kind => {
                if let Some(bytes) = files.get_mut(name) {
                    damage(bytes, kind, &mut script);
                }
            }
        }
    }
    files
}

fn damage(bytes: &mut Vec<u8>, kind: u8, script: &mut Script<'_>) {
    let len = bytes.len();
    let at = script.below(len + 1);
    match kind {
        0 => bytes.truncate(at),
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << script.below(8);
            }
        }
        2 => {
            let count = script.below(32);
            let new = script.take(count.min(len - at));
            bytes[at..at + new.len()].copy_from_slice(new);
        }
        3 => {
            let count = script.below(32);
            let new = script.take(count).to_vec();
            bytes.splice(at..at, new);
        }
        4 => {
            let behind = bytes.split_off(at);
            let (first, second) = behind.split_at(script.below(behind.len() + 1));
            bytes.extend([second, first].concat());
        }
        5 => bytes[at..].fill(0),
        6 => bytes.resize(len + at, 0),
        _ => {
            let mut all = split(bytes);
            let (one, other) = (at % all.len(), script.below(all.len()));
            match kind {
                7 => drop(all.remove(one)),
                8 => all.swap(one, other),
                _ => all.insert(one, all[other].clone()),
            }
            *bytes = all.concat();
        }
    }
}

/// Records as their lengths say, and what is left.
fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(length) = rest.first_chunk::<4>() {
        let whole = u32::from_le_bytes(*length) as usize + HEADER_BYTES;
        let (part, behind) = rest.split_at(whole.min(rest.len()));
        parts.push(part.to_vec());
        rest = behind;
    }
    parts.push(rest.to_vec());
    parts
}

fn check(files: &Files) {
    let truth = truth();
    let folder = save(files);
    let names = |name: &&str| files.get(name) != truth.files.get(name);
    let damaged: Vec<&str> = NAMES.into_iter().filter(names).collect();
    let events = tell(History::of_events(folder.path()), &damaged, files);
    match RunAudit::read(folder.path()) {
        Ok(audit) => {
            assert_eq!(Some(audit.events as usize), events);
            assert_eq!(audit.differences, Vec::<String>::new());
        }
        Err(_) => assert_eq!(events, None),
    }
    let whole = tell(History::whole(folder.path()), &damaged, files);
    if damaged.is_empty() {
        let all = Some(truth.told.len());
        assert_eq!((events, whole), (all, all));
    }
    resume(folder.path(), &damaged, files);
}

/// How many events the history tells, all of them true; `None`: it ends in an error that names a damaged file.
fn tell(history: Result<History, JournalError>, damaged: &[&str], files: &Files) -> Option<usize> {
    let mut history = match history {
        Ok(history) => history,
        Err(error) => return named(&error, damaged),
    };
    for (count, told) in truth().told.iter().enumerate() {
        match history.next() {
            Ok(Some(event)) => assert_eq!(&event, told, "event {count}"),
            Ok(None) => {
                assert!(ends_early(files), "it stops after {count} events");
                assert!(
                    matches!(history.next(), Ok(None)),
                    "it goes on behind its end"
                );
                return Some(count);
            }
            Err(error) => return named(&error, damaged),
        }
    }
    match history.next() {
        Ok(event) => assert_eq!(event, None),
        Err(error) => return named(&error, damaged),
    }
    Some(truth().told.len())
}

fn named(error: &JournalError, damaged: &[&str]) -> Option<usize> {
    let text = error.to_string();
    let is_named = |name: &&str| text.contains(*name) || matches!(error, JournalError::Missing(_));
    assert!(
        damaged.iter().any(is_named),
        "{text}: but {damaged:?} is what was damaged"
    );
    None
}

/// Whether some file may have lost its end to a crash: the only thing that is no error.
fn ends_early(files: &Files) -> bool {
    truth().files.iter().any(|(name, whole)| {
        files
            .get(name)
            .is_none_or(|bytes| bytes.len() < whole.len() || bytes.last() == Some(&0))
    })
}

/// A start goes on from a prefix of what happened, and a second one from where that came to.
fn resume(folder: &Path, damaged: &[&str], files: &Files) {
    let truth = truth();
    let base = match files.contains_key("snapshot-000001") {
        true => truth.snapshot,
        false => 0,
    };
    let (mut journal, mut ledger, events) = match open(folder, 1) {
        Ok(opened) => opened,
        Err(error) => {
            named(&error, damaged);
            return;
        }
    };
    let count = base + events;
    assert!(
        count == truth.told.len() || ends_early(files),
        "it goes on after {count} events"
    );
    assert_eq!(
        State::of(&mut ledger),
        truth.states[count],
        "after {count} events"
    );
    write(&mut journal, &mut ledger);
    drop(journal);
    let (_, again, more) = open(folder, 2).expect("what was cut is gone");
    assert!(more > events);
    assert_eq!(
        (again.audit(), again.epoch()),
        (ledger.audit(), ledger.epoch())
    );
}
