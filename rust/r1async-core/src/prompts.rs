//! Prompts: which are wanted, and their groups until the first lease.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::DropReason;
use crate::group::{Group, Prompt, Purpose};
use crate::ids::GroupId;
use crate::ledger::{Ledger, News};
use crate::trace::Event;

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

/// How far the prompts have come.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Frontier {
    pub(crate) next_ordinal: u64,
    pub(crate) next_group: u64,
    /// There are no prompts from here on, once that is known.
    pub(crate) end: Option<u64>,
}

impl Ledger {
    /// Ordinals to admit (or reject) now, in this order: as many as are looked ahead, and never more than the
    /// remaining steps can train.
    #[must_use]
    pub fn wanted_prompts(&self) -> Vec<u64> {
        let next = self.frontier.next_ordinal;
        (next..next + self.wanted_new_prompts()).collect()
    }

    fn wanted_new_prompts(&self) -> u64 {
        let live = self.queued.len() + self.open.len() + self.ready.len();
        let room = self.settings.look_ahead().saturating_sub(self.queued.len()) as u64;
        let needed = self.wanted_groups().saturating_sub(live as u64);
        let left = self.frontier.end.map_or(u64::MAX, |end| {
            end.saturating_sub(self.frontier.next_ordinal)
        });
        room.min(needed).min(left)
    }

    /// Whether every prompt there is has been admitted or rejected.
    pub(crate) fn prompts_used_up(&self) -> bool {
        self.frontier
            .end
            .is_some_and(|end| self.frontier.next_ordinal >= end)
    }

    fn take_wanted(&mut self, ordinal: u64) -> Result<(), AdmitError> {
        let next = self.frontier.next_ordinal;
        let want = (self.wanted_new_prompts() > 0).then_some(next);
        if want != Some(ordinal) {
            return Err(AdmitError::OutOfOrder { got: ordinal, want });
        }
        self.frontier.next_ordinal += 1;
        self.books.prompts.incoming += 1;
        Ok(())
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
        if tokens.is_empty() {
            return Err(AdmitError::Empty(ordinal));
        }
        self.take_wanted(ordinal)?;
        let prompt = Arc::new(Prompt {
            ordinal,
            tokens,
            meta,
        });
        Ok(self.queue_group(prompt, self.settings.retries))
    }

    /// Queues a new group for a prompt that is in the books already.
    pub(crate) fn queue_group(&mut self, prompt: Arc<Prompt>, retries: u32) -> GroupId {
        let size = self.settings.group_size;
        let number = self.frontier.next_group;
        self.frontier.next_group += 1;
        let (ordinal, prompt_tokens) = (prompt.ordinal, prompt.tokens.len() as u64);
        self.books.rollouts.incoming += size as u64;
        self.books.prompt_tokens.incoming += prompt_tokens;
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
        self.tell(|| Event::Admitted {
            group: id,
            ordinal,
            prompt_tokens,
            rollouts: size as u64,
        });
        id
    }

    /// Refuses the first of the prompts asked for: counted `invalid`.
    ///
    /// # Errors
    /// It is not the first one asked for.
    pub fn reject_prompt(&mut self, ordinal: u64) -> Result<(), AdmitError> {
        self.take_wanted(ordinal)?;
        self.books.prompts.drop(DropReason::Invalid, 1);
        self.tell(|| Event::Rejected { ordinal });
        self.news = News {
            prompts: true,
            batch: true,
            ..self.news
        };
        Ok(())
    }

    /// There are no prompts from `ordinal` on.
    pub fn end_of_prompts(&mut self, ordinal: u64) {
        self.frontier.end = Some(ordinal);
        self.news.batch = true;
    }
}
