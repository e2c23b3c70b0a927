//! Evaluation: groups pinned to one policy version, outside pacing and outside the training accounts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::audit::DropReason;
use crate::group::{Ended, Finish, Group, Outcome, Prompt, Purpose, Rollout, State};
use crate::ids::{EVALUATION_BIT, GroupId, HolderId, Member, PolicyVersion};
use crate::lease::RolloutLease;
use crate::ledger::Ledger;
use crate::settings::Sampling;

/// Completions of all evaluations under way at most: checked before anything is made for them.
const MAX_ROLLOUTS: usize = 1 << 20;

/// What an evaluator asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRequest {
    /// The evaluator's own name for it; unique among those that run.
    pub id: String,
    /// The version that samples everything.
    pub pin: PolicyVersion,
    /// Completions of each prompt.
    pub samples: usize,
    /// How to sample.
    pub sampling: Sampling,
    /// Number of the first completion, for an evaluator that must sample the same again after a crash: the number
    /// keys the sampling noise. No two evaluations under way may share one. `None`: the ledger counts.
    pub first: Option<u64>,
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
    /// More completions than are held at a time.
    #[error(
        "evaluation {id:?} of {prompts} prompts and {samples} samples; want at most {} completions",
        MAX_ROLLOUTS
    )]
    TooLarge {
        /// Its name.
        id: String,
        /// Prompts asked for.
        prompts: usize,
        /// Samples asked for.
        samples: usize,
    },
    /// It would fit alone, but not beside those that run.
    #[error(
        "evaluation {id:?} of {rollouts} completions beside {running} of evaluations that run; want at most {} in \
         all: wait for one or cancel it",
        MAX_ROLLOUTS
    )]
    Full {
        /// Its name.
        id: String,
        /// Completions asked for.
        rollouts: usize,
        /// Completions of unfinished groups of other evaluations.
        running: usize,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedMember {
    /// Score or abstention.
    pub outcome: Outcome,
    /// Why the completion ended; `None` if it never did.
    pub finish: Option<Finish>,
    /// The completion's tokens.
    #[serde(with = "crate::columns")]
    pub tokens: Vec<i32>,
}

/// One evaluated prompt, with all its completions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// One evaluation under way.
#[derive(Debug, Serialize, Deserialize)]
struct Evaluation {
    pin: PolicyVersion,
    sampling: Sampling,
    samples: usize,
    /// Groups that are not complete.
    open: BTreeSet<GroupId>,
    of: usize,
}

/// All evaluations under way.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Evaluations {
    by_name: BTreeMap<Arc<str>, Evaluation>,
    /// Members that wait for a generator, in the order in which they were asked for.
    pub(crate) waiting: BTreeSet<Member>,
    complete: Vec<EvaluatedGroup>,
    /// Groups and rollouts numbered so far, without the evaluation bit.
    pub(crate) groups_made: u64,
    pub(crate) rollouts_made: u64,
}

impl Evaluations {
    pub(crate) fn sampling(&self, name: &str) -> Sampling {
        self.by_name[name].sampling
    }

    /// Groups that are not complete.
    pub(crate) fn open_groups(&self) -> usize {
        self.by_name
            .values()
            .map(|evaluation| evaluation.open.len())
            .sum()
    }

    /// Members of groups that are not complete.
    fn open_rollouts(&self) -> usize {
        self.by_name
            .values()
            .map(|evaluation| evaluation.open.len() * evaluation.samples)
            .sum()
    }

    pub(crate) fn contains(&self, name: &str, group: GroupId) -> bool {
        self.by_name
            .get(name)
            .is_some_and(|evaluation| evaluation.open.contains(&group))
    }

    /// Name, pin, complete groups and all groups of each evaluation under way.
    pub(crate) fn progress(&self) -> impl Iterator<Item = (&str, PolicyVersion, usize, usize)> {
        self.by_name.iter().map(|(name, evaluation)| {
            let done = evaluation.of - evaluation.open.len();
            (name.as_ref(), evaluation.pin, done, evaluation.of)
        })
    }

    /// The names of all evaluations under way.
    pub(crate) fn names(&self) -> Vec<String> {
        self.by_name.keys().map(ToString::to_string).collect()
    }

    fn number(&mut self, samples: usize) -> (GroupId, u64) {
        let numbers = (
            GroupId(EVALUATION_BIT | self.groups_made),
            EVALUATION_BIT | self.rollouts_made,
        );
        self.groups_made += 1;
        self.rollouts_made += samples as u64;
        numbers
    }
}

impl Ledger {
    /// Starts an evaluation; answers the number of its groups.
    ///
    /// # Errors
    /// The request cannot run; nothing has changed.
    pub fn evaluate(&mut self, request: EvaluationRequest) -> Result<usize, EvaluateError> {
        self.check_evaluation(&request)?;
        let name: Arc<str> = request.id.into();
        let (pin, sampling, of) = (request.pin, request.sampling, request.prompts.len());
        let mut open = BTreeSet::new();
        for (at, prompt) in request.prompts.into_iter().enumerate() {
            let (id, counted) = self.evaluations.number(request.samples);
            let first_rollout = request.first.map_or(counted, |first| {
                EVALUATION_BIT | (first + (at * request.samples) as u64)
            });
            let purpose = Purpose::Evaluation(name.clone());
            let group = Group::new(
                id,
                first_rollout,
                request.samples,
                Arc::new(prompt),
                purpose,
            );
            self.evaluations
                .waiting
                .extend((0..request.samples).map(|index| group.member(index)));
            self.groups.insert(id, group);
            open.insert(id);
        }
        self.books.evaluation_rollouts.incoming += (of * request.samples) as u64;
        self.evaluations.by_name.insert(
            name,
            Evaluation {
                pin,
                sampling,
                samples: request.samples,
                open,
                of,
            },
        );
        self.news.rollouts = true;
        Ok(of)
    }

