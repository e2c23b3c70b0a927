//! A whole buffer and what peers, the clock and the prompt source do to it, in an order that the fuzzer writes.
//!
//! A script is a row of acts: a byte that says which (modulo their number) and the bytes that it takes. One
//! carries a frame of any bytes; the others make whole messages of small numbers, because a fuzzer that has to
//! keep msgpack well-formed gets no further than the hello.

use r1async_core::journal::{Chain, Payload, Recorded, Replay, first, link};
use r1async_core::service::{Service, ServiceSettings, Socket};
use r1async_core::{Audit, Settings};

use crate::messages;

/// Peers 0 and 1 are generators, 2 a scorer, 3 and 4 learner ranks, 5 an evaluator, 6 and 7 strangers.
pub const ROLES: [&str; 8] = [
    "generator",
    "generator",
    "scorer",
    "learner",
    "learner",
    "evaluator",
    "scorer",
    "learner",
];
/// Lives of one script at most: each tells the whole history again.
const MAX_LIVES: u64 = 4;
/// Prompts that there are.
const PROMPTS: u64 = 24;
/// Bytes of one frame at most.
const CAP: usize = 1 << 16;
/// Messages that a buffer of this size may have to send after one act: to every peer its answer, leases,
/// batches and evaluated groups, and the events.
const MAX_OUTGOING: usize = 4096;

const REPORTS: [&str; 4] = ["stepped", "published", "committed", "finish"];
/// What a script may do; each is followed by a peer and its own bytes.
pub mod act {
    pub const FRAME: u8 = 0;
    pub const HELLO: u8 = 1;
    pub const READY: u8 = 2;
    pub const CHUNK: u8 = 3;
    pub const VERDICT: u8 = 4;
    pub const ANNOUNCE: u8 = 5;
    pub const RELEASE: u8 = 6;
    pub const NEXT_BATCH: u8 = 7;
    pub const REPORT: u8 = 8;
    pub const EVALUATE: u8 = 9;
    pub const CANCEL: u8 = 10;
    pub const BYE: u8 = 11;
    pub const LOST: u8 = 12;
    pub const PASS: u8 = 13;
    pub const RESTART: u8 = 14;
    pub const HEARTBEAT: u8 = 15;
    pub const REJECT: u8 = 16;
}
/// Acts that there are.
const ACTS: u8 = 17;

/// `life`: how often the buffer was killed before.
fn settings(life: u64) -> ServiceSettings {
    ServiceSettings {
        ledger: Settings {
            incarnation: life,
            group_size: 2,
            min_group_size: 1,
            groups_per_step: 3,
            part_groups: 1,
            steps: 4,
            max_tokens: 12,
            ..Settings::default()
        },
        run: messages::RUN.into(),
        seed: 7,
        micro_batch_tokens: 64,
        peer_deadline_s: 20.0,
        max_message_bytes: CAP,
        filtered_batches: 1,
        generators_grade: true,
        interval_s: 1.0,
    }
}

/// The rest of a script.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A small number; now and then one at the edge of what the wire carries.
    fn number(&mut self) -> Option<i64> {
        Some(match self.byte()? {
            255 => i64::MAX,
            254 => i64::MIN,
            253 => -1,
            small => i64::from(small),
        })
    }

    fn peer(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) % ROLES.len())
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(u16::from_le_bytes([self.byte()?, self.byte()?]));
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        Some(taken)
    }
}

/// Writes the act that has `peer` send `frame`.
pub fn write_frame(script: &mut Vec<u8>, peer: u8, frame: &[u8]) {
    let len = u16::try_from(frame.len()).expect("seeds are small");
    script.extend([act::FRAME, peer]);
    script.extend(len.to_le_bytes());
    script.extend(frame);
}

struct World {
    service: Service,
    life: u64,
    now: f64,
    /// The journal: all events and their payload so far.
    events: Stream,
    payload: Stream,
}

