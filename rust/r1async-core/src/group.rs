//! A group and its rollouts: what is known of them, and in which state they are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::DropReason;
use crate::ids::{GroupId, LeaseId, Member, RolloutId};
use crate::ready::ReadyKey;
use crate::settings::{OverAge, Settings};
use crate::sources::MAIN;
use crate::staleness::VersionRuns;
use crate::statistics::{GroupStatistics, advantages, group_statistics};

/// One question as the ledger holds it: tokens for the generator, an opaque description for the scorer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Its place in the seeded order of the source (evaluation: its place in the request).
    pub ordinal: u64,
    /// The prompt's tokens.
    #[serde(with = "crate::columns")]
    pub tokens: Vec<i32>,
    /// What a grader needs to know; the ledger does not look inside.
    #[serde(with = "crate::columns")]
    pub meta: Vec<u8>,
    /// Who grades its completions: 0 for the first pool, p for `Settings::slow_pools[p - 1]`.
    pub pool: usize,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// What the advantage is made of.
    pub total: f64,
    /// Its named parts.
    pub parts: Vec<(String, f64)>,
    /// What the grader says about it.
    pub status: String,
}

/// What became of a rollout: a score, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Scored.
    Score(Score),
    /// Without a score, for the reason named: unknown is not zero.
    Abstain(String),
}

/// How a rollout ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ended {
    Scored(Score),
    /// Without a score: why, and under which reason its tokens are counted if its group trains.
    Abstained(String, DropReason),
}

impl Ended {
    pub(crate) fn abstained(status: &str) -> Self {
        Ended::Abstained(status.to_owned(), DropReason::Abstained)
    }

    pub(crate) fn past_deadline() -> Self {
        Ended::Abstained("deadline".to_owned(), DropReason::Deadline)
    }

    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Ended::Scored(score) => Outcome::Score(score.clone()),
            Ended::Abstained(status, _) => Outcome::Abstain(status.clone()),
        }
    }

    pub(crate) fn truncated() -> Self {
        Ended::Abstained("truncated".to_owned(), DropReason::Truncated)
    }
}

/// Where a rollout is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum State {
    /// Waits for a generator.
    Waiting,
    /// Lent to a generator.
    Generating(LeaseId),
    /// Finished; waits for a scorer, at this place of the line.
    Unscored(u64),
    /// Lent to a scorer; its place in the line, should the scorer be lost.
    Scoring(LeaseId, u64),
    /// Scored or abstained.
    Ended(Ended),
}

/// A rollout of a group that is in no batch yet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Rollout {
    pub(crate) state: State,
    #[serde(with = "crate::columns")]
    pub(crate) tokens: Vec<i32>,
    #[serde(with = "crate::columns")]
    pub(crate) logprobs: Vec<f32>,
    pub(crate) runs: VersionRuns,
    pub(crate) finish: Option<Finish>,
    /// The generator's lease held last: current, lost, or the one it was finished under.
    pub(crate) last_lease: Option<LeaseId>,
    /// Generator leases lost.
    pub(crate) attempts: u32,
    /// Its last lease is one of them.
    pub(crate) lost_last: bool,
    /// Scorer leases lost.
    pub(crate) score_attempts: u32,
    /// When its timer fires, while one is set.
    pub(crate) deadline: Option<f64>,
}

impl Rollout {
    fn new() -> Self {
        Self {
            state: State::Waiting,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            runs: VersionRuns::default(),
            finish: None,
            last_lease: None,
            attempts: 0,
            lost_last: false,
            score_attempts: 0,
            deadline: None,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Whether its tokens may still train: it has not abstained.
    pub(crate) fn may_train(&self) -> bool {
        !matches!(self.state, State::Ended(Ended::Abstained(..)))
    }

    pub(crate) fn score(&self) -> Option<&Score> {
        match &self.state {
            State::Ended(Ended::Scored(score)) => Some(score),
            _ => None,
        }
    }

    /// Its tokens with what is known of them; its state stays, without them.
    pub(crate) fn take_tokens(&mut self) -> Rollout {
        Rollout {
            state: self.state.clone(),
            tokens: std::mem::take(&mut self.tokens),
            logprobs: std::mem::take(&mut self.logprobs),
            runs: std::mem::take(&mut self.runs),
            finish: self.finish,
            ..Rollout::new()
        }
    }

    /// Forgets its tokens, to be sampled from the start; answers how many there were.
    pub(crate) fn restart(&mut self) -> u64 {
        let tokens = self.tokens.len() as u64;
        self.tokens.clear();
        self.logprobs.clear();
        self.runs.clear();
        tokens
    }
}

/// What a group is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// Training; how often its prompt returns if age drops it.
    Training { retries: u32 },
    /// The evaluation of this name.
    Evaluation(Arc<str>),
}

/// What is final about a training group once it closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Closed {
    pub(crate) statistics: GroupStatistics,
    /// By member; abstained members have none.
    pub(crate) advantages: Vec<Option<f64>>,
    pub(crate) key: ReadyKey,
    /// The step that was bound next when the group closed: what aged since aged in the queue.
    pub(crate) at: u64,
}

