//! Loans of rollouts to generators, and the tokens that come back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::DropReason;
use crate::group::{Ended, Prompt, Purpose, State};
use crate::ids::{GroupId, HolderId, LeaseId, Member, PolicyVersion, RolloutId};
use crate::leases::{Lease, Work};
use crate::ledger::Ledger;
use crate::pacing::{LearnerPosition, is_young, may_sample};
use crate::settings::Sampling;
use crate::sources::MAIN;
use crate::timers::Timer;
use crate::trace::Event;

/// A rollout lent to a generator.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutLease {
    /// Names this loan in every chunk.
    pub lease: LeaseId,
    /// The rollout; it keys the sampling noise.
    pub rollout: RolloutId,
    /// Its group. Members of one group are next to each other and share `prompt`.
    pub group: GroupId,
    /// What to complete.
    pub prompt: Arc<Prompt>,
    /// How to sample.
    pub sampling: Sampling,
    /// Tokens sampled under an earlier lease, to go on from.
    pub resume: Vec<i32>,
    /// The only version that may sample it; `None` in training.
    pub pin: Option<PolicyVersion>,
}

/// What a generator says it holds after it connected again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The loan it works under.
    pub lease: LeaseId,
    /// The rollout.
    pub rollout: RolloutId,
    /// Completion tokens it has.
    pub offset: usize,
}

/// The answer to a chunk or an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkAck {
    /// The buffer holds that many tokens of the completion: go on from there.
    Held(usize),
    /// The lease is somebody else's, or its rollout is no longer wanted: abort it.
    Lost,
}

impl Ledger {
    /// Lends rollouts to a generator that has `installed` and room for `free` of its `capacity`: first
    /// members of open groups, oldest group first; then whole new groups while there are places, or as
    /// much of one as an idle generator smaller than a group can take.
    pub fn lease_rollouts(
        &mut self,
        now: f64,
        holder: HolderId,
        installed: PolicyVersion,
        free: usize,
        capacity: usize,
    ) -> Vec<RolloutLease> {
        let mut leases = Vec::new();
        if !self.may_sample(installed) {
            return leases;
        }
        while leases.len() < free {
            let Some(member) = self.next_waiting(holder, installed) else {
                break;
            };
            leases.push(self.lend_rollout(now, holder, member));
        }
        if self.keeps_free(holder) {
            return leases;
        }
        let size = self.settings.group_size;
        let idle_but_small = leases.is_empty() && capacity < size && free >= capacity;
        while leases.len() < free && (free - leases.len() >= size || idle_but_small) {
            let Some(id) = self.open_group(now, installed) else {
                break;
            };
            for index in 0..size.min(free - leases.len()) {
                leases.push(self.lend_rollout(now, holder, Member { group: id, index }));
            }
        }
        leases
    }

    /// Where the learner is; `None` before one came.
    pub(crate) fn position(&self) -> Option<LearnerPosition> {
        let epoch = self.learner.epoch?;
        Some(LearnerPosition {
            epoch,
            stepped: self.learner.stepped,
            next_bind: self.next_bind(),
        })
    }

    fn may_sample(&self, installed: PolicyVersion) -> bool {
        let fresh = self
            .position()
            .is_some_and(|position| may_sample(self.pace.w, position, installed));
        fresh && self.is_known_version(installed)
    }

    pub(crate) fn is_young(&self, source: usize, installed: PolicyVersion) -> bool {
        self.position()
            .is_some_and(|position| is_young(&self.settings, source, position, installed))
    }

    /// Whether there is a place for a group of `source`, and a step that needs it.
    fn may_open(&self, source: usize, installed: PolicyVersion) -> bool {
        let has_place = if source == MAIN {
            self.places(installed.number) < self.place_limit()
        } else if self.only_slow_left() {
            self.places(installed.number) + self.open.len() < self.place_limit()
        } else {
            self.window_places(source, installed.number) < self.settings.window_limit(source)
        };
        // Slow groups reserve no step: the main sources alone can fill what is left of the run.
        let is_needed =
            ((self.open.len_of(source) + self.ready.len()) as u64) < self.wanted_groups();
        has_place && is_needed && self.is_young(source, installed)
    }

