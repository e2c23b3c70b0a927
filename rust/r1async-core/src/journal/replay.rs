//! A ledger that is told its history again.

use thiserror::Error;

use super::command::{Bound, Command};
use super::recorded::{Recorded, SnapshotError};
use crate::batch::{BatchPart, BindPart, BoundBatch};
use crate::chunk::ChunkRef;
use crate::columns;
use crate::evaluation::EvaluationRequest;
use crate::group::Prompt;
use crate::ids::Step;
use crate::ledger::Ledger;
use crate::settings::{Settings, SettingsError};
use crate::staleness::VersionRun;
use crate::trace::Event;

/// What goes with an event that has a payload.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// Its bytes are gone, as those of groups that have ended are: zeros stand in for them. No decision depends on
    /// them, only what is handed out.
    Gone,
}

/// A history that this build cannot tell again.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ReplayError {
    /// Not an event.
    #[error("not an event: {0}")]
    Malformed(String),
    /// The first event opens the ledger.
    #[error("the history begins with {0}; want Open")]
    NotOpen(String),
    /// The payload is not that of the event.
    #[error("{command} has a payload of {got} bytes; want {want}")]
    Payload {
        /// The call.
        command: &'static str,
        /// Its payload.
        got: usize,
        /// What it says of it.
        want: usize,
    },
    /// The ledger does not do again what it did.
    #[error(
        "{what}: the journal was written by a build that decides otherwise; go on with that one, or begin anew"
    )]
    Differs {
        /// What, and how it was.
        what: String,
    },
    /// The snapshot is none.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Settings that cannot work, or that the history rules out.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// A ledger from its history.
///
/// ```
/// use r1async_core::journal::{Recorded, Replay};
/// use r1async_core::Settings;
/// let mut recorded = Recorded::new(Settings::default(), true)?;
/// recorded.admit_from(0, vec![7], Vec::new(), 0)?;
/// let mut again = Replay::load(&recorded.snapshot())?.resume(Settings::default())?;
/// assert_eq!(again.wanted_prompts()[0], 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Replay {
    ledger: Option<Ledger>,
    now: f64,
    holders: u64,
    traced: bool,
}

impl Replay {
    /// A ledger without a history; `traced`: it says what happens to every group.
    #[must_use]
    pub fn new(traced: bool) -> Self {
        Self {
            traced,
            ..Self::default()
        }
    }

    /// The ledger that [`Recorded::snapshot`] saved.
    ///
    /// # Errors
    /// It saved none.
    pub fn load(snapshot: &[u8]) -> Result<Self, ReplayError> {
        let (ledger, now, holders) = Recorded::load(snapshot)?;
        Ok(Self {
            ledger: Some(ledger),
            now,
            holders,
            traced: false,
        })
    }

    /// The ledger so far; `None` before its first event.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// The time of the last event.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.now
    }

    /// What happened to groups since the last call, if it is traced.
    pub fn take_trace(&mut self) -> Vec<Event> {
        self.ledger
            .as_mut()
            .map_or_else(Vec::new, Ledger::take_trace)
    }

    /// See [`Ledger::batch_part`].
    #[must_use]
    pub fn batch_part(&self, step: Step, part: usize) -> Option<(&BoundBatch, BatchPart)> {
        self.ledger.as_ref()?.batch_part(step, part)
    }

    /// Goes on where the history ends, in a new life of the buffer.
    ///
    /// # Errors
    /// A setting that cannot work, or that the history rules out.
    pub fn resume(self, settings: Settings) -> Result<Recorded, ReplayError> {
        let ledger = self
            .ledger
            .ok_or_else(|| ReplayError::NotOpen("nothing".to_owned()))?;
        Ok(Recorded::resume(ledger, settings, self.now, self.holders)?)
    }

    /// Reads the body of an event record.
    ///
    /// # Errors
    /// It is none.
    pub fn read(body: &[u8]) -> Result<(f64, Command<'_>), ReplayError> {
        rmp_serde::from_slice(body).map_err(|error| ReplayError::Malformed(error.to_string()))
    }

    /// Tells the ledger one event.
    ///
    /// # Errors
    /// The event does not fit the history before it.
    pub fn apply(
        &mut self,
        now: f64,
        command: &Command<'_>,
        payload: Payload<'_>,
    ) -> Result<(), ReplayError> {
        self.now = now;
        match (command, &mut self.ledger) {
            (Command::Open { settings }, Some(ledger)) => Ok(ledger.reopen((**settings).clone())?),
            (Command::Open { settings }, none) => {
                let mut ledger = Ledger::new((**settings).clone())?;
                ledger.set_traced(self.traced);
                *none = Some(ledger);
                Ok(())
            }
            (other, None) => Err(ReplayError::NotOpen(other.name().to_owned())),
            (Command::Join { holder, .. }, Some(_)) => {
                self.holders = holder.0 + 1;
                Ok(())
            }
            (command, Some(ledger)) => tell(ledger, now, command, payload),
        }
    }
}

