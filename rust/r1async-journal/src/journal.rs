//! The journal that a running buffer writes.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use r1async_core::Settings;
use r1async_core::journal::{Chain, Kind, Pending, Recorded, append, link};

use crate::disk::{Disk, Place};
use crate::error::JournalError;
use crate::files::{self, Header, Identity, generations, sync_folder};
use crate::history::History;
use crate::stream::{Records, Tail, exists};

/// What an acknowledgement means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Durability {
    /// It is on the disk.
    Sync,
    /// It is with the operating system, and on the disk soon: a killed process loses nothing, a power cut what is
    /// younger than this, or fewer bytes than that.
    Group {
        /// Time between two waits for the disk at most.
        interval: Duration,
        /// Bytes after which the disk is waited for at once.
        bytes: u64,
    },
}

/// How a journal is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// What an acknowledgement means.
    pub durability: Durability,
    /// A snapshot is due after so many bytes, or as many as the last snapshot has, whichever is more.
    pub snapshot_bytes: u64,
    /// The payload of groups that have ended stays.
    pub keep_all: bool,
}

/// What a start found.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// Events since the newest snapshot.
    pub events: u64,
    /// Bytes of both streams that a crash cut: never acknowledged.
    pub torn: u64,
    /// How long it took.
    pub seconds: f64,
}

/// The journal of a buffer that runs.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    identity: Identity,
    options: Options,
    events: Tail,
    payload: Tail,
    generation: u64,
    /// Bytes of both streams since the snapshot, and of the snapshot.
    since_snapshot: u64,
    snapshot_size: u64,
    disk: Disk,
}

impl Journal {
    /// Whether a run has left a journal in `folder`. One that a crash or a full disk kept from its beginning is none:
    /// nothing had been answered yet.
    ///
    /// # Errors
    /// There is one, and it is damaged.
    pub fn exists(folder: &Path) -> Result<bool, JournalError> {
        if !folder.is_dir() {
            return Ok(false);
        }
        let (events, payload) = (files::events(folder), files::payload(folder, 0));
        if exists(&events) && Records::begin(events, ("events", 0))?.is_some() {
            return Ok(true);
        }
        let mut later = generations(folder, "payload")?;
        later.retain(|generation| *generation > 0);
        if !later.is_empty() || !generations(folder, "snapshot")?.is_empty() {
            return Ok(true); // the events are gone, as `open` will say
        }
        let begun = match exists(&payload) {
            true => Records::begin(payload, ("payload", 0))?,
            false => None,
        };
        Ok(begun.is_some_and(|(records, _)| records.torn() > 0))
    }

    /// A journal without a history, and the ledger that it belongs to.
    ///
    /// # Errors
    /// The files cannot be made, or the settings cannot work.
    pub fn create(
        folder: &Path,
        identity: Identity,
        options: Options,
        settings: Settings,
    ) -> Result<(Self, Recorded), JournalError> {
        fs::create_dir_all(folder).map_err(JournalError::io(folder))?;
        let recorded = Recorded::new(settings, true).map_err(|error| JournalError::Replay {
            path: folder.to_owned(),
            offset: 0,
            error: error.into(),
        })?;
        let start = (0, Chain::default());
        // The payload first: a folder with events has both.
        let payload = Header::new("payload", 0, start, &identity);
        let payload = Tail::create(files::payload(folder, 0), &payload)?;
        let events = Header::new("events", 0, start, &identity);
        let events = Tail::create(files::events(folder), &events)?;
        sync_folder(folder)?;
        let journal = Self::over(folder, identity, options, (events, payload), 0, 0)?;
        Ok((journal, recorded))
    }

