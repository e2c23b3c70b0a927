//! A journal read from a start, event by event, into a ledger.

use std::path::{Path, PathBuf};

use r1async_core::journal::{Bound, Chain, Command, Kind, Payload, Replay};
use r1async_core::{Event, Step};

use crate::error::JournalError;
use crate::files::{self, Header, Identity, generations};
use crate::stream::{Records, exists};

/// The payload of one start after the other.
#[derive(Debug)]
struct Payloads {
    folder: PathBuf,
    identity: Identity,
    records: Records,
    generation: u64,
    /// Bytes that the events had when it began.
    since: u64,
    /// Whether others may follow.
    goes_on: bool,
}

impl Payloads {
    fn open(
        folder: &Path,
        identity: &Identity,
        generation: u64,
        goes_on: bool,
    ) -> Result<Self, JournalError> {
        let path = files::payload(folder, generation);
        let (records, header) = Records::open(path.clone(), ("payload", generation))?;
        identity.check(&header.identity, &path)?;
        Ok(Self {
            folder: folder.to_owned(),
            identity: header.identity,
            records,
            generation,
            since: header.events,
            goes_on,
        })
    }

    /// The payload of the event at byte `at`, in this file or the one that follows it; `false` at the end.
    fn next(&mut self, at: u64, body: &mut Vec<u8>) -> Result<bool, JournalError> {
        loop {
            match self.records.next(body)? {
                Some(Kind::Payload) => return Ok(true),
                Some(kind) => return Err(misplaced(&self.records, kind)),
                None if self.goes_on
                    && exists(&files::payload(&self.folder, self.generation + 1)) =>
                {
                    let next = Self::open(&self.folder, &self.identity, self.generation + 1, true)?;
                    if at < next.since {
                        let path = self.records.path.clone();
                        let text = format!("it ends before the payload of the event at byte {at}");
                        return Err(JournalError::Parts { path, text });
                    }
                    *self = next;
                }
                // A new file is begun when all before it is on the disk: nothing was cut off here.
                None if exists(&files::payload(&self.folder, self.generation + 1)) => {
                    return Err(lost_snapshot(&self.folder, self.generation + 1));
                }
                None => return Ok(false),
            }
        }
    }
}

fn misplaced(records: &Records, kind: Kind) -> JournalError {
    JournalError::Foreign {
        path: records.path.clone(),
        text: format!("a record of kind {kind:?} at byte {}", records.last),
    }
}

/// Bytes of a file that were read, and what the next record follows.
pub(crate) type End = (u64, Chain);

/// One event as it was told to the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// When, in seconds of the run's own clock, which stands still while the buffer is down.
    pub at: f64,
    /// The call's name.
    pub call: &'static str,
    /// A batch that was handed out by it.
    pub bound: Option<(Step, usize, Bound)>,
    /// A peer that came with it: number, role, name.
    pub joined: Option<(u64, String, String)>,
    /// What it did, if the history is traced.
    pub trace: Vec<Event>,
}

/// A journal and the ledger that has heard it so far.
#[derive(Debug)]
pub struct History {
    replay: Replay,
    identity: Identity,
    events: Records,
    payload: Option<Payloads>,
    event: Vec<u8>,
    body: Vec<u8>,
    count: u64,
    has_ended: bool,
}

impl History {
    /// The whole run from its events alone, traced; nothing is written, also while the run goes on.
    ///
    /// # Errors
    /// There is no journal, or it cannot be read.
    pub fn of_events(folder: &Path) -> Result<Self, JournalError> {
        let (events, header) = open_events(folder)?;
        Ok(Self::of(Replay::new(true), header, events, None))
    }

    /// The whole run with all that was sampled (`journal.keep=all`).
    ///
    /// # Errors
    /// There is no journal, it cannot be read, or payload of groups that ended was not kept.
    pub fn whole(folder: &Path) -> Result<Self, JournalError> {
        if !exists(&files::payload(folder, 0)) {
            let path = files::payload(folder, 0);
            let text = "the payload of groups that ended is gone; a run that is to be replayed keeps it with journal.keep=all";
            let text = text.to_owned();
            return Err(JournalError::Parts { path, text });
        }
        let (events, header) = open_events(folder)?;
        let payload = Payloads::open(folder, &header.identity, 0, true)?;
        Ok(Self::of(Replay::new(true), header, events, Some(payload)))
    }

    /// From the newest snapshot on, with what is live.
    ///
    /// # Errors
    /// There is no journal, or it cannot be read.
    pub fn since_snapshot(folder: &Path) -> Result<Self, JournalError> {
        let (mut events, header) = open_events(folder)?;
        let generation = generations(folder, "snapshot")?.pop().unwrap_or(0);
        check_newest(folder, generation)?;
        let mut replay = Replay::new(false);
        if generation > 0 {
            let (saved, ledger) = read_snapshot(folder, generation)?;
            header.identity.check(&saved.identity, folder)?;
            events.seek(saved.events, saved.chain)?;
            replay = ledger;
        }
        let has_payload = exists(&files::payload(folder, generation));
        let payload = match has_payload {
            true => Some(Payloads::open(folder, &header.identity, generation, false)?),
            // A crash came between the snapshot and its payload's file: nothing was written since.
            false if generation > 0 && events.torn() == 0 => None,
            false => {
                let text = "it is missing".to_owned();
                let path = files::payload(folder, generation);
                return Err(JournalError::Parts { path, text });
            }
        };
        Ok(Self::of(replay, header, events, payload))
    }

