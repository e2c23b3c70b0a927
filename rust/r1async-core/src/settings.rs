//! Every number the ledger decides by, checked once.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::statistics::{Baseline, StdKind};

/// What happens to tokens older than the bound at the moment of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverAge {
    /// They leave the loss and every denominator but the length.
    Mask,
    /// They take their whole group with them; its prompt returns `retries` times.
    Drop,
    /// They are trained, and counted.
    Train,
}

/// What happens to a group whose scored members all have the same reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZeroVariance {
    /// Trained; its gradient is zero.
    Train,
    /// Dropped and refilled, at most `max_refills` times a step (DAPO's dynamic sampling).
    Drop,
}

/// Whether the pacing moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StalenessMode {
    /// The pacing is `Settings::pacing`.
    Fixed,
    /// It moves between 0 and `Settings::pacing`: up when the learner starves, down when groups pile up or
    /// the effective sample size falls below `Settings::ess_floor`.
    Adaptive,
}

/// The window of a source whose verdicts are slow: it paces itself and never holds a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// The source's name.
    pub name: String,
    /// e_s: the bound of its tokens, in steps.
    pub max_staleness: u64,
    /// Its share of all groups, above 0 and at most 1.
    pub share: f64,
}

/// Scorers' workers for verdicts that are slow: they have a line of their own, and deadlines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoringPool {
    /// Its name.
    pub name: String,
    /// Seconds a scorer may need for one verdict, all its own tries together.
    pub deadline_s: f64,
    /// Scorers one rollout may lose before it goes unscored.
    pub retries: u32,
}

/// Settings that make the sampled distribution; they travel with every lease.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Logits are divided by it.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// 0 is off.
    pub top_k: u32,
    /// Completion tokens at most.
    pub max_tokens: u32,
    /// Take the likeliest token instead of sampling.
    pub greedy: bool,
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{name} must be {want}, got {got}")]
pub struct SettingsError {
    /// The setting.
    pub name: &'static str,
    /// What it would have to be.
    pub want: String,
    /// What it is.
    pub got: String,
}

/// Every number the ledger decides by. Times are seconds on the caller's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// G: rollouts of one prompt.
    pub group_size: usize,
    /// A group with fewer scored members is dropped `too_few_scored`.
    pub min_group_size: usize,
    /// B: groups that one optimizer step trains.
    pub groups_per_step: usize,
    /// Groups that a part of a batch has at least, but for its last; 0: a batch is handed out whole.
    pub part_groups: usize,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// e: no token older than this many steps has a loss (unless `over_age` is `Train`).
    pub max_staleness: u64,
    /// w: admission opens `floor((w + 1) * B * oversample)` places, `w <= e`.
    pub pacing: u64,
    /// Whether w is fixed, or the most that it moves up to.
    pub mode: StalenessMode,
    /// Effective sample size of the importance weights, as a share of the tokens, below which w shrinks.
    pub ess_floor: f64,
    /// Whether groups at their last chance train with the members that are scored (`OverAge::Mask`, e > 0).
    pub close_early: bool,
    /// Sources with windows of their own; all others share the main one.
    pub windows: Vec<Window>,
    /// Optimizer steps between two publications of weights, at most `w + 1`.
    pub publish_every: u64,
    /// The fate of tokens older than e.
    pub over_age: OverAge,
    /// Times the prompt of a group dropped for age is admitted again (`OverAge::Drop`).
    pub retries: u32,
    /// Share of generated tokens that may die of age before a step is held; 0 waits for all, 1 never holds.
    pub waste_budget: f64,
    /// Seconds a step is held at most.
    pub hold_deadline_s: f64,
    /// How an advantage is made of a reward.
    pub baseline: Baseline,
    /// Which standard deviation `Baseline::Std` divides by.
    pub std: StdKind,
    /// Added to the standard deviation.
    pub eps: f64,
    /// A reward at least this high counts as passed in `pass_rate`.
    pub pass_mark: f64,
    /// The fate of groups of equal rewards.
    pub zero_variance: ZeroVariance,
    /// Groups opened for each one wanted, at least 1.
    pub oversample: f64,
    /// Zero-variance groups dropped for one step at most.
    pub max_refills: u64,
    /// A rollout cut at `max_tokens` abstains instead of being scored.
    pub drop_truncated: bool,
    /// Seconds from a rollout's first lease to its last token.
    pub rollout_deadline_s: f64,
    /// Seconds without a new token after which a generator's lease is taken back.
    pub lease_s: f64,
    /// Seconds from a group's first lease to its close.
    pub group_deadline_s: f64,
    /// Seconds a scorer may need for one verdict of the first pool, all its own tries together.
    pub scoring_deadline_s: f64,
    /// Scorers one rollout of the first pool may lose before it goes unscored.
    pub score_retries: u32,
    /// Pools besides the first, which rollouts wait for in lines of their own.
    pub slow_pools: Vec<ScoringPool>,
    /// Generator leases one rollout may lose before it abstains with status `lost`.
    pub max_attempts: u32,
    /// Completion tokens of a training rollout at most.
    pub max_tokens: u32,
    /// Groups of a prompt in which every member may abstain before the prompt is set aside.
    pub quarantine_after: u32,
    /// Temperature of training rollouts.
    pub temperature: f64,
    /// Below 2^20 and another in each life of the buffer (chosen at random, say): it begins every lease's
    /// number, so that what was done under a lease of an earlier life fits none of this one.
    pub incarnation: u64,
}

