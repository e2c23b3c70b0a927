//! Batches: which groups a step trains, and whether it is held for others.

use std::sync::Arc;

use thiserror::Error;

use crate::group::{Finish, Prompt, Score};
use crate::ids::{GroupId, PolicyVersion, RolloutId, Step};
use crate::ledger::Ledger;
use crate::staleness::VersionRun;
use crate::statistics::GroupStatistics;
use crate::waits::WaitReason;

/// A rollout in a batch: a scored member with at least one token that has a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundRollout {
    /// Its number.
    pub rollout: RolloutId,
    /// The completion.
    pub tokens: Vec<i32>,
    /// Log-probability of each token under the policy that sampled it, in nats.
    pub logprobs: Vec<f32>,
    /// Version of each token, run-length-encoded.
    pub runs: Vec<VersionRun>,
    /// For each run, whether the over-age rule takes its tokens out of the loss.
    pub over_age: Vec<bool>,
    /// The reward and its parts.
    pub score: Score,
    /// Reward relative to the group.
    pub advantage: f64,
    /// Why the completion ended.
    pub finish: Finish,
    /// Version of the last token.
    pub finish_version: PolicyVersion,
}

impl BoundRollout {
    /// Tokens that have a loss.
    #[must_use]
    pub fn loss_tokens(&self) -> u64 {
        let young = self
            .runs
            .iter()
            .zip(&self.over_age)
            .filter(|(_, over)| !**over);
        young.map(|(run, _)| u64::from(run.count)).sum()
    }
}

/// A group in a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundGroup {
    /// Its number.
    pub group: GroupId,
    /// Its prompt.
    pub prompt: Arc<Prompt>,
    /// Statistics of the rewards of all scored members.
    pub statistics: GroupStatistics,
    /// The members that train, in order.
    pub rollouts: Vec<BoundRollout>,
}

/// What one optimizer step trains.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundBatch {
    /// The step that trains it.
    pub step: Step,
    /// Its groups, in the order in which they were bound.
    pub groups: Vec<BoundGroup>,
}

impl BoundBatch {
    /// The rollouts of all groups, each with its group.
    pub fn rollouts(&self) -> impl Iterator<Item = (&BoundGroup, &BoundRollout)> {
        self.groups
            .iter()
            .flat_map(|group| group.rollouts.iter().map(move |rollout| (group, rollout)))
    }
}

/// The answer to a learner that asks for a batch.
#[derive(Debug, PartialEq)]
pub enum Bind<'a> {
    /// Here it is. Asked again for the same step, the same one.
    Ready(&'a BoundBatch),
    /// Not yet, and what for.
    Wait(WaitReason),
    /// There is nothing more to train.
    Finished,
}

/// A batch that cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BindError {
    /// Not the step that comes next.
    #[error("a batch for step {got}; want step {want}, the number of steps reported")]
    Step {
        /// The step asked for.
        got: Step,
        /// The one that comes next.
        want: Step,
    },
    /// No learner is connected.
    #[error("no learner is connected; connect with an epoch and a step first")]
    NoLearner,
}

impl Ledger {
    /// The batch of `step`: bound already, bound now, or not yet.
    ///
    /// # Errors
    /// `step` is not the number of steps reported so far.
    pub fn bind_batch(&mut self, now: f64, step: Step) -> Result<Bind<'_>, BindError> {
        todo!("{now} {step}")
    }
}