/// Does all acts of the script; the books at its end.
///
/// # Panics
/// The books do not balance, a deadline passed unseen, the journal tells another history than what happened, or the
/// buffer has more to send than it can mean.
pub fn play(script: &[u8]) -> Audit {
    let ledger = Recorded::new(settings(0).ledger, true).expect("these settings work");
    let mut world = World {
        service: over(0, ledger),
        life: 0,
        now: 0.0,
        events: Stream::default(),
        payload: Stream::default(),
    };
    let mut script = Script(script);
    while world.act(&mut script).is_some() {
        world.pump();
        let difference = world.service.ledger().audit().difference();
        assert_eq!(difference, None);
        assert_eq!(world.service.ledger().contradiction(), None);
    }
    world.service.ledger().audit()
}

fn over(life: u64, ledger: Recorded) -> Service {
    Service::over(settings(life), ledger).expect("these settings work")
}

/// A file of the journal.
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    chain: Chain,
}

impl Stream {
    fn write(&mut self, mut records: Vec<u8>) {
        self.chain = link(&mut records, self.chain);
        self.bytes.extend(records);
    }

    fn bodies(&self) -> impl Iterator<Item = &[u8]> {
        let (mut rest, mut chain) = (&self.bytes[..], Chain::default());
        std::iter::from_fn(move || {
            let (_, body, behind) = first(rest, &mut chain).expect("nobody has touched it")?;
            rest = behind;
            Some(body)
        })
    }
}

impl World {
    fn send(&mut self, peer: usize, frame: &[u8]) {
        let socket = match ROLES[peer] {
            "learner" => Socket::Batches,
            _ => Socket::Rollouts,
        };
        let identity = [b'a' + peer as u8];
        self.service.handle(socket, &identity, frame, self.now);
    }

    /// One of this life's leases; the high bit makes it one of the life before.
    fn lease(&self, script: &mut Script<'_>) -> Option<i64> {
        Some(match script.number()? {
            number @ 0..128 => number + ((self.life as i64) << 40),
            number @ 128..=255 => number - 128 + ((self.life.saturating_sub(1) as i64) << 40),
            edge => edge,
        })
    }

    /// None: the script is at its end.
    fn act(&mut self, script: &mut Script<'_>) -> Option<()> {
        let act = script.byte()? % ACTS;
        let peer = script.peer()?;
        match act {
            act::FRAME => self.send(peer, script.bytes()?),
            act::HELLO => {
                let (epoch, step) = (script.number()?, script.number()?);
                let rank = i64::from(peer == 4);
                self.send(peer, &messages::hello(ROLES[peer], rank, epoch, step));
            }
            act::READY => {
                let (free, seen) = (script.number()?, script.number()?);
                let (epoch, version) = (script.number()?, script.number()?);
                self.send(peer, &messages::ready(free, seen, epoch, version));
            }
            act::CHUNK => {
                let (lease, offset) = (self.lease(script)?, script.number()?);
                let count = usize::from(script.byte()?) % 24;
                let version = (script.number()?, script.number()?);
                let finish = [None, Some("stop"), Some("length")][usize::from(script.byte()? % 3)];
                let frame = messages::chunks(lease, offset, count, version, finish);
                self.send(peer, &frame);
            }
            act::VERDICT => {
                let lease = self.lease(script)?;
                let total = match script.byte()? % 5 {
                    0 => None,
                    1 => Some(f64::NAN),
                    2 => Some(f64::MAX),
                    other => Some(f64::from(other - 3)),
                };
                self.send(peer, &messages::verdict(lease, total));
            }
            act::ANNOUNCE => {
                let frame =
                    messages::announce(self.lease(script)?, script.number()?, script.number()?);
                self.send(peer, &frame);
            }
            act::RELEASE => self.send(peer, &messages::release(self.lease(script)?)),
            act::NEXT_BATCH => {
                let (epoch, step, part) = (script.number()?, script.number()?, script.number()?);
                let rank = i64::from(peer == 4);
                self.send(peer, &messages::next_batch(epoch, step, part, rank));
            }
            act::REPORT => {
                let kind = REPORTS[usize::from(script.byte()?) % REPORTS.len()];
                let (epoch, number) = (script.number()?, script.number()?);
                self.send(peer, &messages::report(kind, epoch, number));
            }
            act::EVALUATE => {
                let id = ["e", "f"][usize::from(script.byte()? % 2)];
                let (pin, samples) = ((script.number()?, script.number()?), script.number()?);
                // Larger evaluations are allowed and only slow.
                self.send(peer, &messages::evaluate(id, pin, samples % 8));
            }
            act::CANCEL => self.send(peer, &messages::cancel(["e", "f"][peer % 2])),
            act::BYE => self.send(peer, &messages::bye()),
            act::LOST => {
                let socket = [Socket::Rollouts, Socket::Batches][usize::from(script.byte()? % 2)];
                self.service
                    .peer_lost(socket, &[b'a' + peer as u8], self.now);
            }
            act::PASS => self.pass(f64::from(script.byte()?) / 4.0),
            act::RESTART => {
                let from_snapshot = script.byte()? % 2 == 1;
                if self.life + 1 < MAX_LIVES {
                    self.restart(from_snapshot);
                }
            }
            act::HEARTBEAT => self.send(peer, &messages::heartbeat()),
            _ => {
                if let Some(&first) = self.service.wanted_prompts().first() {
                    let rejected = self.service.reject_prompt(first, "too long");
                    assert_eq!(rejected, Ok(()));
                }
            }
        }
        Some(())
    }

