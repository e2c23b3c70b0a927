//! What a restart of the whole run needs of the ledger.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::{Books, DropReason};
use crate::group::{Group, Purpose};
use crate::ledger::Ledger;
use crate::prompts::LiveGroup;
use crate::quarantine::Quarantine;
use crate::settings::Settings;
use crate::stats::{Counters, Figures};

/// Layout of what is saved.
const FORMAT: u32 = 2;

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

/// The ledger as it is saved: all but what is in the memory of processes that a restart ends.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    format: u32,
    group_size: u64,
    epoch: Option<u64>,
    committed: u64,
    next_ordinal: u64,
    next_group: u64,
    evaluation_groups: u64,
    evaluation_rollouts: u64,
    /// Groups that are not trained, by number.
    live: Vec<LiveGroup>,
    live_tokens: u64,
    live_prompt_tokens: u64,
    live_evaluation_rollouts: u64,
    live_evaluation_tokens: u64,
    books: Books,
    counters: Counters,
    figures: Figures,
    quarantine: Quarantine,
}

impl Ledger {
    /// The ledger as of the last commit: counters, the prompt frontier, the ordinals of all groups not trained.
    ///
    /// ```
    /// use r1async_core::{Ledger, Settings};
    /// let mut ledger = Ledger::new(Settings::default())?;
    /// ledger.admit(0, vec![7], Vec::new())?;
    /// let mut restarted = Ledger::new(Settings::default())?;
    /// restarted.restore(&ledger.checkpoint())?;
    /// assert_eq!(restarted.wanted_prompts()[0], 0);
    /// assert!(restarted.audit().is_balanced());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        let audit = self.audit();
        let saved = Saved {
            format: FORMAT,
            group_size: self.settings.group_size as u64,
            epoch: self.learner.epoch,
            committed: self.learner.committed,
            next_ordinal: self.frontier.next_ordinal,
            next_group: self.frontier.next_group,
            evaluation_groups: self.evaluations.groups_made,
            evaluation_rollouts: self.evaluations.rollouts_made,
            live: self.live_groups(),
            live_tokens: audit.tokens.live,
            live_prompt_tokens: audit.prompt_tokens.live,
            live_evaluation_rollouts: audit.evaluation_rollouts.live,
            live_evaluation_tokens: audit.evaluation_tokens.live,
            books: self.books.clone(),
            counters: self.counters.clone(),
            figures: self.figures.clone(),
            quarantine: self.quarantine.clone(),
        };
        rmp_serde::to_vec_named(&saved).expect("numbers, strings and maps can always be saved")
    }

    fn live_groups(&self) -> Vec<LiveGroup> {
        let mut live: Vec<LiveGroup> = self.frontier.restored.iter().copied().collect();
        live.extend(self.groups.values().filter_map(live_group));
        for batch in &self.batches {
            let groups = batch.bound.groups.iter().zip(&batch.retries);
            live.extend(groups.map(|(group, &retries)| LiveGroup {
                ordinal: group.prompt.ordinal,
                group: group.group.0,
                retries,
            }));
        }
        live.sort_unstable_by_key(|live| live.group);
        live
    }

    /// Takes up a saved ledger, before anything else. Live prompts are then asked for again by
    /// [`Ledger::wanted_prompts`] and keep their group numbers; tokens they had count as dropped `cancelled`.
    ///
    /// # Errors
    /// The bytes are no saved ledger, or not one of these settings; nothing has changed.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), RestoreError> {
        if self.books != Books::default() || self.learner.epoch.is_some() {
            return Err(RestoreError::InUse(self.books.prompts.incoming));
        }
        let saved: Saved = rmp_serde::from_slice(saved)
            .map_err(|error| RestoreError::Malformed(error.to_string()))?;
        check(&saved, &self.settings)?;
        let books = settle(&saved);
        self.take_up(saved, books);
        let difference = self.audit().difference();
        if let Some(difference) = difference {
            *self = Ledger::new(self.settings.clone()).expect("the settings were valid before");
            return Err(RestoreError::Unbalanced(difference));
        }
        Ok(())
    }

    fn take_up(&mut self, saved: Saved, books: Books) {
        self.books = books;
        self.learner.epoch = saved.epoch;
        self.learner.committed = saved.committed;
        self.learner.stepped = saved.committed;
        self.frontier.next_ordinal = saved.next_ordinal;
        self.frontier.next_group = saved.next_group;
        self.frontier.restored = saved.live.into();
        self.evaluations.groups_made = saved.evaluation_groups;
        self.evaluations.rollouts_made = saved.evaluation_rollouts;
        self.counters = saved.counters;
        self.figures = saved.figures;
        self.quarantine = saved.quarantine;
        self.news.prompts = true;
    }
}

fn live_group(group: &Group) -> Option<LiveGroup> {
    match group.purpose {
        Purpose::Training { retries } => Some(LiveGroup {
            ordinal: group.prompt.ordinal,
            group: group.id.0,
            retries,
        }),
        Purpose::Evaluation(_) => None,
    }
}

fn check(saved: &Saved, settings: &Settings) -> Result<(), RestoreError> {
    if saved.format != FORMAT {
        return Err(RestoreError::Malformed(format!(
            "layout {}; want {FORMAT}",
            saved.format
        )));
    }
    let (got, want) = (saved.group_size, settings.group_size as u64);
    if got != want {
        return Err(RestoreError::Settings {
            name: "group_size",
            got,
            want,
        });
    }
    let in_order = saved.live.is_sorted_by(|a, b| a.group < b.group);
    let known = saved
        .live
        .iter()
        .all(|live| live.group < saved.next_group && live.ordinal < saved.next_ordinal);
    if in_order && known {
        Ok(())
    } else {
        Err(RestoreError::Malformed(
            "live groups out of order".to_owned(),
        ))
    }
}

/// What was in memory only is given up. Prompt tokens of live groups come in again with their prompts.
fn settle(saved: &Saved) -> Books {
    let mut books = saved.books.clone();
    books.tokens.drop(DropReason::Cancelled, saved.live_tokens);
    books
        .prompt_tokens
        .drop(DropReason::Cancelled, saved.live_prompt_tokens);
    books
        .evaluation_rollouts
        .drop(DropReason::Cancelled, saved.live_evaluation_rollouts);
    books
        .evaluation_tokens
        .drop(DropReason::Cancelled, saved.live_evaluation_tokens);
    books
}
