//! Conservation: whatever came in was trained, was dropped for a reason, or is live.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::batch::StepBatch;
use crate::group::{Group, Purpose};
use crate::ids::GroupId;
use crate::ledger::Ledger;

/// Why something was dropped. Closed: a new reason is a change of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Too old for any loss.
    Stale,
    /// Tokens of a lost lease that were too old to go on from.
    Superseded,
    /// A member without a score in a group that trained.
    Abstained,
    /// Not finished in time.
    Deadline,
    /// All scored members had the same reward.
    ZeroVariance,
    /// Fewer scored members than `min_group_size`.
    TooFewScored,
    /// Cut at `max_tokens`, where that is an abstention.
    Truncated,
    /// Pushed out to make room.
    Evicted,
    /// Given up from outside: a cancelled evaluation, tokens of a process that ended, members never leased
    /// of a group that closed early, or what the last step of the run left behind.
    Cancelled,
    /// Set aside after it brought down what worked on it.
    Quarantined,
    /// Refused at the border.
    Invalid,
}

impl DropReason {
    /// Every reason, in the order of the enum.
    pub const ALL: [DropReason; 11] = [
        DropReason::Stale,
        DropReason::Superseded,
        DropReason::Abstained,
        DropReason::Deadline,
        DropReason::ZeroVariance,
        DropReason::TooFewScored,
        DropReason::Truncated,
        DropReason::Evicted,
        DropReason::Cancelled,
        DropReason::Quarantined,
        DropReason::Invalid,
    ];

    /// The reason's name in messages and metrics.
    ///
    /// ```
    /// assert_eq!(r1async_core::DropReason::TooFewScored.name(), "too_few_scored");
    /// ```
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Stale => "stale",
            DropReason::Superseded => "superseded",
            DropReason::Abstained => "abstained",
            DropReason::Deadline => "deadline",
            DropReason::ZeroVariance => "zero_variance",
            DropReason::TooFewScored => "too_few_scored",
            DropReason::Truncated => "truncated",
            DropReason::Evicted => "evicted",
            DropReason::Cancelled => "cancelled",
            DropReason::Quarantined => "quarantined",
            DropReason::Invalid => "invalid",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What came in of one kind, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Came in.
    pub incoming: u64,
    /// Trained (evaluation: delivered in a result).
    pub trained: u64,
    /// Dropped, by reason in the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Still held. Counted from what is held at the time of the audit, never kept.
    pub live: u64,
}

impl Account {
    /// Counts `amount` as dropped for `reason`.
    pub(crate) fn drop(&mut self, reason: DropReason, amount: u64) {
        self.dropped[reason as usize] += amount;
    }

    /// Dropped for `reason`.
    #[must_use]
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Dropped for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Whether in = trained + dropped + live.
    ///
    /// ```
    /// use r1async_core::Account;
    /// let account = Account { incoming: 5, trained: 3, live: 1, ..Account::default() };
    /// assert!(!account.is_balanced());
    /// ```
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.incoming == self.trained + self.dropped_total() + self.live
    }
}

/// The accounts. A token is trained if it had a loss; over-age tokens that are masked in a trained
/// group are dropped `stale`, and so is a member all of whose tokens are. Members without a score in
/// a trained group are dropped one by one, with their tokens: `abstained`, or `deadline` or
/// `truncated` where that is why. A group that is dropped gives its one reason to all its rollouts
/// and tokens. A group that closed early is trained once, as a prompt; its late members are trained or
/// dropped one by one, and those that were never leased are dropped `cancelled`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Prompts admitted or refused at the border; a prompt that returns after a drop counts again.
    pub prompts: Account,
    /// `group_size` for each admitted prompt.
    pub rollouts: Account,
    /// Sampled tokens received.
    pub tokens: Account,
    /// Tokens of admitted prompts, once for each group.
    pub prompt_tokens: Account,
    /// Rollouts of evaluations.
    pub evaluation_rollouts: Account,
    /// Sampled tokens of evaluations.
    pub evaluation_tokens: Account,
    /// Groups that a second commit tried to train: 0, or the ledger has a bug.
    pub trained_twice: u64,
    /// Groups held that are in none, or in two, of the sets they should be in: 0, or the ledger has a bug.
    pub misplaced: u64,
}

impl Audit {
    /// The accounts with their names.
    #[must_use]
    pub fn accounts(&self) -> [(&'static str, &Account); 6] {
        [
            ("prompts", &self.prompts),
            ("rollouts", &self.rollouts),
            ("tokens", &self.tokens),
            ("prompt_tokens", &self.prompt_tokens),
            ("evaluation_rollouts", &self.evaluation_rollouts),
            ("evaluation_tokens", &self.evaluation_tokens),
        ]
    }

    /// Whether every account balances and nothing was trained twice.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.difference().is_none()
    }

