//! The peers that are connected, each known by its socket and the identity it has there.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Socket;
use crate::ids::{HolderId, PolicyVersion};
use crate::messages::Role;

/// One connected client.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) socket: Socket,
    pub(super) identity: Vec<u8>,
    pub(super) name: String,
    pub(super) heard: f64,
    pub(super) stats: BTreeMap<String, f64>,
    pub(super) state: RoleState,
}

impl Peer {
    pub(super) fn new(
        socket: Socket,
        identity: &[u8],
        name: &str,
        now: f64,
        state: RoleState,
    ) -> Self {
        let stats = BTreeMap::new();
        Self {
            socket,
            identity: identity.to_vec(),
            name: name.into(),
            heard: now,
            stats,
            state,
        }
    }

    pub(super) fn role(&self) -> Role {
        match self.state {
            RoleState::Generator(_) => Role::Generator,
            RoleState::Scorer(_) => Role::Scorer,
            RoleState::Evaluator => Role::Evaluator,
            RoleState::Learner(_) => Role::Learner,
        }
    }
}

/// What is known of a peer in its role.
#[derive(Debug)]
pub(super) enum RoleState {
    Generator(GeneratorState),
    Scorer(ScorerState),
    Evaluator,
    Learner(LearnerState),
}

impl RoleState {
    /// Of a peer that has said hello and nothing more; a learner says more in its hello.
    pub(super) fn of(role: Role) -> Self {
        match role {
            Role::Generator => Self::Generator(GeneratorState::default()),
            Role::Scorer => Self::Scorer(ScorerState::default()),
            Role::Evaluator => Self::Evaluator,
            Role::Learner => Self::Learner(LearnerState::default()),
        }
    }
}

/// Leases on their way: sent on this connection and not yet in the receiver's count.
///
/// A receiver tells how much room it had after so many leases; what was sent since takes room it does not
/// know of. So credits are free room minus leases unseen, and no message can be lost or crossed.
#[derive(Debug, Default)]
pub(super) struct Credits {
    sent: u64,
    /// The kind of each unseen lease, oldest first.
    unseen: VecDeque<usize>,
    /// Room by kind.
    free: Vec<u64>,
}

/// Kinds of a generator's leases; those of a scorer are its pools.
pub(super) const TRAINING: usize = 0;
pub(super) const EVALUATION: usize = 1;

impl Credits {
    /// The receiver has room for so many of each kind after `seen` leases. `false`: that cannot be.
    pub(super) fn set(&mut self, free: Vec<u64>, seen: u64) -> bool {
        let range = self.may_have_seen();
        if !range.contains(&seen) {
            return false;
        }
        self.unseen.drain(..(seen - range.start()) as usize);
        self.free = free;
        true
    }

    pub(super) fn send(&mut self, count: usize, kind: usize) {
        self.sent += count as u64;
        self.unseen.extend(std::iter::repeat_n(kind, count));
    }

    /// What `seen` may be: not less than it was, not more than was sent.
    pub(super) fn may_have_seen(&self) -> std::ops::RangeInclusive<u64> {
        self.sent - self.unseen.len() as u64..=self.sent
    }

    /// All leases ever sent on this connection.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn room(&self, kind: usize) -> usize {
        let unseen = self.unseen.iter().filter(|&&it| it == kind).count();
        let free = self.free.get(kind).copied().unwrap_or(0);
        (free as usize).saturating_sub(unseen)
    }

    pub(super) fn any_room(&self) -> bool {
        (0..self.free.len()).any(|kind| self.room(kind) > 0)
    }
}

#[derive(Debug, Default)]
pub(super) struct GeneratorState {
    pub(super) credits: Credits,
    pub(super) capacity: usize,
    pub(super) installed: Option<PolicyVersion>,
    /// It said ready and has no answer yet.
    pub(super) ready_unanswered: bool,
    /// It connected again and has not said what it holds.
    pub(super) must_announce: bool,
}

#[derive(Debug, Default)]
pub(super) struct ScorerState {
    pub(super) credits: Credits,
    pub(super) ready_unanswered: bool,
}

#[derive(Debug, Default)]
pub(super) struct LearnerState {
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(super) epoch: u64,
    /// When it asked for a batch or got one.
    pub(super) since: f64,
    /// The step, and the part of its batch, whose share it waits for.
    pub(super) wants: Option<(u64, usize)>,
    /// What it was told that it waits for.
    pub(super) told: Option<String>,
    /// A rank above 0 that came before its rank 0 is welcomed after it.
    pub(super) welcomed: bool,
    /// It maps the memory that its batches lie in.
    pub(super) maps: bool,
}

