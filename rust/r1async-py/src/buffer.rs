//! The service for Python. A lock of its own, taken without the GIL, makes it safe to call from threads.

use std::sync::{Mutex, PoisonError};

use numpy::PyReadonlyArray1;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use r1async_core::service::{Service, Socket};

use crate::figures::to_python;
use crate::settings::Settings;

/// The buffer of one run. Nothing a message says raises; it is answered by an error message and counted.
#[pyclass(module = "r1async._core", frozen)]
pub struct Buffer(Mutex<Service>);

fn wrong(error: impl ToString) -> PyErr {
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
    fn locked<T>(&self, work: impl FnOnce(&mut Service) -> T) -> T {
        // A panic is a bug of ours and has surfaced as an exception; the state is still the best there is.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn detached<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut Service) -> T + Send) -> T {
        py.detach(|| self.locked(work))
    }
}

#[pymethods]
impl Buffer {
    #[new]
    fn new(settings: &Settings) -> PyResult<Self> {
        Ok(Self(Mutex::new(
            Service::new(settings.0.clone()).map_err(wrong)?,
        )))
    }

    /// Files one message of `peer`. The frame is read in place; nothing of it is kept.
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

    /// Lets deadlines pass; call it at `next_deadline()`, earlier does no harm.
    fn tick(&self, py: Python<'_>, now: f64) -> PyResult<()> {
        let now = time(now)?;
        self.detached(py, |service| service.tick(now));
        Ok(())
    }

    /// (socket, peer, frame) of all messages to send now, in order; on "events" the peer is empty.
    fn outgoing<'py>(
        &self,
        py: Python<'py>,
    ) -> Vec<(&'static str, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let messages = self.detached(py, Service::outgoing);
        let tuple = |it: r1async_core::service::Outgoing| {
            (
                it.socket.name(),
                PyBytes::new(py, &it.peer),
                PyBytes::new(py, &it.frame),
            )
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

    /// Opens a group for a prompt that was wanted. `meta` is what a scorer needs to know of it.
    fn admit(
        &self,
        py: Python<'_>,
        ordinal: u64,
        token_ids: PyReadonlyArray1<'_, i32>,
        meta: &[u8],
        now: f64,
    ) -> PyResult<()> {
        let (now, tokens) = (time(now)?, token_ids.as_array().to_vec());
        self.detached(py, |service| {
            service.admit(ordinal, tokens, meta.to_vec(), now)
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

    /// Steps whose `committed` waits for `confirm_commit`: write `checkpoint()` first.
    fn commits(&self, py: Python<'_>) -> Vec<u64> {
        self.detached(py, |service| service.commits())
    }

    /// The checkpoint of `step` is on disk: the learner may know.
    fn confirm_commit(&self, py: Python<'_>, step: u64, now: f64) -> PyResult<()> {
        let now = time(now)?;
        if self.detached(py, |service| service.confirm_commit(step, now)) {
            return Ok(());
        }
        let waiting = self.detached(py, |service| service.commits());
        Err(wrong(format!(
            "no commit of step {step} waits; waiting are {waiting:?}"
        )))
    }

    /// What a restart of the whole run needs.
    fn checkpoint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.detached(py, |service| service.checkpoint()))
    }

    /// Goes on from a `checkpoint()`; before anything else is called.
    fn restore(&self, py: Python<'_>, state: &[u8]) -> PyResult<()> {
        self.detached(py, |service| service.restore(state))
            .map_err(wrong)
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
