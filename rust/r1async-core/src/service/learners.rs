//! Learner ranks: their life, their shares of batches, their reports.

use std::collections::{BTreeMap, BTreeSet};

use super::peers::{LearnerState, Peer, RoleState};
use super::{Refusal, Room, Service};
use crate::balance::Share;
use crate::batch::BindPart;
use crate::frame::{FrameWriter, Value};
use crate::ids::{HolderId, PolicyVersion, Step};
use crate::learner::LearnerError;
use crate::messages::{Hello, LearnerHello};
use crate::pack::{Packing, shares};
use crate::service::{Outgoing, Socket};
use crate::waits::WaitReason;

/// The learner's name for the effective sample size of its importance weights, as a share of the tokens.
const ESS: &str = "is/ess";
/// Its name for having learned what there is to learn: no more prompts are wanted.
const CONVERGED: &str = "converged";

/// What is known of the learner as a whole.
#[derive(Debug, Default)]
pub(super) struct Learners {
    /// All ranks that are connected, of whatever epoch.
    connected: BTreeSet<HolderId>,
    /// The identity that rank 0 of the epoch that counts has: it may say hello again.
    rank_zero: Option<Vec<u8>>,
    /// Ranks that train together.
    world: usize,
    /// (epoch, step) that is being handed out, and who gets what of each part.
    shares: (u64, u64, BTreeMap<usize, Vec<Share>>),
    /// The learner said that it is done.
    pub(super) finished: bool,
}

impl From<LearnerError> for Refusal {
    fn from(error: LearnerError) -> Self {
        let (code, seen) = match error {
            LearnerError::Epoch { seen, .. } => ("epoch", Some(seen)),
            LearnerError::CheckpointTooOld { .. } | LearnerError::CheckpointTooNew { .. } => {
                ("run", None)
            }
            LearnerError::OutOfOrder { .. } => ("version", None),
            LearnerError::Unbalanced(_) => ("invalid", None),
        };
        Self {
            code,
            message: error.to_string(),
            seen,
        }
    }
}

impl Service {
    /// Rank 0 begins a life of the learner (an epoch); the other ranks join it, and wait for it if they are early.
    pub(super) fn learner_hello(
        &mut self,
        identity: &[u8],
        hello: &Hello<'_>,
        learner: LearnerHello<'_>,
    ) -> Result<(), Refusal> {
        let epoch = learner.epoch as u64;
        if learner.rank == 0 {
            self.begin_epoch(identity, epoch, learner)?;
        } else {
            self.check_joins(identity, epoch, learner)?;
        }
        let (rank, world) = (learner.rank, learner.world);
        let state = LearnerState {
            rank,
            world,
            epoch,
            since: self.now,
            maps: self.can_map(learner.machine),
            ..LearnerState::default()
        };
        let holder = self.enter(Socket::Batches, identity, hello, RoleState::Learner(state))?;
        // What was given to it before and never reached it would not be freed.
        self.forget_memory(holder);
        self.learners.connected.insert(holder);
        self.news.rollouts = true;
        self.welcome_ranks();
        Ok(())
    }

    fn begin_epoch(
        &mut self,
        identity: &[u8],
        epoch: u64,
        learner: LearnerHello<'_>,
    ) -> Result<(), Refusal> {
        // After a start of the buffer alone nobody is known: no other learner can have the number of the life that
        // counts, as each takes one that no buffer of this run has seen.
        let rank_zero = self.learners.rank_zero.as_deref();
        let same_life =
            self.ledger.epoch() == Some(epoch) && rank_zero.is_none_or(|known| known == identity);
        if same_life {
            self.ledger.reconnect_learner(epoch)?;
        } else {
            self.ledger.connect_learner(epoch, learner.step as u64)?;
            let connected = std::mem::take(&mut self.learners.connected);
            self.learners = Learners {
                connected,
                ..Learners::default()
            };
        }
        self.learners.rank_zero = Some(identity.to_vec());
        self.learners.world = learner.world;
        Ok(())
    }