    /// What does not add up, in words; `None` if all does.
    #[must_use]
    pub fn difference(&self) -> Option<String> {
        let mut wrong: Vec<String> = self
            .accounts()
            .into_iter()
            .filter(|(_, account)| !account.is_balanced())
            .map(|(name, account)| {
                let (incoming, trained) = (account.incoming, account.trained);
                let (dropped, live) = (account.dropped_total(), account.live);
                format!(
                    "{name}: {incoming} in, but {trained} trained + {dropped} dropped + {live} live"
                )
            })
            .collect();
        if self.trained_twice > 0 {
            wrong.push(format!("{} groups trained twice", self.trained_twice));
        }
        if self.misplaced > 0 {
            wrong.push(format!("{} groups misplaced", self.misplaced));
        }
        if wrong.is_empty() {
            None
        } else {
            Some(wrong.join("; "))
        }
    }
}

/// The running sums of the accounts; what is live is counted when an audit asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Books {
    pub(crate) prompts: Account,
    pub(crate) rollouts: Account,
    pub(crate) tokens: Account,
    pub(crate) prompt_tokens: Account,
    pub(crate) evaluation_rollouts: Account,
    pub(crate) evaluation_tokens: Account,
    trained_twice: u64,
    /// All groups below this number have ended, and those in `ended`: to see if one ends twice.
    ended_below: u64,
    ended: BTreeSet<u64>,
}

impl Books {
    /// Notes the end of a group; `false` if it had ended before.
    pub(crate) fn group_ended(&mut self, group: GroupId) -> bool {
        let is_new = group.0 >= self.ended_below && self.ended.insert(group.0);
        while self.ended.remove(&self.ended_below) {
            self.ended_below += 1;
        }
        is_new
    }

    /// A group that is in no batch ends, for one reason.
    pub(crate) fn drop_group(&mut self, group: &Group, reason: DropReason) {
        self.group_ended(group.id);
        self.prompts.drop(reason, 1);
        self.rollouts.drop(reason, group.members.len() as u64);
        self.tokens.drop(reason, group.tokens());
        self.prompt_tokens
            .drop(reason, group.prompt.tokens.len() as u64);
    }

    /// The groups of a batch are trained.
    pub(crate) fn train(&mut self, batch: &StepBatch) {
        for group in &batch.bound.groups {
            if !self.group_ended(group.group) {
                self.trained_twice += 1;
            }
            self.prompts.trained += 1;
        }
        for (_, rollout) in batch.bound.rollouts() {
            self.rollouts.trained += 1;
            self.tokens.trained += rollout.loss_tokens();
        }
        self.prompt_tokens.trained += batch.prompt_tokens();
        for (&reason, &(rollouts, tokens)) in &batch.dropped {
            self.rollouts.drop(reason, rollouts);
            self.tokens.drop(reason, tokens);
        }
    }

    /// The accounts, with nothing live yet.
    pub(crate) fn accounts(&self) -> Audit {
        Audit {
            prompts: self.prompts.clone(),
            rollouts: self.rollouts.clone(),
            tokens: self.tokens.clone(),
            prompt_tokens: self.prompt_tokens.clone(),
            evaluation_rollouts: self.evaluation_rollouts.clone(),
            evaluation_tokens: self.evaluation_tokens.clone(),
            trained_twice: self.trained_twice,
            misplaced: 0,
        }
    }
}

impl Ledger {
    /// The accounts of this moment. Counts all that is held: for commits and people, not for every message.
    #[must_use]
    pub fn audit(&self) -> Audit {
        let mut audit = self.books.accounts();
        let size = self.settings.group_size as u64;
        for group in self.groups.values() {
            if group.id.is_evaluation() {
                audit.evaluation_rollouts.live += group.members.len() as u64;
                audit.evaluation_tokens.live += group.tokens();
            } else if group.closed_early.is_some() {
                // Its prompt and its other members are with their batch.
                audit.rollouts.live += self.late_members(group) as u64;
                audit.tokens.live += group.tokens();
            } else {
                audit.prompts.live += 1;
                audit.rollouts.live += size;
                audit.tokens.live += group.tokens();
                audit.prompt_tokens.live += group.prompt.tokens.len() as u64;
            }
            audit.misplaced += u64::from(!self.is_placed(group));
        }
        for batch in self.batches.iter().chain(&self.filling) {
            audit.prompts.live += batch.bound.groups.len() as u64;
            audit.rollouts.live += batch.rollouts();
            audit.tokens.live += batch.tokens();
            audit.prompt_tokens.live += batch.prompt_tokens();
        }
        let in_sets = self.queued.len()
            + self.open.len()
            + self.ready.len()
            + self.late.len()
            + self.evaluations.open_groups();
        audit.misplaced += in_sets.abs_diff(self.groups.len()) as u64;
        audit
    }

    /// Whether a group is in exactly the set it should be in.
    fn is_placed(&self, group: &Group) -> bool {
        match (&group.purpose, &group.closed) {
            (Purpose::Evaluation(name), _) => self.evaluations.contains(name, group.id),
            (Purpose::Training { .. }, _) if group.closed_early.is_some() => {
                self.late.contains(&group.id) && self.late_members(group) > 0
            }
            (Purpose::Training { .. }, Some(closed)) => {
                self.ready.contains(group.id, closed.key) && self.ready_by_source.contains(group.id)
            }
            (Purpose::Training { .. }, None) => {
                let ripe = group
                    .ripe
                    .is_none_or(|key| self.ripe.contains(group.id, key));
                ripe && self.open.contains(group.id) != self.queued.contains(group.id)
            }
        }
    }
}
