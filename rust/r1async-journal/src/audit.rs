//! The account of a run from its journal alone, added up from what happened to each group and not from the ledger's
//! own books, so that a mistake in those does not hide itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use r1async_core::{Account, DropReason, Event, GroupId, RolloutId, Step};
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

/// A rollout that is not accounted for.
#[derive(Debug, Clone, Copy, Default)]
struct Live {
    tokens: u64,
    finished: bool,
}

/// What a step accounts for when it is trained.
#[derive(Debug)]
enum Item {
    Group(GroupId),
    Taken {
        rollout: RolloutId,
        tokens: u64,
        loss_tokens: u64,
    },
    LeftOut {
        rollout: RolloutId,
        reason: DropReason,
        tokens: u64,
    },
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
    groups: BTreeSet<GroupId>,
    live: BTreeMap<RolloutId, Live>,
    bound: BTreeMap<u64, Vec<Item>>,
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
                self.groups.insert(*group);
                let first = group.0 * self.group_size;
                for rollout in first..first + rollouts {
                    self.live.insert(RolloutId(rollout), Live::default());
                }
            }
            Event::Rejected { reason, .. } => {
                self.prompts.incoming += 1;
                self.prompts.dropped[*reason as usize] += 1;
            }
            Event::Tokens { rollout, runs } => {
                let count = runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
                self.tokens.incoming += count;
                self.live.entry(*rollout).or_default().tokens += count;
            }
            Event::Finished { rollout, .. } => {
                let held = self.live.entry(*rollout).or_default();
                held.finished = true;
                self.generated.add(held.tokens);
            }
            Event::Restarted { rollout, tokens } => {
                self.tokens.dropped[DropReason::Superseded as usize] += tokens;
                self.live.entry(*rollout).or_default().tokens -= tokens;
            }
            Event::Bound { group, step, .. } => self.hold(*step, Item::Group(*group)),
            Event::Taken {
                rollout,
                step,
                tokens,
                loss_tokens,
                ..
            } => {
                let (rollout, tokens, loss_tokens) = (*rollout, *tokens, *loss_tokens);
                let item = Item::Taken {
                    rollout,
                    tokens,
                    loss_tokens,
                };
                self.hold(*step, item);
            }
            Event::LeftOut {
                rollout,
                step,
                reason,
                tokens,
            } => match step {
                Some(step) => {
                    let (rollout, reason, tokens) = (*rollout, *reason, *tokens);
                    let item = Item::LeftOut {
                        rollout,
                        reason,
                        tokens,
                    };
                    self.hold(*step, item);
                }
                None => self.drop_rollout(*rollout, *reason, Some(*tokens)),
            },
            Event::Dropped {
                group,
                reason,
                rollouts,
                tokens,
            } => self.drop_group(*group, *reason, *rollouts, *tokens),
            Event::Trained { step, .. } => self.train(*step),
            Event::Leased { .. }
            | Event::Lost { .. }
            | Event::Scoring { .. }
            | Event::Ended { .. }
            | Event::Ready { .. }
            | Event::Stepped { .. }
            | Event::Published { .. } => {}
        }
    }

    fn hold(&mut self, step: Step, item: Item) {
        self.bound.entry(step.0).or_default().push(item);
    }

    fn train(&mut self, step: Step) {
        for item in self.bound.remove(&step.0).unwrap_or_default() {
            match item {
                Item::Group(group) => {
                    if !self.trained_groups.insert(group) {
                        self.trained_twice += 1;
                    }
                    self.prompts.trained += 1;
                    self.groups.remove(&group);
                }
                Item::Taken {
                    rollout,
                    tokens,
                    loss_tokens,
                } => {
                    let held = self.account(rollout, Some(tokens));
                    self.rollouts.trained += 1;
                    self.tokens.trained += loss_tokens;
                    self.tokens.dropped[DropReason::Stale as usize] += held.tokens - loss_tokens;
                    self.trained.add(held.tokens);
                }
                Item::LeftOut {
                    rollout,
                    reason,
                    tokens,
                } => self.drop_rollout(rollout, reason, Some(tokens)),
            }
        }
    }

    /// A rollout leaves what is live, once; `tokens`: what the ledger says it had.
    fn account(&mut self, rollout: RolloutId, tokens: Option<u64>) -> Live {
        let Some(held) = self.live.remove(&rollout) else {
            self.differences
                .push(format!("rollout {rollout} ended twice, or was never there"));
            return Live::default();
        };
        if let Some(tokens) = tokens.filter(|tokens| *tokens != held.tokens) {
            self.differences.push(format!(
                "rollout {rollout} ended with {tokens} tokens, {} had been received",
                held.tokens
            ));
        }
        held
    }

    fn drop_rollout(&mut self, rollout: RolloutId, reason: DropReason, tokens: Option<u64>) {
        let held = self.account(rollout, tokens);
        self.rollouts.dropped[reason as usize] += 1;
        self.tokens.dropped[reason as usize] += held.tokens;
        if held.finished {
            self.dropped
                .entry(reason.name())
                .or_default()
                .add(held.tokens);
        }
    }

    fn drop_group(&mut self, group: GroupId, reason: DropReason, rollouts: u64, tokens: u64) {
        let first = group.0 * self.group_size;
        let before = self.tokens.dropped[reason as usize];
        for rollout in first..first + rollouts {
            self.drop_rollout(RolloutId(rollout), reason, None);
        }
        let dropped = self.tokens.dropped[reason as usize] - before;
        if dropped != tokens {
            self.differences.push(format!(
                "group {group} was dropped with {tokens} tokens, {dropped} had been received"
            ));
        }
        self.prompts.dropped[reason as usize] += 1;
        if !self.groups.remove(&group) {
            self.differences
                .push(format!("group {group} ended twice, or was never there"));
        }
    }

    fn count_live(&mut self) {
        self.prompts.live = self.groups.len() as u64;
        self.rollouts.live = self.live.len() as u64;
        self.tokens.live = self.live.values().map(|held| held.tokens).sum();
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
                self.differences.push(format!(
                    "{name}: {ours:?} by the events, {theirs:?} by the ledger"
                ));
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
