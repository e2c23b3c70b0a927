//! `r1async._core`: the rollout buffer and the weight codec for Python. Converts types, releases the GIL, decides nothing;
//! `python/r1async/_core.pyi` says what everything means.

pub mod buffer;
pub mod figures;
pub mod journal;
pub mod libzmq;
pub mod settings;
pub mod simulation;
pub mod weights;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, ToPyArray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use settings::{baseline, std_kind};

/// Of what Rust allocates. For the simulator, which runs here too: a simulated day took 0.72 of the time that it took with
/// the C library's (on a busy machine); moving rollouts showed no difference.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// count, mean, std, min, max and pass_rate of finite rewards; None of no rewards.
#[pyfunction]
#[pyo3(signature = (rewards, std = "population", pass_mark = 1.0))]
fn group_statistics<'py>(
    py: Python<'py>,
    rewards: PyReadonlyArray1<'py, f64>,
    std: &str,
    pass_mark: f64,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let rewards = rewards.as_array().to_vec();
    let Some(statistics) = r1async_core::group_statistics(&rewards, std_kind(std)?, pass_mark)
    else {
        return Ok(None);
    };
    let dict = PyDict::new(py);
    dict.set_item("count", statistics.count)?;
    dict.set_item("mean", statistics.mean)?;
    dict.set_item("std", statistics.std)?;
    dict.set_item("min", statistics.min)?;
    dict.set_item("max", statistics.max)?;
    dict.set_item("pass_rate", statistics.pass_rate)?;
    Ok(Some(dict))
}

/// The advantage of each reward of one group.
#[pyfunction]
#[pyo3(signature = (rewards, baseline = "std", std = "population", eps = 1e-6))]
fn advantages<'py>(
    py: Python<'py>,
    rewards: PyReadonlyArray1<'py, f64>,
    baseline: &str,
    std: &str,
    eps: f64,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let rewards = rewards.as_array().to_vec();
    let advantages =
        r1async_core::advantages(&rewards, self::baseline(baseline)?, std_kind(std)?, eps);
    Ok(advantages.to_pyarray(py))
}

type Columns<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<f32>>);

/// Token ids and logprobs of an engine's JSON answer; the GIL is released while it is read.
#[pyfunction]
fn parse_logprobs_json<'py>(py: Python<'py>, body: &[u8], shape: &str) -> PyResult<Columns<'py>> {
    let shape = settings::engine_shape(shape)?;
    let sampled = py
        .detach(|| r1async_core::parse_engine_json(body, shape))
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((
        sampled.tokens.into_pyarray(py),
        sampled.logprobs.into_pyarray(py),
    ))
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<settings::Settings>()?;
    module.add_class::<buffer::Buffer>()?;
    module.add_class::<buffer::Receiver>()?;
    module.add_class::<journal::JournalEvents>()?;
    module.add_class::<journal::JournalBatches>()?;
    module.add_function(wrap_pyfunction!(journal::journal_audit, module)?)?;
    module.add_function(wrap_pyfunction!(group_statistics, module)?)?;
    module.add_function(wrap_pyfunction!(advantages, module)?)?;
    module.add_function(wrap_pyfunction!(parse_logprobs_json, module)?)?;
    module.add_function(wrap_pyfunction!(weights::crc32c, module)?)?;
    module.add_function(wrap_pyfunction!(weights::weights_encode, module)?)?;
    module.add_function(wrap_pyfunction!(weights::weights_decode, module)?)?;
    module.add_function(wrap_pyfunction!(weights::weights_hashes, module)?)?;
    module.add_function(wrap_pyfunction!(weights::weights_merge, module)?)?;
    module.add_function(wrap_pyfunction!(weights::weights_xor_zstd, module)?)?;
    module.add_function(wrap_pyfunction!(weights::weights_xor_zstd_decode, module)?)?;
    module.add_function(wrap_pyfunction!(weights::weights_bounds, module)?)?;
    module.add_function(wrap_pyfunction!(simulation::simulate, module)?)
}
