//! Batches: which groups a step trains, and whether it is held for others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::DropReason;
use crate::group::{Closed, Ended, Finish, Group, Prompt, Rollout, Score, State};
use crate::ids::{GroupId, Member, PolicyVersion, RolloutId, Step};
use crate::ledger::Ledger;
use crate::settings::{OverAge, Settings};
use crate::shape::{Coverages, Shape};
use crate::sources::MAIN;
use crate::staleness::VersionRun;
use crate::statistics::GroupStatistics;
use crate::stats::Figures;
use crate::timers::Timer;
use crate::trace::Event;
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
    /// Its prompt's source: 0 for the main ones, s for `Settings::windows[s - 1]`.
    pub source: usize,
    /// Its prompt.
    pub prompt: Arc<Prompt>,
    /// Statistics of the rewards of all members scored when it closed.
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
    /// Late members of groups closed early in steps before, one each, with the statistics over all members
    /// scored by now. They are not counted as groups.
    pub late: Vec<BoundGroup>,
}

impl BoundBatch {
    /// The rollouts of all groups, then the late members, each with its group.
    pub fn rollouts(&self) -> impl Iterator<Item = (&BoundGroup, &BoundRollout)> {
        self.groups
            .iter()
            .chain(&self.late)
            .flat_map(|group| group.rollouts.iter().map(move |rollout| (group, rollout)))
    }

    /// All of it as one part.
    #[must_use]
    pub fn whole(&self) -> BatchPart {
        BatchPart {
            place: 0,
            groups: 0..self.groups.len(),
            last: true,
        }
    }

    /// The groups of one part, and with the last one the late members.
    pub fn groups_of(&self, part: &BatchPart) -> impl Iterator<Item = &BoundGroup> {
        let late: &[BoundGroup] = if part.last { &self.late } else { &[] };
        self.groups[part.groups.clone()].iter().chain(late)
    }

