//! Loans of finished rollouts to scorers, and their verdicts.

use std::sync::Arc;

use crate::group::{Finish, Prompt};
use crate::ids::{GroupId, HolderId, LeaseId, RolloutId};
use crate::ledger::Ledger;

/// A finished rollout lent to a scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreLease {
    /// Names this loan in the verdict.
    pub lease: LeaseId,
    /// The rollout.
    pub rollout: RolloutId,
    /// Its group. Members lent together share `prompt`.
    pub group: GroupId,
    /// The question; its `meta` says what the grader needs to know.
    pub prompt: Arc<Prompt>,
    /// The completion's tokens.
    pub tokens: Vec<i32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a scorer says.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// A reward. One that is not finite becomes an abstention `nan`, one beyond 1e30 `overflow`.
    Score {
        /// What the advantage is made of.
        total: f64,
        /// Its named parts.
        parts: Vec<(String, f64)>,
        /// What the grader says about it.
        status: String,
    },
    /// No reward, and why.
    Abstain {
        /// The reason.
        status: String,
    },
}

/// The answer to a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictAck {
    /// It counts.
    Held,
    /// The lease is not, or no longer, this scorer's: the verdict is late and changes nothing.
    Lost,
}

impl Ledger {
    /// Lends at most `max` finished rollouts to a scorer, in the order in which they finished.
    pub fn lease_scoring(&mut self, now: f64, holder: HolderId, max: usize) -> Vec<ScoreLease> {
        todo!("{now} {holder} {max}")
    }

    /// Files a verdict, if its lease is current.
    pub fn verdict(
        &mut self,
        now: f64,
        holder: HolderId,
        lease: LeaseId,
        verdict: Verdict,
    ) -> VerdictAck {
        todo!("{now} {holder} {lease} {verdict:?}")
    }
}
