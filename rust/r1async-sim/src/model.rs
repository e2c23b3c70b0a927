//! The numbers that stand for machines: everything around the ledger. Times are seconds, lengths tokens.

use serde::Deserialize;
use thiserror::Error;

use crate::random::normal_share_below;

/// A model that cannot be simulated.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{name} must be {want}, got {got}")]
pub struct ModelError {
    /// The number.
    pub name: &'static str,
    /// What it would have to be.
    pub want: &'static str,
    /// What it is.
    pub got: f64,
}

/// A distribution of positive numbers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Distribution {
    /// Always the same.
    Constant(f64),
    /// The logarithm is normal.
    Lognormal {
        /// Half of the draws are below.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
    /// One of these, each as likely as another.
    Empirical(Vec<f64>),
}

impl Distribution {
    /// The value that a share of draws is below: that of a normal distribution below `z`. The values of
    /// `Empirical` are in order.
    pub(crate) fn at(&self, z: f64) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Lognormal { median, sigma } => median * (sigma * z).exp(),
            Self::Empirical(values) => {
                let place = (normal_share_below(z) * values.len() as f64) as usize;
                values[place.min(values.len() - 1)]
            }
        }
    }

    fn sorted(mut self) -> Self {
        if let Self::Empirical(values) = &mut self {
            values.sort_by(f64::total_cmp);
        }
        self
    }

    fn check(&self, name: &'static str) -> Result<(), ModelError> {
        match self {
            Self::Constant(value) => at_least(name, *value, 0.0),
            Self::Lognormal { median, sigma } => {
                at_least(name, *median, 0.0)?;
                at_least(name, *sigma, 0.0)
            }
            Self::Empirical(values) if values.is_empty() => Err(ModelError {
                name,
                want: "a list of at least one number",
                got: 0.0,
            }),
            Self::Empirical(values) => values
                .iter()
                .try_for_each(|&value| at_least(name, value, 0.0)),
        }
    }
}

/// A run to be simulated, besides what the ledger's settings say.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Seeds lengths, rewards, latencies and failures.
    pub seed: u64,
    /// Virtual seconds after which the simulation ends; 0 is no limit.
    pub seconds: f64,
    /// Optimizer steps before figures are taken.
    pub warmup_steps: u64,
    /// Tokens that one token held by the ledger stands for: lengths are rounded to it.
    pub tokens_per_unit: u32,
    /// Who samples.
    pub generators: Generators,
    /// How long completions are.
    pub lengths: Lengths,
    /// Who grades.
    pub scorers: Scorers,
    /// Who trains.
    pub learner: LearnerModel,
    /// How weights travel.
    pub weights: Weights,
    /// What generators and learner compute on.
    pub machine: Machine,
    /// How generators die.
    pub failures: Failures,
    /// What is rewarded.
    pub rewards: Rewards,
}

/// The pool of generators.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generators {
    /// How many.
    pub count: usize,
    /// Rollouts that each decodes at a time.
    pub slots: usize,
    /// Tokens of an unfinished rollout after which the ledger is told of them.
    pub chunk_tokens: u32,
    /// Seconds for one token of every slot when all slots are taken.
    pub token_s: f64,
    /// Seconds for one token of a slot that is alone; between the two it is linear in the slots taken.
    pub token_alone_s: f64,
    /// Seconds from the end of a rollout until another one is asked for.
    pub turnaround_s: f64,
    /// Seconds from the loan of a rollout to its first token: the message, the prompt's prefill.
    pub start_s: f64,
}

/// Lengths of completions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// Before the cap, which is the ledger's `max_tokens`.
    pub completion: Distribution,
    /// Share of the variance that all rollouts of one prompt have in common.
    pub shared: f64,
    /// Tokens of a prompt: a step trains over them too.
    pub prompt: f64,
}

/// The pool of scorers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scorers {
    /// How many.
    pub count: usize,
    /// Rollouts that each grades at a time.
    pub workers: usize,
    /// Rollouts that each holds at most.
    pub queue: usize,
    /// Seconds that a worker needs for one verdict.
    pub verdict_s: Distribution,
    /// Seconds that a rollout and its verdict are on their way, which keep no worker busy.
    pub travel_s: f64,
    /// Share of verdicts that are abstentions.
    pub failure_rate: f64,
}

/// The learner.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnerModel {
    /// Seconds of a step without any token: optimizer, packing, handing weights over.
    pub step_s: f64,
    /// Further seconds for each group of the batch; late members are in none.
    pub group_s: f64,
    /// Further seconds for each token of the batch, prompt and completion.
    pub token_s: f64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Seconds that a checkpoint keeps the learner from training.
    pub checkpoint_s: f64,
}

/// The way of weights from learner to generators.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Seconds from the end of a step until a generator has its weights whole. It decodes meanwhile.
    pub transfer_s: f64,
    /// Seconds that a generator stands still to install them.
    pub install_s: f64,
}