    /// The rollouts of one part, as [`BoundBatch::rollouts`] has them.
    pub fn rollouts_of(
        &self,
        part: &BatchPart,
    ) -> impl Iterator<Item = (&BoundGroup, &BoundRollout)> {
        let groups = self.groups_of(part);
        groups.flat_map(|group| group.rollouts.iter().map(move |rollout| (group, rollout)))
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

/// Groups of a batch, by their places in it. A step's parts follow one another and are handed out again as
/// they were; late members come with the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPart {
    /// Its number in the batch, from 0.
    pub place: usize,
    /// Places in `BoundBatch::groups`.
    pub groups: std::ops::Range<usize>,
    /// Whether the batch is whole with it.
    pub last: bool,
}

/// The answer to a learner that accumulates gradients while its batch fills.
#[derive(Debug, PartialEq)]
pub enum BindPart<'a> {
    /// The part asked for. Its groups are final, the rest of the batch is not before the last part.
    Ready(&'a BoundBatch, BatchPart),
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
    /// A part after one that was not asked for.
    #[error("part {got} of step {step}; want at most {known}, the parts handed out")]
    Part {
        /// The step.
        step: Step,
        /// The part asked for.
        got: usize,
        /// Parts there are.
        known: usize,
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
    /// Groups in it at the end of each part; one part if it was bound at once.
    parts: Vec<usize>,
    /// Of its scored members, until all are here.
    shapes: Vec<Shape>,
    /// What became of its members, until the ledger has told it; none if nobody listens.
    #[serde(skip)]
    trace: Option<Vec<Event>>,
    pub(crate) figures: Figures,
}

/// The groups that a step would train.
#[derive(Debug)]
struct Candidates {
    groups: Vec<GroupId>,
    /// Groups at their last chance fill the batch.
    is_full: bool,
}

/// Tokens at their last chance that a step would leave behind.
#[derive(Debug, Default)]
struct Dying {
    all: u64,
    /// Those that waiting might save, as far as the batch has room for their groups.
    tokens: u64,
}

impl StepBatch {
    /// A part that it has; `whole`: no other comes after the last.
    fn part(&self, place: usize, whole: bool) -> BatchPart {
        let begin = place.checked_sub(1).map_or(0, |before| self.parts[before]);
        BatchPart {
            place,
            groups: begin..self.parts[place],
            last: whole && place + 1 == self.parts.len(),
        }
    }

    /// Members whose account is here: those that train, and those dropped.
    pub(crate) fn rollouts(&self) -> u64 {
        let dropped: u64 = self.dropped.values().map(|(rollouts, _)| rollouts).sum();
        dropped + self.bound.rollouts().count() as u64
    }

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
    /// When the learner began to wait; infinite while it trains a part meanwhile.
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
        let bound = (self.next_bind(), self.filled(), handed_out, held);
        (bound, held_since, self.counters.hold_timeouts, self.pace)
    }

    /// Part `part` of the batch of `step`, from 0: what is ready now (`Settings::part_groups` or more), while
    /// places are kept for groups at their last chance; the last part binds the rest, as
    /// [`Ledger::bind_batch`] would. A learner that starts again gets the same parts, or the whole batch at once.
    ///
    /// # Errors
    /// As [`Ledger::bind_batch`], or parts before this one were not asked for.
    pub fn bind_part(
        &mut self,
        now: f64,
        step: Step,
        part: usize,
    ) -> Result<BindPart<'_>, BindError> {
        self.learner.epoch.ok_or(BindError::NoLearner)?;
        let want = Step(self.learner.stepped);
        if step != want {
            return Err(BindError::Step { got: step, want });
        }
        let known = self.batch_of(step).map_or(0, |batch| batch.parts.len());
        if part > known || (part == known && step.0 < self.next_bind()) {
            return Err(BindError::Part {
                step,
                got: part,
                known,
            });
        }
        if part == known {
            if step.0 >= self.settings.steps {
                return Ok(BindPart::Finished);
            }
            match self.bind_next(now, step) {
                Some(Bind::Finished) => return Ok(BindPart::Finished),
                Some(Bind::Wait(reason)) if !self.bind_ready(now, step) => {
                    return Ok(BindPart::Wait(reason));
                }
                _ => {}
            }
        }
        let whole = step.0 < self.next_bind();
        let batch = self.batch_of(step).expect("the part is bound");
        let part = batch.part(part, whole);
        batch.handed_out |= part.last;
        Ok(BindPart::Ready(&batch.bound, part))
    }

    /// A part that is bound of a batch that is not trained yet.
    #[must_use]
    pub fn batch_part(&self, step: Step, part: usize) -> Option<(&BoundBatch, BatchPart)> {
        let index = step.0.checked_sub(self.learner.committed)? as usize;
        let whole = self.batches.get(index);
        let filling = self
            .filling
            .as_ref()
            .filter(|_| index == self.batches.len());
        let batch = whole.or(filling)?;
        let part = (part < batch.parts.len()).then(|| batch.part(part, whole.is_some()))?;
        Some((&batch.bound, part))
    }

    /// The batch of a step that is bound, or being bound part by part.
    fn batch_of(&mut self, step: Step) -> Option<&mut StepBatch> {
        let index = step.0.checked_sub(self.learner.committed)? as usize;
        match self.batches.len() {
            bound if index < bound => self.batches.get_mut(index),
            bound if index == bound => self.filling.as_mut(),
            _ => None,
        }
    }