impl Default for Settings {
    /// The defaults of the Python configuration.
    fn default() -> Self {
        Self {
            group_size: 8,
            min_group_size: 4,
            groups_per_step: 16,
            part_groups: 0,
            steps: 100,
            max_staleness: 2,
            pacing: 2,
            mode: StalenessMode::Fixed,
            ess_floor: 0.5,
            close_early: true,
            windows: Vec::new(),
            publish_every: 1,
            over_age: OverAge::Mask,
            retries: 1,
            waste_budget: 0.05,
            hold_deadline_s: 60.0,
            baseline: Baseline::Std,
            std: StdKind::Population,
            eps: 1e-6,
            pass_mark: 1.0,
            zero_variance: ZeroVariance::Train,
            oversample: 1.0,
            max_refills: 64,
            drop_truncated: false,
            rollout_deadline_s: 600.0,
            lease_s: 60.0,
            group_deadline_s: 630.0,
            scoring_deadline_s: 20.0,
            score_retries: 1,
            slow_pools: Vec::new(),
            max_attempts: 3,
            max_tokens: 1024,
            quarantine_after: 3,
            temperature: 1.0,
            incarnation: 0,
        }
    }
}

impl Settings {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first setting that is out of range or contradicts another.
    ///
    /// ```
    /// use r1async_core::Settings;
    /// let error = Settings { pacing: 3, ..Settings::default() }.validate().unwrap_err();
    /// assert_eq!(error.to_string(), "pacing must be at most max_staleness = 2, got 3");
    /// ```
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.validate_sizes()?;
        self.validate_staleness()?;
        self.validate_groups()?;
        self.validate_times()
    }

    fn validate_sizes(&self) -> Result<(), SettingsError> {
        let size = self.group_size;
        within(
            "group_size",
            size,
            (1..=1 << 16).contains(&size),
            "1 to 65536",
        )?;
        let min = self.min_group_size;
        let want = format!("1 to group_size = {size}");
        within("min_group_size", min, (1..=size).contains(&min), want)?;
        let per_step = self.groups_per_step;
        within(
            "groups_per_step",
            per_step,
            (1..=1 << 20).contains(&per_step),
            "1 to 1048576",
        )?;
        within("steps", self.steps, self.steps <= 1 << 30, "at most 2^30")?;
        within(
            "max_tokens",
            self.max_tokens,
            self.max_tokens >= 1,
            "at least 1",
        )?;
        within(
            "max_attempts",
            self.max_attempts,
            self.max_attempts >= 1,
            "at least 1",
        )?;
        let life = self.incarnation;
        within("incarnation", life, life < 1 << 20, "below 2^20")?;
        let heat = self.temperature;
        within(
            "temperature",
            heat,
            heat.is_finite() && heat > 0.0,
            "above 0",
        )
    }

    fn validate_staleness(&self) -> Result<(), SettingsError> {
        let e = self.max_staleness;
        within("max_staleness", e, e <= 1 << 20, "at most 2^20")?;
        within(
            "pacing",
            self.pacing,
            self.pacing <= e,
            format!("at most max_staleness = {e}"),
        )?;
        let every = self.publish_every;
        let want = format!(
            "1 to pacing + 1 = {}, or generation waits for weights that never come",
            self.pacing + 1
        );
        within(
            "publish_every",
            every,
            (1..=self.pacing + 1).contains(&every),
            want,
        )?;
        let budget = self.waste_budget;
        within(
            "waste_budget",
            budget,
            (0.0..=1.0).contains(&budget),
            "0 to 1",
        )?;
        let floor = self.ess_floor;
        within("ess_floor", floor, (0.0..=1.0).contains(&floor), "0 to 1")?;
        self.validate_windows()
    }

    fn validate_windows(&self) -> Result<(), SettingsError> {
        let mut names = std::collections::BTreeSet::from(["main"]);
        for window in &self.windows {
            let name = window.name.as_str();
            let fits = !name.is_empty() && name.len() <= 256 && names.insert(name);
            within("windows", name, fits, "named once each, not \"main\"")?;
            let e = window.max_staleness;
            within("windows", e, e <= 1 << 20, "of max_staleness at most 2^20")?;
            let want = format!(
                "of max_staleness at least publish_every - 1 = {}: between two publications its groups could not train",
                self.publish_every - 1
            );
            within("windows", e, e + 1 >= self.publish_every, want)?;
            let share = window.share;
            let want = "of a share above 0 and at most 1";
            within("windows", share, share > 0.0 && share <= 1.0, want)?;
        }
        let shares: f64 = self.windows.iter().map(|window| window.share).sum();
        within(
            "windows",
            shares,
            shares <= 1.0 + 1e-9,
            "of shares that add up to at most 1",
        )?;
        // At bound 0 whatever is over a batch is too old for the next one.
        let at_zero = (1..self.sources()).filter(|&source| self.bound_of(source) == 0);
        let slow: Vec<usize> = at_zero.map(|source| self.window_limit(source)).collect();
        let main = (self.max_staleness == 0).then_some(self.groups_per_step);
        let (sources, groups) = (
            slow.len() + usize::from(main.is_some()),
            slow.iter().sum::<usize>() + main.unwrap_or(0),
        );
        let b = self.groups_per_step;
        let want = format!(
            "at most groups_per_step = {b} groups of all sources with max_staleness = 0: the surplus would be lost"
        );
        within("windows", groups, sources < 2 || groups <= b, want)
    }

    fn validate_groups(&self) -> Result<(), SettingsError> {
        let alone = self.group_size == 1;
        let relative = !matches!(self.baseline, Baseline::None);
        let want = "none with group_size = 1: the advantage would always be 0";
        within(
            "baseline",
            format!("{:?}", self.baseline),
            !(alone && relative),
            want,
        )?;
        let eps = self.eps;
        within("eps", eps, eps.is_finite() && eps > 0.0, "above 0")?;
        within(
            "pass_mark",
            self.pass_mark,
            self.pass_mark.is_finite(),
            "finite",
        )?;
        let oversample = self.oversample;
        within(
            "oversample",
            oversample,
            (1.0..=64.0).contains(&oversample),
            "1 to 64",
        )
    }

    fn validate_times(&self) -> Result<(), SettingsError> {
        for (name, seconds) in [
            ("hold_deadline_s", self.hold_deadline_s),
            ("rollout_deadline_s", self.rollout_deadline_s),
            ("lease_s", self.lease_s),
            ("group_deadline_s", self.group_deadline_s),
            ("scoring_deadline_s", self.scoring_deadline_s),
        ] {
            within(
                name,
                seconds,
                seconds.is_finite() && seconds > 0.0,
                "a number of seconds above 0",
            )?;
        }
        self.validate_pools()?;
        let slowest = self.slow_pools.iter().map(|pool| pool.deadline_s);
        let least = self.rollout_deadline_s + slowest.fold(self.scoring_deadline_s, f64::max);
        let group = self.group_deadline_s;
        let want = format!(
            "at least rollout_deadline_s + the slowest pool's scoring_deadline_s = {least}"
        );
        within("group_deadline_s", group, group >= least, want)
    }

    fn validate_pools(&self) -> Result<(), SettingsError> {
        let mut names = std::collections::BTreeSet::new();
        for pool in &self.slow_pools {
            let name = pool.name.as_str();
            let fits = !name.is_empty() && name.len() <= 256 && names.insert(name);
            within("slow_pools", name, fits, "named once each")?;
            let seconds = pool.deadline_s;
            let want = "of deadline_s a number of seconds above 0";
            within(
                "slow_pools",
                seconds,
                seconds.is_finite() && seconds > 0.0,
                want,
            )?;
        }
        Ok(())
    }

    /// How training rollouts are sampled: the whole distribution at `temperature`.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        let (temperature, max_tokens) = (self.temperature, self.max_tokens);
        Sampling {
            temperature,
            top_p: 1.0,
            top_k: 0,
            max_tokens,
            greedy: false,
        }
    }
}

