//! Leases for whoever has room: the most room first, a group at a time, so that equals share alike.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::Service;
use super::peers::{EVALUATION, Peer, RoleState, TRAINING};
use crate::group::Prompt;
use crate::ids::HolderId;
use crate::lease::RolloutLease;
use crate::ledger::Ledger;
use crate::scoring::ScoreLease;
use crate::settings::Sampling;

/// Peers by room: the most first, then by name.
type ByRoom = BinaryHeap<(usize, Reverse<(String, HolderId)>)>;

impl Service {
    /// Lends rollouts of training and of evaluations to generators.
    pub(super) fn offer_rollouts(&mut self) {
        let mut lent: BTreeMap<HolderId, Vec<RolloutLease>> = BTreeMap::new();
        for evaluation in [false, true] {
            let mut waiting = self.by_room(|peer| match &peer.state {
                RoleState::Generator(generator) if evaluation => generator.credits.room(EVALUATION),
                RoleState::Generator(generator) => generator.credits.room(TRAINING),
                _ => 0,
            });
            while let Some((room, Reverse((name, holder)))) = waiting.pop() {
                let leases = self.lend_rollouts(holder, room, evaluation);
                if leases.is_empty() {
                    continue;
                }
                let left = room.saturating_sub(leases.len());
                if left > 0 {
                    waiting.push((left, Reverse((name, holder))));
                }
                lent.entry(holder).or_default().extend(leases);
            }
        }
        for (&holder, leases) in &lent {
            self.send_leases(holder, leases);
        }
    }

    fn by_room(&self, room: impl Fn(&Peer) -> usize) -> ByRoom {
        let peers = self
            .peers
            .iter()
            .map(|(holder, peer)| (room(peer), Reverse((peer.name.clone(), holder))));
        peers.filter(|(room, _)| *room > 0).collect()
    }

    /// At most a group's worth at a time.
    fn lend_rollouts(
        &mut self,
        holder: HolderId,
        room: usize,
        evaluation: bool,
    ) -> Vec<RolloutLease> {
        let ahead = self.settings.ledger.group_size;
        let Some(generator) = self.peers.generator(holder) else {
            return Vec::new();
        };
        let (Some(installed), capacity) = (generator.installed, generator.capacity) else {
            return Vec::new();
        };
        let leases = if evaluation {
            self.ledger
                .lease_evaluation(self.now, holder, room.min(ahead))
        } else if self.ledger.is_known_version(installed) {
            self.ledger
                .lease_rollouts(self.now, holder, installed, room.min(ahead), capacity)
        } else {
            Vec::new()
        };
        if let Some(generator) = self.peers.generator(holder) {
            let kind = if evaluation { EVALUATION } else { TRAINING };
            generator.credits.send(leases.len(), kind);
        }
        leases
    }

    fn send_leases(&mut self, holder: HolderId, leases: &[RolloutLease]) {
        let Some(generator) = self.peers.generator(holder) else {
            return;
        };
        generator.ready_unanswered = false;
        let seq = generator.credits.sent();
        let frame = leases_frame(self.head("leases").int("seq", seq as i64), leases);
        self.send(holder, frame);
    }

    /// Lends finished rollouts to scorers: each pool's to who has room in that pool.
    pub(super) fn offer_scoring(&mut self) {
        for pool in 0..self.settings.ledger.pools() {
            self.offer_scoring_of(pool);
        }
    }

    fn offer_scoring_of(&mut self, pool: usize) {
        let mut lent: BTreeMap<HolderId, Vec<ScoreLease>> = BTreeMap::new();
        let mut waiting = self.by_room(|peer| match &peer.state {
            RoleState::Scorer(scorer) => scorer.credits.room(pool),
            _ => 0,
        });
        // One at a time: a scorer grades for seconds, so even shares matter more than full messages.
        while let Some((room, Reverse((name, holder)))) = waiting.pop() {
            let leases = self.ledger.lease_scoring_of(self.now, holder, pool, 1);
            if leases.is_empty() {
                break;
            }
            if room > leases.len() {
                waiting.push((room - leases.len(), Reverse((name, holder))));
            }
            lent.entry(holder).or_default().extend(leases);
        }
        for (&holder, leases) in &lent {
            let Some(scorer) = self.peers.scorer(holder) else {
                continue;
            };
            scorer.ready_unanswered = false;
            scorer.credits.send(leases.len(), pool);
            let seq = scorer.credits.sent();
            let name = self.settings.ledger.pool_name(pool);
            let head = self.head("score").int("seq", seq as i64).str("pool", name);
            let frame = score_frame(head, leases, &self.ledger);
            self.send(holder, frame);
        }
    }
}