    /// Binds the groups that are ready as a part of the batch that is not the last one; `false`: too few are.
    fn bind_ready(&mut self, now: f64, step: Step) -> bool {
        if self.settings.part_groups == 0 {
            return false;
        }
        let want = self.missing();
        let ready = self.candidates(step, want).groups.into_iter();
        let mut ready: Vec<GroupId> = ready.filter(|id| !self.open.contains(*id)).collect();
        if ready.len() < self.settings.part_groups {
            return false;
        }
        // The last part has at least one group, for whose sake the step may be held.
        let kept = self.last_chances(step).max(1);
        ready.truncate(want.saturating_sub(kept));
        if ready.len() < self.settings.part_groups {
            return false;
        }
        if let Some(hold) = &mut self.hold {
            self.counters.held_s += (now - hold.since).max(0.0);
            hold.since = f64::INFINITY;
        }
        self.pace.served(now);
        let mut batch = self.take_filling(step);
        for id in ready {
            self.take_ready(id, &mut batch);
        }
        batch.parts.push(batch.bound.groups.len());
        self.tell_batch(&mut batch);
        self.filling = Some(batch);
        self.news.rollouts = true;
        true
    }

    fn take_filling(&mut self, step: Step) -> StepBatch {
        let new = || StepBatch::new(step, self.settings.groups_per_step);
        let mut batch = self.filling.take().unwrap_or_else(new);
        batch.trace = self.trace.is_some().then(Vec::new);
        batch
    }

    /// Groups in the batch that is being bound part by part.
    pub(crate) fn filled(&self) -> usize {
        let filling = self.filling.as_ref();
        filling.map_or(0, |batch| batch.bound.groups.len())
    }

    /// Groups that the batch which is next still lacks; none if a new life of the buffer wants smaller batches
    /// than it has begun.
    fn missing(&self) -> usize {
        let groups = self.settings.groups_per_step;
        groups.saturating_sub(self.filled())
    }

    /// Open groups of the main sources whose oldest token trains in `step` or never; at bound 0 also those
    /// without a token yet.
    fn last_chances(&self, step: Step) -> usize {
        let Some(last_chance) = self.last_chance(step) else {
            return 0;
        };
        if self.settings.max_staleness == 0 {
            return self.open.len_of(MAIN);
        }
        let is_due = |id: &&GroupId| {
            let members = self.groups[*id].members.iter();
            let oldest = members.filter_map(|rollout| rollout.runs.lowest()).min();
            oldest.is_some_and(|oldest| oldest <= last_chance)
        };
        self.open.iter_of(MAIN).filter(is_due).count()
    }

