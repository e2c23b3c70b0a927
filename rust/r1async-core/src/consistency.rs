//! Whether the sets, leases and timers say the same as the states of groups and rollouts.
//!
//! The ledger keeps the same fact in two places wherever it must find things fast. This file walks all that is held
//! and compares: too slow for a run, and what a test, a fuzzer and a recovery want to know.

use crate::group::{Group, Purpose, State};
use crate::ids::{LeaseId, Member};
use crate::leases::Work;
use crate::ledger::Ledger;
use crate::timers::Timer;

/// How many of each kind the states speak of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    waiting: usize,
    evaluation_waiting: usize,
    unscored: usize,
    generating: usize,
    scoring: usize,
    training_groups: usize,
    evaluation_groups: usize,
    timers: usize,
}

impl Ledger {
    /// The first contradiction between the ledger's sets and its states, in words; `None` if there is none.
    #[must_use]
    pub fn contradiction(&self) -> Option<String> {
        let mut tally = Tally::default();
        for group in self.groups.values() {
            if let Err(what) = self.check_group(group, &mut tally) {
                return Some(format!("group {}: {what}", group.id));
            }
        }
        tally.timers += tally.generating + tally.scoring;
        let sets = Tally {
            waiting: self.waiting.len(),
            evaluation_waiting: self.evaluations.waiting.len(),
            unscored: self.unscored.len(),
            generating: self.leases.generating(),
            scoring: self.leases.scoring(),
            training_groups: self.queued.len()
                + self.open.len()
                + self.ready.len()
                + self.late.len(),
            evaluation_groups: self.evaluations.open_groups(),
            timers: self.timers.set_for_others_than(Timer::Hold),
        };
        (tally != sets).then(|| format!("states have {tally:?}, sets have {sets:?}"))
    }

    fn check_group(&self, group: &Group, tally: &mut Tally) -> Result<(), String> {
        let (queued, open) = (self.queued.contains(group.id), self.open.contains(group.id));
        let closed = group.closed.as_ref();
        let ready = closed.is_some_and(|closed| self.ready.contains(group.id, closed.key));
        match &group.purpose {
            Purpose::Training { .. } => {
                tally.training_groups += 1;
                let late = self.late.contains(&group.id);
                let sets = [queued, open, ready, late].map(usize::from);
                if sets.iter().sum::<usize>() != 1
                    || closed.is_some() != ready
                    || group.closed_early.is_some() != late
                {
                    return Err(format!(
                        "queued {queued}, open {open}, ready {ready}, late {late}"
                    ));
                }
            }
            Purpose::Evaluation(name) => {
                tally.evaluation_groups += 1;
                if queued || open || ready || !self.evaluations.contains(name, group.id) {
                    return Err(format!("not open in evaluation {name}"));
                }
            }
        }
        if let Some(at) = group.deadline {
            tally.timers += 1;
            self.check_timer(at, Timer::Group(group.id))?;
        }
        for index in 0..group.members.len() {
            self.check_member(group, index, queued, tally)
                .map_err(|what| format!("member {index}: {what}"))?;
        }
        Ok(())
    }

    fn check_member(
        &self,
        group: &Group,
        index: usize,
        queued: bool,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let (member, rollout) = (group.member(index), &group.members[index]);
        let tokens = rollout.tokens.len();
        let covered: usize = rollout
            .runs
            .as_slice()
            .iter()
            .map(|it| it.count as usize)
            .sum();
        if rollout.logprobs.len() != tokens || covered != tokens {
            return Err(format!("{tokens} tokens, runs of {covered}"));
        }
        if let Some(at) = rollout.deadline {
            tally.timers += 1;
            self.check_timer(at, Timer::Rollout(member))?;
        }
        let training = matches!(group.purpose, Purpose::Training { .. });
        match &rollout.state {
            State::Waiting if queued => Ok(()),
            State::Waiting if training => {
                tally.waiting += 1;
                found(self.waiting.contains(&member), "waits in no line")
            }
            State::Waiting => {
                tally.evaluation_waiting += 1;
                found(
                    self.evaluations.waiting.contains(&member),
                    "waits in no line",
                )
            }
            State::Generating(lease) => {
                tally.generating += 1;
                self.check_lease(*lease, member, Work::Generate)
            }
            State::Unscored(place) => {
                tally.unscored += 1;
                found(
                    self.unscored.get(&(group.prompt.pool, *place)) == Some(&member),
                    "is not at its place for a scorer",
                )
            }
            State::Scoring(lease, _) => {
                tally.scoring += 1;
                self.check_lease(*lease, member, Work::Score)
            }
            State::Ended(_) => Ok(()),
        }
    }

    fn check_lease(&self, id: LeaseId, member: Member, work: Work) -> Result<(), String> {
        let lease = self.leases.get(id).ok_or("its lease is not known")?;
        found(
            lease.member == member && lease.work == work,
            "its lease is for something else",
        )?;
        self.check_timer(lease.until, Timer::Lease(id))
    }

    fn check_timer(&self, at: f64, timer: Timer) -> Result<(), String> {
        found(self.timers.contains(at, timer), "a timer is not set")
    }
}

fn found(is_so: bool, otherwise: &str) -> Result<(), String> {
    if is_so {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}
