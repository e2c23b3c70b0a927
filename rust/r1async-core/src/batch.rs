//! Batches: which groups a step trains, and whether it is held for others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::DropReason;
use crate::group::{Ended, Finish, Group, Prompt, Rollout, Score, State};
use crate::ids::{GroupId, Member, PolicyVersion, RolloutId, Step};
use crate::ledger::Ledger;
use crate::settings::{OverAge, Settings};
use crate::staleness::VersionRun;
use crate::statistics::GroupStatistics;
use crate::stats::Figures;
use crate::timers::Timer;
use crate::trace::{Event, TracedRollout};
use crate::waits::WaitReason;

/// Groups that a hold names at most.
const GROUPS_NAMED: usize = 8;

/// A rollout in a batch: a scored member with at least one token that has a loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoundRollout {
    /// Its number.
    pub rollout: RolloutId,
    /// The completion.
    #[serde(with = "crate::columns")]
    pub tokens: Vec<i32>,
    /// Log-probability of each token under the policy that sampled it, in nats.
    #[serde(with = "crate::columns")]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// A batch until it is trained, with what the books need of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepBatch {
    pub(crate) bound: BoundBatch,
    /// Whether the learner life that counts has had it.
    pub(crate) handed_out: bool,
    /// Rollouts and tokens that do not train, by reason.
    pub(crate) dropped: BTreeMap<DropReason, (u64, u64)>,
    pub(crate) figures: Figures,
}

impl StepBatch {
    /// Sampled tokens of its groups, trained or not.
    pub(crate) fn tokens(&self) -> u64 {
        let dropped: u64 = self.dropped.values().map(|(_, tokens)| tokens).sum();
        dropped
            + self
                .bound
                .rollouts()
                .map(|(_, rollout)| rollout.loss_tokens())
                .sum::<u64>()
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.bound
            .groups
            .iter()
            .map(|group| group.prompt.tokens.len() as u64)
            .sum()
    }
}

/// A step that is held for unfinished rollouts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hold {
    since: f64,
    until: f64,
    /// What it was held for when a batch was asked for last.
    reason: WaitReason,
}