    /// The journal of a run that goes on, and its ledger.
    ///
    /// # Errors
    /// There is none, it belongs to another run, it is damaged, or the settings do not fit it.
    pub fn open(
        folder: &Path,
        identity: Identity,
        options: Options,
        settings: Settings,
    ) -> Result<(Self, Recorded, Recovery), JournalError> {
        let began = Instant::now();
        let mut history = History::since_snapshot(folder)?;
        identity.check(history.identity(), folder)?;
        while history.next()?.is_some() {}
        let (count, torn_events) = (history.count(), history.torn());
        if history.replay().ledger().is_none() {
            // A crash came before the first event was whole: nothing had been answered yet.
            drop(history);
            let (journal, recorded) = Self::create(folder, identity, options, settings)?;
            let recovery = Recovery {
                events: 0,
                torn: torn_events,
                seconds: began.elapsed().as_secs_f64(),
            };
            return Ok((journal, recorded, recovery));
        }
        let (replay, events_end, payload_end) = history.into_parts();
        let generation = generations(folder, "snapshot")?.pop().unwrap_or(0);
        let payload_path = files::payload(folder, generation);
        let (payload, torn_payload) = match payload_end {
            Some((end, torn)) => (Tail::open(payload_path, end)?, torn),
            None => {
                let header = Header::new("payload", generation, events_end, &identity);
                (Tail::create(payload_path, &header)?, 0)
            }
        };
        let events = Tail::open(files::events(folder), events_end)?;
        let recorded = replay
            .resume(settings)
            .map_err(|error| JournalError::Replay {
                path: events.path.clone(),
                offset: events_end.0,
                error,
            })?;
        let snapshot = files::snapshot(folder, generation);
        let size = fs::metadata(&snapshot).map_or(0, |meta| meta.len());
        let mut journal = Self::over(
            folder,
            identity,
            options,
            (events, payload),
            generation,
            size,
        )?;
        journal.since_snapshot = journal.payload.length;
        journal.remove_older()?;
        sync_folder(folder)?;
        let recovery = Recovery {
            events: count,
            torn: torn_events + torn_payload,
            seconds: began.elapsed().as_secs_f64(),
        };
        Ok((journal, recorded, recovery))
    }

    fn over(
        folder: &Path,
        identity: Identity,
        options: Options,
        (events, payload): (Tail, Tail),
        generation: u64,
        snapshot_size: u64,
    ) -> Result<Self, JournalError> {
        let (interval, bytes) = match options.durability {
            Durability::Sync => (Duration::ZERO, 0),
            Durability::Group { interval, bytes } => (interval, bytes),
        };
        Ok(Self {
            folder: folder.to_owned(),
            identity,
            options,
            events,
            payload,
            generation,
            since_snapshot: 0,
            snapshot_size,
            disk: Disk::new(interval, bytes).map_err(JournalError::io(folder))?,
        })
    }

    /// Writes what is pending; when this returns, what it holds may be answered.
    ///
    /// # Errors
    /// The operating system refused. If it refused to write, nothing of it counts as written, and it may be tried again.
    pub fn write(&mut self, pending: &mut Pending) -> Result<(), JournalError> {
        match self.write_behind(pending)? {
            Some(place) => self.disk.wait(place),
            None => Ok(()),
        }
    }

    /// Writes what is pending. It may be answered at once, or when the disk has come to the place answered.
    ///
    /// # Errors
    /// The operating system refused. Nothing of it counts as written, and it may be tried again.
    pub fn write_behind(&mut self, pending: &mut Pending) -> Result<Option<Place>, JournalError> {
        let payload_chain = link(&mut pending.payload, self.payload.chain);
        let events_chain = link(&mut pending.events, self.events.chain);
        self.payload.write(&pending.payload)?;
        self.events.write(&pending.events)?;
        self.payload.length += pending.payload.len() as u64;
        self.events.length += pending.events.len() as u64;
        (self.payload.chain, self.events.chain) = (payload_chain, events_chain);
        let bytes = (pending.payload.len() + pending.events.len()) as u64;
        self.since_snapshot += bytes;
        let urgent = pending.urgent || self.is_sync();
        let place = self
            .disk
            .wrote([&self.payload, &self.events], bytes, urgent);
        Ok(urgent.then_some(place))
    }

