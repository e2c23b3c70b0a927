//! Loans of finished rollouts to scorers, and their verdicts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::DropReason;
use crate::group::{Ended, Finish, Prompt, Score, State};
use crate::ids::{GroupId, HolderId, LeaseId, Member, RolloutId};
use crate::leases::{Lease, Work};
use crate::ledger::Ledger;
use crate::settings::Settings;
use crate::trace::Event;

/// Rewards beyond it cannot be told from a mistake, and their squares would not fit into the statistics.
const MAX_REWARD: f64 = 1e30;

/// Seconds for a verdict to arrive that its scorer gave at its own deadline.
const VERDICT_TRAVEL_S: f64 = 5.0;

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
    /// Why it ended.
    pub finish: Finish,
}

/// What a scorer says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Lends at most `max` finished rollouts of the first pool to a scorer, in the order in which they finished.
    pub fn lease_scoring(&mut self, now: f64, holder: HolderId, max: usize) -> Vec<ScoreLease> {
        self.lease_scoring_of(now, holder, 0, max)
    }

    /// The same of any pool: 0 for the first, p for `Settings::slow_pools[p - 1]`.
    pub fn lease_scoring_of(
        &mut self,
        now: f64,
        holder: HolderId,
        pool: usize,
        max: usize,
    ) -> Vec<ScoreLease> {
        let mut leases = Vec::with_capacity(max.min(self.unscored.len()));
        while leases.len() < max {
            let mut line = self.unscored.range((pool, 0)..=(pool, u64::MAX));
            let Some((&(_, place), &member)) = line.next() else {
                break;
            };
            self.unscored.remove(&(pool, place));
            leases.push(self.lend_for_scoring(now, holder, member, place));
        }
        leases
    }

    fn lend_for_scoring(
        &mut self,
        now: f64,
        holder: HolderId,
        member: Member,
        place: u64,
    ) -> ScoreLease {
        let id = self.leases.new_id();
        let until = now + self.settings.scoring_lease_s(self.pool_of(member));
        let lease = Lease {
            holder: Some(holder),
            member,
            work: Work::Score,
            pin: None,
            since: now,
            until,
        };
        self.leases.begin(id, lease, &mut self.timers);
        let group = self.group_mut(member.group);
        let rollout = &mut group.members[member.index];
        rollout.state = State::Scoring(id, place);
        let finish = rollout
            .finish
            .expect("only finished rollouts wait for a scorer");
        let (rollout, prompt) = (group.rollout_id(member.index), group.prompt.clone());
        let group = group.id;
        if !group.is_evaluation() {
            self.tell(|| Event::Scoring {
                rollout,
                lease: id,
                holder,
            });
        }
        ScoreLease {
            lease: id,
            rollout,
            group,
            prompt,
            finish,
        }
    }

    /// The completion that `lease` is about: what a scorer is to grade. Empty if nobody holds the lease.
    #[must_use]
    pub fn completion(&self, lease: LeaseId) -> &[i32] {
        self.leases.get(lease).map_or(&[], |lease| {
            &self.groups[&lease.member.group].members[lease.member.index].tokens
        })
    }

    /// Files a verdict, if its lease is current: a scorer's, or that under which a generator has just finished the
    /// rollout, as long as no scorer has taken it.
    pub fn verdict(
        &mut self,
        now: f64,
        holder: HolderId,
        lease: LeaseId,
        verdict: Verdict,
    ) -> VerdictAck {
        let scoring = self.leases.held_by(lease, holder, Work::Score);
        let Some(held) = scoring.or_else(|| self.unscored(lease, holder)) else {
            self.counters.late_verdicts += 1;
            return VerdictAck::Lost;
        };
        if scoring.is_some() {
            self.leases.gave_verdict(holder, now);
            self.news.scoring = true;
        }
        self.end_rollout(held.member, verdict.into_ended());
        VerdictAck::Held
    }

    /// Who grades a rollout.
    pub(crate) fn pool_of(&self, member: Member) -> usize {
        self.groups[&member.group].prompt.pool
    }

    /// Finished rollouts that wait for a scorer, by pool.
    pub(crate) fn unscored_by_pool(&self) -> Vec<(&str, usize)> {
        let of = |pool| self.unscored.range((pool, 0)..=(pool, u64::MAX)).count();
        let pools = 0..self.settings.pools();
        pools
            .map(|pool| (self.settings.pool_name(pool), of(pool)))
            .collect()
    }

    /// The lease under which `holder` finished a rollout that waits for a scorer; a scorer grades every evaluation.
    fn unscored(&self, lease: LeaseId, holder: HolderId) -> Option<Lease> {
        let held = self.leases.held_by(lease, holder, Work::Sent)?;
        let group = &self.groups[&held.member.group];
        let waits = matches!(group.members[held.member.index].state, State::Unscored(_));
        (waits && !held.member.group.is_evaluation()).then_some(held)
    }
}

impl Verdict {
    fn into_ended(self) -> Ended {
        match self {
            Verdict::Score { total, .. } if !total.is_finite() => Ended::abstained("nan"),
            Verdict::Score { total, .. } if total.abs() > MAX_REWARD => {
                Ended::abstained("overflow")
            }
            Verdict::Score {
                total,
                parts,
                status,
            } => Ended::Scored(Score {
                total,
                parts,
                status,
            }),
            Verdict::Abstain { status } => Ended::Abstained(status, DropReason::Abstained),
        }
    }
}

impl Settings {
    /// Pools of workers that grade.
    #[must_use]
    pub fn pools(&self) -> usize {
        self.slow_pools.len() + 1
    }

    /// The name of a pool; the first is called `rules`, whatever grades in it.
    #[must_use]
    pub fn pool_name(&self, pool: usize) -> &str {
        match pool.checked_sub(1) {
            None => "rules",
            Some(slow) => &self.slow_pools[slow].name,
        }
    }

    /// Seconds a scorer may bring no verdict at all on a rollout of `pool`.
    pub(crate) fn scoring_lease_s(&self, pool: usize) -> f64 {
        let deadline_s = match pool.checked_sub(1) {
            None => self.scoring_deadline_s,
            Some(slow) => self.slow_pools[slow].deadline_s,
        };
        deadline_s + VERDICT_TRAVEL_S
    }

    /// Scorers that a rollout of `pool` may lose before it goes unscored.
    pub(crate) fn score_retries(&self, pool: usize) -> u32 {
        match pool.checked_sub(1) {
            None => self.score_retries,
            Some(slow) => self.slow_pools[slow].retries,
        }
    }
}
