//! What a restart of the whole run needs of the ledger.

use thiserror::Error;

use crate::ledger::Ledger;

/// A saved ledger that this one cannot go on from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// Not a saved ledger.
    #[error("not a saved ledger: {0}")]
    Malformed(String),
    /// Saved by a run with other settings.
    #[error(
        "the saved ledger has {name} {got}; this run has {want}, and rollout numbers would not fit"
    )]
    Settings {
        /// The setting.
        name: &'static str,
        /// As saved.
        got: u64,
        /// As set now.
        want: u64,
    },
    /// The ledger is in use.
    #[error("a ledger is restored before anything is admitted, this one has {0} prompts")]
    InUse(u64),
    /// What was saved does not add up.
    #[error("the saved accounts do not balance: {0}")]
    Unbalanced(String),
}

impl Ledger {
    /// The ledger as of the last commit's groups: counters, the prompt frontier, the ordinals of all groups not trained.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        todo!()
    }

    /// Takes up a saved ledger, before anything else. Live prompts are then asked for again by
    /// [`Ledger::wanted_prompts`] and keep their group numbers; tokens they had count as dropped `cancelled`.
    ///
    /// # Errors
    /// The bytes are no saved ledger, or not one of these settings; nothing has changed.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), RestoreError> {
        todo!("{saved:?}")
    }
}
