//! Peers come and go.

use super::peers::{Peer, RoleState};
use super::{MAX_PEERS, Refusal, Service, Socket};
use crate::frame::Frame;
use crate::ids::HolderId;
use crate::messages::{Hello, PROTOCOL, Role};

impl Service {
    pub(super) fn hello(
        &mut self,
        socket: Socket,
        identity: &[u8],
        frame: &Frame<'_>,
    ) -> Result<(), Refusal> {
        let protocol = Hello::protocol(frame)?;
        if protocol != PROTOCOL {
            let text = format!(
                "this buffer speaks protocol {PROTOCOL}, the client {protocol}; install the same version"
            );
            return Err(Refusal::new("protocol", text));
        }
        let hello = Hello::read(frame, protocol)?;
        if hello.run != self.settings.run {
            let text = format!(
                "this is run {:?}, the client wants {:?}",
                self.settings.run, hello.run
            );
            return Err(Refusal::new("run", text));
        }
        if (hello.role == Role::Learner) != (socket == Socket::Batches) {
            let text = format!(
                "a {} does not connect to the socket {}",
                hello.role.name(),
                socket.name()
            );
            return Err(Refusal::new("role", text));
        }
        if let Some(learner) = hello.learner {
            return self.learner_hello(identity, &hello, learner);
        }
        let holder = self.enter(socket, identity, &hello, RoleState::of(hello.role))?;
        self.welcome(holder);
        Ok(())
    }

    /// A peer is known from now on, under the number it had if it was known before.
    pub(super) fn enter(
        &mut self,
        socket: Socket,
        identity: &[u8],
        hello: &Hello<'_>,
        state: RoleState,
    ) -> Result<HolderId, Refusal> {
        if let Some((holder, role)) = self.peers.find(socket, identity) {
            if role == hello.role {
                self.peers.begin_again(holder, hello.name, state);
                match role {
                    Role::Evaluator => self.evaluator_lost(holder),
                    // It announces nothing, and a frame of work on its way to it may be lost.
                    Role::Scorer => self.ledger.release_all(holder),
                    Role::Generator | Role::Learner => {}
                }
                return Ok(holder);
            }
            self.leave(holder, true);
        }
        if self.peers.len() >= MAX_PEERS {
            return Err(Refusal::new(
                "invalid",
                format!("{MAX_PEERS} peers are connected; no more are taken"),
            ));
        }
        let holder = self.ledger.new_holder(hello.role.name(), hello.name);
        let peer = Peer::new(socket, identity, hello.name, self.now, state);
        self.peers.insert(holder, peer);
        Ok(holder)
    }

    pub(super) fn welcome(&mut self, holder: HolderId) {
        let (deadline_s, seed) = (self.settings.peer_deadline_s, self.settings.seed as i64);
        let group_size = self.settings.ledger.group_size as i64;
        let (steps, seen) = (
            self.settings.ledger.steps as i64,
            self.ledger.epoch().map_or(-1, |epoch| epoch as i64),
        );
        let maps = self.peers.learner(holder).map(|learner| learner.maps);
        self.answer(holder, "welcome", |head| {
            let head = head
                .int("protocol", PROTOCOL)
                .float("peer_deadline_s", deadline_s);
            let head = head.int("group_size", group_size).int("seed", seed);
            match maps {
                Some(maps) => head
                    .int("steps", steps)
                    .int("seen", seen)
                    .bool("memory", maps),
                None => head,
            }
        });
    }

    /// A peer goes: `lost` if it did not say so.
    pub(super) fn leave(&mut self, holder: HolderId, lost: bool) {
        let Some(peer) = self.peers.remove(holder) else {
            return;
        };
        match peer.state {
            RoleState::Learner(_) => self.learner_gone(holder, &peer.identity),
            RoleState::Evaluator => self.evaluator_lost(holder),
            RoleState::Generator(_) | RoleState::Scorer(_) if lost => {
                self.ledger.holder_lost(holder)
            }
            RoleState::Generator(_) | RoleState::Scorer(_) => self.ledger.release_all(holder),
        }
        if lost {
            self.counters.peers_lost += 1;
        }
    }
}
