//! What the learner reports: its life, its steps, its publications, its checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{PolicyVersion, Step};
use crate::ledger::Ledger;
use crate::trace::Event;

/// A report that cannot be. It changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LearnerError {
    /// Of a learner life that has ended, or that never connected.
    #[error("epoch {got}; want {want}, the highest seen is {seen}")]
    Epoch {
        /// The epoch named.
        got: u64,
        /// The highest seen.
        seen: u64,
        /// What it would have to be.
        want: String,
    },
    /// The learner's checkpoint is older than what the ledger has let go of.
    #[error(
        "the learner's checkpoint holds {got} steps, but the groups of {committed} steps are trained and gone; start it from a checkpoint of {committed} steps or more, or the whole run from the older one"
    )]
    CheckpointTooOld {
        /// Steps in the learner's checkpoint.
        got: u64,
        /// Steps that are trained.
        committed: u64,
    },
    /// The learner's checkpoint holds steps that the ledger never handed out.
    #[error(
        "the learner's checkpoint holds {got} steps, but only {known} were handed out; start it from an older checkpoint or the buffer from a newer one"
    )]
    CheckpointTooNew {
        /// Steps in the learner's checkpoint.
        got: u64,
        /// Steps handed out.
        known: u64,
    },
    /// A step whose batch was not handed out, a version or checkpoint beyond the steps reported.
    #[error("{what} {got}; want {want}")]
    OutOfOrder {
        /// What was reported.
        what: &'static str,
        /// Its number.
        got: u64,
        /// What the number may be.
        want: String,
    },
    /// The ledger has a bug: the accounts do not balance.
    #[error("the accounts do not balance: {0}")]
    Unbalanced(String),
}

/// Where the learner is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Learner {
    /// The learner life that counts: the highest seen.
    pub(crate) epoch: Option<u64>,
    pub(crate) connected: bool,
    /// Optimizer steps reported in this life, those of its checkpoint included.
    pub(crate) stepped: u64,
    /// Steps whose groups are trained.
    pub(crate) committed: u64,
    published: Option<(PolicyVersion, String)>,
    /// The newest version of each learner life that has ended: its tokens may still be on their way.
    ended: BTreeMap<u64, u64>,
}

impl Ledger {
    /// A learner connects: its life's number, above any seen, and the steps in its newest checkpoint.
    /// Everything through those steps is trained; later batches are handed out again as they were.
    ///
    /// # Errors
    /// The epoch is not above all seen, or the checkpoint is not one that this ledger can go on from.
    pub fn connect_learner(&mut self, epoch: u64, step: u64) -> Result<(), LearnerError> {
        if let Some(seen) = self.learner.epoch.filter(|&seen| epoch <= seen) {
            return Err(LearnerError::Epoch {
                got: epoch,
                seen,
                want: format!("{} or more", seen + 1),
            });
        }
        let (committed, known) = (self.learner.committed, self.next_bind());
        if step < committed {
            return Err(LearnerError::CheckpointTooOld {
                got: step,
                committed,
            });
        }
        if step > known {
            return Err(LearnerError::CheckpointTooNew { got: step, known });
        }
        if let Some((last, newest)) = self
            .learner
            .epoch
            .and_then(|last| Some((last, self.newest_version(last)?)))
        {
            self.learner.ended.insert(last, newest);
        }
        self.train_below(step);
        for batch in &mut self.batches {
            batch.handed_out = false;
        }
        self.forget_hold();
        self.pace.restart();
        self.learner.epoch = Some(epoch);
        self.learner.connected = true;
        self.learner.stepped = step;
        self.learner.published = None;
        self.news.rollouts = true;
        self.check_balance()
    }

    /// The same learner life connects again: nothing has changed for it.
    ///
    /// # Errors
    /// Another epoch than the one that counts.
    pub fn reconnect_learner(&mut self, epoch: u64) -> Result<(), LearnerError> {
        self.check_epoch(epoch)?;
        self.learner.connected = true;
        Ok(())
    }

    /// The number of the newest version that `epoch` can have made. A version counts from the moment its
    /// batch was handed out: weights may reach a generator before the report of the step reaches the buffer.
    fn newest_version(&self, epoch: u64) -> Option<u64> {
        if self.learner.epoch == Some(epoch) {
            return Some(self.learner.stepped + u64::from(self.next_is_handed_out()));
        }
        self.learner.ended.get(&epoch).copied()
    }

    /// Whether a learner can have made `version`, in this life or one that has ended.
    #[must_use]
    pub fn is_known_version(&self, version: PolicyVersion) -> bool {
        self.newest_version(version.epoch)
            .is_some_and(|newest| version.number <= newest)
    }

    fn next_is_handed_out(&self) -> bool {
        let next = (self.learner.stepped - self.learner.committed) as usize;
        self.batches.get(next).is_some_and(|batch| batch.handed_out)
    }

