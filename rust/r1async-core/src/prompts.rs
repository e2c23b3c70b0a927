//! Prompts: which are wanted, and their groups until the first lease.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::DropReason;
use crate::group::{Group, Prompt, Purpose};
use crate::ids::GroupId;
use crate::ledger::{Ledger, News};
use crate::pacing::MAX_LOOK_AHEAD;
use crate::sources::MAIN;
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
    /// A pool that is not configured.
    #[error(
        "pool {got}; want below {pools}: 0 for the first one, or one above the place of a slow pool"
    )]
    Pool {
        /// The pool named.
        got: usize,
        /// How many there are.
        pools: usize,
    },
    /// A source that has no window.
    #[error("source {got}; want below {sources}: 0 for the main ones, or that of a window")]
    Source {
        /// The source named.
        got: usize,
        /// How many there are.
        sources: usize,
    },
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

    pub(crate) fn wanted_new_prompts(&self) -> u64 {
        let ahead = self.queued.len_of(MAIN);
        let live = ahead + self.open.len_of(MAIN) + self.ready.len();
        let slow = self.queued.len() - ahead;
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

    /// Admits the first of the prompts asked for, of the main sources; answers its group's number, or `None` if the
    /// prompt is quarantined.
    ///
    /// # Errors
    /// It is not the first one asked for, or has no tokens.
    pub fn admit(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
    ) -> Result<Option<GroupId>, AdmitError> {
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
    ) -> Result<Option<GroupId>, AdmitError> {
        self.admit_to(ordinal, tokens, meta, source, 0)
    }

    /// The same of a prompt whose completions `pool` grades.
    ///
    /// # Errors
    /// As [`Ledger::admit_from`], or there is no such pool.
    pub fn admit_to(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
        source: usize,
        pool: usize,
    ) -> Result<Option<GroupId>, AdmitError> {
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
        let pools = self.settings.pools();
        if pool >= pools {
            return Err(AdmitError::Pool { got: pool, pools });
        }
        if self.quarantine.holds(&tokens, &meta) {
            return self
                .refuse_prompt(ordinal, DropReason::Quarantined)
                .map(|()| None);
        }
        self.take_wanted(ordinal)?;
        let prompt = Arc::new(Prompt {
            ordinal,
            tokens,
            meta,
            pool,
        });
        Ok(Some(self.queue_group(
            prompt,
            self.settings.retries,
            source,
        )))
    }

    /// Queues a new group for a prompt that is in the books already.
    pub(crate) fn queue_group(
        &mut self,
        prompt: Arc<Prompt>,
        retries: u32,
        source: usize,
    ) -> GroupId {
        let size = self.settings.group_size;
        let number = self.frontier.next_group;
        self.frontier.next_group += 1;
        let (ordinal, prompt_tokens) = (prompt.ordinal, prompt.tokens.len() as u64);
        self.books.rollouts.incoming += size as u64;
        self.books.prompt_tokens.incoming += prompt_tokens;
        let id = GroupId(number);
        let purpose = Purpose::Training { retries };
        let mut group = Group::new(id, number * size as u64, size, prompt, purpose);
        group.source = source;
        self.groups.insert(id, group);
        self.queued.insert(source, id);
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
        self.refuse_prompt(ordinal, DropReason::Invalid)
    }

    fn refuse_prompt(&mut self, ordinal: u64, reason: DropReason) -> Result<(), AdmitError> {
        self.take_wanted(ordinal)?;
        self.books.prompts.drop(reason, 1);
        self.tell(|| Event::Rejected { ordinal, reason });
        self.news = News {
            prompts: true,
            batch: true,
            ..self.news
        };
        Ok(())
    }

    /// The first prompt that has been neither admitted nor refused.
    #[must_use]
    pub fn next_prompt(&self) -> u64 {
        self.frontier.next_ordinal
    }

    /// There are no prompts from `ordinal` on; an end that came before it stays.
    pub fn end_of_prompts(&mut self, ordinal: u64) {
        let known = self.frontier.end.unwrap_or(ordinal);
        self.frontier.end = Some(known.min(ordinal));
        self.news.batch = true;
    }
}
