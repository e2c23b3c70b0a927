//! Evaluation: groups pinned to one policy version, outside pacing and outside the training accounts.

use thiserror::Error;

use crate::group::{Finish, Outcome, Prompt};
use crate::ids::PolicyVersion;
use crate::ledger::Ledger;
use crate::settings::Sampling;

/// What an evaluator asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationRequest {
    /// The evaluator's own name for it; unique among those that run.
    pub id: String,
    /// The version that samples everything.
    pub pin: PolicyVersion,
    /// Completions of each prompt.
    pub samples: usize,
    /// How to sample.
    pub sampling: Sampling,
    /// The prompts; `ordinal` is the place in the request.
    pub prompts: Vec<Prompt>,
}

/// An evaluation that cannot run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvaluateError {
    /// One of that name runs already.
    #[error("evaluation {0:?} runs already; choose another id or cancel it first")]
    Exists(String),
    /// No prompts or no samples.
    #[error(
        "evaluation {id:?} of {prompts} prompts and {samples} samples; want at least 1 of each"
    )]
    Empty {
        /// Its name.
        id: String,
        /// Prompts asked for.
        prompts: usize,
        /// Samples asked for.
        samples: usize,
    },
    /// A version that no learner has made.
    #[error("evaluation {id:?} is pinned to version {pin}, which no learner has made")]
    Version {
        /// Its name.
        id: String,
        /// The version.
        pin: PolicyVersion,
    },
}

/// One completion of an evaluated prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatedMember {
    /// Score or abstention.
    pub outcome: Outcome,
    /// Why the completion ended; `None` if it never did.
    pub finish: Option<Finish>,
    /// The completion's tokens.
    pub tokens: Vec<i32>,
}

/// One evaluated prompt, with all its completions.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatedGroup {
    /// The evaluation.
    pub id: String,
    /// The version that sampled it.
    pub pin: PolicyVersion,
    /// The prompt's place in the request.
    pub prompt_index: usize,
    /// Its completions, in order.
    pub members: Vec<EvaluatedMember>,
    /// Prompts of this evaluation evaluated so far, this one included.
    pub done: usize,
    /// Prompts of this evaluation.
    pub of: usize,
}

impl Ledger {
    /// Starts an evaluation; answers the number of its groups.
    ///
    /// # Errors
    /// The request cannot run; nothing has changed.
    pub fn evaluate(&mut self, request: EvaluationRequest) -> Result<usize, EvaluateError> {
        todo!("{request:?}")
    }

    /// Gives an evaluation up; its unfinished groups are dropped `cancelled`. `false`: there is none of that name.
    pub fn cancel_evaluation(&mut self, id: &str) -> bool {
        todo!("{id}")
    }

    /// Groups evaluated since the last call, in the order in which they closed.
    pub fn take_evaluated(&mut self) -> Vec<EvaluatedGroup> {
        todo!()
    }
}