    fn check_joins(
        &self,
        identity: &[u8],
        epoch: u64,
        learner: LearnerHello<'_>,
    ) -> Result<(), Refusal> {
        let seen = self.ledger.epoch();
        if let Some(seen) = seen.filter(|&seen| epoch < seen) {
            return Err(ended(epoch, seen));
        }
        if seen == Some(epoch) && learner.world != self.learners.world {
            return Err(other_world(learner.world, epoch, self.learners.world));
        }
        let twin = |(_, peer): &(HolderId, &Peer)| match &peer.state {
            RoleState::Learner(it) => {
                it.epoch == epoch && it.rank == learner.rank && peer.identity != identity
            }
            _ => false,
        };
        if self.peers.iter().any(|it| twin(&it)) {
            let text = format!(
                "hello: rank {} of epoch {epoch} is connected already",
                learner.rank
            );
            return Err(Refusal::new("invalid", text));
        }
        Ok(())
    }

    /// Welcomes the ranks whose rank 0 has come; of those that came before it some may not fit it.
    fn welcome_ranks(&mut self) {
        let (epoch, world) = (self.ledger.epoch(), self.learners.world);
        for holder in self.learners.connected.clone() {
            let Some(rank) = self.peers.learner(holder) else {
                continue;
            };
            if Some(rank.epoch) != epoch || rank.welcomed {
                continue;
            }
            if rank.world == world {
                rank.welcomed = true;
                self.welcome(holder);
            } else {
                let refusal = other_world(rank.world, rank.epoch, world);
                if let Some((socket, identity)) = self.peers.address(holder) {
                    self.refuse(socket, &identity, "hello", &refusal);
                }
                self.leave(holder, true);
            }
        }
    }

    pub(super) fn learner_gone(&mut self, holder: HolderId, identity: &[u8]) {
        self.learners.connected.remove(&holder);
        self.forget_memory(holder);
        if self.learners.rank_zero.as_deref() == Some(identity) {
            self.ledger.learner_lost();
        }
    }

    /// Only the life that counts may say or ask anything.
    fn check_epoch(&mut self, holder: HolderId, epoch: i64) -> Result<&mut LearnerState, Refusal> {
        let epoch = epoch as u64;
        let seen = self.ledger.epoch();
        match self.peers.learner(holder) {
            Some(rank) if rank.welcomed && rank.epoch == epoch && seen == Some(epoch) => Ok(rank),
            _ => Err(ended(epoch, seen.unwrap_or(0))),
        }
    }

    fn check_rank_zero(
        &mut self,
        holder: HolderId,
        epoch: i64,
        about: &str,
    ) -> Result<(), Refusal> {
        match self.check_epoch(holder, epoch)?.rank {
            0 => Ok(()),
            rank => Err(Refusal::new(
                "role",
                format!("{about} comes from rank 0, not from rank {rank}"),
            )),
        }
    }

    pub(super) fn next_batch(
        &mut self,
        holder: HolderId,
        epoch: i64,
        (step, part): (i64, usize),
        (rank, world): (usize, usize),
    ) -> Result<(), Refusal> {
        let (step, done, now) = (step as u64, self.ledger.steps_done(), self.now);
        let state = self.check_epoch(holder, epoch)?;
        if (state.rank, state.world) != (rank, world) {
            let said = format!("rank {} of {}", state.rank, state.world);
            return Err(Refusal::new(
                "invalid",
                format!("next_batch: rank {rank} of {world}; its hello said {said}"),
            ));
        }
        // A rank may ask before rank 0's report of the step before has arrived.
        if step != done && step != done + 1 {
            return Err(Refusal::new(
                "invalid",
                format!("next_batch: step {step}; {done} steps are reported, so {done} is next"),
            ));
        }
        (state.wants, state.told) = (Some((step, part)), None);
        state.since = now;
        self.news.batch = true;
        Ok(())
    }

    /// What a rank that asks says of the memory its batches lie in.
    pub(super) fn use_memory(&mut self, holder: HolderId, freed: &[i64], travels: bool) {
        if let Some(shared) = &mut self.shared {
            if travels {
                shared.memory.forget(holder);
            } else {
                shared.memory.free(holder, freed);
            }
        }
        if let Some(rank) = self.peers.learner(holder) {
            rank.maps &= !travels;
        }
    }

