//! What the run waits for, in words.

use std::fmt;

use crate::ids::{GroupId, Step};
use crate::ledger::Ledger;

/// Why a batch is not there yet.
#[derive(Debug, Clone, PartialEq)]
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
            WaitReason::Hold {
                step,
                rollouts,
                groups,
                tokens,
                seconds,
            } => {
                let names: Vec<String> = groups.iter().map(ToString::to_string).collect();
                let names = names.join(", ");
                write!(
                    f,
                    "hold: step {step} waits for {rollouts} rollouts of groups {names} ({tokens} tokens dying), {seconds:.1} s"
                )
            }
        }
    }
}

impl Ledger {
    /// Everything the run waits for now, each by name; empty if nothing.
    #[must_use]
    pub fn waits(&self, now: f64) -> Vec<String> {
        todo!("{now}")
    }
}