    fn of(replay: Replay, header: Header, events: Records, payload: Option<Payloads>) -> Self {
        Self {
            replay,
            identity: header.identity,
            events,
            payload,
            event: Vec::new(),
            body: Vec::new(),
            count: 0,
            has_ended: false,
        }
    }

    /// Tells the ledger the next event; `None` at the end.
    ///
    /// An event at the end whose payload a power cut took is not told, nor what follows it.
    ///
    /// # Errors
    /// The journal is damaged, or this build decides otherwise than the one that wrote it.
    #[allow(
        clippy::should_implement_trait,
        reason = "it can fail, and lends nothing"
    )]
    pub fn next(&mut self) -> Result<Option<Told>, JournalError> {
        if self.has_ended {
            return Ok(None);
        }
        let told = self.tell()?;
        self.has_ended = told.is_none();
        Ok(told)
    }

    fn tell(&mut self) -> Result<Option<Told>, JournalError> {
        match self.events.next(&mut self.event)? {
            Some(Kind::Event) => {}
            Some(kind) => return Err(misplaced(&self.events, kind)),
            None => return Ok(None),
        }
        let (path, offset) = (&self.events.path, self.events.last);
        let failed = |error| JournalError::Replay {
            path: path.clone(),
            offset,
            error,
        };
        let (at, command) = Replay::read(&self.event).map_err(failed)?;
        let payload = match &mut self.payload {
            None => Payload::Gone,
            Some(payload) if command.has_payload() => {
                if !payload.next(offset, &mut self.body)? {
                    self.events.step_back();
                    return Ok(None);
                }
                Payload::Bytes(&self.body)
            }
            Some(_) => Payload::Bytes(&[]),
        };
        self.replay.apply(at, &command, payload).map_err(failed)?;
        self.count += 1;
        let (mut bound, mut joined) = (None, None);
        match &command {
            Command::Bind {
                step,
                part,
                bound: Some(it),
            } => bound = Some((*step, *part, *it)),
            Command::Join { holder, role, name } => {
                joined = Some((holder.0, role.to_string(), name.to_string()));
            }
            _ => {}
        }
        Ok(Some(Told {
            at,
            call: command.name(),
            bound,
            joined,
            trace: self.replay.take_trace(),
        }))
    }

    /// The ledger as of the events told so far.
    #[must_use]
    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    /// What the journal belongs to.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Events told.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes behind the last event told: a crash cut them.
    #[must_use]
    pub fn torn(&self) -> u64 {
        self.events.torn()
    }

    /// The ledger, where the two streams end, and the bytes of payload behind that.
    pub(crate) fn into_parts(self) -> (Replay, End, Option<(End, u64)>) {
        let payload = self
            .payload
            .map(|payload| (payload.records.end(), payload.records.torn()));
        (self.replay, self.events.end(), payload)
    }
}

fn open_events(folder: &Path) -> Result<(Records, Header), JournalError> {
    let path = files::events(folder);
    if exists(&path) {
        return Records::open(path, ("events", 0));
    }
    if !folder.is_dir()
        || generations(folder, "payload")?.is_empty() && generations(folder, "snapshot")?.is_empty()
    {
        return Err(JournalError::Missing(folder.to_owned()));
    }
    let text = "it is missing".to_owned();
    Err(JournalError::Parts { path, text })
}

/// A payload that is newer than the newest snapshot is left of one that was not finished, and empty.
fn check_newest(folder: &Path, generation: u64) -> Result<(), JournalError> {
    let newest = generations(folder, "payload")?.pop().unwrap_or(0);
    if newest <= generation {
        return Ok(());
    }
    match Records::begin(files::payload(folder, newest), ("payload", newest))? {
        Some((records, _)) if records.torn() > 0 => Err(lost_snapshot(folder, newest)),
        // Not even its header was written.
        Some(_) | None => Ok(()),
    }
}

fn lost_snapshot(folder: &Path, generation: u64) -> JournalError {
    let path = files::snapshot(folder, generation);
    let text = "it is missing, but not the payload since".to_owned();
    JournalError::Parts { path, text }
}

fn read_snapshot(folder: &Path, generation: u64) -> Result<(Header, Replay), JournalError> {
    let path = files::snapshot(folder, generation);
    let (mut records, header) = Records::open(path.clone(), ("snapshot", generation))?;
    let mut body = Vec::new();
    if records.next(&mut body)? != Some(Kind::Snapshot) {
        let text = "it holds no whole ledger".to_owned();
        return Err(JournalError::Foreign { path, text });
    }
    let offset = records.last;
    let replay = Replay::load(&body).map_err(|error| JournalError::Replay {
        path,
        offset,
        error,
    })?;
    Ok((header, replay))
}