    fn pass(&mut self, seconds: f64) {
        self.now += seconds;
        self.service.tick(self.now);
        // Figures let what is to be sent go first.
        self.drain();
        self.service.tick(self.now);
        let due = self.service.next_deadline();
        assert!(
            due.is_none_or(|due| due > self.now),
            "a deadline passed unseen"
        );
    }

    fn pump(&mut self) {
        self.service.settle();
        self.drain();
        for ordinal in self.service.wanted_prompts() {
            if ordinal >= PROMPTS {
                self.service.end_of_prompts(PROMPTS);
                break;
            }
            let admitted = self
                .service
                .admit(ordinal, vec![1, 2], b"{}".to_vec(), self.now);
            assert_eq!(admitted, Ok(()));
        }
    }

    /// Sends what is to be sent.
    fn drain(&mut self) {
        self.keep();
        assert!(self.service.outgoing().len() <= MAX_OUTGOING);
    }

    /// What a disk would have before anything is sent.
    fn keep(&mut self) {
        if let Some(pending) = self.service.take_pending() {
            self.events.write(pending.events);
            self.payload.write(pending.payload);
        }
    }

    /// Nobody is connected any more; the ledger goes on.
    fn restart(&mut self, from_snapshot: bool) {
        self.keep();
        let replay = match from_snapshot {
            true => Replay::load(&self.service.snapshot()).expect("just saved"),
            false => self.replay(),
        };
        let audit = replay.ledger().map(|ledger| ledger.audit());
        assert_eq!(audit, Some(self.service.ledger().audit()));
        self.life += 1;
        let ledger = replay.resume(settings(self.life).ledger);
        self.service = over(self.life, ledger.expect("the settings of before"));
    }

    fn replay(&self) -> Replay {
        let mut replay = Replay::new(false);
        let mut payload = self.payload.bodies();
        for body in self.events.bodies() {
            let (now, command) = Replay::read(body).expect("it was written so");
            let bytes = match command.has_payload() {
                true => payload.next().expect("it went before its event"),
                false => &[],
            };
            let told = replay.apply(now, &command, Payload::Bytes(bytes));
            assert_eq!(told, Ok(()));
        }
        assert_eq!(payload.next(), None);
        replay
    }
}
