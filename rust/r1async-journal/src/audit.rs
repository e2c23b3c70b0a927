//! The account of a run from its journal alone, added up from what happened to each group and not from the ledger's
//! own books, so that a mistake in those does not hide itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use r1async_core::{Account, DropReason, Event, GroupId, RolloutId};
use serde::Serialize;

use crate::error::JournalError;
use crate::history::History;

/// Completions with one fate, and their tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// Rollouts that had finished.
    pub rollouts: u64,
    /// Their sampled tokens.
    pub tokens: u64,
}

impl Fate {
    fn add(&mut self, tokens: u64) {
        self.rollouts += 1;
        self.tokens += tokens;
    }

    /// Mean length in tokens; `None` of none.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.rollouts > 0).then(|| self.tokens as f64 / self.rollouts as f64)
    }
}

/// A live group as far as it has come.
#[derive(Debug, Default)]
struct LiveGroup {
    rollouts: u64,
    tokens: u64,
    /// Its finished rollouts and their lengths.
    finished: BTreeMap<RolloutId, u64>,
    /// Rollouts and tokens that train, once it is in a batch; the rest by reason.
    bound: Option<Bound>,
}

#[derive(Debug, Clone, Default)]
struct Bound {
    rollouts: Vec<RolloutId>,
    loss_tokens: u64,
    dropped: Vec<(DropReason, u64, u64)>,
}

/// The account of a run.
#[derive(Debug, Default)]
pub struct RunAudit {
    /// Prompts.
    pub prompts: Account,
    /// Rollouts.
    pub rollouts: Account,
    /// Sampled tokens; trained are those that had a loss.
    pub tokens: Account,
    /// Groups that a second commit trained.
    pub trained_twice: u64,
    /// All finished rollouts.
    pub generated: Fate,
    /// Finished rollouts that had a loss in a trained step.
    pub trained: Fate,
    /// Finished rollouts that were dropped, by reason.
    pub dropped: BTreeMap<&'static str, Fate>,
    /// Seconds that the buffer ran.
    pub seconds: f64,
    /// Lives of the buffer.
    pub lives: u64,
    /// Events read.
    pub events: u64,
    /// Bytes at the end that a crash cut.
    pub torn: u64,
    /// What does not add up.
    pub differences: Vec<String>,
    group_size: u64,
    live: BTreeMap<GroupId, LiveGroup>,
    trained_groups: BTreeSet<GroupId>,
}

