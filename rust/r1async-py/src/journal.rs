//! A run's journal for Python: the account, the life of a group, the batches again.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use r1async_core::frame::FrameWriter;
use r1async_core::pack::{pack, shares};
use r1async_core::{Account, DropReason, GroupId};
use r1async_journal::{History, RunAudit};

use crate::buffer::journal_error;

/// The account of a run from its journal alone.
#[pyfunction]
pub fn journal_audit<'py>(py: Python<'py>, folder: PathBuf) -> PyResult<Bound<'py, PyDict>> {
    let audit = py
        .detach(|| RunAudit::read(&folder))
        .map_err(journal_error)?;
    let dict = PyDict::new(py);
    for (name, account) in [
        ("prompts", &audit.prompts),
        ("rollouts", &audit.rollouts),
        ("tokens", &audit.tokens),
    ] {
        dict.set_item(name, account_of(py, account)?)?;
    }
    dict.set_item("trained_twice", audit.trained_twice)?;
    dict.set_item("balanced", audit.is_balanced())?;
    dict.set_item("differences", audit.differences.clone())?;
    let lengths = PyDict::new(py);
    lengths.set_item("generated", audit.generated.mean())?;
    lengths.set_item("trained", audit.trained.mean())?;
    for (reason, fate) in &audit.dropped {
        lengths.set_item(format!("dropped {reason}"), fate.mean())?;
    }
    dict.set_item("mean_length", lengths)?;
    dict.set_item("length_ratio", audit.length_ratio())?;
    dict.set_item("lives", audit.lives)?;
    dict.set_item("seconds", audit.seconds)?;
    dict.set_item("events", audit.events)?;
    dict.set_item("torn", audit.torn)?;
    Ok(dict)
}

fn account_of<'py>(py: Python<'py>, account: &Account) -> PyResult<Bound<'py, PyDict>> {
    let (dict, dropped) = (PyDict::new(py), PyDict::new(py));
    for reason in DropReason::ALL {
        if account.dropped_for(reason) > 0 {
            dropped.set_item(reason.name(), account.dropped_for(reason))?;
        }
    }
    dict.set_item("in", account.incoming)?;
    dict.set_item("trained", account.trained)?;
    dict.set_item("dropped", dropped)?;
    dict.set_item("live", account.live)?;
    Ok(dict)
}

/// What happened, from the events of a run's journal, one item at a time: (seconds, msgpack of a map). An item is an
/// event of the ledger, a life of the buffer that begins, or a peer that joined.
#[pyclass(module = "r1async._core")]
pub struct JournalEvents {
    history: History,
    group: Option<GroupId>,
    waiting: std::collections::VecDeque<(f64, Vec<u8>)>,
}

#[pymethods]
impl JournalEvents {
    #[new]
    #[pyo3(signature = (folder, group = None))]
    fn new(folder: PathBuf, group: Option<u64>) -> PyResult<Self> {
        Ok(Self {
            history: History::of_events(&folder).map_err(journal_error)?,
            group: group.map(GroupId),
            waiting: std::collections::VecDeque::new(),
        })
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<(f64, Bound<'py, PyBytes>)>> {
        py.detach(|| self.fill()).map_err(journal_error)?;
        let next = self.waiting.pop_front();
        Ok(next.map(|(at, item)| (at, PyBytes::new(py, &item))))
    }

    /// Rollouts of one prompt.
    #[getter]
    fn group_size(&self) -> u64 {
        self.history.identity().group_size
    }
}

impl JournalEvents {
    fn fill(&mut self) -> Result<(), r1async_journal::JournalError> {
        let size = self.history.identity().group_size as usize;
        while self.waiting.is_empty() {
            let Some(told) = self.history.next()? else {
                return Ok(());
            };
            let save = |item: Result<Vec<u8>, rmp_serde::encode::Error>| {
                (
                    told.at,
                    item.expect("numbers and strings can always be written"),
                )
            };
            if told.call == "open" {
                let item = std::collections::BTreeMap::from([("what", "opened")]);
                self.waiting.push_back(save(rmp_serde::to_vec_named(&item)));
            }
            if let Some((holder, role, name)) = &told.joined {
                let item = [("what", "joined"), ("role", role), ("name", name)];
                let item: std::collections::BTreeMap<&str, String> = item
                    .into_iter()
                    .map(|(key, value)| (key, value.to_owned()))
                    .chain([("holder", holder.to_string())])
                    .collect();
                self.waiting.push_back(save(rmp_serde::to_vec_named(&item)));
            }
            for event in &told.trace {
                if self.group.is_none_or(|group| event.is_about(group, size)) {
                    self.waiting.push_back(save(rmp_serde::to_vec_named(event)));
                }
            }
        }
        Ok(())
    }
}

/// The batches of a run whose journal keeps all, again: (step, part, groups, frame). A batch that comes out
/// otherwise than it was handed out is an error.
#[pyclass(module = "r1async._core")]
pub struct JournalBatches {
    history: History,
    temperature: f64,
    micro_batch_tokens: usize,
}

#[pymethods]
impl JournalBatches {
    #[new]
    fn new(folder: PathBuf, temperature: f64, micro_batch_tokens: usize) -> PyResult<Self> {
        Ok(Self {
            history: History::whole(&folder).map_err(journal_error)?,
            temperature,
            micro_batch_tokens,
        })
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Part<Bound<'py, PyBytes>>>> {
        let next = py.detach(|| self.next_batch()).map_err(journal_error)?;
        Ok(next.map(|(step, part, groups, frame)| (step, part, groups, PyBytes::new(py, &frame))))
    }
}

/// Step, part, groups in it, and its frame.
type Part<F> = (u64, usize, usize, F);

impl JournalBatches {
    fn next_batch(&mut self) -> Result<Option<Part<Vec<u8>>>, r1async_journal::JournalError> {
        while let Some(told) = self.history.next()? {
            let Some((step, part, bound)) = told.bound else {
                continue;
            };
            if let Some((batch, part)) = self.history.replay().batch_part(step, part) {
                let all = shares(batch, &part, 1, self.micro_batch_tokens);
                let head = FrameWriter::new("batch");
                let frame = pack(batch, &part, &all[0], self.temperature, head);
                return Ok(Some((step.0, part.place, bound.groups, frame)));
            }
        }
        Ok(None)
    }
}
