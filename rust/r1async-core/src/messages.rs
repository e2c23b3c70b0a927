//! The messages of clients, checked field by field; docs/protocol.md lists them.
//!
//! Unknown keys are ignored, so a newer client may say more; a missing or wrong field is an error that
//! names the field. What a client names (leases, steps, versions) is only read here: whether it may say so
//! is the service's and the ledger's business.

mod fields;
mod hello;

use std::borrow::Cow;

use thiserror::Error;

use crate::frame::{Frame, Value};
use crate::group::Finish;
use fields::{At, Fields};

pub use hello::{Hello, LearnerHello, Role};

/// Raised when a message changes its meaning (`wire.PROTOCOL`).
pub const PROTOCOL: i64 = 1;
/// Entries of one `stats`, `metrics` or `parts` map at most.
pub const MAX_ENTRIES: usize = 256;
/// Bytes of a name, an id, a hash or a status at most.
pub const MAX_NAME_BYTES: usize = 256;

/// What is wrong with a message whose frame is whole.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    /// A field is missing or holds something else.
    #[error("{message}: {field} must be {want}, got {got}")]
    Field {
        /// The message's type.
        message: String,
        /// The field, with the places in lists: `items[3][1]`.
        field: String,
        /// What it must be.
        want: &'static str,
        /// What it is.
        got: String,
    },
    /// A type that no client sends.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// A type that this role does not send.
    #[error("{message} is not a message of a {role}")]
    WrongRole {
        /// The message's type.
        message: String,
        /// Who sent it.
        role: &'static str,
    },
}

/// A generator's free room and what it has installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorReady<'a> {
    /// Free training slots.
    pub free: i64,
    /// Free evaluation slots.
    pub eval_free: i64,
    /// Training slots, free or not.
    pub capacity: i64,
    /// Leases received on this connection.
    pub leases_seen: i64,
    /// Epoch of the installed weights.
    pub epoch: i64,
    /// Their version number.
    pub version: i64,
    /// Their hash.
    pub hash: &'a str,
}

/// A scorer's free room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScorerReady<'a> {
    /// Verdicts of the first pool that it can take on.
    pub free: i64,
    /// The same of other pools, by their names.
    pub pools: Vec<(&'a str, i64)>,
    /// Leases received on this connection.
    pub leases_seen: i64,
}

/// New tokens of one rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The lease that they belong to.
    pub lease: i64,
    /// Place of the first of them in the completion.
    pub offset: usize,
    /// Where they lie in the columns.
    pub tokens: std::ops::Range<usize>,
    /// Set on the last chunk: cut at the token limit, or not.
    pub finish: Option<Finish>,
    /// (epoch, number, count) of consecutive tokens.
    pub runs: Vec<(i64, i64, usize)>,
}

/// New tokens of several rollouts.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunks<'a> {
    /// One for each rollout.
    pub items: Vec<Chunk>,
    /// Sampled tokens of all of them.
    pub tokens: Cow<'a, [i32]>,
    /// Their logprobs, in nats.
    pub logprobs: Cow<'a, [f32]>,
    /// On rollouts that end here, from a sender that knows their rewards; the leases are those of the items.
    pub verdicts: Vec<Graded<'a>>,
}

/// A grader's word on one rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Graded<'a> {
    /// The scorer's lease, or in `Chunks` the generator's.
    pub lease: i64,
    /// The reward; `None` abstains.
    pub total: Option<f64>,
    /// Reward parts by name.
    pub parts: Vec<(&'a str, f64)>,
    /// How the grading went.
    pub status: &'a str,
}

/// A claim to go on with a rollout after a reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// The lease under which it was sampled.
    pub lease: i64,
    /// The rollout.
    pub rollout: i64,
    /// Tokens that the generator has.
    pub offset: usize,
}

/// Settings of a distribution that is sampled from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingFields {
    /// Logits are divided by it.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// 0 is off.
    pub top_k: i64,
    /// Completion tokens at most.
    pub max_tokens: i64,
    /// The likeliest token always.
    pub greedy: bool,
}