    /// Sends every rank that waits its share of the batch, or the reason why there is none.
    pub(super) fn serve_batches(&mut self) {
        let (Some(epoch), step) = (self.ledger.epoch(), self.ledger.steps_done()) else {
            return;
        };
        // Ranks wait for each other after every part: they are at most one apart.
        for (part, wanting) in self.ranks_that_want(epoch, step) {
            self.serve_part(epoch, step, part, &wanting);
        }
    }

    fn serve_part(&mut self, epoch: u64, step: u64, part: usize, wanting: &[HolderId]) {
        let shares = &mut self.learners.shares;
        if (shares.0, shares.1) != (epoch, step) {
            *shares = (epoch, step, BTreeMap::new());
        }
        // What one rank has begun is handed to all of them, or they would wait for each other for good.
        if self.stopping && !shares.2.contains_key(&part) {
            return self.end_ranks(wanting);
        }
        match self.ledger.bind_part(self.now, Step(step), part) {
            Ok(BindPart::Ready(..)) => self.send_shares(wanting, Step(step), part),
            Ok(BindPart::Wait(reason)) => self.tell_wait(wanting, &reason),
            Ok(BindPart::Finished) => self.end_ranks(wanting),
            Err(error) => self.refuse_ranks(wanting, &Refusal::new("invalid", error)),
        }
    }

    /// By the part that they want.
    fn ranks_that_want(&self, epoch: u64, step: u64) -> BTreeMap<usize, Vec<HolderId>> {
        let mut wanting: BTreeMap<usize, Vec<HolderId>> = BTreeMap::new();
        for &holder in &self.learners.connected {
            let Some(RoleState::Learner(rank)) = self.peers.get(holder).map(|peer| &peer.state)
            else {
                continue;
            };
            if let Some((at, part)) = rank.wants
                && rank.epoch == epoch
                && at == step
            {
                wanting.entry(part).or_default().push(holder);
            }
        }
        wanting
    }

    /// Packs a bound part for each rank.
    fn send_shares(&mut self, wanting: &[HolderId], step: Step, part: usize) {
        let (line, temperature, now) = (
            self.state_line(),
            self.settings.ledger.temperature,
            self.now,
        );
        let Some((batch, place)) = self.ledger.batch_part(step, part) else {
            return;
        };
        let (world, tokens) = (self.learners.world, self.settings.micro_batch_tokens);
        let known = self.learners.shares.2.entry(part);
        let shares = known.or_insert_with(|| shares(batch, &place, world, tokens));
        for &holder in wanting {
            let Some(rank) = self.peers.learner(holder) else {
                continue;
            };
            (rank.wants, rank.told, rank.since) = (None, None, now);
            let share = &shares[rank.rank];
            let packing = Packing::new(batch, &place, share, temperature, line.head("batch"));
            let shared = self.shared.as_mut().filter(|_| rank.maps);
            let room = shared.and_then(|shared| shared.memory.room(holder, packing.size()));
            self.counters.batches_mapped += u64::from(room.is_some());
            let frame = match room {
                Some(room) => write_at(room, packing, line.head("batch")),
                None => packing.write(),
            };
            if let Some((socket, peer)) = self.peers.address(holder) {
                self.outgoing.push_back(Outgoing {
                    socket,
                    peer,
                    frame,
                });
                self.counters.batches_sent += 1;
            }
        }
    }

    fn end_ranks(&mut self, wanting: &[HolderId]) {
        for &holder in wanting {
            if let Some(rank) = self.peers.learner(holder) {
                (rank.wants, rank.told) = (None, None);
            }
            self.answer(holder, "finished", |head| head);
        }
    }

    fn refuse_ranks(&mut self, wanting: &[HolderId], refusal: &Refusal) {
        for &holder in wanting {
            if let Some(rank) = self.peers.learner(holder) {
                rank.wants = None;
            }
            if let Some((socket, identity)) = self.peers.address(holder) {
                self.refuse(socket, &identity, "next_batch", refusal);
            }
        }
    }

