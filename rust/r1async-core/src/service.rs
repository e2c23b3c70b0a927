//! Who is connected, what each may have, and what is to be sent: the ledger behind messages.
//!
//! Takes frames of peers, prompts and the time; gives frames to send, in order. Nothing a frame says makes
//! it panic or fail: it is answered by an error message and counted, and a peer reaches only what is its own.
//! Before frames are given whatever has become possible is handed out: leases to whoever has room, batches to the
//! ranks that wait, evaluated groups to their evaluator.

mod connections;
mod evaluations;
mod events;
mod incidents;
mod learners;
mod memory;
mod offers;
mod peers;
mod refusal;
mod rollouts;
mod settings;

use std::collections::{BTreeMap, VecDeque};

use crate::frame::{Frame, FrameWriter};
use crate::ids::HolderId;
use crate::journal::{Pending, Recorded};
use crate::ledger::{Ledger, News};
use crate::messages::Message;
use crate::prompts::AdmitError;
use crate::settings::SettingsError;
use learners::Learners;
use peers::Peers;
use refusal::Refusal;
use rollouts::Acks;

pub use crate::figure::Figure;
pub use memory::{BatchMemory, Room};
pub use settings::ServiceSettings;

/// Peers known at a time at most; a stranger past that is refused.
pub const MAX_PEERS: usize = 1 << 14;
/// Rounds of handing out after one call at most.
const MAX_PASSES: usize = 64;

/// A socket of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Socket {
    /// Generators, scorers and evaluators.
    Rollouts,
    /// Learners.
    Batches,
    /// Everybody who listens.
    Events,
}

impl Socket {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rollouts => "rollouts",
            Self::Batches => "batches",
            Self::Events => "events",
        }
    }
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Through which socket.
    pub socket: Socket,
    /// To whom; of an event, its type, for those who keep some of them.
    pub peer: Vec<u8>,
    /// What.
    pub frame: Vec<u8>,
}

/// The buffer of one run.
#[derive(Debug)]
pub struct Service {
    settings: ServiceSettings,
    ledger: Recorded,
    peers: Peers,
    learners: Learners,
    /// Where batches are put for learners that can map it.
    shared: Option<memory::Shared>,
    /// Evaluations and who asked for them.
    evaluations: BTreeMap<String, HolderId>,
    outgoing: VecDeque<Outgoing>,
    /// Answers to chunks and verdicts since anything else was answered: one message a peer, however many it sent.
    acks: BTreeMap<HolderId, Acks>,
    /// Who said ready in this call.
    readies: Vec<HolderId>,
    /// What may be possible since it was last looked at.
    news: News,
    counters: Counters,
    /// The latest `now` of any call: time never goes back.
    now: f64,
    next_figures: f64,
    /// Since when filters have taken every group, while they do; whether it was named.
    filtered_since: Option<(f64, bool)>,
    /// What the last `state` event said.
    told: Option<events::StateLine>,
    stopping: bool,
}

/// Counted for people to see.
#[derive(Debug, Default)]
struct Counters {
    messages: u64,
    bytes: u64,
    /// Error replies by code.
    errors: BTreeMap<&'static str, u64>,
    /// Prompts that could not be used, by reason.
    rejected: BTreeMap<String, u64>,
    peers_lost: u64,
    batches_sent: u64,
    /// Of them those whose learner reads them in shared memory.
    batches_mapped: u64,
    /// Faults by name.
    incidents: BTreeMap<String, u64>,
}

impl Service {
    /// A buffer that nobody is connected to.
    ///
    /// # Errors
    /// A setting that cannot work.
    pub fn new(settings: ServiceSettings) -> Result<Self, SettingsError> {
        let ledger = Recorded::new(settings.ledger.clone(), false)?;
        Self::over(settings, ledger)
    }

    /// A buffer that nobody is connected to, over a ledger that may have a history.
    ///
    /// # Errors
    /// A setting that cannot work.
    pub fn over(settings: ServiceSettings, ledger: Recorded) -> Result<Self, SettingsError> {
        settings.validate()?;
        Ok(Self {
            now: ledger.now(),
            ledger,
            peers: Peers::new(settings.peer_deadline_s),
            learners: Learners::default(),
            shared: None,
            evaluations: BTreeMap::new(),
            outgoing: VecDeque::new(),
            acks: BTreeMap::new(),
            readies: Vec::new(),
            news: News::default(),
            counters: Counters::default(),
            next_figures: f64::NEG_INFINITY,
            filtered_since: None,
            told: None,
            stopping: false,
            settings,
        })
    }