impl Ledger {
    /// The batch of `step`: bound already, bound now, or not yet.
    ///
    /// # Errors
    /// `step` is not the number of steps reported so far.
    pub fn bind_batch(&mut self, now: f64, step: Step) -> Result<Bind<'_>, BindError> {
        self.learner.epoch.ok_or(BindError::NoLearner)?;
        let want = Step(self.learner.stepped);
        if step != want {
            return Err(BindError::Step { got: step, want });
        }
        if step.0 == self.next_bind() {
            if step.0 >= self.settings.steps {
                return Ok(Bind::Finished);
            }
            if let Some(answer) = self.bind_next(now, step) {
                return Ok(answer);
            }
        }
        let index = (step.0 - self.learner.committed) as usize;
        let batch = &mut self.batches[index];
        batch.handed_out = true;
        Ok(Bind::Ready(&batch.bound))
    }

    /// What asking for a batch may change, for whoever writes down only what did.
    pub(crate) fn bind_state(&self) -> impl PartialEq + use<> {
        let handed_out = self.batches.iter().filter(|batch| batch.handed_out).count();
        let held_since = self.hold.as_ref().map(|hold| hold.since.to_bits());
        let held = (self.groups.len(), self.open.len(), self.ready.len());
        (self.next_bind(), handed_out, held_since, self.counters.hold_timeouts, held)
    }

    /// The batch of a step that is bound and not trained yet.
    #[must_use]
    pub fn batch(&self, step: Step) -> Option<&BoundBatch> {
        let index = step.0.checked_sub(self.learner.committed)?;
        self.batches.get(index as usize).map(|batch| &batch.bound)
    }

    /// Binds the batch of `step`, or answers why not.
    fn bind_next(&mut self, now: f64, step: Step) -> Option<Bind<'static>> {
        self.ready.advance(step.0);
        self.drop_useless(step);
        let want = self.settings.groups_per_step;
        let (ready, open) = (self.ready.len(), self.open.len());
        let all_here = self.prompts_used_up() && self.queued.is_empty() && open == 0;
        if all_here && ready == 0 {
            return Some(Bind::Finished);
        }
        if ready < want && !all_here {
            return Some(Bind::Wait(WaitReason::Groups {
                step,
                ready,
                want,
                open,
            }));
        }
        let chosen: Vec<GroupId> = self.ready.in_order().take(want).collect();
        let dying = self.dying(step, &chosen);
        if let Some(reason) = self.hold(now, step, dying) {
            return Some(Bind::Wait(reason));
        }
        self.waste.next_step();
        self.waste.died(dying);
        let batch = self.take_groups(step, &chosen);
        self.batches.push_back(batch);
        self.refills = 0;
        self.news.rollouts = true;
        self.news.prompts = true;
        None
    }

    /// Drops ready groups that have no token young enough for `step`.
    fn drop_useless(&mut self, step: Step) {
        let Some(oldest) = self.settings.oldest_trainable(step.0) else {
            return;
        };
        while let Some(group) = self.ready.first_useless(oldest) {
            self.drop_group(group, DropReason::Stale);
        }
    }

    /// Tokens at their last chance in `step` that `chosen` leaves behind.
    fn dying(&self, step: Step, chosen: &[GroupId]) -> u64 {
        let Some(last_chance) = self.last_chance(step) else {
            return 0;
        };
        let rollouts = chosen.iter().flat_map(|id| &self.groups[id].members);
        let runs = rollouts
            .filter(|rollout| rollout.may_train())
            .flat_map(|rollout| rollout.runs.as_slice());
        let taken: u64 = runs
            .filter(|run| run.version.number == last_chance)
            .map(|run| u64::from(run.count))
            .sum();
        self.ages.tokens(last_chance) - taken
    }

    /// The version whose tokens train in `step` or never.
    fn last_chance(&self, step: Step) -> Option<u64> {
        match self.settings.over_age {
            OverAge::Mask | OverAge::Drop => step.0.checked_sub(self.settings.max_staleness),
            OverAge::Train => None,
        }
    }

    /// Whether `step` waits for unfinished rollouts, and for how long it has.
    ///
    /// Only tokens of unfinished rollouts can be saved by waiting: those of ready groups that the batch
    /// leaves behind would be held for without end. Nothing can be saved when the whole batch is at its
    /// last chance already, and at bound 0 every group is.
    fn hold(&mut self, now: f64, step: Step, dying: u64) -> Option<WaitReason> {
        let budget = self.settings.waste_budget;
        let in_vain = self.ready.due() >= self.settings.groups_per_step;
        let over_budget = budget < 1.0 && self.waste.exceeds(budget, dying);
        let unfinished = self
            .last_chance(step)
            .and_then(|version| self.ages.unfinished(version));
        let Some(unfinished) = unfinished.filter(|_| over_budget && !in_vain) else {
            self.end_hold(now);
            return None;
        };
        let rollouts = unfinished.len();
        let groups = first_groups(unfinished);
        let (since, until) = match &self.hold {
            Some(hold) => (hold.since, hold.until),
            None => self.begin_hold(now),
        };
        if now >= until {
            self.counters.hold_timeouts += 1;
            self.end_hold(now);
            return None;
        }
        let reason = WaitReason::Hold {
            step,
            rollouts,
            groups,
            tokens: dying,
            seconds: now - since,
        };
        self.hold = Some(Hold {
            since,
            until,
            reason: reason.clone(),
        });
        Some(reason)
    }

    fn begin_hold(&mut self, now: f64) -> (f64, f64) {
        let until = now + self.settings.hold_deadline_s;
        self.timers.set(until, Timer::Hold);
        self.counters.holds += 1;
        (now, until)
    }

    /// Why the step that is next has no batch, as far as can be told without binding it.
    pub(crate) fn peek_wait(&self, now: f64) -> Option<WaitReason> {
        if let Some(hold) = &self.hold {
            return Some(hold.reason.after(now - hold.since));
        }
        let (ready, want, open) = (
            self.ready.len(),
            self.settings.groups_per_step,
            self.open.len(),
        );
        let step = Step(self.learner.stepped);
        (ready < want).then_some(WaitReason::Groups {
            step,
            ready,
            want,
            open,
        })
    }

    fn end_hold(&mut self, now: f64) {
        if let Some(hold) = self.hold.take() {
            self.timers.clear(hold.until, Timer::Hold);
            self.counters.held_s += now - hold.since;
        }
    }

    /// A hold whose learner went away: the time until another one asks is not the hold's.
    pub(crate) fn forget_hold(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.timers.clear(hold.until, Timer::Hold);
        }
    }

    fn take_groups(&mut self, step: Step, chosen: &[GroupId]) -> StepBatch {
        let bound = BoundBatch {
            step,
            groups: Vec::with_capacity(chosen.len()),
        };
        let figures = Figures::default();
        let mut batch = StepBatch {
            bound,
            handed_out: false,
            dropped: BTreeMap::new(),
            figures,
        };
        for id in chosen {
            let group = self.groups.remove(id).expect("ready groups are held");
            if let Some(closed) = &group.closed {
                self.ready.remove(*id, closed.key);
            }
            for (index, rollout) in group
                .members
                .iter()
                .enumerate()
                .filter(|(_, rollout)| rollout.may_train())
            {
                self.ages
                    .remove(Member { group: *id, index }, rollout.runs.as_slice());
            }
            let event = batch.take(group, &self.settings);
            self.tell(|| event);
        }
        batch
    }
}