    /// Whether no group of the main sources is on its way to the next batches, nor will be: slow ones then take the
    /// main places, or a window narrower than a batch would wait for groups that never come.
    fn only_slow_left(&self) -> bool {
        self.open.len_of(MAIN) == 0
            && self.queued.len_of(MAIN) == 0
            && self.wanted_new_prompts() == 0
    }

    /// Opens the oldest queued group that may be.
    fn open_group(&mut self, now: f64, installed: PolicyVersion) -> Option<GroupId> {
        let first = |source| Some((self.queued.first(source)?, source));
        let heads = (0..self.settings.sources()).filter_map(first);
        let (id, source) = heads
            .filter(|&(_, source)| self.may_open(source, installed))
            .min()?;
        self.queued.remove(source, id);
        self.open.insert(source, id);
        let deadline = now + self.settings.group_deadline_s;
        self.timers.set(deadline, Timer::Group(id));
        let group = self.group_mut(id);
        group.deadline = Some(deadline);
        let members: Vec<Member> = (0..group.members.len())
            .map(|index| group.member(index))
            .collect();
        self.waiting.extend(members);
        self.news.prompts = true;
        Some(id)
    }

    fn lend_rollout(&mut self, now: f64, holder: HolderId, member: Member) -> RolloutLease {
        self.waiting.remove(&member);
        self.restart_if_over_age(member);
        let sampling = self.settings.sampling();
        self.begin_generation(now, holder, member, sampling, None)
    }

    /// Tokens of a lost lease are gone on from only if all of them can still train.
    fn restart_if_over_age(&mut self, member: Member) {
        let next = self.next_bind();
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("waiting rollouts are held");
        let (source, counts_age) = (group.source, group.counts_age());
        let rollout = &mut group.members[member.index];
        let oldest_trainable = self.settings.oldest_of(source, next);
        let (Some(lowest), Some(oldest)) = (rollout.runs.lowest(), oldest_trainable) else {
            return;
        };
        if lowest < oldest {
            if counts_age {
                self.ages.remove(member, rollout);
            }
            let tokens = rollout.restart();
            self.counters.waste.of(source).dropped += tokens;
            self.books.tokens.drop(DropReason::Superseded, tokens);
            let rollout = self.groups[&member.group].rollout_id(member.index);
            self.tell(|| Event::Restarted { rollout, tokens });
            self.ripen(member.group);
        }
    }

    /// Makes the lease of a rollout that waits for a generator. Its deadline runs from its first lease.
    pub(crate) fn begin_generation(
        &mut self,
        now: f64,
        holder: HolderId,
        member: Member,
        sampling: Sampling,
        pin: Option<PolicyVersion>,
    ) -> RolloutLease {
        let id = self.leases.new_id();
        let until = now + self.settings.lease_s;
        let lease = Lease {
            holder: Some(holder),
            member,
            work: Work::Generate,
            pin,
            since: now,
            until,
        };
        self.leases.begin(id, lease, &mut self.timers);
        let deadline = now + self.settings.rollout_deadline_s;
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("waiting rollouts are held");
        let rollout = &mut group.members[member.index];
        rollout.state = State::Generating(id);
        rollout.last_lease = Some(id);
        rollout.lost_last = false;
        if rollout.deadline.is_none() {
            rollout.deadline = Some(deadline);
            self.timers.set(deadline, Timer::Rollout(member));
        }
        let resume = rollout.tokens.clone();
        let (rollout, prompt) = (group.rollout_id(member.index), group.prompt.clone());
        let group = group.id;
        if !group.is_evaluation() {
            self.tell(|| Event::Leased {
                rollout,
                lease: id,
                holder,
                resumed: resume.len() as u64,
            });
        }
        RolloutLease {
            lease: id,
            rollout,
            group,
            prompt,
            sampling,
            resume,
            pin,
        }
    }