    /// The ledger, to look at.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The time of the last call, on the run's own clock.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.now
    }

    /// Files one message of the peer that the socket calls `identity`. What it makes possible is handed out by the
    /// next [`Service::settle`] or [`Service::tick`]: once for all messages that came before.
    pub fn handle(&mut self, socket: Socket, identity: &[u8], frame: &[u8], now: f64) {
        let now = self.at(now);
        self.counters.messages += 1;
        self.counters.bytes += frame.len() as u64;
        self.peers.heard(socket, identity, now);
        let mut about = String::new();
        if let Err(refusal) = self.receive(socket, identity, frame, &mut about) {
            self.refuse(socket, identity, &about, &refusal);
        }
    }

    fn receive(
        &mut self,
        socket: Socket,
        identity: &[u8],
        bytes: &[u8],
        about: &mut String,
    ) -> Result<(), Refusal> {
        let frame = Frame::decode(bytes, self.settings.max_message_bytes)?;
        about.extend(frame.kind.chars().take(64));
        if frame.kind == "hello" {
            return self.hello(socket, identity, &frame);
        }
        let Some((holder, role)) = self.peers.find(socket, identity) else {
            let text = format!(
                "{about} from a peer that has not said hello; say hello first, then what you hold"
            );
            return Err(Refusal::new("hello", text));
        };
        let message = Message::read(&frame, role)?;
        if !matches!(message, Message::Chunks(_) | Message::Verdicts(_)) {
            self.send_acks();
        }
        match message {
            Message::Heartbeat(stats) => {
                self.peers.set_stats(holder, &stats);
                self.answer(holder, "alive", |head| head);
            }
            Message::Bye => {
                self.answer(holder, "gone", |head| head);
                self.leave(holder, false);
            }
            Message::Incident(reported) => self.reported(holder, &reported),
            Message::GeneratorReady(ready) => self.generator_ready(holder, &ready)?,
            Message::ScorerReady(ready) => self.scorer_ready(holder, &ready)?,
            Message::Chunks(chunks) => self.chunks(holder, about, &chunks),
            Message::Release(leases) => self.release(holder, &leases),
            Message::Announce(items) => self.announce(holder, &items),
            Message::Verdicts(items) => self.verdicts(holder, &items),
            Message::Evaluate(evaluate) => self.evaluate(holder, &evaluate)?,
            Message::CancelEvaluation(id) => self.cancel_evaluation(holder, id)?,
            Message::NextBatch {
                epoch,
                step,
                part,
                rank,
                world,
                freed,
                travels,
            } => {
                self.next_batch(holder, epoch, (step, part), (rank, world))?;
                self.use_memory(holder, &freed, travels);
            }
            Message::Stepped {
                epoch,
                step,
                metrics,
            } => self.stepped(holder, epoch, step, &metrics)?,
            Message::Published {
                epoch,
                version,
                hash,
            } => self.published(holder, epoch, version, hash)?,
            Message::Committed { epoch, step } => self.committed(holder, epoch, step)?,
            Message::Finish { epoch } => self.finish(holder, epoch)?,
        }
        Ok(())
    }

    /// The peer cannot be sent to.
    pub fn peer_lost(&mut self, socket: Socket, identity: &[u8], now: f64) {
        self.at(now);
        if let Some((holder, _)) = self.peers.find(socket, identity) {
            self.lose(holder, "it cannot be sent to: gone, or it does not read");
        }
        self.settle();
    }

    /// Lets deadlines pass.
    pub fn tick(&mut self, now: f64) {
        let now = self.at(now);
        self.ledger.tick(now);
        for holder in self.peers.silent(now) {
            self.lose(
                holder,
                "it is silent: gone, hung, stopped, or its connection is half open",
            );
        }
        self.settle();
        self.publish_figures();
    }

    /// When [`Service::tick`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<f64> {
        let dues = [
            self.ledger.next_deadline(),
            self.peers.next_silence(),
            Some(self.next_figures),
        ];
        dues.into_iter()
            .flatten()
            .filter(|due| due.is_finite())
            .min_by(f64::total_cmp)
    }

    /// The frames to send now, in order.
    pub fn outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing).into()
    }

    /// Prompts to admit or reject now, in this order.
    #[must_use]
    pub fn wanted_prompts(&self) -> Vec<u64> {
        if self.stopping {
            Vec::new()
        } else {
            self.ledger.wanted_prompts()
        }
    }

    /// Opens a group for the first of the wanted prompts.
    ///
    /// # Errors
    /// It is not the first, or has no tokens.
    pub fn admit(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
        now: f64,
    ) -> Result<(), AdmitError> {
        self.admit_from(ordinal, tokens, meta, 0, now)
    }

    /// The same of any source (`Ledger::admit_from`).
    ///
    /// # Errors
    /// As [`Service::admit`], or there is no such source.
    pub fn admit_from(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
        source: usize,
        now: f64,
    ) -> Result<(), AdmitError> {
        self.admit_to(ordinal, tokens, meta, (source, 0), now)
    }

    /// The same of any source and scoring pool (`Ledger::admit_to`).
    ///
    /// # Errors
    /// As [`Service::admit`], or there is no such source or pool.
    pub fn admit_to(
        &mut self,
        ordinal: u64,
        tokens: Vec<i32>,
        meta: Vec<u8>,
        (source, pool): (usize, usize),
        now: f64,
    ) -> Result<(), AdmitError> {
        self.at(now);
        self.ledger.admit_to(ordinal, tokens, meta, source, pool)?;
        self.settle();
        Ok(())
    }

    /// Counts the first of the wanted prompts as unusable.
    ///
    /// # Errors
    /// It is not the first.
    pub fn reject_prompt(&mut self, ordinal: u64, reason: &str) -> Result<(), AdmitError> {
        self.ledger.reject_prompt(ordinal)?;
        let known =
            self.counters.rejected.len() < 64 || self.counters.rejected.contains_key(reason);
        let reason = if known { reason } else { "other" };
        *self.counters.rejected.entry(reason.into()).or_default() += 1;
        self.settle();
        Ok(())
    }

    /// There are no prompts from `ordinal` on.
    pub fn end_of_prompts(&mut self, ordinal: u64) {
        self.ledger.end_of_prompts(ordinal);
        self.name_end_of_data(ordinal);
        self.settle();
    }

    /// What is to be written to the journal before anything of [`Service::outgoing`] is sent.
    pub fn take_pending(&mut self) -> Option<Pending> {
        self.ledger.take_pending()
    }

    /// The same, behind what is in `unwritten` already.
    pub fn move_pending(&mut self, unwritten: &mut Pending) {
        self.ledger.move_pending(unwritten);
    }

    /// The whole ledger, as of all that [`Service::take_pending`] gave.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.ledger.snapshot()
    }

    /// Leases nothing more and ends the learner at its next question.
    pub fn stop(&mut self, now: f64) {
        self.at(now);
        self.stopping = true;
        self.news.batch = true;
        self.settle();
    }

    fn at(&mut self, now: f64) -> f64 {
        self.now = self.now.max(now);
        self.ledger.at(self.now);
        if self.next_figures == f64::NEG_INFINITY {
            self.next_figures = self.now + self.settings.interval_s;
        }
        self.now
    }

    /// Hands out whatever has become possible, and what that makes possible in turn. Each hand-out moves a
    /// lease, a group or a batch on, so this comes to an end; the bound holds should the ledger cry wolf, and
    /// what it leaves is looked at by the next call.
    pub fn settle(&mut self) {
        self.send_acks();
        for _ in 0..MAX_PASSES {
            let fresh = self.ledger.take_news();
            let news = std::mem::take(&mut self.news);
            let batch = fresh.batch || news.batch;
            let evaluated = fresh.evaluated || news.evaluated;
            let rollouts = (fresh.rollouts || news.rollouts) && !self.stopping;
            let scoring = (fresh.scoring || news.scoring) && !self.stopping;
            if !(batch || evaluated || rollouts || scoring) {
                break;
            }
            if batch {
                self.serve_batches();
            }
            if evaluated {
                self.deliver_evaluated();
            }
            if rollouts {
                self.offer_rollouts();
            }
            if scoring {
                self.offer_scoring();
            }
        }
        self.answer_readies();
        self.tell_state();
        self.tell_incidents();
    }

    fn refuse(&mut self, socket: Socket, identity: &[u8], about: &str, refusal: &Refusal) {
        *self.counters.errors.entry(refusal.code).or_default() += 1;
        let head = self
            .head("error")
            .str("code", refusal.code)
            .str("message", &refusal.message)
            .str("about", about);
        let head = match refusal.seen {
            Some(seen) => head.int("seen", seen as i64),
            None => head,
        };
        self.push(socket, identity.to_vec(), head.finish());
    }

    fn push(&mut self, socket: Socket, peer: Vec<u8>, frame: Vec<u8>) {
        self.outgoing.push_back(Outgoing {
            socket,
            peer,
            frame,
        });
    }

    fn answer(
        &mut self,
        holder: HolderId,
        kind: &str,
        fill: impl FnOnce(FrameWriter) -> FrameWriter,
    ) {
        let frame = fill(self.head(kind)).finish();
        self.send(holder, frame);
    }

    fn send(&mut self, holder: HolderId, frame: Vec<u8>) {
        if let Some((socket, identity)) = self.peers.address(holder) {
            self.push(socket, identity, frame);
        }
    }
}

#[cfg(test)]
mod tests;
