//! Waiting for the disk, in a thread of its own: whoever writes goes on meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::JournalError;
use crate::stream::Tail;

/// A disk that takes longer is waited for at once: else what is to be answered would pile up behind one that hangs.
const LATE: Duration = Duration::from_secs(1);

/// How many times a journal was written. What a write holds is on the disk when the disk has come to its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// Files with bytes that are not on the disk, and the thread that waits for it.
#[derive(Debug)]
pub(crate) struct Disk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    bytes: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to wait for.
    work: Condvar,
    /// The disk has come further, or refused.
    done: Condvar,
    /// Readable when somebody wants to hear of it.
    bell: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<(PathBuf, Arc<File>)>,
    written: Place,
    synced: Place,
    /// Bytes between the two, and since when there are any.
    bytes: u64,
    since: Option<Instant>,
    /// The last place that somebody wants to hear of, and since when somebody has waited.
    asked: Place,
    asked_since: Option<Instant>,
    /// Too much is not on the disk.
    at_once: bool,
    rung: bool,
    ending: bool,
    /// What it could not write the operating system forgets: another try would succeed without those bytes, so that
    /// there is none.
    error: Option<(PathBuf, Arc<io::Error>)>,
}

impl State {
    fn is_asked(&self) -> bool {
        self.asked > self.synced
    }

    fn is_late(&self) -> bool {
        let since = self.asked_since;
        self.is_asked() && since.is_some_and(|since| since.elapsed() > LATE)
    }

    fn is_synced(&self) -> bool {
        self.synced == self.written
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, state: &mut State) {
        if !std::mem::replace(&mut state.rung, true) {
            // It counts to 2^64 before it refuses, and is read before it is rung again.
            rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).expect("an eventfd takes a 1");
        }
    }

    /// Waits for the disk `interval` after the first byte that is not on it, or when it is told to.
    fn run(&self, interval: Duration) {
        let wait = |state| {
            self.work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner)
        };
        let mut state = self.lock();
        loop {
            if state.ending && state.is_synced() {
                return;
            }
            let Some(since) = state.since else {
                state = wait(state);
                continue;
            };
            let left = interval.saturating_sub(since.elapsed());
            if !left.is_zero() && !state.is_asked() && !state.at_once && !state.ending {
                let woken = self.work.wait_timeout(state, left);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let (place, files) = (state.written, state.files.clone());
            let was_asked = state.is_asked();
            (state.bytes, state.since, state.at_once) = (0, None, false);
            drop(state);
            let refused = files.into_iter().find_map(|(path, file)| {
                let error = file.sync_data().err()?;
                Some((path, Arc::new(error)))
            });
            state = self.lock();
            let has_failed = refused.is_some();
            if has_failed {
                state.error = refused;
            } else {
                state.synced = place;
                state.asked_since = state.is_asked().then(Instant::now);
            }
            if was_asked || has_failed {
                self.ring(&mut state);
            }
            self.done.notify_all();
            if has_failed {
                return;
            }
        }
    }
}