    /// A lease ran out: a generator brought no token, or a scorer no verdict at all, for too long.
    pub(crate) fn expire_lease(&mut self, now: f64, id: LeaseId) {
        let Some(lease) = self.leases.get(id) else {
            return;
        };
        if lease.work == Work::Score {
            // A scorer works through its line: a verdict on another rollout is progress on this one.
            let since = lease
                .holder
                .and_then(|holder| self.leases.last_verdict(holder))
                .map_or(lease.since, |at| at.max(lease.since));
            let until = since + self.settings.scoring_lease_s(self.pool_of(lease.member));
            if until > now {
                return self.leases.renew(id, until, &mut self.timers);
            }
        }
        self.name_expired(now, lease);
        self.lose_lease(id);
    }

    fn name_expired(&mut self, now: f64, lease: Lease) {
        let (settings, rollout) = (
            &self.settings,
            &self.groups[&lease.member.group].members[lease.member.index],
        );
        let (name, deadline_s, is_last) = match lease.work {
            Work::Generate => {
                let is_last = rollout.attempts + 1 >= settings.max_attempts;
                ("lost_rollout", settings.lease_s, is_last)
            }
            _ => {
                let pool = self.pool_of(lease.member);
                let is_last = rollout.score_attempts + 1 > settings.score_retries(pool);
                ("hung_scorer", settings.scoring_lease_s(pool), is_last)
            }
        };
        let act = if is_last { "given up" } else { "requeued" };
        let after_s = deadline_s + now - lease.until;
        self.overdue(
            (name, act),
            lease.holder,
            lease.member,
            (deadline_s, after_s),
        );
    }

    /// The lease is lost through no wish of its holder: an attempt is counted.
    fn lose_lease(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.end(id, &mut self.timers) else {
            return;
        };
        let max_attempts = self.settings.max_attempts;
        let score_retries = self.settings.score_retries(self.pool_of(lease.member));
        let scoring = lease.work == Work::Score;
        let rollout = self.groups[&lease.member.group].rollout_id(lease.member.index);
        if lease.work != Work::Sent && !lease.member.group.is_evaluation() {
            self.tell(|| Event::Lost {
                rollout,
                lease: id,
                scoring,
            });
        }
        let rollout = self.rollout_mut(lease.member);
        match lease.work {
            Work::Generate => {
                rollout.attempts += 1;
                rollout.lost_last = true;
                let given_up = rollout.attempts >= max_attempts;
                self.counters.leases_lost += 1;
                self.wait_again(lease.member);
                if given_up {
                    self.end_rollout(lease.member, Ended::abstained("lost"));
                }
            }
            Work::Score => {
                rollout.score_attempts += 1;
                let given_up = rollout.score_attempts > score_retries;
                self.counters.score_leases_lost += 1;
                self.wait_again(lease.member);
                if given_up {
                    self.end_rollout(lease.member, Ended::abstained("scorer_lost"));
                }
            }
            Work::Sent => {}
        }
    }

    /// A rollout whose lease has ended goes back into the line it came from, at its old place.
    pub(crate) fn wait_again(&mut self, member: Member) {
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("leased rollouts are held");
        let rollout = &mut group.members[member.index];
        match rollout.state {
            State::Generating(_) => {
                rollout.state = State::Waiting;
                match group.purpose {
                    Purpose::Training { .. } => self.waiting.insert(member),
                    Purpose::Evaluation(_) => self.evaluations.waiting.insert(member),
                };
                self.news.rollouts = true;
            }
            State::Scoring(_, place) => {
                rollout.state = State::Unscored(place);
                self.unscored.insert((group.prompt.pool, place), member);
                self.news.scoring = true;
            }
            _ => unreachable!("only a rollout at work loses its lease"),
        }
    }

