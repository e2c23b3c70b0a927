//! Loans of rollouts to generators, and the tokens that come back.

use std::sync::Arc;

use thiserror::Error;

use crate::group::{Finish, Prompt};
use crate::ids::{GroupId, HolderId, LeaseId, PolicyVersion, RolloutId};
use crate::ledger::Ledger;
use crate::settings::Sampling;
use crate::staleness::VersionRun;

/// A rollout lent to a generator.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutLease {
    /// Names this loan in every chunk.
    pub lease: LeaseId,
    /// The rollout; it keys the sampling noise.
    pub rollout: RolloutId,
    /// Its group. Members of one group are next to each other and share `prompt`.
    pub group: GroupId,
    /// What to complete.
    pub prompt: Arc<Prompt>,
    /// How to sample.
    pub sampling: Sampling,
    /// Tokens sampled under an earlier lease, to go on from.
    pub resume: Vec<i32>,
    /// The only version that may sample it; `None` in training.
    pub pin: Option<PolicyVersion>,
}

/// New tokens of one leased rollout.
#[derive(Debug, Clone, Copy)]
pub struct ChunkRef<'a> {
    /// The loan they were sampled under.
    pub lease: LeaseId,
    /// Tokens of the completion before these.
    pub offset: usize,
    /// The tokens.
    pub tokens: &'a [i32],
    /// Log-probability of each, in nats.
    pub logprobs: &'a [f32],
    /// Version of each, run-length-encoded.
    pub runs: &'a [VersionRun],
    /// Set on the last chunk.
    pub finish: Option<Finish>,
}

/// What a generator says it holds after it connected again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// The loan it works under.
    pub lease: LeaseId,
    /// The rollout.
    pub rollout: RolloutId,
    /// Completion tokens it has.
    pub offset: usize,
}

/// The answer to a chunk or an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkAck {
    /// The buffer holds that many tokens of the completion: go on from there.
    Held(usize),
    /// The lease is somebody else's, or its rollout is no longer wanted: abort it.
    Lost,
}

/// A chunk that cannot be. It changes nothing but a counter.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ChunkError {
    /// The columns do not fit together.
    #[error(
        "lease {lease}: {tokens} tokens, {logprobs} logprobs and version runs of {runs} in all; want the same of each"
    )]
    Lengths {
        /// The loan.
        lease: LeaseId,
        /// Tokens sent.
        tokens: usize,
        /// Log-probabilities sent.
        logprobs: usize,
        /// Tokens that the version runs cover.
        runs: u64,
    },
    /// A version run of no tokens.
    #[error("lease {0}: a version run of 0 tokens; want at least 1 in each")]
    EmptyRun(LeaseId),
    /// A token that no vocabulary has.
    #[error("lease {lease}: token {token} at position {position}; want 0 or more")]
    Token {
        /// The loan.
        lease: LeaseId,
        /// The token.
        token: i32,
        /// Its place in the completion.
        position: usize,
    },
    /// A log-probability that is not finite.
    #[error(
        "lease {lease}: behavior logprob {logprob} at position {position}; want a finite number"
    )]
    Logprob {
        /// The loan.
        lease: LeaseId,
        /// The log-probability.
        logprob: f32,
        /// Its place in the completion.
        position: usize,
    },
    /// A version that no learner has made, or another than the pinned one.
    #[error("lease {lease}: tokens of version {got}; want {want}")]
    Version {
        /// The loan.
        lease: LeaseId,
        /// The version named.
        got: PolicyVersion,
        /// What it may be.
        want: String,
    },
    /// More tokens than asked for.
    #[error("lease {lease}: {got} completion tokens; want at most max_tokens = {want}")]
    TooLong {
        /// The loan.
        lease: LeaseId,
        /// Tokens it would have.
        got: usize,
        /// Tokens it may have.
        want: u32,
    },
    /// The end is not where the tokens end.
    #[error(
        "lease {lease}: ends at {end} tokens where {held} are held; a completion has at least 1 token and ends once"
    )]
    End {
        /// The loan.
        lease: LeaseId,
        /// Where it would end.
        end: usize,
        /// What is held.
        held: usize,
    },
}

impl Ledger {
    /// Lends rollouts to a generator that has `installed` and room for `free` of its `capacity`.
    pub fn lease_rollouts(
        &mut self,
        now: f64,
        holder: HolderId,
        installed: PolicyVersion,
        free: usize,
        capacity: usize,
    ) -> Vec<RolloutLease> {
        todo!("{now} {holder} {installed} {free} {capacity}")
    }

    /// Lends rollouts of evaluations to a generator with room for `free` of them; all of one pinned version at a time.
    pub fn lease_evaluation(
        &mut self,
        now: f64,
        holder: HolderId,
        free: usize,
    ) -> Vec<RolloutLease> {
        todo!("{now} {holder} {free}")
    }

    /// Files the tokens of a chunk, if its lease is current; skips what is held already.
    ///
    /// # Errors
    /// The chunk cannot be; nothing has changed but a counter.
    pub fn chunk(
        &mut self,
        now: f64,
        holder: HolderId,
        chunk: ChunkRef<'_>,
    ) -> Result<ChunkAck, ChunkError> {
        todo!("{now} {holder} {chunk:?}")
    }

    /// A lease is handed back unfinished, on purpose: no attempt is counted. `false`: it was not the holder's.
    pub fn release(&mut self, now: f64, holder: HolderId, lease: LeaseId) -> bool {
        todo!("{now} {holder} {lease}")
    }

    /// Everything `holder` has is handed back on purpose (a clean leave).
    pub fn release_all(&mut self, now: f64, holder: HolderId) {
        todo!("{now} {holder}")
    }

    /// `holder` is gone: its leases are lost.
    pub fn holder_lost(&mut self, now: f64, holder: HolderId) {
        todo!("{now} {holder}")
    }

    /// A generator names a lease that it worked under before it connected again.
    pub fn announce(&mut self, now: f64, holder: HolderId, announced: Announcement) -> ChunkAck {
        todo!("{now} {holder} {announced:?}")
    }

    /// Whether a learner can have made `version`. A version counts from the moment its batch was handed
    /// out: weights may reach a generator before the report of the step reaches the buffer.
    pub fn is_known_version(&self, version: PolicyVersion) -> bool {
        todo!("{version}")
    }
}