/// Prompts to be sampled and graded at one policy version.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate<'a> {
    /// The evaluator's name for it.
    pub id: &'a str,
    /// (epoch, number) of the policy.
    pub pin: (i64, i64),
    /// Completions per prompt.
    pub samples: usize,
    /// How they are sampled.
    pub sampling: SamplingFields,
    /// Number of the first completion among all that the evaluator asks for; `None`: the buffer counts.
    pub first: Option<i64>,
    /// What a scorer needs to know of each prompt.
    pub metas: Vec<&'a [u8]>,
    /// Tokens of all prompts.
    pub prompt_tokens: Cow<'a, [i32]>,
    /// Where each prompt lies in them.
    pub prompts: Vec<std::ops::Range<usize>>,
    /// The name of the pool that grades each prompt's completions; empty: the first grades all.
    pub pools: Vec<&'a str>,
}

/// A fault that a client noticed.
#[derive(Debug, Clone, PartialEq)]
pub struct Reported<'a> {
    /// What went wrong.
    pub name: &'a str,
    /// What was done about it.
    pub act: &'a str,
    /// Groups it hit.
    pub groups: Vec<i64>,
    /// Rollouts it hit.
    pub rollouts: Vec<i64>,
    /// Seconds that were allowed.
    pub deadline_s: f64,
    /// Seconds from the last good sign to the naming.
    pub named_after_s: f64,
    /// More about it, in words.
    pub text: &'a str,
}