/// All peers.
#[derive(Debug)]
pub(super) struct Peers {
    deadline_s: f64,
    /// By socket and by the identity there.
    by_address: [HashMap<Vec<u8>, HolderId>; 3],
    peers: BTreeMap<HolderId, Peer>,
    /// Not before then has anyone been silent for too long.
    next_silence: f64,
}

impl Peers {
    pub(super) fn new(deadline_s: f64) -> Self {
        let (by_address, peers) = (Default::default(), BTreeMap::new());
        Self {
            deadline_s,
            by_address,
            peers,
            next_silence: f64::INFINITY,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn find(&self, socket: Socket, identity: &[u8]) -> Option<(HolderId, Role)> {
        let holder = *self.by_address[socket as usize].get(identity)?;
        Some((holder, self.peers.get(&holder)?.role()))
    }

    pub(super) fn get(&self, holder: HolderId) -> Option<&Peer> {
        self.peers.get(&holder)
    }

    pub(super) fn get_mut(&mut self, holder: HolderId) -> Option<&mut Peer> {
        self.peers.get_mut(&holder)
    }

    pub(super) fn generator(&mut self, holder: HolderId) -> Option<&mut GeneratorState> {
        match &mut self.peers.get_mut(&holder)?.state {
            RoleState::Generator(generator) => Some(generator),
            _ => None,
        }
    }

    pub(super) fn scorer(&mut self, holder: HolderId) -> Option<&mut ScorerState> {
        match &mut self.peers.get_mut(&holder)?.state {
            RoleState::Scorer(scorer) => Some(scorer),
            _ => None,
        }
    }

    pub(super) fn learner(&mut self, holder: HolderId) -> Option<&mut LearnerState> {
        match &mut self.peers.get_mut(&holder)?.state {
            RoleState::Learner(learner) => Some(learner),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (HolderId, &Peer)> {
        self.peers.iter().map(|(&holder, peer)| (holder, peer))
    }

    pub(super) fn address(&self, holder: HolderId) -> Option<(Socket, Vec<u8>)> {
        self.peers
            .get(&holder)
            .map(|peer| (peer.socket, peer.identity.clone()))
    }

    pub(super) fn insert(&mut self, holder: HolderId, peer: Peer) {
        self.next_silence = self.next_silence.min(peer.heard + self.deadline_s);
        self.by_address[peer.socket as usize].insert(peer.identity.clone(), holder);
        self.peers.insert(holder, peer);
    }

    pub(super) fn remove(&mut self, holder: HolderId) -> Option<Peer> {
        let peer = self.peers.remove(&holder)?;
        self.by_address[peer.socket as usize].remove(&peer.identity);
        Some(peer)
    }

    /// The same peer on a new connection: it has seen no lease of it, and says again what it holds.
    pub(super) fn begin_again(&mut self, holder: HolderId, name: &str, mut state: RoleState) {
        let Some(peer) = self.peers.get_mut(&holder) else {
            return;
        };
        if let RoleState::Generator(generator) = &mut state {
            generator.must_announce = true;
        }
        peer.name = name.into();
        peer.state = state;
    }

    pub(super) fn heard(&mut self, socket: Socket, identity: &[u8], now: f64) {
        if let Some((holder, _)) = self.find(socket, identity)
            && let Some(peer) = self.peers.get_mut(&holder)
        {
            peer.heard = now;
        }
    }

    pub(super) fn set_stats(&mut self, holder: HolderId, stats: &[(&str, f64)]) {
        if let Some(peer) = self.peers.get_mut(&holder) {
            peer.stats = stats
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect();
        }
    }

    pub(super) fn next_silence(&self) -> Option<f64> {
        (!self.peers.is_empty()).then_some(self.next_silence)
    }

    /// Who has not been heard of for the deadline. Looks at the peers only when somebody may be.
    pub(super) fn silent(&mut self, now: f64) -> Vec<HolderId> {
        if now < self.next_silence {
            return Vec::new();
        }
        let due = |peer: &Peer| peer.heard + self.deadline_s;
        let silent = self
            .peers
            .iter()
            .filter(|(_, peer)| due(peer) <= now)
            .map(|(&holder, _)| holder)
            .collect();
        let later = self.peers.values().map(due).filter(|&due| due > now);
        self.next_silence = later.fold(f64::INFINITY, f64::min);
        silent
    }
}
