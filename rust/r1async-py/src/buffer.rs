//! The service for Python. A lock of its own, taken without the GIL, makes it safe to call from threads.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use numpy::{IntoPyArray, PyReadonlyArray1};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMemoryView};
use r1async_core::journal::Pending;
use r1async_core::service::{Outgoing, Service, Socket};
use r1async_journal::{Durability, Identity, Journal, JournalError, Options, Place, Recovery};
use r1async_memory::Segments;

use crate::figures::to_python;
use crate::libzmq::{Libzmq, drain};
use crate::settings::Settings;

/// The buffer of one run. Nothing a message says raises; it is answered by an error message and counted.
#[pyclass(module = "r1async._core", frozen)]
pub struct Buffer(Mutex<Kept>);

/// The service, and the journal that it is kept in.
struct Kept {
    service: Service,
    journal: Option<Journal>,
    recovery: Option<Recovery>,
    /// What the journal did not take yet: nothing is sent before it has.
    unwritten: Pending,
    /// How far the disk must come before the next answers that wait for it are sent; those that wait, in order.
    wanted: Place,
    held: VecDeque<(Place, Outgoing)>,
}

/// An open ROUTER of pyzmq, and the libzmq it belongs to.
#[pyclass(module = "r1async._core", frozen)]
pub struct Receiver {
    zmq: Libzmq,
    socket: usize,
}

#[pymethods]
impl Receiver {
    /// `module`: the file of pyzmq's extension; `socket`: the address of the socket, which stays open as long as this
    /// is used and is used by one thread at a time.
    #[new]
    fn new(module: PathBuf, socket: usize) -> PyResult<Self> {
        if socket == 0 {
            return Err(wrong("socket must be the address of an open one, got 0"));
        }
        let zmq = Libzmq::of_module(&module)
            .map_err(|error| PyOSError::new_err(format!("{}: {error}", module.display())))?;
        Ok(Self { zmq, socket })
    }
}

/// Bytes from which copying a frame costs more than an array around it.
const LARGE_FRAME: usize = 1 << 14;

impl Kept {
    fn new(service: Service, journal: Option<Journal>, recovery: Option<Recovery>) -> Self {
        Self {
            service,
            journal,
            recovery,
            unwritten: Pending::default(),
            wanted: Place::default(),
            held: VecDeque::new(),
        }
    }

    /// The frames to send now, once the journal has what they say; `wait`: also those that wait for the disk.
    fn outgoing(&mut self, wait: bool) -> Result<Vec<Outgoing>, JournalError> {
        self.service.settle(); // before the journal is written: what is handed out is in it too
        let Some(journal) = &mut self.journal else {
            return Ok(self.service.outgoing());
        };
        self.service.move_pending(&mut self.unwritten);
        if !self.unwritten.is_empty() {
            let place = journal.write_behind(&mut self.unwritten)?;
            self.wanted = place.unwrap_or(self.wanted);
            self.unwritten.clear();
        }
        if journal.wants_snapshot() {
            journal.snapshot(&self.service.snapshot())?;
        }
        if wait {
            journal.wait(self.wanted)?;
        }
        let on_disk = journal.on_disk()?;
        let mut ready = Vec::new();
        let come = self.held.partition_point(|(place, _)| *place <= on_disk);
        ready.extend(self.held.drain(..come).map(|(_, it)| it));
        let all_wait = journal.is_sync();
        for it in self.service.outgoing() {
            // What a learner hears is to be on the disk; events are hints.
            let waits = it.socket == Socket::Batches || (all_wait && it.socket != Socket::Events);
            if waits && self.wanted > on_disk {
                self.held.push_back((self.wanted, it));
            } else {
                ready.push(it);
            }
        }
        Ok(ready)
    }
}

/// An OSError with the operating system's number where it refused, a ValueError where the journal is wrong.
pub(crate) fn journal_error(error: JournalError) -> PyErr {
    if let JournalError::Unsynced { .. } = error {
        return PyRuntimeError::new_err(error.to_string()); // Not what a caller may try again, as a full disk.
    }
    match error.os_error() {
        Some(number) => PyOSError::new_err((number, error.to_string())),
        None => wrong(error),
    }
}

