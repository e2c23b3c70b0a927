//! Closing early: a group at its last chance trains with the members that are scored. The others go on
//! as late members, each trained in the next batch after its verdict.

use crate::audit::DropReason;
use crate::batch::{BoundGroup, StepBatch};
use crate::group::{Ended, Group, State};
use crate::ids::{GroupId, Member, Step};
use crate::ledger::Ledger;
use crate::settings::OverAge;
use crate::trace::Event;

impl Ledger {
    /// Looks again whether an open group could close early, and how old it is.
    pub(crate) fn ripen(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else {
            return;
        };
        let masks = self.settings.close_early && self.settings.over_age == OverAge::Mask;
        let closes = masks && self.settings.bound_of(group.source) > 0;
        if !closes || id.is_evaluation() || group.closed_early.is_some() || group.has_ended() {
            return;
        }
        let ripe = group.ripeness(&self.settings);
        if ripe != group.ripe {
            self.unripen(id);
            if let Some(key) = ripe {
                self.ripe.insert(id, key);
            }
            self.group_mut(id).ripe = ripe;
        }
    }

    /// The group is open no more, or its place has changed.
    pub(crate) fn unripen(&mut self, id: GroupId) {
        if let Some(key) = self.group_mut(id).ripe.take() {
            self.ripe.remove(id, key);
        }
    }

