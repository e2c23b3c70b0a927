//! The calls of the ledger as they are written down.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::batch::{BatchPart, BoundBatch};
use crate::group::Finish;
use crate::ids::{HolderId, LeaseId, PolicyVersion, Step};
use crate::lease::Announcement;
use crate::scoring::Verdict;
use crate::settings::{Sampling, Settings};
use crate::staleness::VersionRun;

/// One call that changed the ledger. What is bulky is in the payload record that goes with it, in the order of the
/// fields that give its lengths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command<'a> {
    /// A life of the buffer begins: nobody holds anything.
    Open {
        /// What it decides by from now on.
        settings: Box<Settings>,
    },
    /// A peer is known by this number. For people: the ledger knows numbers alone.
    Join {
        /// Its number.
        holder: HolderId,
        /// Its role.
        role: Cow<'a, str>,
        /// Its name.
        name: Cow<'a, str>,
    },
    /// A prompt is admitted. Payload: its tokens, its meta.
    Admit {
        /// Its place in the source.
        ordinal: u64,
        /// Tokens.
        tokens: usize,
        /// Bytes.
        meta: usize,
        /// Where it comes from.
        source: usize,
        /// Who grades its completions.
        pool: usize,
    },
    /// A prompt is refused.
    Reject {
        /// Its place in the source.
        ordinal: u64,
    },
    /// The source ends.
    EndOfPrompts {
        /// Before this place.
        ordinal: u64,
    },
    /// Rollouts are lent.
    LeaseRollouts {
        /// To whom.
        holder: HolderId,
        /// The weights it has.
        installed: PolicyVersion,
        /// Room it has.
        free: usize,
        /// Room it has in all.
        capacity: usize,
    },
    /// Rollouts of evaluations are lent.
    LeaseEvaluation {
        /// To whom.
        holder: HolderId,
        /// Room it has.
        free: usize,
    },
    /// Finished rollouts are lent.
    LeaseScoring {
        /// To whom.
        holder: HolderId,
        /// Of which pool.
        pool: usize,
        /// How many at most.
        max: usize,
    },
    /// Tokens come. Payload: token ids, log-probabilities.
    Chunk {
        /// From whom.
        holder: HolderId,
        /// Under which loan.
        lease: LeaseId,
        /// Tokens of the completion before these.
        offset: usize,
        /// Their versions.
        runs: Cow<'a, [VersionRun]>,
        /// Set on the last chunk.
        finish: Option<Finish>,
    },
    /// A verdict comes.
    Verdict {
        /// From whom.
        holder: HolderId,
        /// Under which loan.
        lease: LeaseId,
        /// What it says.
        verdict: Cow<'a, Verdict>,
    },
    /// A loan is handed back.
    Release {
        /// By whom.
        holder: HolderId,
        /// Which.
        lease: LeaseId,
    },
    /// A peer leaves and hands everything back.
    ReleaseAll {
        /// Which.
        holder: HolderId,
    },
    /// A peer is gone.
    HolderLost {
        /// Which.
        holder: HolderId,
    },
    /// A peer that connected again goes on with a rollout.
    Announce {
        /// Which.
        holder: HolderId,
        /// With what.
        announced: Announcement,
    },
    /// A learner life begins.
    ConnectLearner {
        /// Its number.
        epoch: u64,
        /// Steps in its checkpoint.
        step: u64,
    },
    /// The same learner life connects again.
    ReconnectLearner {
        /// Its number.
        epoch: u64,
    },
    /// The connection to the learner is gone.
    LearnerLost,
    /// An optimizer step is done.
    Stepped {
        /// By which learner life.
        epoch: u64,
        /// Which.
        step: Step,
        /// Effective sample size of its importance weights, as a share.
        ess: Option<f64>,
    },
    /// Weights can be had.
    Published {
        /// Of this version.
        version: PolicyVersion,
        /// Their hash.
        hash: Cow<'a, str>,
    },
    /// A checkpoint is safe.
    Committed {
        /// Of which learner life.
        epoch: u64,
        /// Steps in it.
        step: u64,
    },
    /// A part of a batch is asked for.
    Bind {
        /// Of this step.
        step: Step,
        /// Its number in the batch.
        part: usize,
        /// What was handed out, if it was.
        bound: Option<Bound>,
    },
    /// An evaluation begins. Payload: all prompts' tokens, then all their metas.
    Evaluate {
        /// Its name.
        id: Cow<'a, str>,
        /// The version that samples.
        pin: PolicyVersion,
        /// Completions of each prompt.
        samples: usize,
        /// How they are sampled.
        sampling: Sampling,
        /// By prompt: place, tokens, bytes of meta, pool.
        prompts: Vec<(u64, usize, usize, usize)>,
        /// Number of the first completion, where the evaluator says it.
        #[serde(default)]
        first: Option<u64>,
    },
    /// An evaluation is given up.
    CancelEvaluation {
        /// Its name.
        id: Cow<'a, str>,
    },
    /// Evaluated groups are delivered.
    TakeEvaluated,
    /// Deadlines pass.
    Tick,
}

/// A part of a batch as it was handed out, to see whether a replay binds the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Groups in it.
    pub groups: usize,
    /// Whether the batch is whole with it.
    pub last: bool,
    /// CRC-32 of who is in it, what was masked, versions, rewards and advantages.
    pub members: u32,
    /// CRC-32 of prompts, tokens and log-probabilities.
    pub content: u32,
}

impl Bound {
    /// What a part of `batch` looks like.
    #[must_use]
    pub fn of(batch: &BoundBatch, part: &BatchPart) -> Self {
        let (mut members, mut content) = (crc32fast::Hasher::new(), crc32fast::Hasher::new());
        for group in batch.groups_of(part) {
            number(&mut members, group.group.0);
            content.update(bytemuck::cast_slice(&group.prompt.tokens));
            for rollout in &group.rollouts {
                number(&mut members, rollout.rollout.0);
                number(&mut members, rollout.advantage.to_bits());
                number(&mut members, rollout.score.total.to_bits());
                for (run, over_age) in rollout.runs.iter().zip(&rollout.over_age) {
                    number(&mut members, run.version.epoch);
                    number(&mut members, run.version.number);
                    number(
                        &mut members,
                        u64::from(run.count) << 1 | u64::from(*over_age),
                    );
                }
                content.update(bytemuck::cast_slice(&rollout.tokens));
                content.update(bytemuck::cast_slice(&rollout.logprobs));
            }
        }
        Self {
            groups: part.groups.len(),
            last: part.last,
            members: members.finalize(),
            content: content.finalize(),
        }
    }

    /// Whether the same rollouts train in the same way, whatever their tokens.
    #[must_use]
    pub fn same_members(&self, other: &Bound) -> bool {
        (self.groups, self.last, self.members) == (other.groups, other.last, other.members)
    }
}

fn number(hasher: &mut crc32fast::Hasher, number: u64) {
    hasher.update(&number.to_le_bytes());
}