fn within(
    name: &'static str,
    got: impl ToString,
    holds: bool,
    want: impl Into<String>,
) -> Result<(), SettingsError> {
    if holds {
        Ok(())
    } else {
        Err(SettingsError {
            name,
            want: want.into(),
            got: got.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let base = Settings::default;
        let refused = [
            (
                "group_size",
                Settings {
                    group_size: 0,
                    ..base()
                },
            ),
            (
                "min_group_size",
                Settings {
                    min_group_size: 9,
                    ..base()
                },
            ),
            (
                "min_group_size",
                Settings {
                    min_group_size: 0,
                    ..base()
                },
            ),
            (
                "groups_per_step",
                Settings {
                    groups_per_step: 0,
                    ..base()
                },
            ),
            (
                "pacing",
                Settings {
                    pacing: 3,
                    ..base()
                },
            ),
            (
                "publish_every",
                Settings {
                    publish_every: 2,
                    max_staleness: 0,
                    pacing: 0,
                    ..base()
                },
            ),
            (
                "publish_every",
                Settings {
                    publish_every: 0,
                    ..base()
                },
            ),
            (
                "waste_budget",
                Settings {
                    waste_budget: 1.5,
                    ..base()
                },
            ),
            (
                "waste_budget",
                Settings {
                    waste_budget: f64::NAN,
                    ..base()
                },
            ),
            (
                "baseline",
                Settings {
                    group_size: 1,
                    min_group_size: 1,
                    ..base()
                },
            ),
            ("eps", Settings { eps: 0.0, ..base() }),
            (
                "pass_mark",
                Settings {
                    pass_mark: f64::INFINITY,
                    ..base()
                },
            ),
            (
                "oversample",
                Settings {
                    oversample: 0.5,
                    ..base()
                },
            ),
            (
                "lease_s",
                Settings {
                    lease_s: 0.0,
                    ..base()
                },
            ),
            (
                "hold_deadline_s",
                Settings {
                    hold_deadline_s: f64::INFINITY,
                    ..base()
                },
            ),
            (
                "group_deadline_s",
                Settings {
                    group_deadline_s: 619.0,
                    ..base()
                },
            ),
            (
                "max_tokens",
                Settings {
                    max_tokens: 0,
                    ..base()
                },
            ),
            (
                "max_attempts",
                Settings {
                    max_attempts: 0,
                    ..base()
                },
            ),
            (
                "temperature",
                Settings {
                    temperature: 0.0,
                    ..base()
                },
            ),
            (
                "incarnation",
                Settings {
                    incarnation: 1 << 20,
                    ..base()
                },
            ),
        ];
        for (name, settings) in refused {
            assert_eq!(settings.validate().unwrap_err().name, name);
        }
        let alone = Settings {
            group_size: 1,
            min_group_size: 1,
            baseline: Baseline::None,
            ..base()
        };
        assert_eq!(alone.validate(), Ok(()));
    }
}