    /// A lease is handed back unfinished, on purpose: no attempt is counted. `false`: it was not the holder's.
    pub fn release(&mut self, holder: HolderId, lease: LeaseId) -> bool {
        let Some(held) = self.leases.get(lease) else {
            return false;
        };
        if held.holder != Some(holder) || held.work == Work::Sent {
            return false;
        }
        self.leases.end(lease, &mut self.timers);
        self.wait_again(held.member);
        true
    }

    /// The leases that `holder` has work to do for, in the order in which they were made.
    #[must_use]
    pub fn leases_of(&self, holder: HolderId) -> Vec<LeaseId> {
        self.leases.of(holder)
    }

    /// Who works under `lease`, if somebody does.
    #[must_use]
    pub fn holder_of(&self, lease: LeaseId) -> Option<HolderId> {
        let lease = self.leases.get(lease)?;
        lease.holder.filter(|_| lease.work != Work::Sent)
    }

    /// Everything `holder` has is handed back on purpose: a clean leave.
    pub fn release_all(&mut self, holder: HolderId) {
        for lease in self.leases.of(holder) {
            self.release(holder, lease);
        }
        self.leases.forget(holder);
    }

    /// `holder` is gone: its leases are lost. A rollout on its last attempt is nobody else's any more, so its
    /// lease runs on, and the holder may come back for it until the lease runs out.
    pub fn holder_lost(&mut self, holder: HolderId) {
        self.suspect_groups_of(holder);
        for id in self.leases.of(holder) {
            match self.leases.get(id) {
                Some(lease) if self.is_last_attempt(lease) => {
                    self.leases
                        .hand_over(id, None, lease.until, &mut self.timers);
                }
                _ => self.lose_lease(id),
            }
        }
        self.leases.forget(holder);
    }

    fn is_last_attempt(&self, lease: Lease) -> bool {
        let rollout = &self.groups[&lease.member.group].members[lease.member.index];
        lease.work == Work::Generate && rollout.attempts + 1 >= self.settings.max_attempts
    }

    /// A generator names a lease that it worked under before it connected again. It goes on unless
    /// somebody else has, or had, the rollout since.
    pub fn announce(&mut self, now: f64, holder: HolderId, announced: Announcement) -> ChunkAck {
        let id = announced.lease;
        let Some(lease) = self.leases.get(id) else {
            return self.lend_again(now, holder, announced);
        };
        let rollout = self.groups[&lease.member.group].rollout_id(lease.member.index);
        let others = lease.holder.is_some_and(|it| it != holder) || lease.work == Work::Score;
        if rollout != announced.rollout || others {
            return ChunkAck::Lost;
        }
        if lease.holder.is_none() {
            let until = now + self.settings.lease_s;
            self.leases
                .hand_over(id, Some(holder), until, &mut self.timers);
        }
        self.held(lease.member)
    }

    /// The lease was lost, but nobody has had its rollout since: it is made good, and costs no attempt.
    fn lend_again(&mut self, now: f64, holder: HolderId, announced: Announcement) -> ChunkAck {
        let size = self.settings.group_size as u64;
        let member = Member {
            group: GroupId(announced.rollout.0 / size),
            index: (announced.rollout.0 % size) as usize,
        };
        if !self.open.contains(member.group) && !self.late.contains(&member.group) {
            return ChunkAck::Lost;
        }
        let rollout = self.rollout_mut(member);
        if rollout.state != State::Waiting || rollout.last_lease != Some(announced.lease) {
            return ChunkAck::Lost;
        }
        rollout.state = State::Generating(announced.lease);
        if std::mem::take(&mut rollout.lost_last) {
            rollout.attempts -= 1;
        }
        self.waiting.remove(&member);
        let until = now + self.settings.lease_s;
        let lease = Lease {
            holder: Some(holder),
            member,
            work: Work::Generate,
            pin: None,
            since: now,
            until,
        };
        self.leases.begin(announced.lease, lease, &mut self.timers);
        self.held(member)
    }

    pub(crate) fn held(&self, member: Member) -> ChunkAck {
        ChunkAck::Held(
            self.groups[&member.group].members[member.index]
                .tokens
                .len(),
        )
    }
}