    /// Binds the batch of `step`, or answers why not.
    fn bind_next(&mut self, now: f64, step: Step) -> Option<Bind<'static>> {
        self.pace.asked(now, step.0);
        self.ready.advance(step.0);
        self.ripe.advance(step.0);
        self.drop_useless(step);
        let filled = self.filled();
        let want = self.missing();
        let open = self.open.len();
        let all_here = self.all_here();
        if all_here && filled == 0 && self.ready.len() == 0 && self.late.is_empty() {
            return Some(Bind::Finished);
        }
        let chosen = self.candidates(step, want);
        let ready = chosen.groups.len();
        if ready < want && !all_here {
            return Some(Bind::Wait(WaitReason::Groups {
                step,
                ready: filled + ready,
                want: filled + want,
                open,
            }));
        }
        if self.only_late_left() {
            return Some(Bind::Wait(self.wait_for_late(step)));
        }
        let dying = self.dying(step, &chosen);
        if let Some(reason) = self.hold(now, step, &chosen, dying.tokens) {
            return Some(Bind::Wait(reason));
        }
        self.waste.bound(dying.all);
        let mut batch = self.take_groups(step, &chosen.groups);
        self.tell_batch(&mut batch);
        self.batches.push_back(batch);
        self.refills = 0;
        self.pace.bound(now, self.ready.len(), &self.settings);
        if self.next_bind() >= self.settings.steps {
            self.give_up_the_rest();
        }
        self.news.rollouts = true;
        self.news.prompts = true;
        None
    }

    /// What became of the batch's new members.
    fn tell_batch(&mut self, batch: &mut StepBatch) {
        if let (Some(trace), Some(told)) = (&mut self.trace, &mut batch.trace) {
            trace.append(told);
        }
    }

    /// Drops ready groups that have no token young enough for `step`.
    fn drop_useless(&mut self, step: Step) {
        while let Some(group) = self.ready.first_useless(step.0) {
            self.drop_group(group, DropReason::Stale);
        }
    }

    /// The groups that `step` would train now, at most `want`: those at their last chance first, closed or
    /// not, by e_s and number; then the other ready ones by their deadlines.
    fn candidates(&self, step: Step, want: usize) -> Candidates {
        let ready = self.ready.due().take(want);
        let mut due: Vec<(u64, GroupId)> = ready.chain(self.closable(step).take(want)).collect();
        due.sort_unstable();
        let is_full = due.len() >= want;
        let due = due.into_iter().map(|(_, group)| group);
        let mut slow = self.places_for_slow(want);
        let has_place = |id: &GroupId| {
            let is_slow = self.groups[id].source != MAIN;
            let has_place = !is_slow || slow > 0;
            slow -= usize::from(is_slow && has_place);
            has_place
        };
        let groups = due.chain(self.ready.later()).filter(has_place);
        Candidates {
            groups: groups.take(want).collect(),
            is_full,
        }
    }

    /// Groups of other windows that a batch of `want` may take. At bound 0 every group of the main sources
    /// has its only chance in this step, also one that has no token yet: its place is kept.
    fn places_for_slow(&self, want: usize) -> usize {
        match self.settings.max_staleness {
            0 => {
                let main = self.open.len_of(MAIN) + self.ready_by_source.len_of(MAIN);
                want.saturating_sub(main)
            }
            _ => want,
        }
    }

    /// Whether no further group will become ready.
    fn all_here(&self) -> bool {
        self.prompts_used_up() && self.queued.is_empty() && self.open.is_empty()
    }

    /// Whether the last batch waits for late members: nothing else is left to train.
    fn only_late_left(&self) -> bool {
        self.all_here() && self.ready.len() <= self.missing() && self.late_unfinished() > 0
    }

    fn wait_for_late(&self, step: Step) -> WaitReason {
        let unfinished = |id: &&GroupId| self.groups[*id].unfinished() > 0;
        let groups = self.late.iter().filter(unfinished);
        WaitReason::Late {
            step,
            rollouts: self.late_unfinished(),
            groups: groups.copied().take(GROUPS_NAMED).collect(),
        }
    }

    /// Tokens at their last chance in `step` that `chosen` leaves behind.
    fn dying(&self, step: Step, chosen: &Candidates) -> Dying {
        let Some(version) = self.last_chance(step) else {
            return Dying::default();
        };
        // Of groups that closed early, scored members are the late ones that this batch takes.
        let taken = chosen.groups.iter().chain(&self.late);
        let all = self.ages.tokens(version) - self.ages.scored(version, taken);
        Dying {
            all,
            tokens: if chosen.is_full {
                let runs = self.savable(version, chosen).flat_map(|member| {
                    let rollout = &self.groups[&member.group].members[member.index];
                    rollout.runs.as_slice()
                });
                let runs = runs.filter(|run| run.version.number == version);
                runs.map(|run| u64::from(run.count)).sum()
            } else {
                all
            },
        }
    }

    /// Unfinished rollouts whose tokens of `version` waiting might save, in order. Where groups at their last
    /// chance fill the batch, one more complete group would only push out another.
    fn savable(&self, version: u64, chosen: &Candidates) -> impl Iterator<Item = &Member> {
        let only: Option<BTreeSet<GroupId>> = chosen
            .is_full
            .then(|| chosen.groups.iter().copied().collect());
        let unfinished = self.ages.unfinished(version).into_iter().flatten();
        unfinished.filter(move |member| {
            let only = only.as_ref();
            only.is_none_or(|only| {
                only.contains(&member.group) || self.late.contains(&member.group)
            })
        })
    }

    /// The version whose tokens, of main sources, train in `step` or never.
    fn last_chance(&self, step: Step) -> Option<u64> {
        match self.settings.over_age {
            OverAge::Mask | OverAge::Drop => step.0.checked_sub(self.settings.max_staleness),
            OverAge::Train => None,
        }
    }

    /// Whether `step` waits for unfinished rollouts, and for how long it has. Only tokens of unfinished
    /// rollouts can be saved by waiting: those of ready groups that the batch leaves behind would be held
    /// for without end, and at bound 0 nothing but them is ever left.
    fn hold(
        &mut self,
        now: f64,
        step: Step,
        chosen: &Candidates,
        tokens: u64,
    ) -> Option<WaitReason> {
        let budget = match self.settings.max_staleness {
            0 => 0.0,
            _ => self.settings.waste_budget,
        };
        let over_budget = budget < 1.0 && self.waste.exceeds(budget, tokens);
        let (rollouts, groups) = match self.last_chance(step) {
            Some(version) if over_budget => self.waited_for(version, chosen),
            _ => (0, Vec::new()),
        };
        if rollouts == 0 {
            self.end_hold(now);
            return None;
        }
        let (since, until) = match &self.hold {
            Some(hold) => (hold.since.min(now), hold.until),
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
            tokens,
            seconds: now - since,
        };
        self.hold = Some(Hold {
            since,
            until,
            reason: reason.clone(),
        });
        Some(reason)
    }

    /// How many rollouts waiting might save, and the first of their groups.
    fn waited_for(&self, version: u64, chosen: &Candidates) -> (usize, Vec<GroupId>) {
        let rollouts = if chosen.is_full {
            self.savable(version, chosen).count()
        } else {
            self.ages.unfinished(version).map_or(0, BTreeSet::len)
        };
        let mut groups: Vec<GroupId> = Vec::with_capacity(GROUPS_NAMED);
        for member in self.savable(version, chosen) {
            if groups.last() != Some(&member.group) {
                if groups.len() == GROUPS_NAMED {
                    break;
                }
                groups.push(member.group);
            }
        }
        (rollouts, groups)
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
            return Some(hold.reason.after((now - hold.since).max(0.0)));
        }
        let (want, open) = (self.settings.groups_per_step, self.open.len());
        let step = Step(self.learner.stepped);
        if self.only_late_left() {
            return Some(self.wait_for_late(step));
        }
        let filled = self.filled();
        let ready = filled + self.candidates(step, self.missing()).groups.len();
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
            self.counters.held_s += (now - hold.since).max(0.0);
        }
    }

    /// A hold whose learner went away: the time until another one asks is not the hold's.
    pub(crate) fn forget_hold(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.timers.clear(hold.until, Timer::Hold);
        }
    }

    fn take_groups(&mut self, step: Step, chosen: &[GroupId]) -> StepBatch {
        let mut batch = self.take_filling(step);
        for id in chosen {
            if self.open.contains(*id) {
                self.close_early(*id, &mut batch);
            } else {
                self.take_ready(*id, &mut batch);
            }
        }
        self.take_late(&mut batch);
        batch.parts.push(batch.bound.groups.len());
        batch.sum_up();
        batch
    }

    fn take_ready(&mut self, id: GroupId, batch: &mut StepBatch) {
        let mut group = self.groups.remove(&id).expect("ready groups are held");
        self.leave_ready(&group);
        self.forget_ages(&group);
        let closed = group.closed.take().expect("a ready group is closed");
        let (first, members) = (group.first_rollout, std::mem::take(&mut group.members));
        let numbered = members.into_iter().enumerate();
        let taken = numbered
            .zip(&closed.advantages)
            .map(|((index, rollout), advantage)| {
                (RolloutId(first + index as u64), rollout, *advantage)
            })
            .collect();
        batch.take(&group, &closed, taken, &self.settings);
    }
}