pub(crate) fn wrong(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn socket_named(name: &str) -> PyResult<Socket> {
    match name {
        "rollouts" => Ok(Socket::Rollouts),
        "batches" => Ok(Socket::Batches),
        _ => Err(wrong(format!(
            "socket must be \"rollouts\" or \"batches\", got {name:?}"
        ))),
    }
}

fn time(now: f64) -> PyResult<f64> {
    if now.is_finite() {
        Ok(now)
    } else {
        Err(wrong(format!("now must be finite seconds, got {now}")))
    }
}

/// The bytes of a contiguous Python buffer, where they are.
#[expect(
    unsafe_code,
    reason = "the only way to read a Python buffer without copying it"
)]
fn bytes_of<'a>(frame: &'a PyBuffer<u8>, _held: &'a FrameIsStill) -> PyResult<&'a [u8]> {
    if !frame.is_c_contiguous() {
        return Err(wrong("frame must be contiguous"));
    }
    // SAFETY: the buffer lives as long as `frame`, is contiguous and initialised, and `FrameIsStill` says why
    // nobody writes to it meanwhile. An empty buffer may have no address.
    Ok(frame
        .as_slice_ptr()
        .map_or(&[], |bytes| unsafe { bytes.as_ref() }))
}

/// Why the bytes of a frame do not change while they are read.
enum FrameIsStill {
    /// Its exporter says that they are read-only.
    ReadOnly,
    /// The GIL is held: no Python code runs that could write.
    UnderGil,
}

impl Buffer {
    fn kept<T>(&self, work: impl FnOnce(&mut Kept) -> T) -> T {
        // A panic is a bug of ours and has surfaced as an exception; the state is still the best there is.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Service) -> T) -> T {
        self.kept(|kept| work(&mut kept.service))
    }

    fn detached<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut Service) -> T + Send) -> T {
        py.detach(|| self.locked(work))
    }
}

#[pymethods]
impl Buffer {
    /// Without a journal: it lives as long as its process.
    #[new]
    fn new(settings: &Settings) -> PyResult<Self> {
        let service = Service::new(settings.0.clone()).map_err(wrong)?;
        Ok(Self(Mutex::new(Kept::new(service, None, None))))
    }

    /// Kept in the journal in `folder`, going on from what is there.
    #[staticmethod]
    #[pyo3(signature = (settings, folder, *, data, sync, interval_s, sync_bytes, snapshot_bytes, keep_all))]
    #[expect(clippy::too_many_arguments, reason = "one keyword for each setting")]
    fn journaled(
        py: Python<'_>,
        settings: &Settings,
        folder: PathBuf,
        data: String,
        sync: bool,
        interval_s: f64,
        sync_bytes: u64,
        snapshot_bytes: u64,
        keep_all: bool,
    ) -> PyResult<Self> {
        let settings = settings.0.clone();
        let interval = Duration::try_from_secs_f64(interval_s).map_err(wrong)?;
        let durability = match sync {
            true => Durability::Sync,
            false => Durability::Group {
                interval,
                bytes: sync_bytes,
            },
        };
        let options = Options {
            durability,
            snapshot_bytes,
            keep_all,
        };
        let identity = Identity {
            run: settings.run.clone(),
            seed: settings.seed,
            group_size: settings.ledger.group_size as u64,
            data,
        };
        let ledger = settings.ledger.clone();
        let (journal, recorded, recovery) = py
            .detach(|| match Journal::exists(&folder)? {
                true => Journal::open(&folder, identity, options, ledger)
                    .map(|(journal, recorded, recovery)| (journal, recorded, Some(recovery))),
                false => Journal::create(&folder, identity, options, ledger)
                    .map(|(journal, recorded)| (journal, recorded, None)),
            })
            .map_err(journal_error)?;
        let service = Service::over(settings, recorded).map_err(wrong)?;
        let kept = Kept::new(service, Some(journal), recovery);
        Ok(Self(Mutex::new(kept)))
    }

