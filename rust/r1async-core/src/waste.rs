//! Tokens that die of age: how many are at their last chance, and how many died.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::audit::DropReason;
use crate::group::{Group, Rollout};
use crate::ids::{GroupId, Member};
use crate::settings::Settings;
use crate::staleness::VersionRun;

/// What one step leaves of the sums of the steps before.
const DECAY: f64 = 0.97;

/// Died and generated tokens, decayed by 3 % a step, so that the budget is about the run as it goes now.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct WasteMeter {
    dead: f64,
    generated: f64,
}

impl WasteMeter {
    pub(crate) fn generated(&mut self, tokens: u64) {
        self.generated += tokens as f64;
    }

    pub(crate) fn died(&mut self, tokens: u64) {
        self.dead += tokens as f64;
    }

    /// A step is bound and leaves `dying` tokens behind. They decay with those generated for it, or a run that always
    /// spends its budget would be given 3 % less.
    pub(crate) fn bound(&mut self, dying: u64) {
        self.died(dying);
        self.dead *= DECAY;
        self.generated *= DECAY;
    }

    /// Whether `dying` more would be over `budget`, a share of what was generated.
    pub(crate) fn exceeds(&self, budget: f64, dying: u64) -> bool {
        self.dead + dying as f64 > budget * self.generated
    }

    /// Died tokens as a share of generated ones.
    pub(crate) fn share(&self) -> f64 {
        if self.generated > 0.0 {
            self.dead / self.generated
        } else {
            0.0
        }
    }
}

/// Tokens of one source that were not trained, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waste {
    /// Received; what follows is part of it.
    pub generated: u64,
    /// Too old when their own rollout ended: it outlasted the bound.
    pub own_length: u64,
    /// Too old when the last sibling had its verdict.
    pub siblings: u64,
    /// Too old when the group's turn came.
    pub queue: u64,
    /// Given up for another reason than age, or young and dropped with their group.
    pub dropped: u64,
}

impl Waste {
    /// Tokens that died of age.
    #[must_use]
    pub fn of_age(&self) -> u64 {
        self.own_length + self.siblings + self.queue
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.generated += other.generated;
        self.own_length += other.own_length;
        self.siblings += other.siblings;
        self.queue += other.queue;
        self.dropped += other.dropped;
    }

    /// The tokens of a rollout under the bound `e` that are too old for `step`; the young ones are its answer.
    /// Its group closed when step `closed_at` was bound next.
    pub(crate) fn aged(&mut self, runs: &[VersionRun], e: u64, closed_at: u64, step: u64) -> u64 {
        let finished = runs.last().map_or(0, |run| run.version.number);
        let mut young = 0;
        for run in runs {
            let (last_use, count) = (run.version.number + e, u64::from(run.count));
            *if last_use < finished {
                &mut self.own_length
            } else if last_use < closed_at {
                &mut self.siblings
            } else if last_use < step {
                &mut self.queue
            } else {
                &mut young
            } += count;
        }
        young
    }
}

/// Waste by source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WasteBySource(Vec<Waste>);

impl WasteBySource {
    pub(crate) fn of(&mut self, source: usize) -> &mut Waste {
        if self.0.len() <= source {
            self.0.resize(source + 1, Waste::default());
        }
        &mut self.0[source]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (source, waste) in other.0.iter().enumerate() {
            self.of(source).add(waste);
        }
    }