    /// Tells each change of the reason once; the passing of seconds is no change.
    fn tell_wait(&mut self, wanting: &[HolderId], reason: &WaitReason) {
        let key = match reason {
            WaitReason::Hold {
                step,
                rollouts,
                groups,
                ..
            } => format!("hold {step} {rollouts} {groups:?}"),
            reason => reason.to_string(),
        };
        for &holder in wanting {
            let Some(rank) = self.peers.learner(holder) else {
                continue;
            };
            if rank.told.as_ref() != Some(&key) {
                rank.told = Some(key.clone());
                self.answer(holder, "waiting", |head| {
                    head.str("reason", &reason.to_string())
                });
            }
        }
    }

    pub(super) fn stepped(
        &mut self,
        holder: HolderId,
        epoch: i64,
        step: i64,
        metrics: &[(&str, Value<'_>)],
    ) -> Result<(), Refusal> {
        self.check_rank_zero(holder, epoch, "stepped")?;
        let reported = metrics.iter().find(|(name, _)| *name == ESS);
        let ess = reported.and_then(|(_, value)| match value {
            Value::Float(ess) => Some(*ess),
            Value::Int(ess) => Some(*ess as f64),
            _ => None,
        });
        self.ledger
            .stepped_with(epoch as u64, Step(step as u64), ess)?;
        if metrics.contains(&(CONVERGED, Value::Bool(true))) {
            let next = self.ledger.next_prompt();
            self.ledger.end_of_prompts(next);
        }
        self.news.batch = true;
        self.answer(holder, "ok", |head| {
            head.str("about", "stepped").int("step", step)
        });
        let event = self
            .head("step")
            .int("step", step)
            .map("metrics", metrics.len(), |out| {
                for (name, value) in metrics {
                    out.str(name);
                    out.value(value);
                }
            });
        self.publish("step", event);
        Ok(())
    }

    pub(super) fn published(
        &mut self,
        holder: HolderId,
        epoch: i64,
        version: i64,
        hash: &str,
    ) -> Result<(), Refusal> {
        self.check_rank_zero(holder, epoch, "published")?;
        self.ledger
            .published(PolicyVersion::new(epoch as u64, version as u64), hash)?;
        self.answer(holder, "ok", |head| {
            head.str("about", "published").int("step", version)
        });
        Ok(())
    }

    /// The groups are trained from now on. The answer leaves when the journal has it on the disk.
    pub(super) fn committed(
        &mut self,
        holder: HolderId,
        epoch: i64,
        step: i64,
    ) -> Result<(), Refusal> {
        self.check_rank_zero(holder, epoch, "committed")?;
        self.ledger.committed(epoch as u64, step as u64)?;
        self.answer(holder, "committed_ok", |head| head.int("step", step));
        Ok(())
    }

    pub(super) fn finish(&mut self, holder: HolderId, epoch: i64) -> Result<(), Refusal> {
        self.check_rank_zero(holder, epoch, "finish")?;
        self.learners.finished = true;
        let step = self.ledger.steps_done() as i64;
        self.answer(holder, "ok", |head| {
            head.str("about", "finish").int("step", step)
        });
        Ok(())
    }
}

/// Writes the message where the learner finds it; the message that says where.
fn write_at(room: Room<'_>, packing: Packing<'_>, head: FrameWriter) -> Vec<u8> {
    let size = packing.size() as i64;
    packing.write_at(room.bytes);
    let place = [
        i64::from(room.process),
        i64::from(room.descriptor),
        room.segment as i64,
        size,
    ];
    head.list("memory", place.len(), |out| {
        place.into_iter().for_each(|number| out.int(number));
    })
    .finish()
}

fn other_world(got: usize, epoch: u64, want: usize) -> Refusal {
    let text = format!("hello: world {got}; rank 0 of epoch {epoch} has world {want}");
    Refusal::new("invalid", text)
}

fn ended(epoch: u64, seen: u64) -> Refusal {
    let message =
        format!("epoch {epoch} is not the learner's life that counts; the highest seen is {seen}");
    Refusal {
        code: "epoch",
        message,
        seen: Some(seen),
    }
}
