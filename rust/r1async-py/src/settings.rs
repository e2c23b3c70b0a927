//! Settings from Python: names become enums, everything is checked by the core.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use r1async_core::service::ServiceSettings;
use r1async_core::{
    Baseline, EngineShape, OverAge, ScoringPool, StalenessMode, StdKind, Window, ZeroVariance,
};

/// Every number the buffer decides by; times in seconds. Names and meanings are those of `r1async.config`.
#[pyclass(module = "r1async._core", frozen)]
pub struct Settings(pub ServiceSettings);

#[pymethods]
impl Settings {
    #[new]
    #[pyo3(signature = (
        *, run, seed, steps, group_size, min_group_size, groups_per_step, part_groups, max_staleness, pacing, mode,
        ess_floor, close_early, windows, publish_every, over_age, retries, waste_budget, hold_deadline_s, baseline, std, eps, pass_mark, zero_variance, oversample,
        max_refills, drop_truncated, rollout_deadline_s, lease_s, group_deadline_s, scoring_deadline_s,
        score_retries, slow_pools, max_attempts, max_tokens, temperature, incarnation, micro_batch_tokens, peer_deadline_s,
        max_message_bytes, interval_s, quarantine_after, filtered_batches, generators_grade,
    ))]
    #[expect(clippy::too_many_arguments, reason = "one keyword for each setting")]
    fn new(
        run: String,
        seed: u64,
        steps: u64,
        group_size: usize,
        min_group_size: usize,
        groups_per_step: usize,
        part_groups: usize,
        max_staleness: u64,
        pacing: u64,
        mode: &str,
        ess_floor: f64,
        close_early: bool,
        windows: Vec<(String, u64, f64)>,
        publish_every: u64,
        over_age: &str,
        retries: u32,
        waste_budget: f64,
        hold_deadline_s: f64,
        baseline: &str,
        std: &str,
        eps: f64,
        pass_mark: f64,
        zero_variance: &str,
        oversample: f64,
        max_refills: u64,
        drop_truncated: bool,
        rollout_deadline_s: f64,
        lease_s: f64,
        group_deadline_s: f64,
        scoring_deadline_s: f64,
        score_retries: u32,
        slow_pools: Vec<(String, f64, u32)>,
        max_attempts: u32,
        max_tokens: u32,
        temperature: f64,
        incarnation: u64,
        micro_batch_tokens: usize,
        peer_deadline_s: f64,
        max_message_bytes: usize,
        interval_s: f64,
        quarantine_after: u32,
        filtered_batches: usize,
        generators_grade: bool,
    ) -> PyResult<Self> {
        let ledger = r1async_core::Settings {
            group_size,
            min_group_size,
            groups_per_step,
            part_groups,
            steps,
            max_staleness,
            pacing,
            mode: staleness_mode(mode)?,
            ess_floor,
            close_early,
            windows: windows
                .into_iter()
                .map(|(name, max_staleness, share)| Window {
                    name,
                    max_staleness,
                    share,
                })
                .collect(),
            publish_every,
            over_age: self::over_age(over_age)?,
            retries,
            waste_budget,
            hold_deadline_s,
            baseline: self::baseline(baseline)?,
            std: std_kind(std)?,
            eps,
            pass_mark,
            zero_variance: self::zero_variance(zero_variance)?,
            oversample,
            max_refills,
            drop_truncated,
            rollout_deadline_s,
            lease_s,
            group_deadline_s,
            scoring_deadline_s,
            score_retries,
            slow_pools: slow_pools
                .into_iter()
                .map(|(name, deadline_s, retries)| ScoringPool {
                    name,
                    deadline_s,
                    retries,
                })
                .collect(),
            max_attempts,
            max_tokens,
            quarantine_after,
            temperature,
            incarnation,
        };
        let settings = ServiceSettings {
            ledger,
            run,
            seed,
            micro_batch_tokens,
            peer_deadline_s,
            max_message_bytes,
            filtered_batches,
            generators_grade,
            interval_s,
        };
        settings
            .validate()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self(settings))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

fn named<T>(
    setting: &str,
    got: &str,
    values: impl IntoIterator<Item = (&'static str, T)>,
) -> PyResult<T> {
    let mut names = Vec::new();
    for (name, value) in values {
        if name == got {
            return Ok(value);
        }
        names.push(name);
    }
    Err(PyValueError::new_err(format!(
        "{setting} must be one of {}, got {got:?}",
        names.join(", ")
    )))
}

fn over_age(name: &str) -> PyResult<OverAge> {
    named(
        "over_age",
        name,
        [
            ("mask", OverAge::Mask),
            ("drop", OverAge::Drop),
            ("train", OverAge::Train),
        ],
    )
}

fn staleness_mode(name: &str) -> PyResult<StalenessMode> {
    let values = [
        ("fixed", StalenessMode::Fixed),
        ("adaptive", StalenessMode::Adaptive),
    ];
    named("mode", name, values)
}

fn zero_variance(name: &str) -> PyResult<ZeroVariance> {
    named(
        "zero_variance",
        name,
        [("train", ZeroVariance::Train), ("drop", ZeroVariance::Drop)],
    )
}

pub(crate) fn baseline(name: &str) -> PyResult<Baseline> {
    let values = [
        ("std", Baseline::Std),
        ("mean", Baseline::Mean),
        ("leave_one_out", Baseline::LeaveOneOut),
        ("none", Baseline::None),
    ];
    named("baseline", name, values)
}

pub(crate) fn std_kind(name: &str) -> PyResult<StdKind> {
    named(
        "std",
        name,
        [
            ("population", StdKind::Population),
            ("sample", StdKind::Sample),
        ],
    )
}

/// The engine whose JSON it is.
pub fn engine_shape(name: &str) -> PyResult<EngineShape> {
    named(
        "shape",
        name,
        [("sglang", EngineShape::Sglang), ("vllm", EngineShape::Vllm)],
    )
}