/// Any message of a client but `hello`.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// Still here, with figures to show.
    Heartbeat(Vec<(&'a str, f64)>),
    /// Leaves; its leases are free.
    Bye,
    /// A fault that the client noticed, and what it did about it.
    Incident(Reported<'a>),
    /// Room for rollouts.
    GeneratorReady(GeneratorReady<'a>),
    /// Room for verdicts.
    ScorerReady(ScorerReady<'a>),
    /// New tokens.
    Chunks(Chunks<'a>),
    /// Unfinished leases handed back.
    Release(Vec<i64>),
    /// Rollouts to go on with.
    Announce(Vec<Announced>),
    /// Scores and abstentions.
    Verdicts(Vec<Graded<'a>>),
    /// An evaluation begins.
    Evaluate(Evaluate<'a>),
    /// An evaluation is given up.
    CancelEvaluation(&'a str),
    /// A rank is ready for its share of a step.
    NextBatch {
        /// Its epoch.
        epoch: i64,
        /// The step it wants.
        step: i64,
        /// The part of its batch.
        part: usize,
        /// Its rank.
        rank: usize,
        /// Ranks that train together.
        world: usize,
        /// Segments of shared memory that it does not look at any more.
        freed: Vec<i64>,
        /// It cannot map shared memory: its batches are to travel from now on.
        travels: bool,
    },
    /// The optimizer step is done.
    Stepped {
        /// The learner's epoch.
        epoch: i64,
        /// The step.
        step: i64,
        /// Its figures, passed on to the events as they are.
        metrics: Vec<(&'a str, Value<'a>)>,
    },
    /// Weights can be fetched.
    Published {
        /// The learner's epoch.
        epoch: i64,
        /// Version number.
        version: i64,
        /// Hash of the weights.
        hash: &'a str,
    },
    /// A checkpoint is safe.
    Committed {
        /// The learner's epoch.
        epoch: i64,
        /// Steps in the checkpoint.
        step: i64,
    },
    /// The learner is done: the last version is published, saved and exported.
    Finish {
        /// Its epoch.
        epoch: i64,
    },
}

impl<'a> Message<'a> {
    /// Reads a message of a client in `role`.
    ///
    /// # Errors
    /// The type is unknown or not this role's, or a field is missing or wrong.
    pub fn read(frame: &Frame<'a>, role: Role) -> Result<Self, MessageError> {
        let fields = Fields::of(frame);
        match (frame.kind, role) {
            ("heartbeat", _) => Ok(Self::Heartbeat(fields.get("stats")?.numbers()?)),
            ("bye", _) => Ok(Self::Bye),
            ("incident", _) => reported(&fields),
            ("ready", Role::Generator) => generator_ready(&fields),
            ("ready", Role::Scorer) => scorer_ready(&fields),
            ("chunks", Role::Generator) => chunks(&fields),
            ("release", Role::Generator | Role::Scorer) => Ok(Self::Release(
                fields.get("leases")?.each(|lease| lease.count())?,
            )),
            ("announce", Role::Generator) => {
                Ok(Self::Announce(fields.get("items")?.each(announced)?))
            }
            ("verdicts", Role::Scorer) => Ok(Self::Verdicts(fields.get("items")?.each(graded)?)),
            ("evaluate", Role::Evaluator) => evaluate(&fields),
            ("cancel_evaluation", Role::Evaluator) => {
                Ok(Self::CancelEvaluation(fields.get("id")?.name()?))
            }
            (kind, Role::Learner) if LEARNER_KINDS.contains(&kind) => {
                learner_message(kind, &fields)
            }
            (kind, _) if KINDS.contains(&kind) || LEARNER_KINDS.contains(&kind) => {
                Err(MessageError::WrongRole {
                    message: kind.into(),
                    role: role.name(),
                })
            }
            (kind, _) => Err(MessageError::UnknownType(kind.chars().take(64).collect())),
        }
    }
}

const LEARNER_KINDS: [&str; 5] = ["next_batch", "stepped", "published", "committed", "finish"];
const KINDS: [&str; 7] = [
    "ready",
    "chunks",
    "release",
    "announce",
    "verdicts",
    "evaluate",
    "cancel_evaluation",
];

fn reported<'a>(fields: &Fields<'_, 'a>) -> Result<Message<'a>, MessageError> {
    Ok(Message::Incident(Reported {
        name: fields.get("name")?.name()?,
        act: fields.get("act")?.name()?,
        groups: fields.get("groups")?.each(|id| id.count())?,
        rollouts: fields.get("rollouts")?.each(|id| id.count())?,
        deadline_s: fields.get("deadline_s")?.number()?,
        named_after_s: fields.get("named_after_s")?.number()?,
        text: fields.get("text")?.name()?,
    }))
}

fn generator_ready<'a>(fields: &Fields<'_, 'a>) -> Result<Message<'a>, MessageError> {
    Ok(Message::GeneratorReady(GeneratorReady {
        free: fields.get("free")?.count()?,
        eval_free: fields.get("eval_free")?.count()?,
        capacity: fields.get("capacity")?.count()?,
        leases_seen: fields.get("leases_seen")?.count()?,
        epoch: fields.get("epoch")?.count()?,
        version: fields.get("version")?.count()?,
        hash: fields.get("hash")?.name()?,
    }))
}

fn scorer_ready<'a>(fields: &Fields<'_, 'a>) -> Result<Message<'a>, MessageError> {
    let (free, leases_seen) = (
        fields.get("free")?.count()?,
        fields.get("leases_seen")?.count()?,
    );
    let pools = match fields.given("pools") {
        Some(pools) => pools.each(|item| {
            let [name, free] = item.tuple("[pool, free]")?;
            Ok((name.name()?, free.count()?))
        })?,
        None => Vec::new(),
    };
    Ok(Message::ScorerReady(ScorerReady {
        free,
        pools,
        leases_seen,
    }))
}

fn chunks<'a>(fields: &Fields<'_, 'a>) -> Result<Message<'a>, MessageError> {
    let (tokens, logprobs) = (
        fields.column::<i32>("tokens")?,
        fields.column::<f32>("logprobs")?,
    );
    let mut end = 0_usize;
    let items = fields.get("items")?.each(|item| {
        let [lease, offset, count, finish, runs] =
            item.tuple("[lease, offset, count, finish, runs]")?;
        let begin = end;
        end = begin.saturating_add(count.size()?);
        Ok(Chunk {
            lease: lease.count()?,
            offset: offset.size()?,
            tokens: begin..end,
            finish: finish.optional()?.map(finished).transpose()?,
            runs: runs.each(version_run)?,
        })
    })?;
    fields.length_is("tokens", tokens.len(), end)?;
    fields.length_is("logprobs", logprobs.len(), end)?;
    let verdicts = match fields.given("verdicts") {
        Some(verdicts) => verdicts.each(graded)?,
        None => Vec::new(),
    };
    Ok(Message::Chunks(Chunks {
        items,
        tokens,
        logprobs,
        verdicts,
    }))
}

fn finished(finish: At<'_, '_>) -> Result<Finish, MessageError> {
    finish.one_of("nil, stop or length", |name| {
        [Finish::Stop, Finish::Length]
            .into_iter()
            .find(|it| it.name() == name)
    })
}

fn version_run(run: At<'_, '_>) -> Result<(i64, i64, usize), MessageError> {
    let [epoch, number, count] = run.tuple("[epoch, version, count]")?;
    Ok((epoch.count()?, number.count()?, count.size()?))
}

fn announced(item: At<'_, '_>) -> Result<Announced, MessageError> {
    let [lease, rollout, offset] = item.tuple("[lease, rollout, offset]")?;
    Ok(Announced {
        lease: lease.count()?,
        rollout: rollout.count()?,
        offset: offset.size()?,
    })
}

fn graded<'a>(item: At<'_, 'a>) -> Result<Graded<'a>, MessageError> {
    let [lease, total, parts, status] = item.tuple("[lease, total, parts, status]")?;
    Ok(Graded {
        lease: lease.count()?,
        total: total.optional()?.map(|total| total.number()).transpose()?,
        parts: parts.numbers()?,
        status: status.name()?,
    })
}

fn evaluate<'a>(fields: &Fields<'_, 'a>) -> Result<Message<'a>, MessageError> {
    let metas = fields.get("metas")?.each(|meta| meta.bin())?;
    let (prompt_tokens, lens) = (
        fields.column::<i32>("prompt_tokens")?,
        fields.column::<i32>("prompt_lens")?,
    );
    fields.length_is("prompt_lens", lens.len(), metas.len())?;
    let mut end = 0_usize;
    let mut prompts = Vec::with_capacity(lens.len());
    for &len in lens.iter() {
        let begin = end;
        // A negative length cannot be a size; the largest size then fails the sum below.
        end = begin.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        prompts.push(begin..end);
    }
    fields.length_is("prompt_tokens", prompt_tokens.len(), end)?;
    let pools = match fields.given("pools") {
        Some(pools) => pools.each(|name| name.name())?,
        None => Vec::new(),
    };
    if !pools.is_empty() {
        fields.length_is("pools", pools.len(), prompts.len())?;
    }
    let pin = fields.get("pin")?;
    let [epoch, number] = pin.tuple("[epoch, version]")?;
    Ok(Message::Evaluate(Evaluate {
        id: fields.get("id")?.name()?,
        pin: (epoch.count()?, number.count()?),
        samples: fields.get("samples")?.in_range(1, 1 << 16, "1..65536")? as usize,
        sampling: sampling(&fields.get("sampling")?.fields()?)?,
        first: fields
            .given("first")
            .map(|first| first.in_range(0, 1 << 60, "0..2^60"))
            .transpose()?,
        metas,
        prompt_tokens,
        prompts,
        pools,
    }))
}

fn sampling(fields: &Fields<'_, '_>) -> Result<SamplingFields, MessageError> {
    Ok(SamplingFields {
        temperature: fields.get("temperature")?.number()?,
        top_p: fields.get("top_p")?.number()?,
        top_k: fields.get("top_k")?.count()?,
        max_tokens: fields
            .get("max_tokens")?
            .in_range(1, i64::from(i32::MAX), "1 or more")?,
        greedy: fields.get("greedy")?.bool()?,
    })
}

fn learner_message<'a>(kind: &str, fields: &Fields<'_, 'a>) -> Result<Message<'a>, MessageError> {
    let epoch = fields.get("epoch")?.count()?;
    Ok(match kind {
        "next_batch" => {
            let world = fields.get("world")?.in_range(1, 1 << 16, "1..65536")?;
            let rank = fields
                .get("rank")?
                .in_range(0, world - 1, "0 <= rank < world")?;
            let step = fields.get("step")?.count()?;
            let part = fields.get("part")?.in_range(0, 1 << 31, "below 2^31")?;
            Message::NextBatch {
                epoch,
                step,
                part: part as usize,
                rank: rank as usize,
                world: world as usize,
                freed: match fields.given("freed") {
                    Some(freed) => freed.each(|segment| segment.count())?,
                    None => Vec::new(),
                },
                travels: match fields.given("travels") {
                    Some(travels) => travels.bool()?,
                    None => false,
                },
            }
        }
        "stepped" => Message::Stepped {
            epoch,
            step: fields.get("step")?.count()?,
            metrics: fields.get("metrics")?.entries()?,
        },
        "published" => {
            let (version, hash) = (fields.get("version")?.count()?, fields.get("hash")?.name()?);
            Message::Published {
                epoch,
                version,
                hash,
            }
        }
        "committed" => Message::Committed {
            epoch,
            step: fields.get("step")?.count()?,
        },
        _ => Message::Finish { epoch },
    })
}

#[cfg(test)]
mod tests;
