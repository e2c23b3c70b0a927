//! Figures for people: what is held in which state, what was trained and how old it was.

use std::collections::BTreeMap;

use crate::audit::DropReason;
use crate::ledger::Ledger;
use crate::staleness::StalenessHistogram;

/// Figures of one moment; counters count from the start of the run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Places taken, as seen by a generator that has the version last published.
    pub places: usize,
    /// Places there are.
    pub place_limit: usize,
    /// Groups queued: admitted, not yet lent.
    pub groups_queued: usize,
    /// Groups with a member that is not scored yet.
    pub groups_open: usize,
    /// Groups that wait for a batch.
    pub groups_ready: usize,
    /// Groups in batches that are not trained yet.
    pub groups_bound: usize,
    /// Groups trained.
    pub groups_trained: u64,
    /// Groups dropped, by reason.
    pub groups_dropped: BTreeMap<DropReason, u64>,
    /// Rollouts of open groups that wait for a generator.
    pub rollouts_waiting: usize,
    /// Rollouts lent to generators, evaluation included.
    pub rollouts_generating: usize,
    /// Finished rollouts that wait for a scorer, evaluation included.
    pub rollouts_unscored: usize,
    /// Rollouts lent to scorers, evaluation included.
    pub rollouts_scoring: usize,
    /// Groups of evaluations that are not complete.
    pub evaluation_groups: usize,
    /// Steps reported.
    pub steps: u64,
    /// Steps trained: safe in a checkpoint.
    pub committed: u64,
    /// Tokens received.
    pub tokens: u64,
    /// Tokens that had a loss in a reported step.
    pub tokens_stepped: u64,
    /// Rollouts that had a loss in a reported step.
    pub rollouts_stepped: u64,
    /// Staleness of tokens that had a loss in a reported step.
    pub staleness: StalenessHistogram,
    /// Tokens older than the bound that were trained all the same (`OverAge::Train`).
    pub over_age_trained: u64,
    /// Mean, over stepped rollouts, of the versions between first and last token.
    pub generation_age: f64,
    /// Mean, over stepped rollouts, of the versions between last token and training.
    pub queue_age: f64,
    /// Tokens that died of age, as a share of those generated (decayed by 3 % a step).
    pub waste: f64,
    /// Seconds that steps were held for unfinished rollouts.
    pub held_s: f64,
    /// Steps that were held.
    pub holds: u64,
    /// Holds that ended at their deadline.
    pub hold_timeouts: u64,
    /// Mean reward of the scored members of groups bound last.
    pub reward_mean: f64,
    /// Mean pass rate of groups bound last.
    pub pass_rate: f64,
    /// Groups of equal rewards that were trained.
    pub zero_variance_trained: u64,
    /// Groups of equal rewards dropped for the step that is bound next.
    pub refills: u64,
    /// Leases of generators lost to deadlines or lost peers.
    pub leases_lost: u64,
    /// Leases of scorers lost to deadlines or lost peers.
    pub score_leases_lost: u64,
    /// Verdicts that came after their lease had ended.
    pub late_verdicts: u64,
    /// Chunks that came after their lease had ended.
    pub late_chunks: u64,
    /// Chunks that left out tokens before them.
    pub gaps: u64,
    /// Chunks refused.
    pub invalid: u64,
    /// Abstentions, by status (at most 64 statuses, the rest under `other`).
    pub abstentions: BTreeMap<String, u64>,
}

impl Ledger {
    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        todo!()
    }
}