    /// A group that is in no batch is dropped while `step` is bound next.
    pub(crate) fn drop_group(
        &mut self,
        group: &Group,
        reason: DropReason,
        step: u64,
        settings: &Settings,
    ) {
        if group.id.is_evaluation() {
            return;
        }
        let e = settings.bound_of(group.source);
        let waste = self.of(group.source);
        for rollout in &group.members {
            let given_up = match &group.closed {
                Some(closed) if reason == DropReason::Stale && rollout.may_train() => {
                    waste.aged(rollout.runs.as_slice(), e, closed.at, step)
                }
                _ => rollout.tokens.len() as u64,
            };
            waste.dropped += given_up;
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Tally {
    tokens: u64,
    unfinished: BTreeSet<Member>,
    /// Tokens of scored rollouts, by group.
    scored: FxHashMap<GroupId, u64>,
}

impl Tally {
    fn forget_scored(&mut self, group: GroupId, tokens: u64) {
        if let Entry::Occupied(mut scored) = self.scored.entry(group) {
            *scored.get_mut() -= tokens;
            if *scored.get() == 0 {
                scored.remove();
            }
        }
    }
}

/// Tokens by version, of rollouts that are in no batch and may still train; which of those rollouts are
/// unfinished, and how many tokens the scored ones have. So a step that is held, which looks again after
/// every message, need not look at all that is held.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TokenAges(BTreeMap<u64, Tally>);

impl TokenAges {
    /// New tokens of an unfinished rollout.
    pub(crate) fn add(&mut self, member: Member, run: VersionRun) {
        let tally = self.0.entry(run.version.number).or_default();
        tally.tokens += u64::from(run.count);
        tally.unfinished.insert(member);
    }

    /// A rollout is scored: its tokens stay, but no step is held for them.
    pub(crate) fn score(&mut self, member: Member, runs: &[VersionRun]) {
        for run in runs {
            self.change(run.version.number, |tally| {
                tally.unfinished.remove(&member);
                *tally.scored.entry(member.group).or_default() += u64::from(run.count);
            });
        }
    }

    /// A rollout's tokens are in a batch, or dropped.
    pub(crate) fn remove(&mut self, member: Member, rollout: &Rollout) {
        let is_scored = rollout.score().is_some();
        for run in rollout.runs.as_slice() {
            let count = u64::from(run.count);
            self.change(run.version.number, |tally| {
                tally.tokens -= count;
                if is_scored {
                    tally.forget_scored(member.group, count);
                } else {
                    tally.unfinished.remove(&member);
                }
            });
        }
    }

    fn change(&mut self, version: u64, change: impl FnOnce(&mut Tally)) {
        if let Some(tally) = self.0.get_mut(&version) {
            change(tally);
            if tally.tokens == 0 && tally.unfinished.is_empty() {
                self.0.remove(&version);
            }
        }
    }

    /// Tokens of `version` that scored rollouts of `groups` have.
    pub(crate) fn scored<'a>(
        &self,
        version: u64,
        groups: impl IntoIterator<Item = &'a GroupId>,
    ) -> u64 {
        let scored = self.0.get(&version).map(|tally| &tally.scored);
        scored.map_or(0, |scored| {
            let tokens = groups.into_iter().filter_map(|group| scored.get(group));
            tokens.sum()
        })
    }

    /// Tokens of `version`.
    pub(crate) fn tokens(&self, version: u64) -> u64 {
        self.0.get(&version).map_or(0, |tally| tally.tokens)
    }

    /// Unfinished rollouts with tokens of `version`, in order.
    pub(crate) fn unfinished(&self, version: u64) -> Option<&BTreeSet<Member>> {
        self.0
            .get(&version)
            .map(|tally| &tally.unfinished)
            .filter(|members| !members.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::group::{Ended, Prompt, Purpose, Score};
    use crate::ids::PolicyVersion;

    fn run(version: u64, count: u32) -> VersionRun {
        VersionRun::new(PolicyVersion::new(0, version), count)
    }

    #[test]
    fn the_budget_is_a_share_of_decayed_sums() {
        let mut meter = WasteMeter::default();
        meter.generated(1000);
        meter.died(30);
        assert!(!meter.exceeds(0.05, 20));
        assert!(meter.exceeds(0.05, 21));
        meter.bound(0); // 29.1 of 970
        assert!((meter.share() - 0.03).abs() < 1e-12);
        assert!(!meter.exceeds(0.05, 19)); // 48.1 <= 48.5
        assert!(meter.exceeds(0.05, 20));
    }

    #[test]
    fn a_run_that_always_spends_its_budget_loses_exactly_that_share() {
        let (mut meter, mut dead) = (WasteMeter::default(), 0);
        for _ in 0..1000 {
            meter.generated(1_000_000);
            let mut dying = (0..200).rev().map(|thousands| 1000 * thousands);
            let most = dying.find(|&dying| !meter.exceeds(0.05, dying));
            meter.bound(most.unwrap());
            dead += most.unwrap();
        }
        let share = dead as f64 / 1000e6;
        assert!((share - 0.05).abs() < 0.002, "{share}");
        assert!((meter.share() - 0.05).abs() < 0.0001);
    }

    #[test]
    fn a_token_dies_of_its_own_length_of_its_siblings_or_in_the_queue() {
        // Bound 2, last token of version 5, last verdict before step 6 was bound, trained by step 7.
        let mut waste = Waste::default();
        let runs = [run(1, 10), run(2, 20), run(3, 40), run(4, 80), run(5, 160)];
        assert_eq!(waste.aged(&runs, 2, 6, 7), 160);
        let got = (waste.own_length, waste.siblings, waste.queue);
        assert_eq!(got, (10 + 20, 40, 80)); // 2 + 2 < 5; 3 + 2 < 6; 4 + 2 < 7.
        assert_eq!(waste.of_age(), 150);
    }

    #[test]
    fn ages_know_the_tokens_of_each_version_and_whose_they_are() {
        let mut group = Group::new(
            GroupId(0),
            0,
            2,
            Arc::new(Prompt {
                ordinal: 0,
                tokens: Vec::new(),
                meta: Vec::new(),
                pool: 0,
            }),
            Purpose::Training { retries: 0 },
        );
        let (a, b) = (group.member(0), group.member(1));
        let mut ages = TokenAges::default();
        for (member, run) in [(a, run(3, 5)), (a, run(4, 1)), (b, run(3, 2))] {
            group.members[member.index].runs.push(run);
            ages.add(member, run);
        }
        assert_eq!((ages.tokens(3), ages.tokens(4), ages.tokens(5)), (7, 1, 0));
        ages.score(a, group.members[0].runs.as_slice());
        let score = Score {
            total: 1.0,
            parts: Vec::new(),
            status: String::new(),
        };
        group.end_member(0, Ended::Scored(score));
        assert_eq!(ages.unfinished(3).map(BTreeSet::len), Some(1));
        assert_eq!(ages.unfinished(4), None);
        let scored = |ages: &TokenAges, version| ages.scored(version, &[GroupId(0), GroupId(1)]);
        assert_eq!((scored(&ages, 3), scored(&ages, 4)), (5, 1));
        ages.remove(b, &group.members[1]);
        assert_eq!((ages.tokens(3), ages.unfinished(3)), (5, None));
        ages.remove(a, &group.members[0]);
        assert!(ages.0.is_empty());
    }
}