    /// What a start found in the journal: events, torn (bytes), seconds; None: a new run, or no journal.
    fn recovery<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(recovery) = self.kept(|kept| kept.recovery.clone()) else {
            return Ok(None);
        };
        let dict = PyDict::new(py);
        dict.set_item("events", recovery.events)?;
        dict.set_item("torn", recovery.torn)?;
        dict.set_item("seconds", recovery.seconds)?;
        Ok(Some(dict))
    }

    /// The time of the last call; of a journal, that of its last event: a clock goes on from there.
    fn now(&self) -> f64 {
        self.locked(|service| service.now())
    }

    /// Bytes of the journal: (events, payload since the newest snapshot); None: there is none.
    fn journal_bytes(&self) -> Option<(u64, u64)> {
        self.kept(|kept| kept.journal.as_ref().map(Journal::bytes))
    }

    /// A descriptor that is readable when `outgoing` has more because the disk has come further; None: no journal.
    fn disk_bell(&self) -> Option<i32> {
        let bell = |journal: &Journal| journal.bell().as_raw_fd();
        self.kept(|kept| kept.journal.as_ref().map(bell))
    }

    /// Steps whose groups are trained: a checkpoint holds them.
    fn committed_steps(&self) -> u64 {
        self.locked(|service| service.ledger().committed_steps())
    }

    /// Puts batches where learners of `machine` map them, at most `cap` bytes for each.
    fn share_memory(&self, machine: String, cap: usize) -> PyResult<()> {
        let segments = Segments::new(cap)?;
        self.locked(|service| service.share_memory(machine, Box::new(segments)));
        Ok(())
    }

    /// Files one message of `peer`. The frame is read in place; nothing of it is kept. `outgoing` or `tick` hands out
    /// what it made possible.
    fn handle(
        &self,
        py: Python<'_>,
        socket: &str,
        peer: &[u8],
        frame: PyBuffer<u8>,
        now: f64,
    ) -> PyResult<()> {
        let (socket, now) = (socket_named(socket)?, time(now)?);
        if frame.readonly() {
            let still = FrameIsStill::ReadOnly;
            let bytes = bytes_of(&frame, &still)?;
            self.detached(py, |service| service.handle(socket, peer, bytes, now));
        } else {
            let still = FrameIsStill::UnderGil;
            let bytes = bytes_of(&frame, &still)?;
            self.locked(|service| service.handle(socket, peer, bytes, now));
        }
        Ok(())
    }

    /// Reads and files at most `at_most` messages of a ROUTER of pyzmq; how many there were.
    #[expect(unsafe_code, reason = "a socket of pyzmq is known by its address")]
    fn receive(
        &self,
        py: Python<'_>,
        socket: &str,
        receiver: &Receiver,
        now: f64,
        at_most: usize,
    ) -> PyResult<usize> {
        let (socket, now) = (socket_named(socket)?, time(now)?);
        let at = receiver.socket;
        py.detach(|| {
            self.locked(|service| {
                // SAFETY: who made the receiver has promised it.
                unsafe {
                    drain(&receiver.zmq, at as *mut _, at_most, |peer, frame| {
                        service.handle(socket, peer, frame, now);
                    })
                }
            })
        })
        .map_err(|error| PyOSError::new_err(error.to_string()))
    }

    /// Lets deadlines pass; call it at `next_deadline()`, earlier does no harm.
    fn tick(&self, py: Python<'_>, now: f64) -> PyResult<()> {
        let now = time(now)?;
        self.detached(py, |service| service.tick(now));
        Ok(())
    }

    /// (socket, peer, frame) of all messages to send now, in order; on "events" the peer is the event's type. Before it returns
    /// the journal has all that they say; if it cannot be written they are kept for the next call. What is to be on the
    /// disk first is waited for, or with `wait=False` left to a later call (`disk_bell`). A large frame is
    /// a view of the bytes where the core wrote them, a small one is copied into `bytes`.
    #[pyo3(signature = (*, wait=true))]
    #[expect(clippy::type_complexity, reason = "a list of plain tuples")]
    fn outgoing<'py>(
        &self,
        py: Python<'py>,
        wait: bool,
    ) -> PyResult<Vec<(&'static str, Bound<'py, PyBytes>, Bound<'py, PyAny>)>> {
        let messages = py
            .detach(|| self.kept(|kept| kept.outgoing(wait)))
            .map_err(journal_error)?;
        let tuple = |it: Outgoing| {
            let frame = if it.frame.len() < LARGE_FRAME {
                PyBytes::new(py, &it.frame).into_any()
            } else {
                PyMemoryView::from(it.frame.into_pyarray(py).as_any())?.into_any()
            };
            Ok((it.socket.name(), PyBytes::new(py, &it.peer), frame))
        };
        messages.into_iter().map(tuple).collect()
    }

    /// When `tick` has something to do next; None: not before another message.
    fn next_deadline(&self, py: Python<'_>) -> Option<f64> {
        self.detached(py, |service| service.next_deadline())
    }

    /// Ordinals to admit now, in order; each is named until it is admitted, rejected or past the end.
    fn wanted_prompts(&self, py: Python<'_>) -> Vec<u64> {
        self.detached(py, |service| service.wanted_prompts())
    }

    /// Opens a group for a prompt that was wanted. `meta` is what a scorer needs to know of it; `source` is 0
    /// for the main sources, or one above the place of its window in the settings; `pool` likewise of `slow_pools`.
    #[pyo3(signature = (ordinal, token_ids, meta, now, source=0, pool=0))]
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each thing that is known of a prompt"
    )]
    fn admit(
        &self,
        py: Python<'_>,
        ordinal: u64,
        token_ids: PyReadonlyArray1<'_, i32>,
        meta: &[u8],
        now: f64,
        source: usize,
        pool: usize,
    ) -> PyResult<()> {
        let (now, tokens) = (time(now)?, token_ids.as_array().to_vec());
        self.detached(py, |service| {
            service.admit_to(ordinal, tokens, meta.to_vec(), (source, pool), now)
        })
        .map_err(wrong)
    }

    /// Counts a wanted prompt that cannot be used (`invalid`), and goes on to the next.
    fn reject_prompt(&self, py: Python<'_>, ordinal: u64, reason: &str) -> PyResult<()> {
        self.detached(py, |service| service.reject_prompt(ordinal, reason))
            .map_err(wrong)
    }

    /// The source ends before `at_ordinal`.
    fn end_of_prompts(&self, py: Python<'_>, at_ordinal: u64) {
        self.detached(py, |service| service.end_of_prompts(at_ordinal));
    }

    /// A peer that cannot be sent to: it is gone, and its leases are lost.
    fn peer_lost(&self, py: Python<'_>, socket: &str, peer: &[u8], now: f64) -> PyResult<()> {
        let (socket, now) = (socket_named(socket)?, time(now)?);
        self.detached(py, |service| service.peer_lost(socket, peer, now));
        Ok(())
    }

    /// Prompts, rollouts and tokens: in = trained + dropped by reason + live, and whether that is so.
    fn audit<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &self.detached(py, |service| service.audit()))
    }

    /// Figures to show; docs/protocol.md names them.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &self.detached(py, |service| service.stats()))
    }

    /// What the run waits for, the most important first; docs/protocol.md names the fields.
    fn waits<'py>(&self, py: Python<'py>, now: f64) -> PyResult<Bound<'py, PyAny>> {
        let now = time(now)?;
        to_python(py, &self.detached(py, |service| service.wait_figures(now)))
    }

    /// Leases nothing more and lets the learner's next question end it.
    fn stop(&self, py: Python<'_>, now: f64) -> PyResult<()> {
        let now = time(now)?;
        self.detached(py, |service| service.stop(now));
        Ok(())
    }
}