    /// Open groups at their last chance in `step` that have a scored token young enough: (e_s, group), in order.
    pub(crate) fn closable(&self, step: Step) -> impl Iterator<Item = (u64, GroupId)> + '_ {
        let useful = move |id: &GroupId| {
            let ripe = self.groups[id].ripe;
            ripe.is_some_and(|key| key.last_use() >= step.0)
        };
        self.ripe.due().filter(move |(_, id)| useful(id))
    }

    /// Closes an open group early: its scored members train in `batch`, those never leased are given up.
    pub(crate) fn close_early(&mut self, id: GroupId, batch: &mut StepBatch) {
        self.unripen(id);
        let members = self.groups[&id].members.iter().enumerate();
        let never_leased: Vec<usize> = members
            .filter(|(_, rollout)| rollout.state == State::Waiting && rollout.last_lease.is_none())
            .map(|(index, _)| index)
            .collect();
        for index in never_leased {
            self.set_aside(Member { group: id, index });
            let cancelled = Ended::Abstained("cancelled".to_owned(), DropReason::Cancelled);
            self.group_mut(id).end_member(index, cancelled);
        }
        let mut group = self.groups.remove(&id).expect("groups that close are held");
        self.open.remove(group.source, id);
        self.take_scored(&mut group, batch);
        group.closed_early = Some(batch.bound.step.0);
        self.counters.closed_early += 1;
        let is_done = group.has_ended();
        self.groups.insert(id, group);
        self.late.insert(id);
        if is_done {
            self.let_go(id);
        }
    }

    fn take_scored(&mut self, group: &mut Group, batch: &mut StepBatch) {
        let at = batch.bound.step.0;
        let closed = group
            .summarise(&self.settings, at)
            .expect("a ripe group has enough scored members");
        let mut taken = Vec::with_capacity(group.members.len());
        for index in 0..group.members.len() {
            let (member, counts_age) = (group.member(index), group.counts_age());
            let rollout = &mut group.members[index];
            if !rollout.has_ended() {
                continue;
            }
            if counts_age && rollout.may_train() {
                self.ages.remove(member, rollout);
            }
            if let Some(lease) = rollout.last_lease {
                self.leases.end(lease, &mut self.timers);
            }
            let advantage = closed.advantages[index];
            taken.push((
                group.rollout_id(index),
                group.members[index].take_tokens(),
                advantage,
            ));
        }
        batch.take(group, &closed, taken, &self.settings);
    }

    /// A late member has its outcome: with a score it waits for the next batch, without one it is dropped.
    pub(crate) fn end_late(&mut self, member: Member) {
        let rollout = self.rollout_mut(member);
        match &rollout.state {
            State::Ended(Ended::Scored(_)) => {
                self.late_scored.insert(member);
            }
            State::Ended(Ended::Abstained(_, reason)) => {
                let reason = *reason;
                let tokens = rollout.restart();
                self.drop_late(member, reason, tokens);
            }
            _ => unreachable!("a member has its outcome"),
        }
    }

    /// With the batch of its group while that is not trained, so that the group's account is in one place.
    fn drop_late(&mut self, member: Member, reason: DropReason, tokens: u64) {
        let group = &self.groups[&member.group];
        self.counters.waste.of(group.source).dropped += tokens;
        let step = group
            .closed_early
            .expect("late members are of groups closed early");
        let place = step.checked_sub(self.learner.committed);
        let rollout = group.rollout_id(member.index);
        let step = match place.and_then(|place| self.batches.get_mut(place as usize)) {
            Some(batch) => {
                batch.drop_tokens(reason, 1, tokens);
                Some(Step(step))
            }
            None => {
                self.books.rollouts.drop(reason, 1);
                self.books.tokens.drop(reason, tokens);
                None
            }
        };
        self.tell(|| Event::LeftOut {
            rollout,
            step,
            reason,
            tokens,
        });
        self.let_go_if_done(member.group);
    }

    /// The scored late members train with `batch`, with statistics over all members scored by now.
    pub(crate) fn take_late(&mut self, batch: &mut StepBatch) {
        let at = batch.bound.step;
        while let Some(member) = self.late_scored.pop_first() {
            let group = self
                .groups
                .get_mut(&member.group)
                .expect("late members are held");
            let closed = group
                .summarise(&self.settings, at.0)
                .expect("a group that closed early has enough scored members");
            let (source, counts_age) = (group.source, group.counts_age());
            let rollout = group.members[member.index].take_tokens();
            if counts_age {
                self.ages.remove(member, &rollout);
            }
            let mut late = BoundGroup {
                group: member.group,
                source,
                prompt: group.prompt.clone(),
                statistics: closed.statistics,
                rollouts: Vec::new(),
            };
            let taken = (
                group.rollout_id(member.index),
                rollout,
                closed.advantages[member.index],
            );
            if let Some(bound) = batch.take_member(taken, source, at.0, &self.settings) {
                batch.figures.late_members += 1;
                late.rollouts.push(bound);
                batch.bound.late.push(late);
            }
            self.let_go_if_done(member.group);
        }
    }

    /// Late members of `id` that are not done yet all end the same way.
    pub(crate) fn end_late_members(&mut self, id: GroupId, ended: &Ended) {
        let members = self.groups[&id].members.iter().enumerate();
        let unfinished: Vec<usize> = members
            .filter(|(_, rollout)| !rollout.has_ended())
            .map(|(index, _)| index)
            .collect();
        for index in unfinished {
            self.end_rollout(Member { group: id, index }, ended.clone());
        }
    }

    fn let_go_if_done(&mut self, id: GroupId) {
        if self.late_members(&self.groups[&id]) == 0 {
            self.let_go(id);
        }
    }

    fn let_go(&mut self, id: GroupId) {
        self.retire(id);
        self.late.remove(&id);
        self.groups.remove(&id);
    }

    /// Members of a group closed early that are neither in a batch nor dropped.
    pub(crate) fn late_members(&self, group: &Group) -> usize {
        let all = group.member(0)..=group.member(usize::MAX);
        group.unfinished() + self.late_scored.range(all).count()
    }

    /// Late members that are not scored yet.
    pub(crate) fn late_unfinished(&self) -> usize {
        let groups = self.late.iter().map(|id| &self.groups[id]);
        groups.map(Group::unfinished).sum()
    }

    /// The last step of the run is bound: nothing that is held will train.
    pub(crate) fn give_up_the_rest(&mut self) {
        for id in self.late.clone() {
            let cancelled = Ended::Abstained("cancelled".to_owned(), DropReason::Cancelled);
            self.end_late_members(id, &cancelled);
        }
        let ready: Vec<GroupId> = self.ready_by_source.iter().collect();
        let rest: Vec<GroupId> = ready
            .into_iter()
            .chain(self.open.iter())
            .chain(self.queued.iter())
            .collect();
        for id in rest {
            self.drop_group(id, DropReason::Cancelled);
        }
    }
}
