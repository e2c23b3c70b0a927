//! Group statistics and advantages, in float64, over scored members only.

use serde::{Deserialize, Serialize};

/// How an advantage is made of a reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Baseline {
    /// `(r - mean) / (std + eps)`: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2).
    Std,
    /// `r - mean`: Dr. GRPO (arXiv 2503.20783).
    Mean,
    /// `r - mean of the others`: RLOO (arXiv 2402.14740).
    LeaveOneOut,
    /// `r`.
    None,
}

/// Which standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdKind {
    /// Divides the sum of squares by n.
    Population,
    /// Divides the sum of squares by n - 1; 0 for a single member.
    Sample,
}

/// What the rewards of one group's scored members say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupStatistics {
    /// Scored members.
    pub count: usize,
    /// Mean reward.
    pub mean: f64,
    /// Standard deviation of the rewards, of the kind asked for.
    pub std: f64,
    /// Lowest reward.
    pub min: f64,
    /// Highest reward.
    pub max: f64,
    /// Share of members with a reward of at least the pass mark.
    pub pass_rate: f64,
}

impl GroupStatistics {
    /// Whether all rewards are equal: such a group carries no gradient.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.min >= self.max
    }
}

/// Statistics of finite rewards; `None` of no rewards.
///
/// The mean is exact for equal rewards, so that they get an advantage of exactly 0. Deviations are
/// taken from the mean before they are squared, and their own mean (rounding of the first) is taken
/// off again: the corrected two-pass algorithm (Chan, Golub, LeVeque 1983, eq. 1.7).
///
/// ```
/// use r1async_core::{StdKind, group_statistics};
/// let statistics = group_statistics(&[1.0, 0.0, 0.0, 1.0], StdKind::Population, 1.0).unwrap();
/// assert_eq!((statistics.mean, statistics.std, statistics.pass_rate), (0.5, 0.5, 0.5));
/// ```
#[must_use]
pub fn group_statistics(rewards: &[f64], kind: StdKind, pass_mark: f64) -> Option<GroupStatistics> {
    if rewards.is_empty() {
        return None;
    }
    let n = rewards.len() as f64;
    let min = rewards.iter().copied().fold(f64::INFINITY, f64::min);
    let max = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let passed = rewards
        .iter()
        .filter(|&&reward| reward >= pass_mark)
        .count();
    // Sums of differences from the lowest: no cancellation, and exact when all are equal.
    let mean = min + rewards.iter().map(|reward| reward - min).sum::<f64>() / n;
    let off = rewards.iter().map(|reward| reward - mean).sum::<f64>();
    let squares = rewards
        .iter()
        .map(|reward| (reward - mean).powi(2))
        .sum::<f64>();
    let sum = (squares - off * off / n).max(0.0);
    let std = match kind {
        StdKind::Population => (sum / n).sqrt(),
        StdKind::Sample if rewards.len() > 1 => (sum / (n - 1.0)).sqrt(),
        StdKind::Sample => 0.0,
    };
    Some(GroupStatistics {
        count: rewards.len(),
        mean,
        std,
        min,
        max,
        pass_rate: passed as f64 / n,
    })
}

