//! Tokens that die of age: how many are at their last chance, and how many died.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::Member;
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

    pub(crate) fn next_step(&mut self) {
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

#[derive(Debug, Default, Serialize, Deserialize)]
struct Tally {
    tokens: u64,
    unfinished: BTreeSet<Member>,
}

/// Tokens by version, of rollouts that are in no batch and may still train; and which of those
/// rollouts are unfinished. So a step need not look at all that is held.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TokenAges(BTreeMap<u64, Tally>);

impl TokenAges {
    /// New tokens of an unfinished rollout.
    pub(crate) fn add(&mut self, member: Member, run: VersionRun) {
        let tally = self.0.entry(run.version.number).or_default();
        tally.tokens += u64::from(run.count);
        tally.unfinished.insert(member);
    }

    /// A rollout is finished and scored: its tokens stay, but no step is held for them.
    pub(crate) fn finish(&mut self, member: Member, runs: &[VersionRun]) {
        for run in runs {
            self.change(run.version.number, |tally| {
                tally.unfinished.remove(&member);
            });
        }
    }

    /// A rollout's tokens are in a batch, or dropped.
    pub(crate) fn remove(&mut self, member: Member, runs: &[VersionRun]) {
        for run in runs {
            self.change(run.version.number, |tally| {
                tally.tokens -= u64::from(run.count);
                tally.unfinished.remove(&member);
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
    use super::*;
    use crate::ids::{GroupId, PolicyVersion};

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
        meter.next_step(); // 29.1 of 970
        assert!((meter.share() - 0.03).abs() < 1e-12);
        assert!(!meter.exceeds(0.05, 19)); // 48.1 <= 48.5
        assert!(meter.exceeds(0.05, 20));
    }

    #[test]
    fn ages_know_tokens_and_unfinished_rollouts_of_each_version() {
        let (a, b) = (
            Member {
                group: GroupId(0),
                index: 0,
            },
            Member {
                group: GroupId(0),
                index: 1,
            },
        );
        let mut ages = TokenAges::default();
        ages.add(a, run(3, 5));
        ages.add(a, run(4, 1));
        ages.add(b, run(3, 2));
        assert_eq!((ages.tokens(3), ages.tokens(4), ages.tokens(5)), (7, 1, 0));
        ages.finish(a, &[run(3, 5), run(4, 1)]);
        assert_eq!(ages.unfinished(3).map(BTreeSet::len), Some(1));
        assert_eq!(ages.unfinished(4), None);
        ages.remove(b, &[run(3, 2)]);
        assert_eq!((ages.tokens(3), ages.unfinished(3)), (5, None));
        ages.remove(a, &[run(3, 5), run(4, 1)]);
        assert!(ages.0.is_empty());
    }
}
