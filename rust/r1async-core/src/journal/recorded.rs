//! A ledger that writes down what it is told.

use std::borrow::Cow;
use std::ops::Deref;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::command::{Bound, Command};
use super::record::{Kind, append};
use crate::batch::{BindError, BindPart};
use crate::chunk::{ChunkError, ChunkRef};
use crate::evaluation::{EvaluateError, EvaluatedGroup, EvaluationRequest};
use crate::ids::{GroupId, HolderId, LeaseId, PolicyVersion, Step};
use crate::incident::Incident;
use crate::learner::LearnerError;
use crate::lease::{Announcement, ChunkAck, RolloutLease};
use crate::ledger::{Ledger, News};
use crate::prompts::AdmitError;
use crate::scoring::{ScoreLease, Verdict, VerdictAck};
use crate::settings::{Settings, SettingsError};

/// Layout of a snapshot.
const FORMAT: u32 = 3;

/// Memory that is kept for the next records, for each stream.
const KEPT_BYTES: usize = 4 << 20;

/// What is to be written, in both streams, before anything is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// Records for the end of the events, not linked yet: the journal knows what they follow.
    pub events: Vec<u8>,
    /// Records for the end of the payload; they go first, so that no event is without its payload.
    pub payload: Vec<u8>,
    /// A batch was handed out, or a commit taken: it is to be on the disk, not only with the operating system.
    pub urgent: bool,
}

impl Pending {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.payload.is_empty()
    }

    /// As one that holds nothing yet, but for its memory: a burst of messages fills hundreds of kilobytes, and pages
    /// that are new each time cost as much as what is written into them.
    pub fn clear(&mut self) {
        for records in [&mut self.events, &mut self.payload] {
            records.clear();
            records.shrink_to(KEPT_BYTES);
        }
        self.urgent = false;
    }

    fn payload(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        append(&mut self.payload, Kind::Payload, fill);
    }
}

/// A snapshot that cannot be taken up.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Not a snapshot.
    #[error("not a snapshot of a ledger: {0}")]
    Malformed(String),
    /// What it holds does not add up.
    #[error("the accounts of the snapshot do not balance: {0}")]
    Unbalanced(String),
}

/// A whole ledger, for a start that need not hear all of its history.
#[derive(Serialize)]
struct Saved<'a> {
    format: u32,
    now: f64,
    holders: u64,
    ledger: &'a Ledger,
}

#[derive(Deserialize)]
struct Loaded {
    format: u32,
    now: f64,
    holders: u64,
    ledger: Ledger,
}

/// A ledger whose calls are written down, if it was asked to; reading goes straight to the ledger.
///
/// What changes nothing is not written: a lease that could not be given, tokens that are held already.
#[derive(Debug)]
pub struct Recorded {
    ledger: Ledger,
    /// `None`: nothing is written down.
    pending: Option<Pending>,
    now: f64,
    /// Numbers of peers used so far.
    holders: u64,
}

impl Deref for Recorded {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

impl Recorded {
    /// An empty ledger; `journaled`: it writes down its calls.
    ///
    /// # Errors
    /// A setting that cannot work.
    pub fn new(settings: Settings, journaled: bool) -> Result<Self, SettingsError> {
        let open = Command::Open {
            settings: Box::new(settings.clone()),
        };
        let pending = journaled.then(Pending::default);
        let mut recorded = Self::of(Ledger::new(settings)?, pending, 0.0, 0);
        recorded.record(&open);
        Ok(recorded)
    }

    /// A ledger that has a history goes on under `settings`, in a new life of the buffer.
    ///
    /// # Errors
    /// A setting that cannot work, or that the history rules out.
    pub(super) fn resume(
        mut ledger: Ledger,
        settings: Settings,
        now: f64,
        holders: u64,
    ) -> Result<Self, SettingsError> {
        let open = Command::Open {
            settings: Box::new(settings.clone()),
        };
        ledger.reopen(settings)?;
        let mut recorded = Self::of(ledger, Some(Pending::default()), now, holders);
        recorded.record(&open);
        Ok(recorded)
    }

    fn of(ledger: Ledger, pending: Option<Pending>, now: f64, holders: u64) -> Self {
        Self {
            ledger,
            pending,
            now,
            holders,
        }
    }

    /// What has not been written yet. Once taken it must be written, or the journal has a hole.
    pub fn take_pending(&mut self) -> Option<Pending> {
        self.pending
            .as_mut()
            .filter(|pending| !pending.is_empty())
            .map(std::mem::take)
    }

