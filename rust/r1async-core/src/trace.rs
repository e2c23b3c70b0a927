//! What happens to groups, told while a history is replayed: for audits of a journal, for people, for a simulation
//! that is fitted to a run.

use serde::{Deserialize, Serialize};

use crate::audit::DropReason;
use crate::group::{Finish, Outcome};
use crate::ids::{GroupId, HolderId, LeaseId, PolicyVersion, RolloutId, Step};
use crate::ledger::Ledger;
use crate::staleness::VersionRun;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Event {
    /// A prompt became a group.
    Admitted {
        /// The group.
        group: GroupId,
        /// The prompt's place in the source.
        ordinal: u64,
        /// The prompt's tokens.
        prompt_tokens: u64,
        /// Its rollouts.
        rollouts: u64,
    },
    /// A prompt could not be used.
    Rejected {
        /// The prompt's place in the source.
        ordinal: u64,
        /// Why.
        reason: DropReason,
    },
    /// A rollout was lent to a generator.
    Leased {
        /// Which.
        rollout: RolloutId,
        /// The loan.
        lease: LeaseId,
        /// To whom.
        holder: HolderId,
        /// Tokens of earlier loans that it goes on from.
        resumed: u64,
    },
    /// Tokens of a rollout came.
    Tokens {
        /// Which.
        rollout: RolloutId,
        /// Their versions.
        runs: Vec<VersionRun>,
    },
    /// A completion is whole.
    Finished {
        /// Which.
        rollout: RolloutId,
        /// Why it ended.
        finish: Finish,
        /// Its tokens.
        tokens: u64,
    },
    /// A loan was lost.
    Lost {
        /// Of which rollout.
        rollout: RolloutId,
        /// The loan.
        lease: LeaseId,
        /// To a scorer, not a generator.
        scoring: bool,
    },
    /// Tokens of a lost loan were too old to go on from.
    Restarted {
        /// Of which rollout.
        rollout: RolloutId,
        /// How many.
        tokens: u64,
    },
    /// A finished rollout was lent to a scorer.
    Scoring {
        /// Which.
        rollout: RolloutId,
        /// The loan.
        lease: LeaseId,
        /// To whom.
        holder: HolderId,
    },
    /// A rollout has its outcome.
    Ended {
        /// Which.
        rollout: RolloutId,
        /// What became of it.
        outcome: Outcome,
    },
    /// A group is ready for a batch.
    Ready {
        /// Which.
        group: GroupId,
        /// Members with a score.
        scored: u64,
        /// Their mean reward.
        mean: f64,
        /// The standard deviation of their rewards.
        std: f64,
    },
    /// A group is in a batch, with the members scored by then. Told when the batch is whole, after its members.
    Bound {
        /// Which.
        group: GroupId,
        /// The step that trains it.
        step: Step,
        /// Members with a score.
        scored: u64,
        /// Their mean reward.
        mean: f64,
        /// The standard deviation of their rewards.
        std: f64,
    },
    /// A rollout is in a batch.
    Taken {
        /// Which.
        rollout: RolloutId,
        /// The step that trains it.
        step: Step,
        /// Its sampled tokens.
        tokens: u64,
        /// Those that have a loss.
        loss_tokens: u64,
        /// Reward relative to the group.
        advantage: f64,
    },
    /// A rollout of a group that is in a batch does not train.
    LeftOut {
        /// Which.
        rollout: RolloutId,
        /// The step in whose account it is; `None`: it is dropped at once.
        step: Option<Step>,
        /// Why.
        reason: DropReason,
        /// Its sampled tokens.
        tokens: u64,
    },
    /// A group, all its rollouts and tokens, was dropped.
    Dropped {
        /// Which.
        group: GroupId,
        /// Why.
        reason: DropReason,
        /// Its rollouts.
        rollouts: u64,
        /// Its sampled tokens.
        tokens: u64,
    },
    /// An optimizer step was reported.
    Stepped {
        /// Which.
        step: Step,
    },
    /// Weights were published.
    Published {
        /// Of this version.
        version: PolicyVersion,
    },
    /// The groups of a step are trained: a checkpoint holds it.
    Trained {
        /// Which.
        step: Step,
        /// Its groups.
        groups: Vec<GroupId>,
    },
}

impl Event {
    /// Whether it is about `group`, of `group_size` rollouts.
    #[must_use]
    pub fn is_about(&self, group: GroupId, group_size: usize) -> bool {
        match self {
            Event::Admitted { group: it, .. }
            | Event::Ready { group: it, .. }
            | Event::Bound { group: it, .. }
            | Event::Dropped { group: it, .. } => *it == group,
            Event::Leased { rollout, .. }
            | Event::Tokens { rollout, .. }
            | Event::Finished { rollout, .. }
            | Event::Lost { rollout, .. }
            | Event::Restarted { rollout, .. }
            | Event::Taken { rollout, .. }
            | Event::LeftOut { rollout, .. }
            | Event::Scoring { rollout, .. }
            | Event::Ended { rollout, .. } => rollout.0 / group_size as u64 == group.0,
            Event::Trained { groups, .. } => groups.contains(&group),
            Event::Rejected { .. } | Event::Stepped { .. } | Event::Published { .. } => false,
        }
    }
}

impl Ledger {
    pub(crate) fn set_traced(&mut self, traced: bool) {
        self.trace = traced.then(Vec::new);
    }

    pub(crate) fn take_trace(&mut self) -> Vec<Event> {
        self.trace.as_mut().map_or_else(Vec::new, std::mem::take)
    }

    /// Tells an event of training, if anybody listens.
    pub(crate) fn tell(&mut self, event: impl FnOnce() -> Event) {
        if let Some(trace) = &mut self.trace {
            trace.push(event());
        }
    }
}