    /// The connection to the learner is gone; its life goes on if it connects as before.
    pub fn learner_lost(&mut self) {
        self.learner.connected = false;
        self.forget_hold();
    }

    fn check_epoch(&self, got: u64) -> Result<(), LearnerError> {
        match self.learner.epoch {
            Some(seen) if seen == got => Ok(()),
            Some(seen) => Err(LearnerError::Epoch {
                got,
                seen,
                want: seen.to_string(),
            }),
            None => Err(LearnerError::Epoch {
                got,
                seen: 0,
                want: "a learner that connected".to_owned(),
            }),
        }
    }

    /// The optimizer step `step` is done. Said twice, it counts once.
    ///
    /// # Errors
    /// Another epoch, or a step whose batch was not handed out.
    pub fn stepped(&mut self, epoch: u64, step: Step) -> Result<(), LearnerError> {
        self.stepped_with(epoch, step, None)
    }

    /// The same, with the effective sample size of the step's importance weights, as a share of its tokens.
    ///
    /// # Errors
    /// As [`Ledger::stepped`].
    pub fn stepped_with(
        &mut self,
        epoch: u64,
        step: Step,
        ess: Option<f64>,
    ) -> Result<(), LearnerError> {
        self.check_epoch(epoch)?;
        if step.0 < self.learner.stepped {
            return Ok(());
        }
        let next = self.learner.stepped;
        if step.0 > next || !self.next_is_handed_out() {
            let want = format!("{next}, once its batch was handed out");
            return Err(LearnerError::OutOfOrder {
                what: "step",
                got: step.0,
                want,
            });
        }
        self.learner.stepped += 1;
        self.tell(|| Event::Stepped { step });
        self.pace.reported(ess);
        self.news.rollouts = true;
        self.news.batch = true;
        Ok(())
    }

    /// The weights of `version` can be had by generators.
    ///
    /// # Errors
    /// Another epoch, or a version beyond the steps reported.
    pub fn published(&mut self, version: PolicyVersion, hash: &str) -> Result<(), LearnerError> {
        self.check_epoch(version.epoch)?;
        let lowest = self
            .learner
            .published
            .as_ref()
            .map_or(0, |(last, _)| last.number);
        let known = self.learner.stepped;
        if !(lowest..=known).contains(&version.number) {
            let want = format!("{lowest} to {known}, the steps reported");
            return Err(LearnerError::OutOfOrder {
                what: "version",
                got: version.number,
                want,
            });
        }
        self.learner.published = Some((version, hash.to_owned()));
        self.tell(|| Event::Published { version });
        self.news.rollouts = true;
        Ok(())
    }

    /// A checkpoint with `step` steps is safe: their groups are trained. Said twice, it counts once.
    ///
    /// # Errors
    /// Another epoch, a checkpoint beyond the steps reported, or accounts that do not balance.
    pub fn committed(&mut self, epoch: u64, step: u64) -> Result<(), LearnerError> {
        self.check_epoch(epoch)?;
        let stepped = self.learner.stepped;
        if step > stepped {
            let want = format!("at most {stepped}, the steps reported");
            return Err(LearnerError::OutOfOrder {
                what: "checkpoint of step",
                got: step,
                want,
            });
        }
        self.train_below(step);
        self.check_balance()
    }

    /// The groups of all steps below `step` are trained.
    fn train_below(&mut self, step: u64) {
        while self.learner.committed < step {
            let Some(batch) = self.batches.pop_front() else {
                return;
            };
            self.learner.committed += 1;
            self.books.train(&batch);
            self.keep_places(&batch.bound);
            self.figures.add(&batch.figures);
            self.tell(|| Event::Trained {
                step: batch.bound.step,
                groups: batch.bound.groups.iter().map(|group| group.group).collect(),
            });
        }
    }

    fn check_balance(&self) -> Result<(), LearnerError> {
        self.audit().difference().map_or(Ok(()), |difference| {
            Err(LearnerError::Unbalanced(difference))
        })
    }

    /// The learner life that counts, once one has connected.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        self.learner.epoch
    }

    /// Optimizer steps reported by the learner life that counts.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.learner.stepped
    }

    /// The version last published and its hash, once the learner life that counts has published one.
    #[must_use]
    pub fn published_version(&self) -> Option<(PolicyVersion, &str)> {
        self.learner
            .published
            .as_ref()
            .map(|(version, hash)| (*version, hash.as_str()))
    }

    /// Steps whose groups are trained.
    #[must_use]
    pub fn committed_steps(&self) -> u64 {
        self.learner.committed
    }

    /// Whether nothing is left to train: all steps are done, or all prompts.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let all_steps = self.learner.stepped >= self.settings.steps;
        let nothing_held = self.queued.is_empty()
            && self.open.is_empty()
            && self.ready.len() == 0
            && self.late.is_empty()
            && self.filling.is_none();
        let nothing_bound = self.learner.stepped == self.next_bind();
        all_steps || (self.prompts_used_up() && nothing_held && nothing_bound)
    }
}