    /// The same, behind what is in `unwritten` already. If that is empty it is exchanged for it, with its memory.
    pub fn move_pending(&mut self, unwritten: &mut Pending) {
        let Some(pending) = self.pending.as_mut().filter(|it| !it.is_empty()) else {
            return;
        };
        if unwritten.is_empty() {
            unwritten.clear();
            std::mem::swap(pending, unwritten);
        } else {
            unwritten.events.extend_from_slice(&pending.events);
            unwritten.payload.extend_from_slice(&pending.payload);
            unwritten.urgent |= pending.urgent;
            pending.clear();
        }
    }

    /// The whole ledger, as of all calls so far.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let saved = Saved {
            format: FORMAT,
            now: self.now,
            holders: self.holders,
            ledger: &self.ledger,
        };
        rmp_serde::to_vec(&saved).expect("numbers, strings and maps can always be saved")
    }

    /// What [`Recorded::snapshot`] saved: the ledger, its time, and the peers numbered so far.
    pub(super) fn load(snapshot: &[u8]) -> Result<(Ledger, f64, u64), SnapshotError> {
        let loaded: Loaded = rmp_serde::from_slice(snapshot)
            .map_err(|error| SnapshotError::Malformed(error.to_string()))?;
        if loaded.format != FORMAT {
            let text = format!("layout {}; want {FORMAT}", loaded.format);
            return Err(SnapshotError::Malformed(text));
        }
        match loaded.ledger.audit().difference() {
            Some(difference) => Err(SnapshotError::Unbalanced(difference)),
            None => Ok((loaded.ledger, loaded.now, loaded.holders)),
        }
    }

    /// The time of the last call.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.now
    }

    /// Calls that name no time happen at this one.
    pub fn at(&mut self, now: f64) {
        self.now = now;
    }

    /// The number of a new peer.
    pub fn new_holder(&mut self, role: &str, name: &str) -> HolderId {
        let holder = HolderId(self.holders);
        self.holders += 1;
        self.record(&Command::Join {
            holder,
            role: role.into(),
            name: name.into(),
        });
        holder
    }

    fn record(&mut self, command: &Command<'_>) {
        if let Some(pending) = &mut self.pending {
            append(&mut pending.events, Kind::Event, |body| {
                rmp_serde::encode::write(body, &(self.now, command))
                    .expect("numbers and strings can always be written");
            });
        }
    }

    /// See [`Ledger::take_incidents`]. They are for people, and not written down.
    pub fn take_incidents(&mut self) -> Vec<Incident> {
        self.ledger.take_incidents()
    }

    /// See [`Ledger::take_news`].
    pub fn take_news(&mut self) -> News {
        self.ledger.take_news()
    }

    /// See [`Ledger::tick`].
    pub fn tick(&mut self, now: f64) {
        self.now = now;
        if self.ledger.next_deadline().is_some_and(|due| due <= now) {
            self.record(&Command::Tick);
            self.ledger.tick(now);
        }
    }

    /// See [`Ledger::admit_from`].
    ///
    /// # Errors
    /// As there.
    pub fn admit_from(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
        source: usize,
    ) -> Result<Option<GroupId>, AdmitError> {
        self.admit_to(ordinal, tokens, meta, source, 0)
    }

    /// See [`Ledger::admit_to`].
    ///
    /// # Errors
    /// As there.
    pub fn admit_to(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
        source: usize,
        pool: usize,
    ) -> Result<Option<GroupId>, AdmitError> {
        let (tokens_len, meta_len) = (tokens.len(), meta.len());
        let body = self.pending.is_some().then(|| {
            let mut body = bytemuck::cast_slice(&tokens).to_vec();
            body.extend_from_slice(&meta);
            body
        });
        let group = self.ledger.admit_to(ordinal, tokens, meta, source, pool)?;
        self.payload(|out| out.extend(body.unwrap_or_default()));
        self.record(&Command::Admit {
            ordinal,
            tokens: tokens_len,
            meta: meta_len,
            source,
            pool,
        });
        Ok(group)
    }

    fn payload(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        if let Some(pending) = &mut self.pending {
            pending.payload(fill);
        }
    }

    /// See [`Ledger::reject_prompt`].
    ///
    /// # Errors
    /// As there.
    pub fn reject_prompt(&mut self, ordinal: u64) -> Result<(), AdmitError> {
        self.ledger.reject_prompt(ordinal)?;
        self.record(&Command::Reject { ordinal });
        Ok(())
    }

    /// See [`Ledger::end_of_prompts`].
    pub fn end_of_prompts(&mut self, ordinal: u64) {
        self.ledger.end_of_prompts(ordinal);
        self.record(&Command::EndOfPrompts { ordinal });
    }

    /// See [`Ledger::lease_rollouts`].
    pub fn lease_rollouts(
        &mut self,
        now: f64,
        holder: HolderId,
        installed: PolicyVersion,
        free: usize,
        capacity: usize,
    ) -> Vec<RolloutLease> {
        self.now = now;
        let leases = self
            .ledger
            .lease_rollouts(now, holder, installed, free, capacity);
        if !leases.is_empty() {
            self.record(&Command::LeaseRollouts {
                holder,
                installed,
                free,
                capacity,
            });
        }
        leases
    }

    /// See [`Ledger::lease_evaluation`].
    pub fn lease_evaluation(
        &mut self,
        now: f64,
        holder: HolderId,
        free: usize,
    ) -> Vec<RolloutLease> {
        self.now = now;
        let leases = self.ledger.lease_evaluation(now, holder, free);
        if !leases.is_empty() {
            self.record(&Command::LeaseEvaluation { holder, free });
        }
        leases
    }

    /// See [`Ledger::lease_scoring`].
    pub fn lease_scoring(&mut self, now: f64, holder: HolderId, max: usize) -> Vec<ScoreLease> {
        self.lease_scoring_of(now, holder, 0, max)
    }

    /// See [`Ledger::lease_scoring_of`].
    pub fn lease_scoring_of(
        &mut self,
        now: f64,
        holder: HolderId,
        pool: usize,
        max: usize,
    ) -> Vec<ScoreLease> {
        self.now = now;
        let leases = self.ledger.lease_scoring_of(now, holder, pool, max);
        if !leases.is_empty() {
            self.record(&Command::LeaseScoring { holder, pool, max });
        }
        leases
    }

    /// See [`Ledger::chunk`].
    ///
    /// # Errors
    /// As there.
    pub fn chunk(
        &mut self,
        now: f64,
        holder: HolderId,
        chunk: ChunkRef<'_>,
    ) -> Result<ChunkAck, ChunkError> {
        self.now = now;
        let before = self.ledger.received();
        let ack = self.ledger.chunk(now, holder, chunk)?;
        if self.ledger.received() != before {
            self.payload(|out| {
                out.extend_from_slice(bytemuck::cast_slice(chunk.tokens));
                out.extend_from_slice(bytemuck::cast_slice(chunk.logprobs));
            });
            self.record(&Command::Chunk {
                holder,
                lease: chunk.lease,
                offset: chunk.offset,
                runs: Cow::Borrowed(chunk.runs),
                finish: chunk.finish,
            });
        }
        Ok(ack)
    }

    /// See [`Ledger::verdict`].
    pub fn verdict(
        &mut self,
        now: f64,
        holder: HolderId,
        lease: LeaseId,
        verdict: Verdict,
    ) -> VerdictAck {
        self.now = now;
        // Written down before it is given away, and crossed out should it be late: cheaper than a copy of it.
        let before = self.pending.as_ref().map_or(0, |it| it.events.len());
        self.record(&Command::Verdict {
            holder,
            lease,
            verdict: Cow::Borrowed(&verdict),
        });
        let ack = self.ledger.verdict(now, holder, lease, verdict);
        if let (VerdictAck::Lost, Some(pending)) = (ack, &mut self.pending) {
            pending.events.truncate(before);
        }
        ack
    }

    /// See [`Ledger::release`].
    pub fn release(&mut self, holder: HolderId, lease: LeaseId) -> bool {
        let released = self.ledger.release(holder, lease);
        if released {
            self.record(&Command::Release { holder, lease });
        }
        released
    }

    /// See [`Ledger::release_all`].
    pub fn release_all(&mut self, holder: HolderId) {
        self.ledger.release_all(holder);
        self.record(&Command::ReleaseAll { holder });
    }

    /// See [`Ledger::holder_lost`].
    pub fn holder_lost(&mut self, holder: HolderId) {
        self.ledger.holder_lost(holder);
        self.record(&Command::HolderLost { holder });
    }

    /// See [`Ledger::announce`].
    pub fn announce(&mut self, now: f64, holder: HolderId, announced: Announcement) -> ChunkAck {
        self.now = now;
        let ack = self.ledger.announce(now, holder, announced);
        if ack != ChunkAck::Lost {
            self.record(&Command::Announce { holder, announced });
        }
        ack
    }

    /// See [`Ledger::connect_learner`].
    ///
    /// # Errors
    /// As there.
    pub fn connect_learner(&mut self, epoch: u64, step: u64) -> Result<(), LearnerError> {
        self.ledger.connect_learner(epoch, step)?;
        self.record(&Command::ConnectLearner { epoch, step });
        self.make_urgent();
        Ok(())
    }

    /// See [`Ledger::reconnect_learner`].
    ///
    /// # Errors
    /// As there.
    pub fn reconnect_learner(&mut self, epoch: u64) -> Result<(), LearnerError> {
        self.ledger.reconnect_learner(epoch)?;
        self.record(&Command::ReconnectLearner { epoch });
        Ok(())
    }

    /// See [`Ledger::learner_lost`].
    pub fn learner_lost(&mut self) {
        self.ledger.learner_lost();
        self.record(&Command::LearnerLost);
    }

    /// See [`Ledger::stepped_with`].
    ///
    /// # Errors
    /// As there.
    pub fn stepped_with(
        &mut self,
        epoch: u64,
        step: Step,
        ess: Option<f64>,
    ) -> Result<(), LearnerError> {
        self.ledger.stepped_with(epoch, step, ess)?;
        self.record(&Command::Stepped { epoch, step, ess });
        Ok(())
    }

    /// See [`Ledger::published`].
    ///
    /// # Errors
    /// As there.
    pub fn published(&mut self, version: PolicyVersion, hash: &str) -> Result<(), LearnerError> {
        self.ledger.published(version, hash)?;
        self.record(&Command::Published {
            version,
            hash: hash.into(),
        });
        Ok(())
    }

    /// See [`Ledger::committed`].
    ///
    /// # Errors
    /// As there.
    pub fn committed(&mut self, epoch: u64, step: u64) -> Result<(), LearnerError> {
        self.ledger.committed(epoch, step)?;
        self.record(&Command::Committed { epoch, step });
        self.make_urgent();
        Ok(())
    }

    fn make_urgent(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.urgent = true;
        }
    }

    /// See [`Ledger::bind_part`].
    ///
    /// # Errors
    /// As there.
    pub fn bind_part(
        &mut self,
        now: f64,
        step: Step,
        part: usize,
    ) -> Result<BindPart<'_>, BindError> {
        self.now = now;
        let before = self.ledger.bind_state();
        let answer = match self.ledger.bind_part(now, step, part)? {
            BindPart::Wait(reason) => Some(BindPart::Wait(reason)),
            BindPart::Finished => Some(BindPart::Finished),
            BindPart::Ready(..) => None,
        };
        if self.pending.is_some() && self.ledger.bind_state() != before {
            let there = self.ledger.batch_part(step, part);
            let bound = there.map(|(batch, part)| Bound::of(batch, &part));
            self.record(&Command::Bind { step, part, bound });
            if bound.is_some() {
                self.make_urgent();
            }
        }
        match answer {
            Some(answer) => Ok(answer),
            None => self.ledger.bind_part(now, step, part),
        }
    }

    /// See [`Ledger::evaluate`].
    ///
    /// # Errors
    /// As there.
    pub fn evaluate(&mut self, request: EvaluationRequest) -> Result<usize, EvaluateError> {
        if self.pending.is_none() {
            return self.ledger.evaluate(request);
        }
        let id = request.id.clone();
        let lens = |prompt: &crate::group::Prompt| {
            (
                prompt.ordinal,
                prompt.tokens.len(),
                prompt.meta.len(),
                prompt.pool,
            )
        };
        let command = Command::Evaluate {
            id: Cow::Owned(id),
            pin: request.pin,
            samples: request.samples,
            sampling: request.sampling,
            prompts: request.prompts.iter().map(lens).collect(),
            first: request.first,
        };
        let mut body = Vec::new();
        for prompt in &request.prompts {
            body.extend_from_slice(bytemuck::cast_slice(&prompt.tokens));
        }
        for prompt in &request.prompts {
            body.extend_from_slice(&prompt.meta);
        }
        let groups = self.ledger.evaluate(request)?;
        self.payload(|out| out.extend(body));
        self.record(&command);
        Ok(groups)
    }

    /// See [`Ledger::cancel_evaluation`].
    pub fn cancel_evaluation(&mut self, id: &str) -> bool {
        let cancelled = self.ledger.cancel_evaluation(id);
        if cancelled {
            self.record(&Command::CancelEvaluation { id: id.into() });
        }
        cancelled
    }

    /// See [`Ledger::take_evaluated`].
    pub fn take_evaluated(&mut self) -> Vec<EvaluatedGroup> {
        let groups = self.ledger.take_evaluated();
        if !groups.is_empty() {
            self.record(&Command::TakeEvaluated);
        }
        groups
    }
}