/// A group that is in no batch yet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) first_rollout: u64,
    pub(crate) purpose: Purpose,
    pub(crate) prompt: Arc<Prompt>,
    pub(crate) members: Vec<Rollout>,
    /// Members that have ended.
    ended: usize,
    /// Generators that fell while they worked on it.
    pub(crate) died: u32,
    /// When its timer fires, while one is set.
    pub(crate) deadline: Option<f64>,
    pub(crate) closed: Option<Closed>,
    /// Its prompt's source (`Settings::windows`).
    pub(crate) source: usize,
    /// Its place among the open groups that could close early.
    pub(crate) ripe: Option<ReadyKey>,
    /// The step that trained the members scored by then, if the group closed early: the others are late.
    pub(crate) closed_early: Option<u64>,
}

impl Group {
    pub(crate) fn new(
        id: GroupId,
        first_rollout: u64,
        size: usize,
        prompt: Arc<Prompt>,
        purpose: Purpose,
    ) -> Self {
        let members = std::iter::repeat_with(Rollout::new).take(size).collect();
        Self {
            id,
            first_rollout,
            purpose,
            prompt,
            members,
            ended: 0,
            died: 0,
            deadline: None,
            closed: None,
            source: MAIN,
            ripe: None,
            closed_early: None,
        }
    }

    pub(crate) fn rollout_id(&self, index: usize) -> RolloutId {
        RolloutId(self.first_rollout + index as u64)
    }

    pub(crate) fn member(&self, index: usize) -> Member {
        Member {
            group: self.id,
            index,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended == self.members.len()
    }

    /// Members without an outcome.
    pub(crate) fn unfinished(&self) -> usize {
        self.members.len() - self.ended
    }

    /// Whether the age of its tokens counts for the hold and its budget: those of the main sources.
    pub(crate) fn counts_age(&self) -> bool {
        matches!(self.purpose, Purpose::Training { .. }) && self.source == MAIN
    }

    /// A member has its outcome, which is final.
    pub(crate) fn end_member(&mut self, index: usize, ended: Ended) {
        let rollout = &mut self.members[index];
        self.ended += usize::from(!rollout.has_ended());
        rollout.state = State::Ended(ended);
    }

    /// Sampled tokens held.
    pub(crate) fn tokens(&self) -> u64 {
        self.members
            .iter()
            .map(|rollout| rollout.tokens.len() as u64)
            .sum()
    }

    /// Where the group stands among those that could close early: by the oldest token of any member that
    /// may train; `None` if too few are scored, or their rewards agree.
    pub(crate) fn ripeness(&self, settings: &Settings) -> Option<ReadyKey> {
        if self.ended < settings.min_group_size {
            return None; // Asked after every verdict: most groups need no look at their members.
        }
        let (mut scored, mut low, mut high) = (0, f64::INFINITY, f64::NEG_INFINITY);
        let mut useful_to = None;
        for rollout in &self.members {
            if let Some(score) = rollout.score() {
                scored += 1;
                (low, high) = (low.min(score.total), high.max(score.total));
                useful_to = useful_to.max(rollout.runs.newest());
            }
        }
        if scored < settings.min_group_size || low >= high {
            return None;
        }
        let may_train = self.members.iter().filter(|rollout| rollout.may_train());
        Some(ReadyKey {
            oldest: may_train
                .filter_map(|rollout| rollout.runs.lowest())
                .min()?,
            useful_to: useful_to?,
            bound: settings.bound_of(self.source),
        })
    }

    /// Statistics, advantages and age over the members scored so far; `None` if fewer than wanted are.
    /// `at` is the step that is bound next.
    pub(crate) fn summarise(&self, settings: &Settings, at: u64) -> Option<Closed> {
        let scored: Vec<&Rollout> = self
            .members
            .iter()
            .filter(|rollout| rollout.score().is_some())
            .collect();
        let rewards: Vec<f64> = scored
            .iter()
            .filter_map(|rollout| rollout.score())
            .map(|score| score.total)
            .collect();
        if rewards.len() < settings.min_group_size {
            return None;
        }
        let statistics = group_statistics(&rewards, settings.std, settings.pass_mark)?;
        let mut relative =
            advantages(&rewards, settings.baseline, settings.std, settings.eps).into_iter();
        let versions = || scored.iter().map(|rollout| &rollout.runs);
        let oldest = versions().filter_map(VersionRuns::lowest).min()?;
        let newest = versions().filter_map(VersionRuns::newest).max()?;
        let useful_to = match settings.over_age {
            OverAge::Mask => newest,
            OverAge::Drop => oldest,
            OverAge::Train => u64::MAX,
        };
        let advantages = self
            .members
            .iter()
            .map(|rollout| rollout.score().and_then(|_| relative.next()))
            .collect();
        Some(Closed {
            statistics,
            advantages,
            key: ReadyKey {
                oldest,
                useful_to,
                bound: settings.bound_of(self.source),
            },
            at,
        })
    }
}
