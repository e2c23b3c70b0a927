//! Admission: how many groups may be on their way at a time, and whose weights are fresh enough.

use serde::{Deserialize, Serialize};

use crate::ids::PolicyVersion;
use crate::ledger::Ledger;
use crate::settings::{Settings, StalenessMode};
use crate::sources::MAIN;

/// Groups looked ahead at most, however wide the window.
pub(crate) const MAX_LOOK_AHEAD: usize = 1024;

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
        self.places_at(self.pacing as f64)
    }

    /// Places at the pacing `w`.
    pub(crate) fn places_at(&self, w: f64) -> usize {
        let groups = (w + 1.0) * self.groups_per_step as f64;
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
        self.oldest_of(MAIN, step)
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

/// The oldest version that may sample for training: it lags no more than the pacing allows.
pub(crate) fn oldest_sampling(w: f64, position: LearnerPosition) -> PolicyVersion {
    let number = position.stepped.saturating_sub(w.ceil() as u64);
    PolicyVersion::new(position.epoch, number)
}

/// Whether a generator with `installed` may sample for training.
pub(crate) fn may_sample(w: f64, position: LearnerPosition, installed: PolicyVersion) -> bool {
    let oldest = oldest_sampling(w, position);
    installed.epoch == oldest.epoch && installed.number >= oldest.number
}

/// Whether what `installed` samples for `source` is young enough for the first step that could train it.
/// That follows from the places in normal running, but not after a learner went back to a checkpoint, nor
/// for a source whose bound is below the pacing.
pub(crate) fn is_young(
    settings: &Settings,
    source: usize,
    position: LearnerPosition,
    installed: PolicyVersion,
) -> bool {
    settings
        .oldest_of(source, position.next_bind)
        .is_none_or(|oldest| installed.number >= oldest)
}

/// Share of a step's time that the learner may wait for its batch before the pacing grows.
const STARVED: f64 = 0.03;
/// What a window of `(w + 1) * B` groups is multiplied by.
const GROW: f64 = 1.25;
const SHRINK: f64 = 0.875;

/// The pacing w as it is now, and what moves it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pace {
    pub(crate) w: f64,
    /// The step whose batch is asked for, and since when.
    asked: Option<(u64, f64)>,
    /// Seconds that it has waited for parts of this batch.
    waited: f64,
    /// When the last batch was bound.
    bound_at: Option<f64>,
    /// Effective sample size that the learner reported last.
    ess: Option<f64>,
}

impl Pace {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            w: settings.pacing as f64,
            asked: None,
            waited: 0.0,
            bound_at: None,
            ess: None,
        }
    }

    /// A learner asks for the batch of `step`; asking again changes nothing.
    pub(crate) fn asked(&mut self, now: f64, step: u64) {
        if self.asked.is_none_or(|(asked, _)| asked != step) {
            self.asked = Some((step, now));
        }
    }

    pub(crate) fn reported(&mut self, ess: Option<f64>) {
        self.ess = ess.or(self.ess);
    }

    /// The run goes on under other settings.
    pub(crate) fn reopen(&mut self, settings: &Settings) {
        self.restart();
        self.w = match settings.mode {
            StalenessMode::Fixed => settings.pacing as f64,
            StalenessMode::Adaptive => self.w.min(settings.pacing as f64),
        };
    }

    /// Another learner: the time that it was away is nobody's waiting.
    pub(crate) fn restart(&mut self) {
        (self.asked, self.waited, self.bound_at) = (None, 0.0, None);
    }

    /// The learner has a part of its batch and waits no more.
    pub(crate) fn served(&mut self, now: f64) {
        if let Some((_, asked)) = self.asked.take() {
            self.waited += now - asked.max(self.bound_at.unwrap_or(asked));
        }
    }

    /// The batch asked for is bound and leaves `left` ready groups behind.
    pub(crate) fn bound(&mut self, now: f64, left: usize, settings: &Settings) {
        self.served(now);
        let (waited, before) = (std::mem::take(&mut self.waited), self.bound_at.replace(now));
        if settings.mode == StalenessMode::Fixed {
            return;
        }
        let starved = before.is_some_and(|before| waited > STARVED * (now - before));
        let factor = if self.ess.is_some_and(|ess| ess < settings.ess_floor) {
            SHRINK
        } else if starved {
            GROW
        } else if 2 * left > settings.groups_per_step {
            SHRINK
        } else {
            1.0
        };
        // Fewer places than publish_every steps of groups would wait for weights that never come.
        let least = (settings.publish_every - 1) as f64;
        self.w = ((self.w + 1.0) * factor - 1.0).clamp(least, settings.pacing as f64);
    }
}

impl Ledger {
    /// The pacing w as it is now; it moves only under `StalenessMode::Adaptive`.
    #[must_use]
    pub fn pacing(&self) -> f64 {
        self.pace.w
    }

    /// Places of the main sources as of now.
    #[must_use]
    pub fn place_limit(&self) -> usize {
        self.settings.places_at(self.pace.w)
    }
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
        let installed = PolicyVersion::new(installed.0, installed.1);
        may_sample(w as f64, position, installed)
            && is_young(&settings(e, w), MAIN, position, installed)
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

    fn adaptive() -> Settings {
        Settings {
            mode: StalenessMode::Adaptive,
            ..settings(8, 8)
        }
    }

    /// Binds a step at `now` that was asked for `waited` seconds before.
    fn bind(pace: &mut Pace, now: f64, waited: f64, left: usize) -> f64 {
        pace.asked(now - waited, now as u64);
        pace.bound(now, left, &adaptive());
        pace.w
    }

    #[test]
    fn the_window_shrinks_by_an_eighth_while_groups_pile_up_and_grows_by_a_quarter_when_the_learner_starves()
     {
        let mut pace = Pace::new(&adaptive());
        assert_eq!(bind(&mut pace, 10.0, 0.0, 2), 8.0); // Half a batch is left, not more.
        assert_eq!(bind(&mut pace, 20.0, 0.0, 3), 6.875); // 9 * 7/8 - 1
        assert_eq!(bind(&mut pace, 30.0, 0.25, 0), 6.875); // 2.5 % of 10 s.
        assert_eq!(bind(&mut pace, 40.0, 0.4, 3), 8.0); // 7.875 * 5/4 - 1 = 8.84, at most 8.
    }

    #[test]
    fn a_low_effective_sample_size_shrinks_the_window_even_if_the_learner_starves() {
        let mut pace = Pace::new(&adaptive());
        bind(&mut pace, 10.0, 0.0, 0);
        pace.reported(Some(0.49));
        pace.reported(None);
        assert_eq!(bind(&mut pace, 20.0, 5.0, 0), 6.875);
        pace.reported(Some(0.5));
        assert_eq!(bind(&mut pace, 30.0, 0.0, 0), 6.875);
    }

    #[test]
    fn the_window_never_shrinks_below_the_steps_between_two_publications() {
        let settings = Settings {
            publish_every: 3,
            ..adaptive()
        };
        let mut pace = Pace::new(&settings);
        for step in 0..60 {
            pace.bound(f64::from(step), 9, &settings);
        }
        assert_eq!(pace.w, 2.0);
    }

    #[test]
    fn a_fixed_window_stays() {
        let mut pace = Pace::new(&settings(4, 3));
        for step in 0..9 {
            pace.bound(f64::from(step), 9, &settings(4, 3));
        }
        assert_eq!(pace.w, 3.0);
    }
}