    /// Whether nothing at all is answered before it is on the disk.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        self.options.durability == Durability::Sync
    }

    /// How far the disk has come.
    ///
    /// # Errors
    /// It has refused, now or ever before.
    pub fn on_disk(&self) -> Result<Place, JournalError> {
        self.disk.reached()
    }

    /// Waits until the disk has come to a place.
    ///
    /// # Errors
    /// It has refused, now or ever before.
    pub fn wait(&self, place: Place) -> Result<(), JournalError> {
        self.disk.wait(place)
    }

    /// Readable when the disk has come to a place that [`Journal::write_behind`] has answered, until the next
    /// [`Journal::on_disk`].
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.disk.bell()
    }

    /// Waits until all that is written is on the disk.
    ///
    /// # Errors
    /// It has refused, now or ever before.
    pub fn sync(&self) -> Result<(), JournalError> {
        // By the thread: the system tells one of two who wait that the disk has refused, and that must be heard.
        self.disk.sync()
    }

    /// Whether the next start would read more than it needs to, and the payload holds more than is live.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        self.since_snapshot > self.options.snapshot_bytes.max(self.snapshot_size)
    }

    /// Saves the whole ledger, as of all that was written, and begins a new payload file.
    ///
    /// # Errors
    /// The operating system refused; the journal goes on as it was, unless it is [`JournalError::Unsynced`].
    pub fn snapshot(&mut self, ledger: &[u8]) -> Result<(), JournalError> {
        self.sync()?;
        let generation = self.generation + 1;
        let begun = self.begin_generation(generation, ledger);
        let (payload, size) = begun.inspect_err(|_| self.give_up_generation(generation))?;
        self.payload = payload;
        self.generation = generation;
        self.since_snapshot = 0;
        self.snapshot_size = size;
        self.remove_older()
    }

    /// A snapshot that is on the disk with its bytes, and the payload file since.
    fn begin_generation(
        &self,
        generation: u64,
        ledger: &[u8],
    ) -> Result<(Tail, u64), JournalError> {
        let path = files::snapshot(&self.folder, generation);
        let partial = path.with_extension("partial");
        let events = (self.events.length, self.events.chain);
        let header = Header::new("snapshot", generation, events, &self.identity);
        let (mut records, chain) = header.record();
        let head = records.len();
        append(&mut records, Kind::Snapshot, |body| {
            body.extend_from_slice(ledger)
        });
        link(&mut records[head..], chain);
        let file = fs::File::create(&partial).map_err(JournalError::io(&partial))?;
        std::os::unix::fs::FileExt::write_all_at(&file, &records, 0)
            .map_err(JournalError::io(&partial))?;
        file.sync_all().map_err(JournalError::io(&partial))?;
        let header = Header::new("payload", generation, events, &self.identity);
        let payload = Tail::create(files::payload(&self.folder, generation), &header)?;
        fs::rename(&partial, &path).map_err(JournalError::io(&path))?;
        sync_folder(&self.folder)?;
        Ok((payload, records.len() as u64))
    }

    /// What was begun of a snapshot goes. A payload file says that all before it is on the disk: beside one that was
    /// given up, the torn tail of the payload that the journal goes on with would look like a loss.
    fn give_up_generation(&self, generation: u64) {
        let snapshot = files::snapshot(&self.folder, generation);
        let payload = files::payload(&self.folder, generation);
        // Whoever called hears why the snapshot failed. What cannot be removed either is made anew by the next one.
        for path in [snapshot.with_extension("partial"), snapshot, payload] {
            drop(fs::remove_file(path));
        }
        drop(sync_folder(&self.folder));
    }

    /// Removes snapshots, and payload unless all is kept, that no start reads any more.
    fn remove_older(&self) -> Result<(), JournalError> {
        let mut old: Vec<PathBuf> = Vec::new();
        let is_old = |generation: &u64| *generation < self.generation;
        for generation in generations(&self.folder, "snapshot")?
            .into_iter()
            .filter(is_old)
        {
            old.push(files::snapshot(&self.folder, generation));
        }
        for generation in generations(&self.folder, "payload")? {
            // One that is newer is left of a snapshot that was not finished.
            let unfinished = generation > self.generation;
            if unfinished || (is_old(&generation) && !self.options.keep_all) {
                old.push(files::payload(&self.folder, generation));
            }
        }
        for path in old {
            fs::remove_file(&path).map_err(JournalError::io(&path))?;
        }
        Ok(())
    }

    /// Bytes on the disk: events, and payload since the newest snapshot.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.events.length, self.payload.length)
    }
}