/// A member that leaves its group for a batch, with its advantage if it is scored.
pub(crate) type Taken = (RolloutId, Rollout, Option<f64>);

impl StepBatch {
    fn new(step: Step, groups: usize) -> Self {
        let bound = BoundBatch {
            step,
            groups: Vec::with_capacity(groups),
            late: Vec::new(),
        };
        Self {
            bound,
            handed_out: false,
            dropped: BTreeMap::new(),
            parts: Vec::new(),
            shapes: Vec::new(),
            trace: None,
            figures: Figures::default(),
        }
    }

    fn tell(&mut self, event: impl FnOnce() -> Event) {
        if let Some(trace) = &mut self.trace {
            trace.push(event());
        }
    }

    /// Members of a group train here, or are dropped here.
    pub(crate) fn take(
        &mut self,
        group: &Group,
        closed: &Closed,
        taken: Vec<Taken>,
        settings: &Settings,
    ) {
        let rollouts = taken
            .into_iter()
            .filter_map(|member| self.take_member(member, group.source, closed.at, settings))
            .collect();
        self.figures.group(&closed.statistics);
        let (step, statistics) = (self.bound.step, closed.statistics);
        self.tell(|| Event::Bound {
            group: group.id,
            step,
            scored: statistics.count as u64,
            mean: statistics.mean,
            std: statistics.std,
        });
        self.bound.groups.push(BoundGroup {
            group: group.id,
            source: group.source,
            prompt: group.prompt.clone(),
            statistics: closed.statistics,
            rollouts,
        });
    }

