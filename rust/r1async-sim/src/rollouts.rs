//! What a rollout is like: a function of the seed and its number, so that every rule meets the same ones.

use crate::model::Model;
use crate::random::{Purpose, Stream};

impl Model {
    /// Completion tokens held by the ledger (each stands for `tokens_per_unit`), before the cap.
    pub(crate) fn length_units(&self, ordinal: u64, rollout: u64) -> u64 {
        let shared = self.lengths.shared;
        let mut z = 0.0;
        if shared > 0.0 {
            z += shared.sqrt() * Stream::new(self.seed, Purpose::GroupLength, ordinal).normal();
        }
        if shared < 1.0 {
            let own = Stream::new(self.seed, Purpose::RolloutLength, rollout).normal();
            z += (1.0 - shared).sqrt() * own;
        }
        let tokens = self.lengths.completion.at(z);
        ((tokens / f64::from(self.tokens_per_unit)).round() as u64).max(1)
    }

    /// 1 or 0.
    pub(crate) fn reward(&self, ordinal: u64, rollout: u64) -> f64 {
        let mut of_prompt = Stream::new(self.seed, Purpose::PassRate, ordinal);
        let pass_rate = of_prompt.beta(self.rewards.a, self.rewards.b);
        let drawn = Stream::new(self.seed, Purpose::Reward, rollout).uniform();
        f64::from(u8::from(drawn < pass_rate))
    }

    /// Seconds of grading, and whether there is a verdict at the end.
    pub(crate) fn verdict(&self, rollout: u64) -> (f64, bool) {
        let mut stream = Stream::new(self.seed, Purpose::Verdict, rollout);
        let given = stream.uniform() >= self.scorers.failure_rate;
        (self.scorers.verdict_s.at(stream.normal()), given)
    }

    /// Seconds from the begin of a generator's life until it dies; `None`: never.
    pub(crate) fn lifetime_s(&self, generator: usize, life: u64) -> Option<f64> {
        let per_s = self.failures.per_hour / 3600.0;
        let index = ((generator as u64) << 32) + life;
        let drawn = Stream::new(self.seed, Purpose::Failure, index).uniform();
        (per_s > 0.0).then(|| -drawn.ln() / per_s)
    }
}
