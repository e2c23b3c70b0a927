//! What the learner reports: its life, its steps, its publications, its checkpoints.

use thiserror::Error;

use crate::ids::{PolicyVersion, Step};
use crate::ledger::Ledger;

/// A report that cannot be. It changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LearnerError {
    /// Of a learner life that has ended, or that never connected.
    #[error("epoch {got}; want {want}, the highest seen is {seen}")]
    Epoch {
        /// The epoch named.
        got: u64,
        /// The highest seen.
        seen: u64,
        /// What it would have to be.
        want: String,
    },
    /// The learner's checkpoint is older than what the ledger has let go of.
    #[error(
        "the learner's checkpoint holds {got} steps, but the groups of {committed} steps are trained and gone; start it from a checkpoint of {committed} steps or more, or the whole run from the older one"
    )]
    CheckpointTooOld {
        /// Steps in the learner's checkpoint.
        got: u64,
        /// Steps that are trained.
        committed: u64,
    },
    /// The learner's checkpoint holds steps that the ledger never handed out.
    #[error(
        "the learner's checkpoint holds {got} steps, but only {known} were handed out; start it from an older checkpoint or the buffer from a newer one"
    )]
    CheckpointTooNew {
        /// Steps in the learner's checkpoint.
        got: u64,
        /// Steps handed out.
        known: u64,
    },
    /// A step whose batch was not handed out, a version or checkpoint beyond the steps reported.
    #[error("{what} {got}; want {want}")]
    OutOfOrder {
        /// What was reported.
        what: &'static str,
        /// Its number.
        got: u64,
        /// What the number may be.
        want: String,
    },
    /// The ledger has a bug: the accounts do not balance.
    #[error("the accounts do not balance: {0}")]
    Unbalanced(String),
}

impl Ledger {
    /// A learner connects: its life's number, above any seen, and the steps in its newest checkpoint.
    ///
    /// # Errors
    /// The epoch is not above all seen, or the checkpoint is not one that this ledger can go on from.
    pub fn connect_learner(&mut self, epoch: u64, step: u64) -> Result<(), LearnerError> {
        todo!("{epoch} {step}")
    }

    /// The connection to the learner is gone; its life goes on if it connects as before.
    pub fn learner_lost(&mut self) {
        todo!()
    }

    /// The optimizer step `step` is done. Said twice, it counts once.
    ///
    /// # Errors
    /// Another epoch, or a step whose batch was not handed out.
    pub fn stepped(&mut self, epoch: u64, step: Step) -> Result<(), LearnerError> {
        todo!("{epoch} {step}")
    }

    /// The weights of `version` can be had by generators.
    ///
    /// # Errors
    /// Another epoch, or a version beyond the steps reported.
    pub fn published(&mut self, version: PolicyVersion, hash: &str) -> Result<(), LearnerError> {
        todo!("{version} {hash}")
    }

    /// A checkpoint with `step` steps is safe: their groups are trained.
    ///
    /// # Errors
    /// Another epoch, a checkpoint beyond the steps reported, or accounts that do not balance.
    pub fn committed(&mut self, epoch: u64, step: u64) -> Result<(), LearnerError> {
        todo!("{epoch} {step}")
    }

    /// The learner life that counts, once one has connected.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        todo!()
    }

    /// Optimizer steps reported by the learner life that counts.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        todo!()
    }

    /// The version last published and its hash, once one was.
    #[must_use]
    pub fn published_version(&self) -> Option<(PolicyVersion, &str)> {
        todo!()
    }

    /// Steps whose groups are trained.
    #[must_use]
    pub fn committed_steps(&self) -> u64 {
        todo!()
    }
}
