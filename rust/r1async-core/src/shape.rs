//! Which parts of rollouts train: by length, and the beginnings of the longest. A mask takes those away
//! first, and the mean length of what trains does not show it.

use serde::{Deserialize, Serialize};

use crate::staleness::VersionRun;

/// What of one rollout trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    length: u64,
    trained: u64,
    /// Tokens of its first tenth, and those of them that train.
    prefix: u64,
    prefix_trained: u64,
}

impl Shape {
    /// Of a rollout whose tokens of versions below `oldest` do not train.
    pub(crate) fn new(runs: &[VersionRun], oldest: u64) -> Self {
        let length: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        let prefix = length.div_ceil(10);
        let (mut at, mut trained, mut prefix_trained) = (0, 0, 0);
        for run in runs {
            let count = u64::from(run.count);
            if run.version.number >= oldest {
                trained += count;
                prefix_trained += prefix.saturating_sub(at).min(count);
            }
            at += count;
        }
        Self {
            length,
            trained,
            prefix,
            prefix_trained,
        }
    }
}

/// Tokens, and how many of them were trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Coverage {
    tokens: u64,
    trained: u64,
}

impl Coverage {
    fn add(&mut self, tokens: u64, trained: u64) {
        self.tokens += tokens;
        self.trained += trained;
    }

    /// The trained share; 1 of no tokens.
    pub(crate) fn share(self) -> f64 {
        if self.tokens == 0 {
            1.0
        } else {
            self.trained as f64 / self.tokens as f64
        }
    }
}

/// Sums over batches; lengths are compared within a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Coverages {
    /// Of the shortest quarter of each batch's rollouts to the longest.
    pub(crate) quarters: [Coverage; 4],
    /// The first tenth of the longest tenth of each batch's rollouts.
    pub(crate) prefix: Coverage,
}

impl Coverages {
    /// Of the rollouts of one batch.
    pub(crate) fn of(shapes: &mut [Shape]) -> Self {
        shapes.sort_by_key(|shape| shape.length);
        let mut sums = Self::default();
        let count = shapes.len();
        for (rank, shape) in shapes.iter().enumerate() {
            sums.quarters[4 * rank / count].add(shape.length, shape.trained);
        }
        for shape in &shapes[count - count.div_ceil(10)..] {
            sums.prefix.add(shape.prefix, shape.prefix_trained);
        }
        sums
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, part) in self.quarters.iter_mut().zip(&other.quarters) {
            sum.add(part.tokens, part.trained);
        }
        self.prefix.add(other.prefix.tokens, other.prefix.trained);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PolicyVersion;

    fn run(version: u64, count: u32) -> VersionRun {
        VersionRun::new(PolicyVersion::new(0, version), count)
    }

    #[test]
    fn a_rollouts_shape_by_hand() {
        // 25 tokens, the first 2 and the last 8 too old for oldest 3: its first tenth is 3 tokens.
        let shape = Shape::new(&[run(2, 2), run(3, 15), run(1, 8)], 3);
        let want = Shape {
            length: 25,
            trained: 15,
            prefix: 3,
            prefix_trained: 1,
        };
        assert_eq!(shape, want);
    }

    #[test]
    fn quarters_and_prefix_of_a_batch_by_hand() {
        // Lengths 1, 2, 3, 30: the longest lost 20 tokens at its beginning, the shortest is lost whole.
        let mut shapes = [
            Shape::new(&[run(0, 20), run(5, 10)], 5),
            Shape::new(&[run(5, 2)], 5),
            Shape::new(&[run(0, 1)], 5),
            Shape::new(&[run(5, 3)], 5),
        ];
        let sums = Coverages::of(&mut shapes);
        let shares = sums.quarters.map(Coverage::share);
        assert_eq!(shares, [0.0, 1.0, 1.0, 10.0 / 30.0]);
        assert_eq!(
            sums.prefix,
            Coverage {
                tokens: 3,
                trained: 0
            }
        );
        let mut twice = sums;
        twice.add(&sums);
        assert_eq!(twice.prefix.tokens, 6);
    }

    #[test]
    fn a_batch_without_rollouts_covers_all_of_nothing() {
        assert_eq!(Coverages::of(&mut []).prefix.share(), 1.0);
    }
}