impl Command<'_> {
    /// The call's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Command::Open { .. } => "open",
            Command::Join { .. } => "join",
            Command::Admit { .. } => "admit",
            Command::Reject { .. } => "reject",
            Command::EndOfPrompts { .. } => "end_of_prompts",
            Command::LeaseRollouts { .. } => "lease_rollouts",
            Command::LeaseEvaluation { .. } => "lease_evaluation",
            Command::LeaseScoring { .. } => "lease_scoring",
            Command::Chunk { .. } => "chunk",
            Command::Verdict { .. } => "verdict",
            Command::Release { .. } => "release",
            Command::ReleaseAll { .. } => "release_all",
            Command::HolderLost { .. } => "holder_lost",
            Command::Announce { .. } => "announce",
            Command::ConnectLearner { .. } => "connect_learner",
            Command::ReconnectLearner { .. } => "reconnect_learner",
            Command::Stepped { .. } => "stepped",
            Command::Published { .. } => "published",
            Command::Committed { .. } => "committed",
            Command::Bind { .. } => "bind",
            Command::Evaluate { .. } => "evaluate",
            Command::CancelEvaluation { .. } => "cancel_evaluation",
            Command::LearnerLost => "learner_lost",
            Command::TakeEvaluated => "take_evaluated",
            Command::Tick => "tick",
        }
    }

    /// Whether a payload record goes with it.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        self.payload_bytes().is_some()
    }

    fn payload_bytes(&self) -> Option<usize> {
        match self {
            Command::Admit { tokens, meta, .. } => Some(tokens * 4 + meta),
            Command::Chunk { runs, .. } => Some(count(runs) * 8),
            Command::Evaluate { prompts, .. } => {
                let bytes = prompts.iter().map(|(_, tokens, meta, _)| tokens * 4 + meta);
                Some(bytes.sum())
            }
            _ => None,
        }
    }
}

fn count(runs: &[VersionRun]) -> usize {
    runs.iter().map(|run| run.count as usize).sum()
}

/// The bytes of a payload one column after the other, or zeros.
struct Columns<'a>(Payload<'a>);

impl Columns<'_> {
    fn take<T: bytemuck::Pod>(&mut self, count: usize) -> Vec<T> {
        match self.0 {
            Payload::Gone => vec![T::zeroed(); count],
            Payload::Bytes(bytes) => {
                let (column, rest) = bytes.split_at(count * size_of::<T>());
                self.0 = Payload::Bytes(rest);
                columns::read(column).expect("split at a whole number")
            }
        }
    }
}