/// Index of each lease's prompt in the list of distinct prompts; members of a group are next to each other.
fn distinct<'a>(
    prompts: impl Iterator<Item = &'a Arc<Prompt>>,
) -> (Vec<&'a Arc<Prompt>>, Vec<usize>) {
    let mut distinct: Vec<&Arc<Prompt>> = Vec::new();
    let mut places = Vec::new();
    for prompt in prompts {
        if !distinct
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, prompt))
        {
            distinct.push(prompt);
        }
        places.push(distinct.len() - 1);
    }
    (distinct, places)
}

fn leases_frame(head: crate::frame::FrameWriter, leases: &[RolloutLease]) -> Vec<u8> {
    let (prompts, places) = distinct(leases.iter().map(|lease| &lease.prompt));
    let mut samplings: Vec<Sampling> = Vec::new();
    let mut sampling_of = |sampling: Sampling| {
        samplings
            .iter()
            .position(|known| *known == sampling)
            .unwrap_or_else(|| {
                samplings.push(sampling);
                samplings.len() - 1
            })
    };
    let sampling_places: Vec<usize> = leases
        .iter()
        .map(|lease| sampling_of(lease.sampling))
        .collect();
    let head = head
        .list("samplings", samplings.len(), |out| {
            samplings
                .iter()
                .for_each(|sampling| put_sampling(out, sampling))
        })
        .list("items", leases.len(), |out| {
            for (at, lease) in leases.iter().enumerate() {
                out.list(7);
                out.int(lease.lease.0 as i64);
                out.int(lease.rollout.0 as i64);
                out.int(lease.group.0 as i64);
                out.int(places[at] as i64);
                out.int(sampling_places[at] as i64);
                out.int(lease.resume.len() as i64);
                match lease.pin {
                    None => out.nil(),
                    Some(pin) => {
                        out.list(2);
                        out.int(pin.epoch as i64);
                        out.int(pin.number as i64);
                    }
                }
            }
        });
    let mut frame = head
        .column::<i32>(
            "prompt_tokens",
            prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
        )
        .column::<i32>("prompt_lens", prompts.len())
        .column::<i32>(
            "resume_tokens",
            leases.iter().map(|lease| lease.resume.len()).sum(),
        )
        .open();
    prompts.iter().for_each(|prompt| frame.put(&prompt.tokens));
    frame.end_column();
    frame.put_each(prompts.iter().map(|prompt| prompt.tokens.len() as i32));
    frame.end_column();
    leases.iter().for_each(|lease| frame.put(&lease.resume));
    frame.end_column();
    frame.finish()
}

fn put_sampling(out: &mut crate::frame::Nested, sampling: &Sampling) {
    out.map(5);
    for (name, value) in [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
    ] {
        out.str(name);
        out.float(value);
    }
    for (name, value) in [
        ("top_k", sampling.top_k),
        ("max_tokens", sampling.max_tokens),
    ] {
        out.str(name);
        out.int(value.into());
    }
    out.str("greedy");
    out.bool(sampling.greedy);
}

fn score_frame(head: crate::frame::FrameWriter, leases: &[ScoreLease], ledger: &Ledger) -> Vec<u8> {
    let completions: Vec<&[i32]> = leases
        .iter()
        .map(|lease| ledger.completion(lease.lease))
        .collect();
    let (prompts, places) = distinct(leases.iter().map(|lease| &lease.prompt));
    let head = head
        .list("items", leases.len(), |out| {
            for ((lease, place), tokens) in leases.iter().zip(&places).zip(&completions) {
                out.list(6);
                out.int(lease.lease.0 as i64);
                out.int(lease.rollout.0 as i64);
                out.int(lease.group.0 as i64);
                out.int(*place as i64);
                out.int(tokens.len() as i64);
                out.str(lease.finish.name());
            }
        })
        .list("metas", prompts.len(), |out| {
            prompts.iter().for_each(|prompt| out.bin(&prompt.meta))
        });
    let mut frame = head
        .column::<i32>(
            "tokens",
            completions.iter().map(|tokens| tokens.len()).sum(),
        )
        .open();
    completions.iter().for_each(|tokens| frame.put(tokens));
    frame.end_column();
    frame.finish()
}