    /// A member as the learner gets it, or nothing, and its account either way.
    pub(crate) fn take_member(
        &mut self,
        (id, rollout, advantage): Taken,
        source: usize,
        closed_at: u64,
        settings: &Settings,
    ) -> Option<BoundRollout> {
        let (step, tokens) = (self.bound.step, rollout.tokens.len() as u64);
        let waste = self.figures.waste.of(source);
        if rollout.score().is_some() {
            let oldest = settings.oldest_of(source, step.0).unwrap_or(0);
            self.shapes
                .push(Shape::new(rollout.runs.as_slice(), oldest));
            if settings.over_age != OverAge::Train {
                let e = settings.bound_of(source);
                waste.aged(rollout.runs.as_slice(), e, closed_at, step.0);
            }
        } else {
            waste.dropped += tokens;
        }
        match bind_rollout(rollout, id, advantage, step, source, settings) {
            Ok(bound) => {
                self.drop_tokens(DropReason::Stale, 0, tokens - bound.loss_tokens());
                self.tell(|| Event::Taken {
                    rollout: id,
                    step,
                    tokens,
                    loss_tokens: bound.loss_tokens(),
                    advantage: bound.advantage,
                });
                self.figures
                    .rollout(&bound, step, settings.bound_of(source));
                Some(bound)
            }
            Err(reason) => {
                self.drop_tokens(reason, 1, tokens);
                self.tell(|| Event::LeftOut {
                    rollout: id,
                    step: Some(step),
                    reason,
                    tokens,
                });
                None
            }
        }
    }

    /// All members are here.
    fn sum_up(&mut self) {
        let mut shapes = std::mem::take(&mut self.shapes);
        self.figures.coverages = Coverages::of(&mut shapes);
    }

    pub(crate) fn drop_tokens(&mut self, reason: DropReason, rollouts: u64, tokens: u64) {
        if rollouts + tokens > 0 {
            let sums = self.dropped.entry(reason).or_default();
            *sums = (sums.0 + rollouts, sums.1 + tokens);
        }
    }
}

/// A member as the learner gets it, or why it does not train.
fn bind_rollout(
    rollout: Rollout,
    id: RolloutId,
    advantage: Option<f64>,
    step: Step,
    source: usize,
    settings: &Settings,
) -> Result<BoundRollout, DropReason> {
    let score = match rollout.state {
        State::Ended(Ended::Scored(score)) => score,
        State::Ended(Ended::Abstained(_, reason)) => return Err(reason),
        _ => unreachable!("every member of a closed group has ended"),
    };
    let oldest = settings.oldest_of(source, step.0).unwrap_or(0);
    let runs = rollout.runs.into_vec();
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
