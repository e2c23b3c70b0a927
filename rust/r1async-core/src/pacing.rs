//! Admission: how many groups may be on their way at a time, and whose weights are fresh enough.

use crate::ids::PolicyVersion;
use crate::settings::{OverAge, Settings};

/// Groups looked ahead at most, however wide the window.
const MAX_LOOK_AHEAD: usize = 1024;

impl Settings {
    /// Places: groups between their first lease and the weights that they trained, `floor((w + 1) * B * oversample)`.
    ///
    /// ```
    /// use r1async_core::Settings;
    /// let settings = Settings { groups_per_step: 3, pacing: 1, oversample: 1.25, ..Settings::default() };
    /// assert_eq!(settings.place_limit(), 7);
    /// ```
    #[must_use]
    pub fn place_limit(&self) -> usize {
        let groups = (self.pacing + 1) as f64 * self.groups_per_step as f64;
        (groups * self.oversample).floor() as usize
    }

    /// Prompts queued ahead of their first lease.
    pub(crate) fn look_ahead(&self) -> usize {
        self.place_limit()
            .min(MAX_LOOK_AHEAD.max(self.groups_per_step))
    }

    /// The oldest version whose tokens a step may train; `None` if age is no limit.
    ///
    /// ```
    /// use r1async_core::{OverAge, Settings};
    /// let settings = Settings { max_staleness: 2, ..Settings::default() };
    /// assert_eq!((settings.oldest_trainable(7), settings.oldest_trainable(1)), (Some(5), Some(0)));
    /// assert_eq!(Settings { over_age: OverAge::Train, ..settings }.oldest_trainable(7), None);
    /// ```
    #[must_use]
    pub fn oldest_trainable(&self, step: u64) -> Option<u64> {
        match self.over_age {
            OverAge::Mask | OverAge::Drop => Some(step.saturating_sub(self.max_staleness)),
            OverAge::Train => None,
        }
    }
}

/// Where the learner is, as admission sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LearnerPosition {
    /// The learner life that counts.
    pub(crate) epoch: u64,
    /// Optimizer steps reported.
    pub(crate) stepped: u64,
    /// The first step without a batch: the earliest that can train a token sampled now.
    pub(crate) next_bind: u64,
}

/// Whether a generator with `installed` may sample for training: it lags no more than the pacing
/// allows, and what it samples is young enough for the first step that could train it. The second
/// follows from the places in normal running, but not after a learner went back to a checkpoint.
pub(crate) fn may_sample(
    settings: &Settings,
    position: LearnerPosition,
    installed: PolicyVersion,
) -> bool {
    let young = settings
        .oldest_trainable(position.next_bind)
        .is_none_or(|oldest| installed.number >= oldest);
    installed.epoch == position.epoch
        && installed.number + settings.pacing >= position.stepped
        && young
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(e: u64, w: u64) -> Settings {
        Settings {
            groups_per_step: 4,
            max_staleness: e,
            pacing: w,
            ..Settings::default()
        }
    }

    fn sampling_allowed(
        e: u64,
        w: u64,
        stepped: u64,
        next_bind: u64,
        installed: (u64, u64),
    ) -> bool {
        let position = LearnerPosition {
            epoch: 1,
            stepped,
            next_bind,
        };
        may_sample(
            &settings(e, w),
            position,
            PolicyVersion::new(installed.0, installed.1),
        )
    }

    #[test]
    fn places_are_w_plus_1_steps_of_groups() {
        assert_eq!(settings(0, 0).place_limit(), 4);
        assert_eq!(settings(2, 2).place_limit(), 12);
        assert_eq!(settings(2, 1).place_limit(), 8);
        assert_eq!(
            Settings {
                oversample: 1.3,
                ..settings(0, 0)
            }
            .place_limit(),
            5
        );
    }

    #[test]
    fn a_generator_may_lag_by_the_pacing_and_no_more() {
        assert!(sampling_allowed(4, 2, 9, 9, (1, 7)));
        assert!(!sampling_allowed(4, 2, 9, 9, (1, 6)));
    }

    #[test]
    fn weights_of_an_ended_learner_life_do_not_sample() {
        assert!(!sampling_allowed(4, 4, 5, 5, (0, 5)));
    }

    #[test]
    fn tokens_that_no_step_can_train_are_not_sampled() {
        // The learner went back to 5, batches 5 to 7 are handed out again: 8 is the next to fill.
        assert!(!sampling_allowed(2, 2, 5, 8, (1, 5)));
        assert!(sampling_allowed(2, 2, 6, 8, (1, 6)));
    }
}
