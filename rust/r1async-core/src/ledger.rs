//! The ledger: the state of a run and the only place that changes it.

use thiserror::Error;

use crate::audit::Audit;
use crate::ids::GroupId;
use crate::settings::{Settings, SettingsError};

/// A prompt that was not asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AdmitError {
    /// Prompts come in the order of `wanted_prompts`.
    #[error("prompt {got}; want {want:?}, the first of the prompts asked for")]
    OutOfOrder {
        /// The ordinal that came.
        got: u64,
        /// The ordinal that is next, if any is wanted.
        want: Option<u64>,
    },
    /// A prompt without tokens.
    #[error("prompt {0} has no tokens; reject it instead")]
    Empty(u64),
}

/// What may be possible now that was not before: hints for the caller, cleared when taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct News {
    /// A generator that waits may get leases now (training or evaluation).
    pub rollouts: bool,
    /// A scorer that waits may get leases now.
    pub scoring: bool,
    /// A learner that waits may get its batch, or another reason, now.
    pub batch: bool,
    /// Prompts are wanted.
    pub prompts: bool,
    /// Groups of an evaluation are complete.
    pub evaluated: bool,
}

/// The state of a run.
#[derive(Debug)]
pub struct Ledger {
    pub(crate) settings: Settings,
}

impl Ledger {
    /// An empty ledger.
    ///
    /// # Errors
    /// A setting that cannot work.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.validate()?;
        Ok(Self { settings })
    }

    /// The settings it decides by.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Ordinals to admit (or reject) now, in this order.
    #[must_use]
    pub fn wanted_prompts(&self) -> Vec<u64> {
        todo!()
    }

    /// Admits the first of the prompts asked for; answers its group's number.
    ///
    /// # Errors
    /// It is not the first one asked for, or has no tokens.
    pub fn admit(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
    ) -> Result<GroupId, AdmitError> {
        todo!("{ordinal} {tokens:?} {meta:?}")
    }

    /// Refuses the first of the prompts asked for: counted `invalid`.
    ///
    /// # Errors
    /// It is not the first one asked for.
    pub fn reject_prompt(&mut self, ordinal: u64) -> Result<(), AdmitError> {
        todo!("{ordinal}")
    }

    /// There are no prompts from `ordinal` on.
    pub fn end_of_prompts(&mut self, ordinal: u64) {
        todo!("{ordinal}")
    }

    /// Whether nothing is left to train: all steps are done, or all prompts.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        todo!()
    }

    /// Everything whose deadline has passed happens.
    pub fn tick(&mut self, now: f64) {
        todo!("{now}")
    }

    /// When `tick` is due next, on the clock of `now`.
    #[must_use]
    pub fn next_deadline(&self) -> Option<f64> {
        todo!()
    }

    /// What may be possible since the last call.
    pub fn take_news(&mut self) -> News {
        todo!()
    }

    /// The accounts of this moment. Counts all that is held: for commits and people, not for every message.
    #[must_use]
    pub fn audit(&self) -> Audit {
        todo!()
    }
}
