//! A whole run under a virtual clock, for Python.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use r1async_sim::{Model, SimulationError};

use crate::figures::to_python;
use crate::settings::Settings;

/// What a run of these settings comes to with generators, scorers and learner of `model`, which is JSON.
#[pyfunction]
pub fn simulate<'py>(
    py: Python<'py>,
    settings: &Settings,
    model: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let model = Model::from_json(model).map_err(PyValueError::new_err)?;
    let ledger = settings.0.ledger.clone();
    let outcome = py.detach(|| r1async_sim::simulate(&ledger, &model));
    to_python(py, &outcome.map_err(error)?.figure())
}

fn error(error: SimulationError) -> PyErr {
    let text = error.to_string();
    match error {
        SimulationError::Model(_) | SimulationError::Settings(_) => PyValueError::new_err(text),
        SimulationError::Stalled { .. } | SimulationError::Refused(_) => {
            PyRuntimeError::new_err(text)
        }
    }
}
