//! A group and its rollouts: what is known of them, and in which state they are.

use crate::ids::PolicyVersion;

/// One question as the ledger holds it: tokens for the generator, an opaque description for the scorer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its place in the seeded order of the source (evaluation: its place in the request).
    pub ordinal: u64,
    /// The prompt's tokens.
    pub tokens: Vec<i32>,
    /// What a grader needs to know; the ledger does not look inside.
    pub meta: Vec<u8>,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By a stop token, which is its last token.
    Stop,
    /// Cut at `max_tokens` or at the engine's limit.
    Length,
}

impl Finish {
    /// The reason's name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// A finite reward.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// What the advantage is made of.
    pub total: f64,
    /// Its named parts.
    pub parts: Vec<(String, f64)>,
    /// What the grader says about it.
    pub status: String,
}

/// What became of a rollout: a score, or the reason why there is none.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Scored.
    Score(Score),
    /// Without a score, for the reason named: unknown is not zero.
    Abstain(String),
}

#[allow(dead_code)]
type Version = PolicyVersion;