impl Disk {
    /// `interval`: seconds between two waits at most; `bytes`: after which one begins at once.
    pub(crate) fn new(interval: Duration, bytes: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || theirs.run(interval))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            bytes,
        })
    }

    /// These files have new bytes. `asks`: somebody wants to hear when they are on the disk.
    pub(crate) fn wrote(&self, tails: [&Tail; 2], bytes: u64, asks: bool) -> Place {
        let mut state = self.shared.lock();
        state.files = tails
            .map(|tail| (tail.path.clone(), tail.file.clone()))
            .into();
        state.written.0 += 1;
        state.bytes += bytes;
        let first = state.since.is_none();
        let now = Instant::now();
        state.since.get_or_insert(now);
        if asks {
            state.asked = state.written;
            state.asked_since.get_or_insert(now);
        }
        state.at_once |= state.bytes >= self.bytes;
        if first || asks || state.at_once {
            self.shared.work.notify_one();
        }
        state.written
    }

    /// How far the disk has come. One that is late is waited for.
    ///
    /// # Errors
    /// The disk has refused, now or ever before.
    pub(crate) fn reached(&self) -> Result<Place, JournalError> {
        let mut state = self.shared.lock();
        if std::mem::take(&mut state.rung) {
            // Rung under this lock, so that there is something to read.
            let read = rustix::io::read(&self.shared.bell, &mut [0_u8; 8]);
            read.expect("an eventfd that was rung can be read");
        }
        if state.is_late() {
            let asked = state.asked;
            state = self.until(state, asked);
        }
        self.heard(state)
    }

    /// Waits until the disk has come to `place`.
    ///
    /// # Errors
    /// The disk has refused, now or ever before.
    pub(crate) fn wait(&self, place: Place) -> Result<(), JournalError> {
        let state = self.shared.lock();
        self.heard(self.until(state, place)).map(drop)
    }

    /// Waits until all that was written is on the disk.
    ///
    /// # Errors
    /// The disk has refused, now or ever before.
    pub(crate) fn sync(&self) -> Result<(), JournalError> {
        let mut state = self.shared.lock();
        let written = state.written;
        if !state.is_synced() {
            state.asked = written;
            state.asked_since.get_or_insert_with(Instant::now);
            self.shared.work.notify_one();
        }
        self.heard(self.until(state, written)).map(drop)
    }

    fn until<'a>(&self, mut state: MutexGuard<'a, State>, place: Place) -> MutexGuard<'a, State> {
        while state.synced < place && state.error.is_none() {
            let woken = self.shared.done.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    fn heard(&self, state: MutexGuard<'_, State>) -> Result<Place, JournalError> {
        match state.error.clone() {
            None => Ok(state.synced),
            Some((path, error)) => Err(JournalError::Unsynced { path, error }),
        }
    }

    /// Readable when the disk has come to a place that somebody wanted to hear of, or has refused, until the next
    /// `reached`.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic there has said so on stderr already.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use r1async_core::journal::Chain;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    const DEADLINE: Timespec = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    const NOW: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };

    /// A disk that is waited for when somebody asks.
    fn disk() -> Disk {
        Disk::new(Duration::from_secs(3600), u64::MAX).unwrap()
    }

    fn tail(path: &Path) -> Tail {
        Tail {
            path: path.to_owned(),
            file: Arc::new(File::options().write(true).open(path).unwrap()),
            length: 0,
            chain: Chain::default(),
        }
    }

    fn has_rung(disk: &Disk, wait: &Timespec) -> bool {
        let mut bell = [PollFd::from_borrowed_fd(disk.bell(), PollFlags::IN)];
        poll(&mut bell, Some(wait)).unwrap() == 1
    }

    #[test]
    fn the_bell_rings_for_what_somebody_wants_to_hear_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (disk, tail) = (disk(), tail(file.path()));
        let quiet = disk.wrote([&tail, &tail], 10, false);
        assert!(disk.reached().unwrap() < quiet);
        let asked = disk.wrote([&tail, &tail], 10, true);
        assert!(asked > quiet);
        assert!(has_rung(&disk, &DEADLINE));
        assert_eq!(disk.reached().unwrap(), asked);
        assert!(!has_rung(&disk, &NOW));
    }

    #[test]
    fn all_that_was_written_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (disk, tail) = (disk(), tail(file.path()));
        disk.sync().unwrap();
        let quiet = disk.wrote([&tail, &tail], 10, false);
        disk.sync().unwrap();
        assert_eq!(disk.reached().unwrap(), quiet);
        assert!(!has_rung(&disk, &NOW));
    }

    #[test]
    fn a_disk_that_has_refused_is_not_believed_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (disk, good) = (disk(), tail(file.path()));
        let bad = tail(Path::new("/dev/null")); // which cannot be waited for
        let place = disk.wrote([&good, &bad], 10, false);
        assert!(disk.sync().is_err());
        assert!(has_rung(&disk, &DEADLINE));
        let error = disk.reached().unwrap_err();
        assert!(error.to_string().starts_with("/dev/null"), "{error}");
        let after = disk.wrote([&good, &good], 10, true);
        assert!(after > place && disk.wait(after).is_err());
        assert!(disk.sync().is_err() && disk.reached().is_err());
    }
}
