//! What a rollout is like: a function of the seed and its number, so that every rule meets the same ones.

use crate::model::Model;
use crate::random::{Purpose, Stream};

/// Prompts whose draws are kept; more are seldom under way at a time, and one that is pushed out is drawn again.
const KEPT: usize = 1 << 12;

/// What all rollouts of one prompt have in common.
#[derive(Debug, Clone, Copy)]
struct Common {
    ordinal: u64,
    /// Their part of the normal deviate of the length.
    z: f64,
    /// How likely a reward of 1 is.
    pass_rate: f64,
}

/// What was drawn of prompts: 16 rollouts ask for the same, and a beta deviate costs as much as a lease.
#[derive(Debug)]
pub(crate) struct Prompts(Vec<Option<Common>>);

impl Default for Prompts {
    fn default() -> Self {
        Self(vec![None; KEPT])
    }
}

impl Prompts {
    fn of(&mut self, model: &Model, ordinal: u64) -> Common {
        let kept = &mut self.0[ordinal as usize % KEPT];
        match kept {
            Some(common) if common.ordinal == ordinal => *common,
            _ => *kept.insert(model.common(ordinal)),
        }
    }
}

impl Model {
    fn common(&self, ordinal: u64) -> Common {
        let shared = self.lengths.shared;
        let z = if shared > 0.0 {
            shared.sqrt() * Stream::new(self.seed, Purpose::GroupLength, ordinal).normal()
        } else {
            0.0
        };
        let mut of_prompt = Stream::new(self.seed, Purpose::PassRate, ordinal);
        Common {
            ordinal,
            z,
            pass_rate: of_prompt.beta(self.rewards.a, self.rewards.b),
        }
    }

    /// Completion tokens held by the ledger (each stands for `tokens_per_unit`), before the cap.
    pub(crate) fn length_units(&self, prompts: &mut Prompts, ordinal: u64, rollout: u64) -> u64 {
        let (shared, mut z) = (self.lengths.shared, prompts.of(self, ordinal).z);
        if shared < 1.0 {
            let own = Stream::new(self.seed, Purpose::RolloutLength, rollout).normal();
            z += (1.0 - shared).sqrt() * own;
        }
        let tokens = self.lengths.completion.at(z);
        ((tokens / f64::from(self.tokens_per_unit)).round() as u64).max(1)
    }

    /// 1 or 0.
    pub(crate) fn reward(&self, prompts: &mut Prompts, ordinal: u64, rollout: u64) -> f64 {
        let pass_rate = prompts.of(self, ordinal).pass_rate;
        let drawn = Stream::new(self.seed, Purpose::Reward, rollout).uniform();
        f64::from(u8::from(drawn < pass_rate))
    }

    /// Seconds of grading.
    pub(crate) fn grading_s(&self, rollout: u64) -> f64 {
        let mut stream = Stream::new(self.seed, Purpose::Verdict, rollout);
        stream.uniform(); // says whether there is a verdict
        self.scorers.verdict_s.at(stream.normal())
    }

    /// Whether there is a verdict at the end of it.
    pub(crate) fn is_graded(&self, rollout: u64) -> bool {
        Stream::new(self.seed, Purpose::Verdict, rollout).uniform() >= self.scorers.failure_rate
    }

    /// Seconds from the begin of a generator's life until it dies; `None`: never.
    pub(crate) fn lifetime_s(&self, generator: usize, life: u64) -> Option<f64> {
        let per_s = self.failures.per_hour / 3600.0;
        let index = ((generator as u64) << 32) + life;
        let drawn = Stream::new(self.seed, Purpose::Failure, index).uniform();
        (per_s > 0.0).then(|| -drawn.ln() / per_s)
    }
}
