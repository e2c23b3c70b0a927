//! Prompts: which are wanted, and their groups until the first lease.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::DropReason;
use crate::group::{Group, Prompt, Purpose};
use crate::ids::GroupId;
use crate::ledger::Ledger;
use crate::pacing::MAX_LOOK_AHEAD;
use crate::sources::MAIN;

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
    /// A source that has no window.
    #[error("source {got}; want below {sources}: 0 for the main ones, or that of a window")]
    Source {
        /// The source named.
        got: usize,
        /// How many there are.
        sources: usize,
    },
}

/// A group that was live when the ledger was saved, and whose prompt has not come again yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveGroup {
    pub(crate) ordinal: u64,
    pub(crate) group: u64,
    pub(crate) retries: u32,
}

/// How far the prompts have come.
#[derive(Debug, Default)]
pub(crate) struct Frontier {
    pub(crate) next_ordinal: u64,
    pub(crate) next_group: u64,
    /// There are no prompts from here on, once that is known.
    pub(crate) end: Option<u64>,
    /// Asked for again first, in order of their groups.
    pub(crate) restored: VecDeque<LiveGroup>,
}

impl Ledger {
    /// Ordinals to admit (or reject) now, in this order: the live ones of a restored ledger, then as many
    /// as are looked ahead, and never more than the remaining steps can train.
    #[must_use]
    pub fn wanted_prompts(&self) -> Vec<u64> {
        let restored = self.frontier.restored.iter().map(|live| live.ordinal);
        let next = self.frontier.next_ordinal;
        restored
            .chain(next..next + self.wanted_new_prompts())
            .collect()
    }

    fn wanted_new_prompts(&self) -> u64 {
        let ahead = self.queued.len_of(MAIN) + self.frontier.restored.len();
        let live = ahead + self.open.len_of(MAIN) + self.ready.len();
        let slow = self.queued.len() - self.queued.len_of(MAIN);
        let room = (self.settings.look_ahead().saturating_sub(ahead))
            .min(MAX_LOOK_AHEAD.saturating_sub(slow)) as u64;
        let needed = self.wanted_groups().saturating_sub(live as u64);
        let left = self.frontier.end.map_or(u64::MAX, |end| {
            end.saturating_sub(self.frontier.next_ordinal)
        });
        room.min(needed).min(left)
    }

    /// Whether every prompt there is has been admitted or rejected.
    pub(crate) fn prompts_used_up(&self) -> bool {
        let at_end = self
            .frontier
            .end
            .is_some_and(|end| self.frontier.next_ordinal >= end);
        at_end && self.frontier.restored.is_empty()
    }

    fn first_wanted(&self) -> Option<u64> {
        let restored = self.frontier.restored.front().map(|live| live.ordinal);
        restored.or_else(|| (self.wanted_new_prompts() > 0).then_some(self.frontier.next_ordinal))
    }

    fn take_wanted(&mut self, ordinal: u64) -> Result<Option<LiveGroup>, AdmitError> {
        let want = self.first_wanted();
        if want != Some(ordinal) {
            return Err(AdmitError::OutOfOrder { got: ordinal, want });
        }
        let live = self.frontier.restored.pop_front();
        if live.is_none() {
            self.frontier.next_ordinal += 1;
        }
        Ok(live)
    }

    /// Admits the first of the prompts asked for, of the main sources; answers its group's number.
    ///
    /// # Errors
    /// It is not the first one asked for, or has no tokens.
    pub fn admit(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
    ) -> Result<GroupId, AdmitError> {
        self.admit_from(ordinal, tokens, meta, MAIN)
    }

    /// The same of any source: 0 stands for the main ones, s for `Settings::windows[s - 1]`.
    ///
    /// # Errors
    /// As [`Ledger::admit`], or there is no such source.
    pub fn admit_from(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
        source: usize,
    ) -> Result<GroupId, AdmitError> {
        if tokens.is_empty() {
            return Err(AdmitError::Empty(ordinal));
        }
        let sources = self.settings.sources();
        if source >= sources {
            return Err(AdmitError::Source {
                got: source,
                sources,
            });
        }
        let live = self.take_wanted(ordinal)?;
        let prompt = Arc::new(Prompt {
            ordinal,
            tokens,
            meta,
        });
        match live {
            Some(live) => Ok(self.queue_group(Some(live.group), prompt, live.retries, source)),
            None => {
                self.books.prompts.incoming += 1;
                Ok(self.queue_group(None, prompt, self.settings.retries, source))
            }
        }
    }

    /// Queues a group: a restored one under its number, whose rollouts are in the books already, or a new one.
    pub(crate) fn queue_group(
        &mut self,
        restored: Option<u64>,
        prompt: Arc<Prompt>,
        retries: u32,
        source: usize,
    ) -> GroupId {
        let size = self.settings.group_size;
        let number = restored.unwrap_or_else(|| {
            self.books.rollouts.incoming += size as u64;
            self.frontier.next_group += 1;
            self.frontier.next_group - 1
        });
        self.books.prompt_tokens.incoming += prompt.tokens.len() as u64;
        let id = GroupId(number);
        let purpose = Purpose::Training { retries };
        let mut group = Group::new(id, number * size as u64, size, prompt, purpose);
        group.source = source;
        self.groups.insert(id, group);
        self.queued.insert(source, id);
        self.news.rollouts = true;
        id
    }

    /// Refuses the first of the prompts asked for: counted `invalid`. One that was live when the ledger
    /// was saved takes its group's rollouts with it.
    ///
    /// # Errors
    /// It is not the first one asked for.
    pub fn reject_prompt(&mut self, ordinal: u64) -> Result<(), AdmitError> {
        match self.take_wanted(ordinal)? {
            Some(live) => self.reject_restored(live),
            None => {
                self.books.prompts.incoming += 1;
                self.books.prompts.drop(DropReason::Invalid, 1);
            }
        }
        self.news = crate::ledger::News {
            prompts: true,
            batch: true,
            ..self.news
        };
        Ok(())
    }

    fn reject_restored(&mut self, live: LiveGroup) {
        self.books.prompts.drop(DropReason::Invalid, 1);
        self.books
            .rollouts
            .drop(DropReason::Invalid, self.settings.group_size as u64);
        self.books.group_ended(GroupId(live.group));
    }

    /// There are no prompts from `ordinal` on. Restored groups of such prompts are dropped `invalid`.
    pub fn end_of_prompts(&mut self, ordinal: u64) {
        self.frontier.end = Some(ordinal);
        let (kept, gone) = std::mem::take(&mut self.frontier.restored)
            .into_iter()
            .partition(|live| live.ordinal < ordinal);
        self.frontier.restored = kept;
        for live in gone {
            self.reject_restored(live);
        }
        self.news.batch = true;
    }
}