impl RunAudit {
    /// Reads the events of a run to their end.
    ///
    /// # Errors
    /// There is no journal, or it cannot be read.
    pub fn read(folder: &Path) -> Result<Self, JournalError> {
        let mut history = History::of_events(folder)?;
        let mut audit = Self {
            group_size: history.identity().group_size,
            ..Self::default()
        };
        let mut began = None;
        while let Some(told) = history.next()? {
            audit.lives += u64::from(told.call == "open");
            began.get_or_insert(told.at);
            audit.seconds = told.at;
            for event in &told.trace {
                audit.hear(event);
            }
        }
        (audit.events, audit.torn) = (history.count(), history.torn());
        audit.count_live();
        audit.compare(&history);
        Ok(audit)
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::Admitted {
                group, rollouts, ..
            } => {
                self.prompts.incoming += 1;
                self.rollouts.incoming += rollouts;
                let rollouts = *rollouts;
                let group = self.live.entry(*group).or_default();
                group.rollouts += rollouts;
            }
            Event::Rejected { .. } => {
                self.prompts.incoming += 1;
                self.prompts.dropped[DropReason::Invalid as usize] += 1;
            }
            Event::Tokens { rollout, runs } => {
                let count = runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
                self.tokens.incoming += count;
                self.group_of(*rollout).tokens += count;
            }
            Event::Finished {
                rollout, tokens, ..
            } => {
                self.generated.add(*tokens);
                self.group_of(*rollout).finished.insert(*rollout, *tokens);
            }
            Event::Restarted { rollout, tokens } => {
                self.tokens.dropped[DropReason::Superseded as usize] += tokens;
                self.group_of(*rollout).tokens -= tokens;
            }
            Event::Bound {
                group,
                rollouts,
                dropped,
                ..
            } => {
                let bound = Bound {
                    rollouts: rollouts.iter().map(|it| it.rollout).collect(),
                    loss_tokens: rollouts.iter().map(|it| it.loss_tokens).sum(),
                    dropped: dropped.clone(),
                };
                self.live.entry(*group).or_default().bound = Some(bound);
            }
            Event::Dropped {
                group,
                reason,
                rollouts,
                tokens,
            } => self.drop_group(*group, *reason, *rollouts, *tokens),
            Event::Trained { groups, .. } => groups.iter().for_each(|group| self.train(*group)),
            Event::Leased { .. }
            | Event::Lost { .. }
            | Event::Scoring { .. }
            | Event::Ended { .. }
            | Event::Ready { .. }
            | Event::Stepped { .. }
            | Event::Published { .. } => {}
        }
    }

    fn group_of(&mut self, rollout: RolloutId) -> &mut LiveGroup {
        let group = GroupId(rollout.0 / self.group_size);
        self.live.entry(group).or_default()
    }

    fn drop_group(&mut self, group: GroupId, reason: DropReason, rollouts: u64, tokens: u64) {
        let held = self.live.remove(&group).unwrap_or_default();
        if (held.rollouts, held.tokens) != (rollouts, tokens) {
            self.differences.push(format!(
                "group {group} was dropped with {rollouts} rollouts and {tokens} tokens, but had {} and {}",
                held.rollouts, held.tokens
            ));
        }
        self.prompts.dropped[reason as usize] += 1;
        self.rollouts.dropped[reason as usize] += held.rollouts;
        self.tokens.dropped[reason as usize] += held.tokens;
        for length in held.finished.values() {
            self.dropped.entry(reason.name()).or_default().add(*length);
        }
    }

    fn train(&mut self, group: GroupId) {
        if !self.trained_groups.insert(group) {
            self.trained_twice += 1;
        }
        let held = self.live.remove(&group).unwrap_or_default();
        let Some(bound) = &held.bound else {
            self.differences
                .push(format!("group {group} was trained without a batch"));
            return;
        };
        self.prompts.trained += 1;
        self.rollouts.trained += bound.rollouts.len() as u64;
        self.tokens.trained += bound.loss_tokens;
        let (mut rollouts, mut tokens) = (bound.rollouts.len() as u64, bound.loss_tokens);
        for &(reason, left, masked) in &bound.dropped {
            self.rollouts.dropped[reason as usize] += left;
            self.tokens.dropped[reason as usize] += masked;
            (rollouts, tokens) = (rollouts + left, tokens + masked);
        }
        if (rollouts, tokens) != (held.rollouts, held.tokens) {
            self.differences.push(format!(
                "group {group} was trained with {rollouts} rollouts and {tokens} tokens, but had {} and {}",
                held.rollouts, held.tokens
            ));
        }
        for (rollout, length) in &held.finished {
            if bound.rollouts.contains(rollout) {
                self.trained.add(*length);
            } else {
                self.dropped.entry("left_out").or_default().add(*length);
            }
        }
    }

    fn count_live(&mut self) {
        self.prompts.live = self.live.len() as u64;
        self.rollouts.live = self.live.values().map(|group| group.rollouts).sum();
        self.tokens.live = self.live.values().map(|group| group.tokens).sum();
    }

    /// The ledger's own books, led on the way, must come to the same.
    fn compare(&mut self, history: &History) {
        let Some(ledger) = history.replay().ledger() else {
            return;
        };
        let books = ledger.audit();
        self.differences.extend(books.difference());
        for (name, ours, theirs) in [
            ("prompts", &self.prompts, &books.prompts),
            ("rollouts", &self.rollouts, &books.rollouts),
            ("tokens", &self.tokens, &books.tokens),
        ] {
            if !ours.is_balanced() || ours != theirs {
                self.differences
                    .push(format!("{name}: {ours:?} by the events, {theirs:?} by the ledger"));
            }
        }
        if self.trained_twice > 0 {
            let text = format!("{} groups trained twice", self.trained_twice);
            self.differences.push(text);
        }
    }

    /// Whether in = trained + dropped + live for prompts, rollouts and tokens, and nothing was trained twice.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.differences.is_empty()
    }

    /// Mean length of trained completions over that of generated ones; `None` before any was trained.
    #[must_use]
    pub fn length_ratio(&self) -> Option<f64> {
        Some(self.trained.mean()? / self.generated.mean()?)
    }
}
