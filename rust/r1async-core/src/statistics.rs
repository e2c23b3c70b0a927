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
#[derive(Debug, Clone, Copy, PartialEq)]
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
