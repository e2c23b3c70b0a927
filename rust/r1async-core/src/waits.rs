//! What the run waits for, in words.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, Step};
use crate::ledger::Ledger;
use crate::sources::MAIN;

/// Why a batch is not there yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WaitReason {
    /// Too few groups are ready.
    Groups {
        /// The step.
        step: Step,
        /// Groups that are ready.
        ready: usize,
        /// Groups that are wanted.
        want: usize,
        /// Groups that are open.
        open: usize,
    },
    /// All prompts are used up, and the last batch waits for late members: nothing else is left to train.
    Late {
        /// The step.
        step: Step,
        /// Late members that are not scored yet.
        rollouts: usize,
        /// Their groups, at most eight of them.
        groups: Vec<GroupId>,
    },
    /// Enough are ready, but binding now would let too many tokens of unfinished rollouts die of age.
    Hold {
        /// The step.
        step: Step,
        /// Unfinished rollouts with tokens at their last chance.
        rollouts: usize,
        /// Their groups, at most eight of them.
        groups: Vec<GroupId>,
        /// Tokens that would die.
        tokens: u64,
        /// Seconds held so far.
        seconds: f64,
    },
}

impl WaitReason {
    /// The same wait, so many seconds after it began.
    pub(crate) fn after(&self, elapsed_s: f64) -> Self {
        let mut later = self.clone();
        if let WaitReason::Hold { seconds, .. } = &mut later {
            *seconds = elapsed_s;
        }
        later
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitReason::Groups {
                step,
                ready,
                want,
                open,
            } => {
                write!(
                    f,
                    "groups: {ready} of {want} ready for step {step}, {open} open"
                )
            }
            WaitReason::Late {
                step,
                rollouts,
                groups,
            } => {
                let names = names(groups);
                write!(
                    f,
                    "late: step {step}, the last, waits for {rollouts} rollouts of groups {names}"
                )
            }
            WaitReason::Hold {
                step,
                rollouts,
                groups,
                tokens,
                seconds,
            } => {
                let names = names(groups);
                write!(
                    f,
                    "hold: step {step} waits for {rollouts} rollouts of groups {names} ({tokens} tokens dying), {seconds:.1} s"
                )
            }
        }
    }
}

fn names(groups: &[GroupId]) -> String {
    let names: Vec<String> = groups.iter().map(ToString::to_string).collect();
    names.join(", ")
}

impl Ledger {
    /// Everything the run waits for now, each by name; empty if nothing.
    ///
    /// ```
    /// use r1async_core::{Ledger, Settings};
    /// let ledger = Ledger::new(Settings::default())?;
    /// assert_eq!(ledger.waits(0.0), ["learner: none has connected", "prompts: 48 wanted"]);
    /// # Ok::<(), r1async_core::SettingsError>(())
    /// ```
    #[must_use]
    pub fn waits(&self, now: f64) -> Vec<String> {
        if self.is_finished() {
            return self.evaluation_waits();
        }
        let mut waits: Vec<String> = self.learner_wait(now).into_iter().collect();
        waits.extend(self.admission_waits());
        let wanted = self.wanted_prompts().len();
        if wanted > 0 {
            waits.push(format!("prompts: {wanted} wanted"));
        }
        if !self.waiting.is_empty() {
            waits.push(format!(
                "generator: {} rollouts of open groups wait for one",
                self.waiting.len()
            ));
        }
        if !self.unscored.is_empty() {
            waits.push(format!(
                "scorer: {} finished rollouts wait for one",
                self.unscored.len()
            ));
        }
        waits.extend(self.evaluation_waits());
        waits
    }

    /// What the learner waits for, or the run for the learner.
    fn learner_wait(&self, now: f64) -> Option<String> {
        match (self.learner.epoch, self.learner.connected) {
            (None, _) => return Some("learner: none has connected".to_owned()),
            (Some(epoch), false) => {
                return Some(format!("learner: the one of epoch {epoch} is gone"));
            }
            (Some(epoch), true) if self.published_version().is_none() => {
                return Some(format!(
                    "weights: the learner of epoch {epoch} has published none"
                ));
            }
            _ => {}
        }
        let stepped = self.learner.stepped;
        if stepped < self.next_bind() {
            return Some(format!("learner trains step {stepped}"));
        }
        self.peek_wait(now).map(|reason| reason.to_string())
    }

    /// Why no group is opened.
    fn admission_waits(&self) -> Vec<String> {
        let Some((published, _)) = self.published_version() else {
            return Vec::new();
        };
        let full = |source: usize| {
            let (places, limit, of) = if source == MAIN {
                (
                    self.places(published.number),
                    self.place_limit(),
                    String::new(),
                )
            } else {
                let places = self.window_places(source, published.number);
                let of = format!(" in the window of {:?}", self.settings.source_name(source));
                (places, self.settings.window_limit(source), of)
            };
            let text =
                format!("places: {places} of {limit} taken{of}, seen from version {published}");
            (places >= limit && self.queued.len_of(source) > 0).then_some(text)
        };
        (0..self.settings.sources()).filter_map(full).collect()
    }

    fn evaluation_waits(&self) -> Vec<String> {
        let progress = self.evaluations.progress();
        progress
            .map(|(name, pin, done, of)| {
                format!("evaluation: {name} of version {pin}, {done} of {of} prompts")
            })
            .collect()
    }
}