/// The advantage of each reward of one group. Equal rewards, or a single one, have advantage 0 under
/// every baseline but [`Baseline::None`].
///
/// ```
/// use r1async_core::{Baseline, StdKind, advantages};
/// let others = advantages(&[1.0, 0.0, 0.0, 0.0], Baseline::LeaveOneOut, StdKind::Population, 1e-6);
/// assert_eq!(others, [1.0, -1.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0]);
/// ```
#[must_use]
pub fn advantages(rewards: &[f64], baseline: Baseline, kind: StdKind, eps: f64) -> Vec<f64> {
    let Some(statistics) = group_statistics(rewards, kind, f64::INFINITY) else {
        return Vec::new();
    };
    if statistics.is_constant() && baseline != Baseline::None {
        return vec![0.0; rewards.len()];
    }
    let (mean, std) = (statistics.mean, statistics.std);
    // r - mean of the others = (r - mean) * n / (n - 1).
    let others = rewards.len() as f64 / (rewards.len() as f64 - 1.0);
    let of = |reward: f64| match baseline {
        Baseline::Std => (reward - mean) / (std + eps),
        Baseline::Mean => reward - mean,
        Baseline::LeaveOneOut => (reward - mean) * others,
        Baseline::None => reward,
    };
    rewards.iter().map(|&reward| of(reward)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REWARDS: [f64; 4] = [1.0, 0.0, 0.0, 1.2];

    #[test]
    fn statistics_by_hand() {
        // Mean 2.2 / 4; squares 0.45^2 + 2 * 0.55^2 + 0.65^2 = 1.23.
        let population = group_statistics(&REWARDS, StdKind::Population, 1.0).unwrap();
        assert!((population.mean - 0.55).abs() < 1e-15);
        assert!((population.std - (1.23_f64 / 4.0).sqrt()).abs() < 1e-15);
        assert_eq!(
            (population.min, population.max, population.count),
            (0.0, 1.2, 4)
        );
        assert_eq!(population.pass_rate, 0.5);
        let sample = group_statistics(&REWARDS, StdKind::Sample, 1.0).unwrap();
        assert!((sample.std - (1.23_f64 / 3.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn advantages_by_hand() {
        let of = |baseline| advantages(&REWARDS, baseline, StdKind::Population, 0.01);
        let std = 0.3075_f64.sqrt() + 0.01;
        for (got, want) in of(Baseline::Std)
            .into_iter()
            .zip([0.45, -0.55, -0.55, 0.65])
        {
            assert!((got - want / std).abs() < 1e-14);
        }
        for (got, want) in of(Baseline::Mean)
            .into_iter()
            .zip([0.45, -0.55, -0.55, 0.65])
        {
            assert!((got - want).abs() < 1e-15);
        }
        // Means of the others: 1.2 / 3, 2.2 / 3, 2.2 / 3, 1 / 3.
        for (got, want) in
            of(Baseline::LeaveOneOut)
                .into_iter()
                .zip([0.6, -2.2 / 3.0, -2.2 / 3.0, 2.6 / 3.0])
        {
            assert!((got - want).abs() < 1e-15);
        }
        assert_eq!(of(Baseline::None), REWARDS);
    }

    #[test]
    fn a_group_of_one_and_a_group_of_equals_have_no_advantage() {
        // 0.1 is not exact, and the sum of three is not three times it.
        for rewards in [[0.1; 3].as_slice(), &[7.0]] {
            for kind in [StdKind::Population, StdKind::Sample] {
                let statistics = group_statistics(rewards, kind, 1.0).unwrap();
                assert_eq!((statistics.mean, statistics.std), (rewards[0], 0.0));
                assert!(statistics.is_constant());
                for baseline in [Baseline::Std, Baseline::Mean, Baseline::LeaveOneOut] {
                    assert!(
                        advantages(rewards, baseline, kind, 1e-6)
                            .iter()
                            .all(|&advantage| advantage == 0.0)
                    );
                }
            }
        }
        assert_eq!(
            advantages(&[7.0], Baseline::None, StdKind::Sample, 1e-6),
            [7.0]
        );
        assert_eq!(group_statistics(&[], StdKind::Population, 1.0), None);
    }

    #[test]
    fn a_large_offset_costs_no_digits() {
        let rewards = [1e9 + 4.0, 1e9 + 7.0, 1e9 + 13.0, 1e9 + 16.0];
        let statistics = group_statistics(&rewards, StdKind::Sample, 1.0).unwrap();
        assert_eq!(
            (statistics.mean, statistics.std),
            (1e9 + 10.0, 30.0_f64.sqrt())
        );
    }

    /// The textbook's two passes.
    fn reference(rewards: &[f64], kind: StdKind) -> (f64, f64) {
        let n = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let squares = rewards
            .iter()
            .map(|reward| (reward - mean) * (reward - mean))
            .sum::<f64>();
        let over = if kind == StdKind::Population {
            n
        } else {
            (n - 1.0).max(1.0)
        };
        (mean, (squares / over).sqrt())
    }

    proptest! {
        #[test]
        fn statistics_equal_the_two_pass_reference(
            rewards in prop::collection::vec(-5.0..5.0_f64, 1..64),
            sample in any::<bool>(),
        ) {
            let kind = if sample { StdKind::Sample } else { StdKind::Population };
            let (mean, std) = reference(&rewards, kind);
            let statistics = group_statistics(&rewards, kind, 0.0).unwrap();
            prop_assert!((statistics.mean - mean).abs() <= 1e-12);
            prop_assert!((statistics.std - std).abs() <= 1e-12);
        }

        #[test]
        fn leave_one_out_is_the_mean_of_the_others(rewards in prop::collection::vec(-5.0..5.0_f64, 2..32)) {
            let got = advantages(&rewards, Baseline::LeaveOneOut, StdKind::Population, 1e-6);
            let sum: f64 = rewards.iter().sum();
            for (advantage, reward) in got.into_iter().zip(&rewards) {
                let others = (sum - reward) / (rewards.len() - 1) as f64;
                prop_assert!((advantage - (reward - others)).abs() <= 1e-12);
            }
        }
    }
}