fn tell(
    ledger: &mut Ledger,
    now: f64,
    command: &Command<'_>,
    payload: Payload<'_>,
) -> Result<(), ReplayError> {
    if let (Payload::Bytes(bytes), Some(want)) = (payload, command.payload_bytes())
        && bytes.len() != want
    {
        return Err(ReplayError::Payload {
            command: command.name(),
            got: bytes.len(),
            want,
        });
    }
    let mut columns = Columns(payload);
    let done = match command {
        Command::Open { .. } | Command::Join { .. } => true,
        Command::Admit {
            ordinal,
            tokens,
            meta,
            source,
            pool,
        } => {
            let tokens = columns.take(*tokens);
            let meta = columns.take(*meta);
            ledger
                .admit_to(*ordinal, tokens, meta, *source, *pool)
                .is_ok()
        }
        Command::Reject { ordinal } => ledger.reject_prompt(*ordinal).is_ok(),
        Command::EndOfPrompts { ordinal } => {
            ledger.end_of_prompts(*ordinal);
            true
        }
        Command::LeaseRollouts {
            holder,
            installed,
            free,
            capacity,
        } => !ledger
            .lease_rollouts(now, *holder, *installed, *free, *capacity)
            .is_empty(),
        Command::LeaseEvaluation { holder, free } => {
            !ledger.lease_evaluation(now, *holder, *free).is_empty()
        }
        Command::LeaseScoring { holder, pool, max } => !ledger
            .lease_scoring_of(now, *holder, *pool, *max)
            .is_empty(),
        Command::Chunk {
            holder,
            lease,
            offset,
            runs,
            finish,
        } => {
            let tokens = columns.take(count(runs));
            let logprobs = columns.take(tokens.len());
            let chunk = ChunkRef {
                lease: *lease,
                offset: *offset,
                tokens: &tokens,
                logprobs: &logprobs,
                runs,
                finish: *finish,
            };
            let before = ledger.received();
            ledger.chunk(now, *holder, chunk).is_ok() && ledger.received() != before
        }
        Command::Verdict {
            holder,
            lease,
            verdict,
        } => {
            let verdict = verdict.clone().into_owned();
            ledger.verdict(now, *holder, *lease, verdict) == crate::scoring::VerdictAck::Held
        }
        Command::Release { holder, lease } => ledger.release(*holder, *lease),
        Command::ReleaseAll { holder } => {
            ledger.release_all(*holder);
            true
        }
        Command::HolderLost { holder } => {
            ledger.holder_lost(*holder);
            true
        }
        Command::Announce { holder, announced } => {
            ledger.announce(now, *holder, *announced) != crate::lease::ChunkAck::Lost
        }
        Command::ConnectLearner { epoch, step } => ledger.connect_learner(*epoch, *step).is_ok(),
        Command::ReconnectLearner { epoch } => ledger.reconnect_learner(*epoch).is_ok(),
        Command::LearnerLost => {
            ledger.learner_lost();
            true
        }
        Command::Stepped { epoch, step, ess } => ledger.stepped_with(*epoch, *step, *ess).is_ok(),
        Command::Published { version, hash } => ledger.published(*version, hash).is_ok(),
        Command::Committed { epoch, step } => ledger.committed(*epoch, *step).is_ok(),
        Command::Bind { step, part, bound } => {
            return bind(ledger, now, (*step, *part), *bound, payload);
        }
        Command::Evaluate {
            id,
            pin,
            samples,
            sampling,
            prompts,
            first,
        } => {
            let tokens: Vec<Vec<i32>> = prompts
                .iter()
                .map(|(_, tokens, ..)| columns.take(*tokens))
                .collect();
            let prompts = prompts.iter().zip(tokens);
            let prompts = prompts.map(|(&(ordinal, _, meta, pool), tokens)| Prompt {
                ordinal,
                tokens,
                meta: columns.take(meta),
                pool,
            });
            let request = EvaluationRequest {
                id: id.clone().into_owned(),
                pin: *pin,
                samples: *samples,
                sampling: *sampling,
                first: *first,
                prompts: prompts.collect(),
            };
            ledger.evaluate(request).is_ok()
        }
        Command::CancelEvaluation { id } => ledger.cancel_evaluation(id),
        Command::TakeEvaluated => !ledger.take_evaluated().is_empty(),
        Command::Tick => {
            ledger.tick(now);
            true
        }
    };
    if done {
        Ok(())
    } else {
        Err(ReplayError::Differs {
            what: format!("{command:?} did something once, and nothing now"),
        })
    }
}

fn bind(
    ledger: &mut Ledger,
    now: f64,
    (step, part): (Step, usize),
    bound: Option<Bound>,
    payload: Payload<'_>,
) -> Result<(), ReplayError> {
    let again = match ledger.bind_part(now, step, part) {
        Ok(BindPart::Ready(batch, part)) => Some(Bound::of(batch, &part)),
        Ok(BindPart::Wait(_) | BindPart::Finished) => None,
        Err(error) => {
            let what = format!("part {part} of the batch of step {step}: {error}");
            return Err(ReplayError::Differs { what });
        }
    };
    let same = match (&bound, &again) {
        (None, None) => true,
        // Of tokens that are gone nothing can be said.
        (Some(then), Some(now)) if matches!(payload, Payload::Gone) => then.same_members(now),
        (then, now) => then == now,
    };
    if same {
        Ok(())
    } else {
        let what =
            format!("part {part} of the batch of step {step} was {bound:?}, and is {again:?} now");
        Err(ReplayError::Differs { what })
    }
}