/// Processors that all generators and the learner share: each keeps one busy while it decodes or trains.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// How many; 0: everybody has processors of their own.
    pub cores: f64,
    /// What else runs there all the time, in processors that it would keep busy.
    pub others: f64,
}

/// Generators that die.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failures {
    /// Deaths of one generator an hour; 0 is never.
    pub per_hour: f64,
    /// Seconds until the buffer gives its rollouts to others.
    pub noticed_s: f64,
    /// Seconds until it is back, with the newest weights.
    pub back_s: f64,
}

/// Rewards: a rollout passes or not.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewards {
    /// The pass rate of a prompt is drawn from Beta(a, b).
    pub a: f64,
    /// See `a`.
    pub b: f64,
}

impl Model {
    /// From JSON with every key given and no other.
    ///
    /// # Errors
    /// In words: not such JSON, or a number that cannot be.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let model: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        model.checked().map_err(|error| error.to_string())
    }

    /// The same, with lists in order.
    ///
    /// # Errors
    /// The first number that cannot be.
    pub fn checked(mut self) -> Result<Self, ModelError> {
        at_least("seconds", self.seconds, 0.0)?;
        at_least("tokens_per_unit", f64::from(self.tokens_per_unit), 1.0)?;
        let generators = &self.generators;
        at_least("generators.count", generators.count as f64, 1.0)?;
        at_least("generators.slots", generators.slots as f64, 1.0)?;
        above_zero("generators.token_s", generators.token_s)?;
        above_zero("generators.token_alone_s", generators.token_alone_s)?;
        at_least("generators.turnaround_s", generators.turnaround_s, 0.0)?;
        at_least("generators.start_s", generators.start_s, 0.0)?;
        self.lengths.completion.check("lengths.completion")?;
        share("lengths.shared", self.lengths.shared)?;
        at_least("lengths.prompt", self.lengths.prompt, 0.0)?;
        at_least("scorers.count", self.scorers.count as f64, 1.0)?;
        at_least("scorers.workers", self.scorers.workers as f64, 1.0)?;
        at_least("scorers.queue", self.scorers.queue as f64, 1.0)?;
        self.scorers.verdict_s.check("scorers.verdict_s")?;
        at_least("scorers.travel_s", self.scorers.travel_s, 0.0)?;
        share("scorers.failure_rate", self.scorers.failure_rate)?;
        at_least("learner.step_s", self.learner.step_s, 0.0)?;
        at_least("learner.group_s", self.learner.group_s, 0.0)?;
        at_least("learner.token_s", self.learner.token_s, 0.0)?;
        at_least(
            "learner.checkpoint_every",
            self.learner.checkpoint_every as f64,
            1.0,
        )?;
        at_least("learner.checkpoint_s", self.learner.checkpoint_s, 0.0)?;
        at_least("weights.transfer_s", self.weights.transfer_s, 0.0)?;
        at_least("weights.install_s", self.weights.install_s, 0.0)?;
        at_least("machine.cores", self.machine.cores, 0.0)?;
        at_least("machine.others", self.machine.others, 0.0)?;
        at_least("failures.per_hour", self.failures.per_hour, 0.0)?;
        at_least("failures.noticed_s", self.failures.noticed_s, 0.0)?;
        at_least("failures.back_s", self.failures.back_s, 0.0)?;
        above_zero("rewards.a", self.rewards.a)?;
        above_zero("rewards.b", self.rewards.b)?;
        self.lengths.completion = self.lengths.completion.sorted();
        self.scorers.verdict_s = self.scorers.verdict_s.sorted();
        Ok(self)
    }
}

impl Machine {
    /// The part of a processor that each of `busy` roles gets.
    pub(crate) fn share(&self, busy: usize) -> f64 {
        let wanted = busy as f64 + self.others;
        if self.cores > 0.0 && wanted > self.cores {
            self.cores / wanted
        } else {
            1.0
        }
    }
}

impl Generators {
    /// Seconds for one token of each of `taken` slots.
    pub(crate) fn token_s_at(&self, taken: usize) -> f64 {
        if self.slots < 2 {
            return self.token_s;
        }
        let share = taken.saturating_sub(1) as f64 / (self.slots - 1) as f64;
        self.token_alone_s + (self.token_s - self.token_alone_s) * share
    }
}

fn at_least(name: &'static str, got: f64, low: f64) -> Result<(), ModelError> {
    let want = if low > 0.0 {
        "at least 1 and finite"
    } else {
        "at least 0 and finite"
    };
    if got.is_finite() && got >= low {
        Ok(())
    } else {
        Err(ModelError { name, want, got })
    }
}

fn above_zero(name: &'static str, got: f64) -> Result<(), ModelError> {
    let want = "above 0 and finite";
    if got.is_finite() && got > 0.0 {
        Ok(())
    } else {
        Err(ModelError { name, want, got })
    }
}

fn share(name: &'static str, got: f64) -> Result<(), ModelError> {
    let want = "0 to 1";
    if (0.0..=1.0).contains(&got) {
        Ok(())
    } else {
        Err(ModelError { name, want, got })
    }
}