    fn check_evaluation(&self, request: &EvaluationRequest) -> Result<(), EvaluateError> {
        let id = request.id.clone();
        if self.evaluations.by_name.contains_key(id.as_str()) {
            return Err(EvaluateError::Exists(id));
        }
        let (prompts, samples) = (request.prompts.len(), request.samples);
        let empty = request
            .prompts
            .iter()
            .any(|prompt| prompt.tokens.is_empty());
        if prompts == 0 || samples == 0 || empty {
            return Err(EvaluateError::Empty {
                id,
                prompts,
                samples,
            });
        }
        let rollouts = prompts.saturating_mul(samples);
        if rollouts > MAX_ROLLOUTS {
            return Err(EvaluateError::TooLarge {
                id,
                prompts,
                samples,
            });
        }
        let running = self.evaluations.open_rollouts();
        if rollouts + running > MAX_ROLLOUTS {
            return Err(EvaluateError::Full {
                id,
                rollouts,
                running,
            });
        }
        if self.is_known_version(request.pin) {
            Ok(())
        } else {
            Err(EvaluateError::Version {
                id,
                pin: request.pin,
            })
        }
    }

    /// Lends rollouts of evaluations to a generator with room for `free` of them, in the order in which
    /// they were asked for; all that one generator has are of one version.
    pub fn lease_evaluation(
        &mut self,
        now: f64,
        holder: HolderId,
        free: usize,
    ) -> Vec<RolloutLease> {
        let mut leases = Vec::new();
        while leases.len() < free {
            let Some(&member) = self.evaluations.waiting.first() else {
                break;
            };
            let Purpose::Evaluation(name) = &self.groups[&member.group].purpose else {
                break;
            };
            let evaluation = &self.evaluations.by_name[name];
            let (pin, sampling) = (evaluation.pin, evaluation.sampling);
            if self.leases.pin_of(holder).is_some_and(|other| other != pin) {
                break;
            }
            self.evaluations.waiting.pop_first();
            leases.push(self.begin_generation(now, holder, member, sampling, Some(pin)));
        }
        leases
    }

    /// Gives an evaluation up; its unfinished groups are dropped `cancelled`. `false`: there is none of that name.
    pub fn cancel_evaluation(&mut self, id: &str) -> bool {
        let Some(evaluation) = self.evaluations.by_name.get(id) else {
            return false;
        };
        let open: Vec<GroupId> = evaluation.open.iter().copied().collect();
        for group in open {
            self.drop_evaluation_group(group);
        }
        self.evaluations.by_name.remove(id);
        self.evaluations.complete.retain(|group| group.id != id);
        true
    }

    fn drop_evaluation_group(&mut self, id: GroupId) {
        for index in 0..self.groups[&id].members.len() {
            self.set_aside(Member { group: id, index });
        }
        self.retire(id);
        if let Some(group) = self.groups.remove(&id) {
            self.books
                .evaluation_rollouts
                .drop(DropReason::Cancelled, group.members.len() as u64);
            self.books
                .evaluation_tokens
                .drop(DropReason::Cancelled, group.tokens());
        }
    }

    /// All completions of an evaluated prompt have ended: they are given to the evaluator.
    pub(crate) fn deliver(&mut self, name: &Arc<str>, id: GroupId) {
        self.retire(id);
        let group = self
            .groups
            .remove(&id)
            .expect("the group is being delivered");
        let evaluation = self
            .evaluations
            .by_name
            .get_mut(name)
            .expect("groups of a cancelled evaluation are gone");
        evaluation.open.remove(&id);
        let (pin, of, done) = (
            evaluation.pin,
            evaluation.of,
            evaluation.of - evaluation.open.len(),
        );
        if evaluation.open.is_empty() {
            self.evaluations.by_name.remove(name);
        }
        self.books.evaluation_rollouts.trained += group.members.len() as u64;
        self.books.evaluation_tokens.trained += group.tokens();
        let prompt_index = group.prompt.ordinal as usize;
        let members = group
            .members
            .into_iter()
            .map(EvaluatedMember::from)
            .collect();
        let evaluated = EvaluatedGroup {
            id: name.to_string(),
            pin,
            prompt_index,
            members,
            done,
            of,
        };
        self.evaluations.complete.push(evaluated);
        self.news.evaluated = true;
    }

    /// Groups evaluated since the last call, in the order in which they closed.
    pub fn take_evaluated(&mut self) -> Vec<EvaluatedGroup> {
        std::mem::take(&mut self.evaluations.complete)
    }
}

impl From<Rollout> for EvaluatedMember {
    fn from(rollout: Rollout) -> Self {
        let outcome = match rollout.state {
            State::Ended(Ended::Scored(score)) => Outcome::Score(score),
            State::Ended(Ended::Abstained(status, _)) => Outcome::Abstain(status),
            _ => unreachable!("a group is delivered when every member has ended"),
        };
        Self {
            outcome,
            finish: rollout.finish,
            tokens: rollout.tokens,
        }
    }
}
