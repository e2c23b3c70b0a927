//! The ledger: the state of a run. This file holds its parts and the life of a group; what generators,
//! scorers, learners and evaluators may do with it is in the files named after them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::audit::{Books, DropReason};
use crate::batch::{BoundBatch, BoundGroup, Hold, StepBatch};
use crate::evaluation::Evaluations;
use crate::group::{Ended, Group, Purpose, State};
use crate::ids::{GroupId, Member};
use crate::incident::Incidents;
use crate::learner::Learner;
use crate::leases::Leases;
use crate::pacing::Pace;
use crate::prompts::Frontier;
use crate::quarantine::{Filtered, Quarantine};
use crate::ready::ReadySet;
use crate::settings::{OverAge, Settings, SettingsError, ZeroVariance};
use crate::sources::{BySource, MAIN};
use crate::stats::{Counters, Figures};
use crate::timers::{Timer, Timers};
use crate::trace::Event;
use crate::waste::{TokenAges, WasteMeter};

/// What may be possible now that was not before: hints for the caller, cleared when taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// A generator that waits may get leases now (training or evaluation).
    pub rollouts: bool,
    /// A scorer that waits may get leases now.
    pub scoring: bool,
    /// A learner that waits may get its batch, or another reason, now.
    pub batch: bool,
    /// Prompts are wanted.
    pub prompts: bool,
    /// Groups of an evaluation are complete.
    pub evaluated: bool,
}

/// The state of a run.
///
/// ```
/// use r1async_core::{Bind, HolderId, Ledger, PolicyVersion, Settings, Step};
///
/// let mut ledger = Ledger::new(Settings { groups_per_step: 2, ..Settings::default() })?;
/// for ordinal in ledger.wanted_prompts() {
///     ledger.admit(ordinal, vec![1, 2, 3], Vec::new())?;
/// }
/// ledger.connect_learner(0, 0)?;
/// ledger.published(PolicyVersion::new(0, 0), "hash of the start checkpoint")?;
/// // A generator with room for 20 gets two whole groups of 8.
/// let leases = ledger.lease_rollouts(0.0, HolderId(1), PolicyVersion::new(0, 0), 20, 128);
/// assert_eq!(leases.len(), 16);
/// let Bind::Wait(reason) = ledger.bind_batch(0.0, Step(0))? else { unreachable!() };
/// assert_eq!(reason.to_string(), "groups: 0 of 2 ready for step 0, 2 open");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Serialize, Deserialize)]
pub struct Ledger {
    pub(crate) settings: Settings,
    pub(crate) frontier: Frontier,
    /// Groups that are in no batch: queued, open or ready, and those of evaluations.
    pub(crate) groups: FxHashMap<GroupId, Group>,
    pub(crate) queued: BySource,
    pub(crate) open: BySource,
    pub(crate) ready: ReadySet,
    /// The ready groups again, by source.
    pub(crate) ready_by_source: BySource,
    /// Open groups that could close early, by the age of their oldest token.
    pub(crate) ripe: ReadySet,
    /// Groups closed early that have members left.
    pub(crate) late: BTreeSet<GroupId>,
    /// Late members that are scored: the next batch takes them.
    pub(crate) late_scored: BTreeSet<Member>,
    /// Batches that are not trained, by step, without a gap.
    pub(crate) batches: VecDeque<StepBatch>,
    /// The next batch, if it is bound part by part and not whole yet.
    pub(crate) filling: Option<StepBatch>,
    /// Members of open groups that wait for a generator, oldest group first.
    pub(crate) waiting: BTreeSet<Member>,
    /// Finished rollouts that wait for a scorer: pool by pool, in the order in which they finished.
    pub(crate) unscored: BTreeMap<(usize, u64), Member>,
    pub(crate) finished_so_far: u64,
    pub(crate) leases: Leases,
    pub(crate) timers: Timers,
    pub(crate) learner: Learner,
    pub(crate) hold: Option<Hold>,
    /// Groups of equal rewards dropped for the step that is bound next.
    pub(crate) refills: u64,
    pub(crate) pace: Pace,
    pub(crate) waste: WasteMeter,
    pub(crate) ages: TokenAges,
    pub(crate) evaluations: Evaluations,
    pub(crate) books: Books,
    pub(crate) counters: Counters,
    /// Of trained steps; those of steps not trained yet are with their batches.
    pub(crate) figures: Figures,
    pub(crate) news: News,
    pub(crate) quarantine: Quarantine,
    /// Groups that may have brought down their generators, on their last try.
    pub(crate) suspects: BTreeSet<GroupId>,
    pub(crate) filtered: Filtered,
    /// Groups of the last trained steps, by source: some generator may not have their weights yet.
    #[serde(default)]
    trained: VecDeque<Vec<usize>>,
    #[serde(skip)]
    pub(crate) incidents: Incidents,
    /// What happened since it was last taken, if anybody listens.
    #[serde(skip)]
    pub(crate) trace: Option<Vec<Event>>,
}

