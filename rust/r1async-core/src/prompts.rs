//! Prompts: which are wanted, and their groups until the first lease.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::DropReason;
use crate::group::{Group, Prompt, Purpose};
use crate::ids::GroupId;
use crate::ledger::Ledger;

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
        let ahead = self.queued.len() + self.frontier.restored.len();
        let live = ahead + self.open.len() + self.ready.len();
        let room = self.settings.look_ahead().saturating_sub(ahead) as u64;
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

    /// Admits the first of the prompts asked for; answers its group's number, or `None` if it is quarantined.
    ///
    /// # Errors
    /// It is not the first one asked for, or has no tokens.
    pub fn admit(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
    ) -> Result<Option<GroupId>, AdmitError> {
        if tokens.is_empty() {
            return Err(AdmitError::Empty(ordinal));
        }
        if self.quarantine.holds(&tokens, &meta) {
            return self
                .refuse_prompt(ordinal, DropReason::Quarantined)
                .map(|()| None);
        }
        let live = self.take_wanted(ordinal)?;
        let prompt = Arc::new(Prompt {
            ordinal,
            tokens,
            meta,
        });
        let group = match live {
            Some(live) => self.queue_group(Some(live.group), prompt, live.retries),
            None => {
                self.books.prompts.incoming += 1;
                self.queue_group(None, prompt, self.settings.retries)
            }
        };
        Ok(Some(group))
    }

    /// Queues a group: a restored one under its number, whose rollouts are in the books already, or a new one.
    pub(crate) fn queue_group(
        &mut self,
        restored: Option<u64>,
        prompt: Arc<Prompt>,
        retries: u32,
    ) -> GroupId {
        let size = self.settings.group_size;
        let number = restored.unwrap_or_else(|| {
            self.books.rollouts.incoming += size as u64;
            self.frontier.next_group += 1;
            self.frontier.next_group - 1
        });
        self.books.prompt_tokens.incoming += prompt.tokens.len() as u64;
        let id = GroupId(number);
        let group = Group::new(
            id,
            number * size as u64,
            size,
            prompt,
            Purpose::Training { retries },
        );
        self.groups.insert(id, group);
        self.queued.insert(id);
        self.news.rollouts = true;
        id
    }

    /// Refuses the first of the prompts asked for: counted `invalid`. One that was live when the ledger
    /// was saved takes its group's rollouts with it.
    ///
    /// # Errors
    /// It is not the first one asked for.
    pub fn reject_prompt(&mut self, ordinal: u64) -> Result<(), AdmitError> {
        self.refuse_prompt(ordinal, DropReason::Invalid)
    }

    fn refuse_prompt(&mut self, ordinal: u64, reason: DropReason) -> Result<(), AdmitError> {
        match self.take_wanted(ordinal)? {
            Some(live) => self.reject_restored(live, reason),
            None => {
                self.books.prompts.incoming += 1;
                self.books.prompts.drop(reason, 1);
            }
        }
        self.news = crate::ledger::News {
            prompts: true,
            batch: true,
            ..self.news
        };
        Ok(())
    }

    fn reject_restored(&mut self, live: LiveGroup, reason: DropReason) {
        self.books.prompts.drop(reason, 1);
        self.books
            .rollouts
            .drop(reason, self.settings.group_size as u64);
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
            self.reject_restored(live, DropReason::Invalid);
        }
        self.news.batch = true;
    }
}
