//! What generators and scorers say: room, tokens, verdicts.

use super::peers::{Credits, RoleState};
use super::{Refusal, Service};
use crate::chunk::ChunkRef;
use crate::ids::{HolderId, LeaseId, PolicyVersion, RolloutId};
use crate::lease::{Announcement, ChunkAck};
use crate::messages::{Announced, Chunks, GeneratorReady, Graded, ScorerReady};
use crate::scoring::{Verdict, VerdictAck};
use crate::staleness::VersionRun;

/// What is answered to a sender of tokens or verdicts.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// (lease, completion tokens held).
    held: Vec<(i64, usize)>,
    lost: Vec<i64>,
}

impl Acks {
    fn add(&mut self, lease: i64, ack: ChunkAck) {
        match ack {
            ChunkAck::Held(length) => self.held.push((lease, length)),
            ChunkAck::Lost => self.lost.push(lease),
        }
    }
}

impl Service {
    pub(super) fn generator_ready(
        &mut self,
        holder: HolderId,
        ready: &GeneratorReady<'_>,
    ) -> Result<(), Refusal> {
        self.forget_unannounced(holder, &[]);
        let installed = PolicyVersion::new(ready.epoch as u64, ready.version as u64);
        self.check_hash(installed, ready.hash)?;
        let Some(generator) = self.peers.generator(holder) else {
            return Ok(());
        };
        let free = vec![ready.free as u64, ready.eval_free as u64];
        if !generator.credits.set(free, ready.leases_seen as u64) {
            return Err(cannot_have_seen(ready.leases_seen, &generator.credits));
        }
        generator.capacity = ready.capacity as usize;
        generator.installed = Some(installed);
        generator.ready_unanswered = true;
        self.readies.push(holder);
        self.news.rollouts = true;
        Ok(())
    }

