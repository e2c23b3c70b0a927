//! How old tokens are at the moment of training: version runs, staleness, its distribution.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{PolicyVersion, Step};

/// Optimizer steps between the policy that sampled a token and the step that trains it; 0 is on-policy.
///
/// A rollout's staleness is that of its lowest version: updates in flight may have moved the engine on.
/// `None` if `sampled` is newer than `step`: no step trains a version it has not reached.
///
/// ```
/// use r1async_core::{PolicyVersion, Step, staleness};
/// assert_eq!(staleness(PolicyVersion::new(0, 3), Step(5)), Some(2));
/// assert_eq!(staleness(PolicyVersion::new(0, 6), Step(5)), None);
/// ```
#[must_use]
pub fn staleness(sampled: PolicyVersion, step: Step) -> Option<u64> {
    step.0.checked_sub(sampled.number)
}

/// `count` consecutive tokens sampled by one policy version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRun {
    /// The policy that sampled them.
    pub version: PolicyVersion,
    /// How many; at least 1.
    pub count: u32,
}

impl VersionRun {
    /// `count` tokens of `version`.
    #[must_use]
    pub fn new(version: PolicyVersion, count: u32) -> Self {
        Self { version, count }
    }
}

/// The versions of a completion's tokens, run-length-encoded: neighbours always differ.
///
/// ```
/// use r1async_core::{PolicyVersion, VersionRun, VersionRuns};
/// let mut runs = VersionRuns::default();
/// runs.push(VersionRun::new(PolicyVersion::new(0, 3), 5));
/// runs.push(VersionRun::new(PolicyVersion::new(0, 3), 2));
/// runs.push(VersionRun::new(PolicyVersion::new(0, 4), 1));
/// assert_eq!(runs.as_slice().len(), 2);
/// assert_eq!((runs.lowest(), runs.newest()), (Some(3), Some(4)));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRuns(Vec<VersionRun>);

impl VersionRuns {
    /// Appends a run, merged with the last one if that has the same version. Empty runs vanish.
    pub fn push(&mut self, run: VersionRun) {
        if run.count == 0 {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.version == run.version => last.count += run.count,
            _ => self.0.push(run),
        }
    }

    /// The runs in the order of their tokens.
    #[must_use]
    pub fn as_slice(&self) -> &[VersionRun] {
        &self.0
    }

    /// Number of the oldest version among them.
    #[must_use]
    pub fn lowest(&self) -> Option<u64> {
        self.0.iter().map(|run| run.version.number).min()
    }

    /// Number of the newest version among them.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.0.iter().map(|run| run.version.number).max()
    }

    /// The version of the last token.
    #[must_use]
    pub fn last(&self) -> Option<PolicyVersion> {
        self.0.last().map(|run| run.version)
    }

    /// The runs themselves.
    pub(crate) fn into_vec(self) -> Vec<VersionRun> {
        self.0
    }

    /// Forgets all runs.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Tokens by staleness: what was trained, and how old it was.
///
/// ```
/// use r1async_core::StalenessHistogram;
/// let mut ages = StalenessHistogram::default();
/// ages.add(0, 90);
/// ages.add(2, 10);
/// assert_eq!((ages.mean(), ages.p95(), ages.max()), (0.2, 2, 2));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StalenessHistogram(BTreeMap<u64, u64>);

impl StalenessHistogram {
    /// Counts `tokens` tokens of one staleness.
    pub fn add(&mut self, staleness: u64, tokens: u64) {
        if tokens > 0 {
            *self.0.entry(staleness).or_default() += tokens;
        }
    }

    /// (staleness, tokens), rising; staleness without tokens is left out.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0
            .iter()
            .map(|(&staleness, &tokens)| (staleness, tokens))
    }

    /// All tokens counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Mean staleness of a token; 0 of none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let sum: f64 = self
            .0
            .iter()
            .map(|(&staleness, &tokens)| staleness as f64 * tokens as f64)
            .sum();
        if self.0.is_empty() {
            0.0
        } else {
            sum / self.total() as f64
        }
    }

    /// The smallest staleness that at least 95 % of the tokens do not exceed; 0 of none.
    #[must_use]
    pub fn p95(&self) -> u64 {
        let total = self.total();
        let mut below = 0;
        for (&staleness, &tokens) in &self.0 {
            below += tokens;
            if u128::from(below) * 100 >= u128::from(total) * 95 {
                return staleness;
            }
        }
        0
    }

    /// The highest staleness; 0 of none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.0
            .last_key_value()
            .map_or(0, |(&staleness, _)| staleness)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(epoch: u64, number: u64, count: u32) -> VersionRun {
        VersionRun::new(PolicyVersion::new(epoch, number), count)
    }

    #[test]
    fn runs_merge_with_their_neighbour_only() {
        let mut runs = VersionRuns::default();
        for next in [
            run(0, 3, 2),
            run(0, 3, 1),
            run(0, 4, 0),
            run(0, 4, 5),
            run(0, 3, 1),
            run(1, 3, 1),
        ] {
            runs.push(next);
        }
        assert_eq!(
            runs.as_slice(),
            [run(0, 3, 3), run(0, 4, 5), run(0, 3, 1), run(1, 3, 1)]
        );
        assert_eq!((runs.lowest(), runs.newest()), (Some(3), Some(4)));
    }

    #[test]
    fn no_tokens_have_no_age() {
        let ages = StalenessHistogram::default();
        assert_eq!(
            (ages.total(), ages.mean(), ages.p95(), ages.max()),
            (0, 0.0, 0, 0)
        );
        assert_eq!(VersionRuns::default().lowest(), None);
    }

    #[test]
    fn p95_is_the_age_that_95_of_100_do_not_exceed() {
        let mut ages = StalenessHistogram::default();
        ages.add(0, 94);
        ages.add(3, 5);
        ages.add(8, 1);
        assert_eq!((ages.p95(), ages.max(), ages.mean()), (3, 8, 0.23));
        ages.add(0, 100);
        assert_eq!(ages.p95(), 0);
    }

    proptest! {
        #[test]
        fn runs_say_what_the_tokens_were(versions in prop::collection::vec(0u64..4, 0..60)) {
            let mut runs = VersionRuns::default();
            for &number in &versions {
                runs.push(run(0, number, 1));
            }
            let back: Vec<u64> = runs
                .as_slice()
                .iter()
                .flat_map(|run| std::iter::repeat_n(run.version.number, run.count as usize))
                .collect();
            prop_assert_eq!(&back, &versions);
            prop_assert!(runs.as_slice().windows(2).all(|pair| pair[0].version != pair[1].version));
            prop_assert_eq!(runs.lowest(), versions.iter().copied().min());
        }
    }
}