impl StepBatch {
    /// Takes a group in, and tells what of it trains.
    fn take(&mut self, group: Group, settings: &Settings) -> Event {
        let closed = group.closed.as_ref().expect("a ready group is closed");
        let (id, prompt, statistics) = (group.id, group.prompt.clone(), closed.statistics);
        let advantages = closed.advantages.clone();
        let first = group.first_rollout;
        let mut rollouts = Vec::with_capacity(group.members.len());
        let mut left_out = Vec::new();
        for (index, (rollout, advantage)) in group.members.into_iter().zip(advantages).enumerate() {
            let tokens = rollout.tokens.len() as u64;
            match bind_rollout(
                rollout,
                RolloutId(first + index as u64),
                advantage,
                self.bound.step,
                settings,
            ) {
                Ok(bound) => {
                    left_out.push((DropReason::Stale, 0, tokens - bound.loss_tokens()));
                    self.figures.rollout(&bound, self.bound.step, settings);
                    rollouts.push(bound);
                }
                Err(reason) => left_out.push((reason, 1, tokens)),
            }
        }
        left_out.retain(|&(_, rollouts, tokens)| rollouts + tokens > 0);
        for &(reason, rollouts, tokens) in &left_out {
            let sums = self.dropped.entry(reason).or_default();
            *sums = (sums.0 + rollouts, sums.1 + tokens);
        }
        self.figures.group(&statistics);
        let event = Event::Bound {
            group: id,
            step: self.bound.step,
            rollouts: rollouts.iter().map(TracedRollout::of).collect(),
            dropped: left_out,
        };
        self.bound.groups.push(BoundGroup {
            group: id,
            prompt,
            statistics,
            rollouts,
        });
        event
    }
}

/// The groups of the first members of an ordered set: as many as are named.
fn first_groups(members: &BTreeSet<Member>) -> Vec<GroupId> {
    let mut groups: Vec<GroupId> = Vec::with_capacity(GROUPS_NAMED);
    for member in members {
        if groups.last() != Some(&member.group) {
            if groups.len() == GROUPS_NAMED {
                break;
            }
            groups.push(member.group);
        }
    }
    groups
}

/// A member as the learner gets it, or why it does not train.
fn bind_rollout(
    rollout: Rollout,
    id: RolloutId,
    advantage: Option<f64>,
    step: Step,
    settings: &Settings,
) -> Result<BoundRollout, DropReason> {
    let score = match rollout.state {
        State::Ended(Ended::Scored(score)) => score,
        State::Ended(Ended::Abstained(_, reason)) => return Err(reason),
        _ => unreachable!("every member of a closed group has ended"),
    };
    let oldest = settings.oldest_trainable(step.0).unwrap_or(0);
    let runs = rollout.runs.as_slice().to_vec();
    let over_age: Vec<bool> = runs.iter().map(|run| run.version.number < oldest).collect();
    if over_age.iter().all(|over| *over) {
        return Err(DropReason::Stale);
    }
    Ok(BoundRollout {
        rollout: id,
        finish_version: runs[runs.len() - 1].version,
        tokens: rollout.tokens,
        logprobs: rollout.logprobs,
        runs,
        over_age,
        score,
        advantage: advantage.expect("a scored member has an advantage"),
        finish: rollout.finish.expect("a scored member is finished"),
    })
}