    /// Weights that call themselves the published version have its hash.
    fn check_hash(&self, installed: PolicyVersion, hash: &str) -> Result<(), Refusal> {
        match self.ledger.published_version() {
            Some((version, published)) if version == installed && hash != published => {
                let text = format!(
                    "weights of version {version} have hash {published}, installed are {hash}; fetch them again"
                );
                Err(Refusal::new("version", text))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn scorer_ready(
        &mut self,
        holder: HolderId,
        ready: &ScorerReady<'_>,
    ) -> Result<(), Refusal> {
        let mut free = vec![0; self.settings.ledger.pools()];
        free[0] = ready.free as u64;
        for (name, room) in &ready.pools {
            free[self.pool_named(name)?] = *room as u64;
        }
        let Some(scorer) = self.peers.scorer(holder) else {
            return Ok(());
        };
        if !scorer.credits.set(free, ready.leases_seen as u64) {
            return Err(cannot_have_seen(ready.leases_seen, &scorer.credits));
        }
        scorer.ready_unanswered = true;
        self.readies.push(holder);
        self.news.scoring = true;
        Ok(())
    }

    /// Every item stands for itself: one that cannot be is refused, the others are filed.
    pub(super) fn chunks(&mut self, holder: HolderId, about: &str, chunks: &Chunks<'_>) {
        let mut acks = self.acks.remove(&holder).unwrap_or_default();
        let mut refused: Vec<String> = Vec::new();
        let mut runs = Vec::new();
        for item in &chunks.items {
            runs.clear();
            runs.extend(item.runs.iter().map(|&(epoch, number, count)| VersionRun {
                version: PolicyVersion::new(epoch as u64, number as u64),
                // A count past 32 bits fits no column, so the sums differ and the ledger refuses it.
                count: u32::try_from(count).unwrap_or(u32::MAX),
            }));
            let chunk = ChunkRef {
                lease: LeaseId(item.lease as u64),
                offset: item.offset,
                tokens: &chunks.tokens[item.tokens.clone()],
                logprobs: &chunks.logprobs[item.tokens.clone()],
                runs: &runs,
                finish: item.finish,
            };
            match self.ledger.chunk(self.now, holder, chunk) {
                Ok(ack) => acks.add(item.lease, ack),
                Err(error) => refused.push(error.to_string()),
            }
        }
        if let Some(first) = refused.first() {
            let more = refused.len() - 1;
            let text = if more == 0 {
                first.clone()
            } else {
                format!("{first}; and {more} more items")
            };
            if let Some((socket, identity)) = self.peers.address(holder) {
                self.refuse(socket, &identity, about, &Refusal::new("invalid", text));
            }
        }
        self.acks.insert(holder, acks);
        if !chunks.verdicts.is_empty() && !self.settings.generators_grade {
            if let Some((socket, identity)) = self.peers.address(holder) {
                let text = "a generator does not grade; set reward.from_generators=true if it may";
                self.refuse(socket, &identity, about, &Refusal::new("role", text));
            }
            return;
        }
        // Not answered: a rollout that was sent again has its verdict, and for its chunk it is held.
        for item in &chunks.verdicts {
            self.ledger.verdict(
                self.now,
                holder,
                LeaseId(item.lease as u64),
                verdict_of(item),
            );
        }
    }

    pub(super) fn release(&mut self, holder: HolderId, leases: &[i64]) {
        for &lease in leases {
            // One that is not the holder's was lost meanwhile: there is nothing to hand back.
            self.ledger.release(holder, LeaseId(lease as u64));
        }
        self.answer(holder, "alive", |head| head);
    }

    pub(super) fn announce(&mut self, holder: HolderId, items: &[Announced]) {
        let leases: Vec<LeaseId> = items
            .iter()
            .map(|item| LeaseId(item.lease as u64))
            .collect();
        self.forget_unannounced(holder, &leases);
        let mut acks = Acks::default();
        for item in items {
            let (lease, rollout) = (LeaseId(item.lease as u64), RolloutId(item.rollout as u64));
            // What a peer that is connected works on is not another's to claim; of one that is gone nobody is the holder.
            let ack = match self.ledger.holder_of(lease) {
                Some(other) if other != holder => ChunkAck::Lost,
                _ => self.ledger.announce(
                    self.now,
                    holder,
                    Announcement {
                        lease,
                        rollout,
                        offset: item.offset,
                    },
                ),
            };
            acks.add(item.lease, ack);
        }
        self.answer_acks(holder, &acks);
    }

    /// A generator that connected again holds what it announces; leases that were on their way are handed back.
    fn forget_unannounced(&mut self, holder: HolderId, announced: &[LeaseId]) {
        let Some(generator) = self.peers.generator(holder) else {
            return;
        };
        if !std::mem::take(&mut generator.must_announce) {
            return;
        }
        let announced: std::collections::HashSet<LeaseId> = announced.iter().copied().collect();
        for lease in self.ledger.leases_of(holder) {
            if !announced.contains(&lease) {
                self.ledger.release(holder, lease);
            }
        }
    }

    pub(super) fn verdicts(&mut self, holder: HolderId, items: &[Graded<'_>]) {
        let mut acks = self.acks.remove(&holder).unwrap_or_default();
        for item in items {
            let lease = LeaseId(item.lease as u64);
            match self
                .ledger
                .verdict(self.now, holder, lease, verdict_of(item))
            {
                VerdictAck::Held => acks.add(item.lease, ChunkAck::Held(1)),
                VerdictAck::Lost => acks.add(item.lease, ChunkAck::Lost),
            }
        }
        self.acks.insert(holder, acks);
    }

    /// Answers the chunks and verdicts that came since the last time.
    pub(super) fn send_acks(&mut self) {
        for (holder, acks) in std::mem::take(&mut self.acks) {
            self.answer_acks(holder, &acks);
        }
    }

    fn answer_acks(&mut self, holder: HolderId, acks: &Acks) {
        self.answer(holder, "acks", |head| {
            head.list("items", acks.held.len(), |out| {
                for &(lease, length) in &acks.held {
                    out.list(2);
                    out.int(lease);
                    out.int(length as i64);
                }
            })
            .list("lost", acks.lost.len(), |out| {
                acks.lost.iter().for_each(|&lease| out.int(lease))
            })
        });
    }

    /// A `ready` that no leases answered is answered all the same.
    pub(super) fn answer_readies(&mut self) {
        for holder in std::mem::take(&mut self.readies) {
            let unanswered = match self.peers.get_mut(holder).map(|peer| &mut peer.state) {
                Some(RoleState::Generator(generator)) => {
                    std::mem::take(&mut generator.ready_unanswered)
                }
                Some(RoleState::Scorer(scorer)) => std::mem::take(&mut scorer.ready_unanswered),
                _ => false,
            };
            if unanswered {
                self.answer(holder, "alive", |head| head);
            }
        }
    }
}

fn verdict_of(item: &Graded<'_>) -> Verdict {
    let status = item.status.to_owned();
    let Some(total) = item.total else {
        return Verdict::Abstain { status };
    };
    let parts = item
        .parts
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect();
    Verdict::Score {
        total,
        parts,
        status,
    }
}

fn cannot_have_seen(seen: i64, credits: &Credits) -> Refusal {
    let (low, high) = credits.may_have_seen().into_inner();
    let want = format!("{low} (said before) to {high} (sent on this connection)");
    Refusal::new(
        "invalid",
        format!("ready: leases_seen must be {want}, got {seen}"),
    )
}
