//! Prompts that fail wherever they are tried, and prompts after which nothing trainable comes.
//!
//! A group that brings down its generators is found like this: the groups that a dying generator had go to
//! others, and those that lost one generator after the other are lent alone, on the last try, to a
//! generator that works on nothing else. Who falls then has fallen by its own group.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::audit::DropReason;
use crate::group::{Ended, Group, Prompt, Purpose, State};
use crate::ids::{GroupId, HolderId, Member, PolicyVersion};
use crate::incident::{Incident, NAMED};
use crate::ledger::Ledger;

/// Prompts whose failures are counted at a time; past that a new one is not.
const MAX_FAILING: usize = 4096;

/// A row of the source, which comes again in every epoch.
type Row = (Vec<i32>, Vec<u8>);

/// A prompt that is set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its place in the order of the source when it failed last.
    pub ordinal: u64,
    /// Its group then.
    pub group: u64,
    /// How it failed: `generators` it brought down, or `abstained`.
    pub why: String,
}

/// What is set aside, and what may be soon.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Quarantine {
    pub(crate) prompts: Vec<Quarantined>,
    rows: BTreeSet<Row>,
    /// Groups of a row in which every member abstained.
    failing: BTreeMap<Row, u32>,
}

fn row(prompt: &Prompt) -> Row {
    (prompt.tokens.clone(), prompt.meta.clone())
}

impl Quarantine {
    pub(crate) fn holds(&self, tokens: &[i32], meta: &[u8]) -> bool {
        !self.rows.is_empty() && self.rows.contains(&(tokens.to_vec(), meta.to_vec()))
    }

    /// All members of a group of this prompt abstained; answers whether that is once too often.
    fn failed(&mut self, prompt: &Prompt, allowed: u32) -> bool {
        let row = row(prompt);
        if self.failing.len() >= MAX_FAILING && !self.failing.contains_key(&row) {
            return false;
        }
        let failures = self.failing.entry(row).or_default();
        *failures += 1;
        *failures >= allowed
    }

    fn set_aside(&mut self, group: &Group, why: &str) {
        let row = row(&group.prompt);
        self.failing.remove(&row);
        self.rows.insert(row);
        self.prompts.push(Quarantined {
            ordinal: group.prompt.ordinal,
            group: group.id.0,
            why: why.to_owned(),
        });
    }
}

/// Groups that ended one after the other without one that trains.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Filtered {
    /// How many.
    pub count: u64,
    /// The newest of them, at most 16.
    pub groups: Vec<GroupId>,
    /// Why, with how many.
    pub reasons: BTreeMap<DropReason, u64>,
}

impl Filtered {
    fn add(&mut self, group: GroupId, reason: DropReason) {
        self.count += 1;
        if self.groups.len() == NAMED {
            self.groups.remove(0);
        }
        self.groups.push(group);
        *self.reasons.entry(reason).or_default() += 1;
    }
}

impl Ledger {
    /// Prompts set aside so far.
    #[must_use]
    pub fn quarantined(&self) -> &[Quarantined] {
        &self.quarantine.prompts
    }

    /// Groups that filters took since the last one that trains.
    #[must_use]
    pub fn filtered(&self) -> &Filtered {
        &self.filtered
    }

    /// A group is of use for training.
    pub(crate) fn passed(&mut self) {
        if self.filtered.count > 0 {
            self.filtered = Filtered::default();
        }
    }

    /// A group ended without being of use.
    pub(crate) fn took(&mut self, group: GroupId, reason: DropReason) {
        use DropReason::{Deadline, Quarantined, TooFewScored, ZeroVariance};
        if matches!(reason, Deadline | Quarantined | TooFewScored | ZeroVariance) {
            self.filtered.add(group, reason);
        }
    }

    /// Too few members of a group are scored: dropped for `shortage`, or set aside if its prompt fails everywhere.
    pub(crate) fn fail_group(&mut self, id: GroupId, shortage: DropReason) {
        let group = &self.groups[&id];
        let why = group.failure(self.settings.max_attempts);
        let brought_down = why == Some("generators");
        let prompt = group.prompt.clone();
        let allowed = self.settings.quarantine_after;
        let quarantined = brought_down
            || (why.is_some() && shortage == DropReason::TooFewScored)
                && self.quarantine.failed(&prompt, allowed);
        let (Some(why), true) = (why, quarantined) else {
            return self.drop_group(id, shortage);
        };
        let group = &self.groups[&id];
        self.quarantine.set_aside(group, why);
        let mut incident = Incident {
            prompts: vec![prompt.ordinal],
            text: format!("prompt {}: {why}", prompt.ordinal),
            ..Incident::new("poison_prompt", "quarantined")
        };
        for index in 0..group.members.len() {
            incident.hit(group.rollout_id(index), id);
        }
        self.incidents.push(incident);
        self.drop_group(id, DropReason::Quarantined);
    }

    /// A generator is gone: each of its training groups may have brought it down.
    pub(crate) fn suspect_groups_of(&mut self, holder: HolderId) {
        let last_try = self.settings.max_attempts.saturating_sub(1);
        for id in self.leases.generating_groups(holder) {
            if id.is_evaluation() {
                continue;
            }
            let group = self.group_mut(id);
            group.died += 1;
            if group.died >= last_try {
                self.suspects.insert(id);
            }
        }
    }

    /// The next rollout for `holder` in line: a suspect group is alone with its generator.
    pub(crate) fn next_waiting(
        &self,
        holder: HolderId,
        installed: PolicyVersion,
    ) -> Option<Member> {
        let young = |member: &&Member| self.is_young(self.groups[&member.group].source, installed);
        if self.suspects.is_empty() {
            return self.waiting.iter().find(young).copied();
        }
        let busy = self.leases.generating_groups(holder);
        let fits = |member: &&Member| match self.suspects.contains(&member.group) {
            true => busy.iter().all(|group| *group == member.group),
            false => busy.is_disjoint(&self.suspects),
        };
        self.waiting.iter().filter(young).find(fits).copied()
    }

    /// Whether `holder` takes no new group: it works on a suspect, or has to run empty for one that waits.
    pub(crate) fn keeps_free(&self, holder: HolderId) -> bool {
        if self.suspects.is_empty() {
            return false;
        }
        let waits = |id: &GroupId| {
            let first = Member {
                group: *id,
                index: 0,
            };
            let next = self.waiting.range(first..).next();
            next.is_some_and(|member| member.group == *id)
        };
        let busy = self.leases.generating_groups(holder);
        !busy.is_disjoint(&self.suspects) || self.suspects.iter().any(waits)
    }
}

impl Group {
    /// How the group failed if no member of it has a score: nobody could finish it, or all graders abstained.
    fn failure(&self, max_attempts: u32) -> Option<&'static str> {
        if matches!(self.purpose, Purpose::Evaluation(_)) {
            return None;
        }
        let statuses: Vec<&str> = self
            .members
            .iter()
            .filter_map(|rollout| match &rollout.state {
                State::Ended(Ended::Abstained(status, DropReason::Abstained)) => {
                    Some(status.as_str())
                }
                _ => None,
            })
            .collect();
        if statuses.len() < self.members.len() {
            return None;
        }
        let lost = statuses.iter().all(|status| *status == "lost");
        match lost && self.died >= max_attempts {
            true => Some("generators"),
            false => Some("abstained"),
        }
    }
}