impl Ledger {
    /// An empty ledger.
    ///
    /// # Errors
    /// A setting that cannot work.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.validate()?;
        Ok(Self {
            frontier: Frontier::default(),
            groups: FxHashMap::default(),
            queued: BySource::new(settings.sources()),
            open: BySource::new(settings.sources()),
            ready: ReadySet::default(),
            ready_by_source: BySource::new(settings.sources()),
            ripe: ReadySet::default(),
            late: BTreeSet::new(),
            late_scored: BTreeSet::new(),
            batches: VecDeque::new(),
            filling: None,
            waiting: BTreeSet::new(),
            unscored: BTreeMap::new(),
            finished_so_far: 0,
            leases: Leases::new(settings.incarnation),
            timers: Timers::default(),
            learner: Learner::default(),
            hold: None,
            refills: 0,
            pace: Pace::new(&settings),
            waste: WasteMeter::default(),
            ages: TokenAges::default(),
            evaluations: Evaluations::default(),
            books: Books::default(),
            counters: Counters::default(),
            figures: Figures::default(),
            quarantine: Quarantine::default(),
            suspects: BTreeSet::new(),
            filtered: Filtered::default(),
            trained: VecDeque::new(),
            incidents: Incidents::default(),
            news: News {
                prompts: true,
                ..News::default()
            },
            trace: None,
            settings,
        })
    }

    /// The settings it decides by.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What may be possible since the last call.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Everything whose deadline has passed happens.
    pub fn tick(&mut self, now: f64) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Lease(lease) => self.expire_lease(now, lease),
                Timer::Rollout(member) => self.end_overdue(now, member),
                Timer::Group(group) => self.close_late(now, group),
                Timer::Hold => self.news.batch = true,
            }
        }
    }

    /// When `tick` is due next, on the clock of `now`.
    #[must_use]
    pub fn next_deadline(&self) -> Option<f64> {
        self.timers.next()
    }

    /// Places taken of the main sources, as seen by a generator that has the weights of version `installed`.
    /// Groups of other windows count from the moment they are ready.
    pub(crate) fn places(&self, installed: u64) -> usize {
        let bound = self.bound_groups(installed).count();
        let trained: usize = self.trained_groups(installed).flatten().sum();
        self.open.len_of(MAIN) + self.ready.len() + bound + trained
    }

    /// Places taken in the window of `source`, likewise.
    pub(crate) fn window_places(&self, source: usize, installed: u64) -> usize {
        let bound = self.bound_groups(installed);
        let own = bound.filter(|group| group.source == source).count();
        let trained: usize = self
            .trained_groups(installed)
            .map(|step| step[source])
            .sum();
        self.open.len_of(source) + self.ready_by_source.len_of(source) + own + trained
    }

    /// Groups in batches whose weights `installed` does not have.
    fn bound_groups(&self, installed: u64) -> impl Iterator<Item = &BoundGroup> {
        let newest_first = self.filling.iter().chain(self.batches.iter().rev());
        newest_first
            .take_while(move |batch| batch.bound.step.0 >= installed)
            .flat_map(|batch| &batch.bound.groups)
    }

    /// Groups, by source, of each trained step whose weights `installed` does not have.
    fn trained_groups(&self, installed: u64) -> impl Iterator<Item = &Vec<usize>> {
        let missing = self.learner.committed.saturating_sub(installed) as usize;
        self.trained.iter().rev().take(missing)
    }

    /// A step is trained. It keeps its places for generators without its weights, as far behind as may sample.
    pub(crate) fn keep_places(&mut self, batch: &BoundBatch) {
        let mut groups = vec![0; self.settings.sources()];
        for group in &batch.groups {
            groups[group.source] += 1;
        }
        self.trained.push_back(groups);
        while self.trained.len() as u64 > self.settings.pacing {
            self.trained.pop_front();
        }
    }

    /// Groups that the steps without a batch can train.
    pub(crate) fn wanted_groups(&self) -> u64 {
        let steps = self.settings.steps.saturating_sub(self.next_bind());
        (steps * self.settings.groups_per_step as u64).saturating_sub(self.filled() as u64)
    }

    /// The first step without a batch.
    pub(crate) fn next_bind(&self) -> u64 {
        self.learner.committed + self.batches.len() as u64
    }

    /// The group of a timer, a lease or a set: held, or those would have been cleared.
    pub(crate) fn group_mut(&mut self, id: GroupId) -> &mut Group {
        self.groups
            .get_mut(&id)
            .expect("sets, leases and timers name groups that are held")
    }

    pub(crate) fn rollout_mut(&mut self, member: Member) -> &mut crate::group::Rollout {
        &mut self.group_mut(member.group).members[member.index]
    }

    /// A rollout has its outcome; whoever worked on it no longer does. The last one closes its group.
    pub(crate) fn end_rollout(&mut self, member: Member, ended: Ended) {
        self.set_aside(member);
        if let Ended::Abstained(status, _) = &ended {
            self.counters.abstained(status);
        }
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("the group of a rollout is held");
        let rollout = &group.members[member.index];
        if group.counts_age() && matches!(ended, Ended::Scored(_)) {
            self.ages.score(member, rollout.runs.as_slice());
        } else if group.counts_age() {
            self.ages.remove(member, rollout);
        }
        let id = group.rollout_id(member.index);
        if let (false, Some(trace)) = (member.group.is_evaluation(), &mut self.trace) {
            trace.push(Event::Ended {
                rollout: id,
                outcome: ended.outcome(),
            });
        }
        group.end_member(member.index, ended);
        self.news.batch = true; // A held step may have waited for this rollout alone.
        if group.closed_early.is_some() {
            self.end_late(member);
        } else if group.has_ended() {
            self.close(member.group, DropReason::TooFewScored);
        } else {
            self.ripen(member.group);
        }
    }

    /// Takes a rollout out of every set, lease and timer; its state is for the caller to set.
    pub(crate) fn set_aside(&mut self, member: Member) {
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("the group of a rollout is held");
        let rollout = &mut group.members[member.index];
        if let Some(at) = rollout.deadline.take() {
            self.timers.clear(at, Timer::Rollout(member));
        }
        match rollout.state {
            State::Waiting => {
                self.waiting.remove(&member);
                self.evaluations.waiting.remove(&member);
            }
            State::Generating(lease) | State::Scoring(lease, _) => {
                self.leases.end(lease, &mut self.timers);
                self.news.rollouts = true;
            }
            State::Unscored(place) => {
                self.unscored.remove(&(group.prompt.pool, place));
            }
            State::Ended(_) => {}
        }
    }

    /// A rollout's deadline: it abstains.
    fn end_overdue(&mut self, now: f64, member: Member) {
        let deadline_s = self.settings.rollout_deadline_s;
        let due = self.rollout_mut(member).deadline.take();
        let after_s = due.map_or(deadline_s, |due| now - due + deadline_s);
        let what = ("late_rollout", "closed without it");
        self.overdue(what, None, member, (deadline_s, after_s));
        self.end_rollout(member, Ended::past_deadline());
    }

    /// The group's deadline: who is not done abstains, never-leased members too.
    fn close_late(&mut self, now: f64, id: GroupId) {
        let deadline_s = self.settings.group_deadline_s;
        let due = self.group_mut(id).deadline.take();
        let after_s = due.map_or(deadline_s, |due| now - due + deadline_s);
        if self.late.contains(&id) {
            return self.end_late_members(id, &Ended::past_deadline());
        }
        for index in 0..self.groups[&id].members.len() {
            let member = Member { group: id, index };
            if self.groups[&id].members[index].has_ended() {
                continue;
            }
            let what = ("late_group", "closed without them");
            self.overdue(what, None, member, (deadline_s, after_s));
            self.set_aside(member);
            self.counters.abstained("deadline");
            let group = self.groups.get_mut(&id).expect("the group is being closed");
            if group.counts_age() {
                self.ages.remove(member, &group.members[index]);
            }
            group.end_member(index, Ended::past_deadline());
        }
        self.close(id, DropReason::Deadline);
    }

    /// Every member has ended: the group is ready, or dropped; `shortage` is the reason if too few are scored.
    fn close(&mut self, id: GroupId, shortage: DropReason) {
        let group = &self.groups[&id];
        if let Purpose::Evaluation(name) = &group.purpose {
            let name = name.clone();
            return self.deliver(&name, id);
        }
        let Some(closed) = group.summarise(&self.settings, self.next_bind()) else {
            return self.fail_group(id, shortage);
        };
        if closed.statistics.is_constant() {
            let drops = self.settings.zero_variance == ZeroVariance::Drop;
            if drops && self.refills < self.settings.max_refills {
                self.refills += 1;
                return self.drop_group(id, DropReason::ZeroVariance);
            }
            self.counters.zero_variance_trained += 1;
        }
        let source = group.source;
        self.unripen(id);
        self.open.remove(source, id);
        let statistics = closed.statistics;
        self.tell(|| Event::Ready {
            group: id,
            scored: statistics.count as u64,
            mean: statistics.mean,
            std: statistics.std,
        });
        self.passed();
        self.ready.insert(id, closed.key);
        self.ready_by_source.insert(source, id);
        self.group_mut(id).closed = Some(closed);
        self.retire(id);
        self.news.batch = true;
    }

    /// Nobody works on the group any more: its timer and the leases its rollouts were finished under go.
    pub(crate) fn retire(&mut self, id: GroupId) {
        let group = self
            .groups
            .get_mut(&id)
            .expect("the group retires while it is held");
        if let Some(at) = group.deadline.take() {
            self.timers.clear(at, Timer::Group(id));
        }
        self.suspects.remove(&id);
        for rollout in &group.members {
            if let Some(lease) = rollout.last_lease {
                self.leases.end(lease, &mut self.timers);
            }
        }
    }

    /// The group, all its rollouts and tokens, for one reason.
    pub(crate) fn drop_group(&mut self, id: GroupId, reason: DropReason) {
        for index in 0..self.groups[&id].members.len() {
            self.set_aside(Member { group: id, index });
        }
        self.retire(id);
        self.unripen(id);
        let group = self.groups.remove(&id).expect("the group is being dropped");
        self.queued.remove(group.source, id);
        self.open.remove(group.source, id);
        self.leave_ready(&group);
        self.forget_ages(&group);
        let at = self.next_bind();
        self.counters
            .waste
            .drop_group(&group, reason, at, &self.settings);
        self.books.drop_group(&group, reason);
        self.tell(|| Event::Dropped {
            group: id,
            reason,
            rollouts: group.members.len() as u64,
            tokens: group.tokens(),
        });
        self.counters.group_dropped(reason);
        self.took(id, reason);
        self.news = News {
            rollouts: true,
            batch: true,
            prompts: true,
            ..self.news
        };
        self.readmit(&group, reason);
    }

    /// A group that was ready is in a batch, or dropped.
    pub(crate) fn leave_ready(&mut self, group: &Group) {
        if let Some(closed) = &group.closed {
            self.ready.remove(group.id, closed.key);
            self.ready_by_source.remove(group.source, group.id);
        }
    }

    /// The tokens of a group that leaves are no longer those of a rollout that may train.
    pub(crate) fn forget_ages(&mut self, group: &Group) {
        if !group.counts_age() {
            return;
        }
        let members = group.members.iter().enumerate();
        for (index, rollout) in members.filter(|(_, rollout)| rollout.may_train()) {
            self.ages.remove(group.member(index), rollout);
        }
    }

    /// The prompt of a group that age dropped whole returns, as a new group.
    fn readmit(&mut self, group: &Group, reason: DropReason) {
        let Purpose::Training { retries } = group.purpose else {
            return;
        };
        let by_age = reason == DropReason::Stale && self.settings.over_age == OverAge::Drop;
        if by_age && retries > 0 {
            self.books.prompts.incoming += 1;
            let prompt = group.prompt.clone();
            self.queue_group(prompt, retries - 1, group.source);
        }
    }
}
