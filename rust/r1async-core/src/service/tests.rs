use proptest::prelude::*;

use super::*;
use crate::frame::Value;
use crate::ids::LeaseId;
use crate::messages::PROTOCOL;
use crate::settings::Settings;

const CAP: usize = 1 << 20;

fn settings() -> ServiceSettings {
    ServiceSettings {
        ledger: Settings {
            group_size: 2,
            min_group_size: 1,
            groups_per_step: 2,
            steps: 6,
            ..Settings::default()
        },
        run: "test".into(),
        seed: 7,
        filtered_batches: 4,
        generators_grade: true,
        micro_batch_tokens: 64,
        peer_deadline_s: 20.0,
        max_message_bytes: CAP,
        interval_s: 1.0,
    }
}

/// The buffer, and what it said last to each of a few peers.
struct World {
    service: Service,
    now: f64,
    /// (peer, lease, rollout, resumed tokens) of every lease ever sent, and of every scoring lease.
    leases: Vec<(u8, i64, i64, i64)>,
    scoring: Vec<(u8, i64)>,
    errors: u64,
}

/// Peers 0 and 1 are generators, 2 a scorer, 3 and 4 learner ranks, 5 an evaluator.
const ROLES: [&str; 6] = [
    "generator",
    "generator",
    "scorer",
    "learner",
    "learner",
    "evaluator",
];

fn socket(peer: u8) -> Socket {
    if ROLES[usize::from(peer)] == "learner" {
        Socket::Batches
    } else {
        Socket::Rollouts
    }
}

impl World {
    fn new() -> Self {
        let service = Service::new(settings()).unwrap();
        let (leases, scoring) = (Vec::new(), Vec::new());
        Self {
            service,
            now: 0.0,
            leases,
            scoring,
            errors: 0,
        }
    }

    fn send(&mut self, peer: u8, frame: &[u8]) {
        self.service.handle(socket(peer), &[peer], frame, self.now);
        self.service.settle();
        self.pump();
    }

    fn pump(&mut self) {
        for ordinal in self.service.wanted_prompts() {
            self.service
                .admit(ordinal, vec![1, 2, 3], b"{}".to_vec(), self.now)
                .unwrap();
        }
        for it in self.service.outgoing() {
            let frame = Frame::decode(&it.frame, CAP).expect("what we send can be read");
            let items = match frame.get("items") {
                Some(Value::Array(items)) => items.as_slice(),
                _ => &[],
            };
            let ints = |item: &Value<'_>| match item {
                Value::Array(values) => values
                    .iter()
                    .map(|value| {
                        if let Value::Int(value) = value {
                            *value
                        } else {
                            -1
                        }
                    })
                    .collect::<Vec<i64>>(),
                _ => panic!("items are lists"),
            };
            match frame.kind {
                "leases" => {
                    let leases = items
                        .iter()
                        .map(ints)
                        .map(|item| (it.peer[0], item[0], item[1], item[5]));
                    self.leases.extend(leases);
                }
                "score" => self
                    .scoring
                    .extend(items.iter().map(ints).map(|item| (it.peer[0], item[0]))),
                "error" => self.errors += 1,
                _ => {}
            }
        }
    }

    fn hello(&mut self, peer: u8, epoch: i64, step: i64) {
        let role = ROLES[usize::from(peer)];
        let head = FrameWriter::new("hello")
            .int("protocol", PROTOCOL)
            .str("role", role)
            .str("name", role);
        let head = head
            .str("run", "test")
            .int("rank", i64::from(peer == 4))
            .int("world", 2);
        self.send(peer, &head.int("epoch", epoch).int("step", step).finish());
    }

    /// New tokens of version 0 of the first epoch.
    fn chunk(&mut self, peer: u8, lease: i64, offset: i64, count: i64, last: bool) {
        let count = count.max(0);
        let head = FrameWriter::new("chunks").list("items", 1, |out| {
            out.list(5);
            [lease, offset, count]
                .into_iter()
                .for_each(|value| out.int(value));
            if last {
                out.str("stop")
            } else {
                out.nil()
            }
            out.list(1);
            out.list(3);
            [1, 0, count].into_iter().for_each(|value| out.int(value));
        });
        let mut open = head
            .column::<i32>("tokens", count as usize)
            .column::<f32>("logprobs", count as usize)
            .open();
        open.fill(&vec![4_i32; count as usize]);
        open.fill(&vec![-1_f32; count as usize]);
        self.send(peer, &open.finish());
    }
}

/// One thing that a peer may do; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Act {
    Hello(u8, i64, i64),
    Bye(u8),
    Ready(u8, i64, i64, i64),
    Chunk(usize, i64, i64, bool),
    Stolen(u8, usize, i64),
    Verdict(usize, Option<f64>),
    Announce(u8, Vec<usize>),
    Release(u8, usize),
    NextBatch(u8, i64, i64),
    Report(u8, &'static str, i64, i64),
    Lost(u8),
    Later(f64),
    Bytes(u8, Vec<u8>),
}

fn acts() -> impl Strategy<Value = Act> {
    let peer = || 0_u8..6;
    let number = || prop_oneof![4 => 0_i64..4, 1 => -2_i64..9, 1 => Just(i64::MAX)];
    let report = prop_oneof![
        Just("stepped"),
        Just("published"),
        Just("committed"),
        Just("finish")
    ];
    let total = prop_oneof![3 => (0..3).prop_map(|n| Some(f64::from(n))), 1 => Just(None), 1 => Just(Some(f64::NAN))];
    prop_oneof![
        2 => (peer(), 0_i64..4, 0_i64..4).prop_map(|(peer, epoch, step)| Act::Hello(peer, epoch, step)),
        1 => peer().prop_map(Act::Bye),
        6 => (0_u8..3, number(), number(), number()).prop_map(|(p, free, seen, v)| Act::Ready(p, free, seen, v)),
        9 => (any::<usize>(), 0_i64..3, number(), any::<bool>()).prop_map(|(at, o, n, last)| Act::Chunk(at, o, n, last)),
        1 => (0_u8..2, any::<usize>(), 0_i64..3).prop_map(|(peer, at, n)| Act::Stolen(peer, at, n)),
        8 => (any::<usize>(), total).prop_map(|(at, total)| Act::Verdict(at, total)),
        1 => (0_u8..2, prop::collection::vec(any::<usize>(), 0..4)).prop_map(|(p, at)| Act::Announce(p, at)),
        1 => (0_u8..2, any::<usize>()).prop_map(|(peer, at)| Act::Release(peer, at)),
        4 => (3_u8..5, 0_i64..3, 0_i64..6).prop_map(|(peer, epoch, step)| Act::NextBatch(peer, epoch, step)),
        4 => (3_u8..5, report, 0_i64..3, number()).prop_map(|(p, kind, epoch, n)| Act::Report(p, kind, epoch, n)),
        1 => peer().prop_map(Act::Lost),
        1 => (0.0..30.0).prop_map(Act::Later),
        1 => (peer(), prop::collection::vec(any::<u8>(), 0..64)).prop_map(|(peer, bytes)| Act::Bytes(peer, bytes)),
    ]
}

impl World {
    fn act(&mut self, act: &Act) {
        match *act {
            Act::Hello(peer, epoch, step) => self.hello(peer, epoch, step),
            Act::Bye(peer) => self.send(peer, &FrameWriter::new("bye").finish()),
            Act::Ready(peer, free, seen, version) => {
                let head = FrameWriter::new("ready")
                    .int("free", free)
                    .int("eval_free", free)
                    .int("capacity", 8);
                let head = head
                    .int("leases_seen", seen)
                    .int("epoch", 1)
                    .int("version", version);
                self.send(peer, &head.str("hash", "x").finish());
            }
            Act::Chunk(at, offset, count, last) => {
                if let Some(&(peer, lease, _, resumed)) =
                    self.leases.get(at % self.leases.len().max(1))
                {
                    self.chunk(peer, lease, resumed + offset, count.min(50), last);
                }
            }
            Act::Stolen(peer, at, count) => {
                let Some(&(_, lease, ..)) = self.leases.get(at % self.leases.len().max(1)) else {
                    return;
                };
                let known = self.service.peers.find(Socket::Rollouts, &[peer]);
                let holder = self.service.ledger().holder_of(LeaseId(lease as u64));
                let mine = holder.is_some() && holder == known.map(|(holder, _)| holder);
                let before = self.service.ledger().audit();
                self.chunk(peer, lease, 0, count, true);
                let unchanged = self.service.ledger().audit() == before;
                assert!(mine || unchanged, "peer {peer} wrote into {lease}");
            }
            Act::Verdict(at, total) => {
                let Some(&(peer, lease)) = self.scoring.get(at % self.scoring.len().max(1)) else {
                    return;
                };
                let frame = FrameWriter::new("verdicts").list("items", 1, |out| {
                    out.list(4);
                    out.int(lease);
                    match total {
                        Some(total) => out.float(total),
                        None => out.nil(),
                    }
                    out.map(0);
                    out.str("ok");
                });
                self.send(peer, &frame.finish());
            }
            Act::Announce(peer, ref at) => {
                let known = self.leases.len().max(1);
                let items: Vec<_> = at
                    .iter()
                    .filter_map(|at| self.leases.get(at % known).copied())
                    .collect();
                let frame = FrameWriter::new("announce").list("items", items.len(), |out| {
                    for (_, lease, rollout, resumed) in &items {
                        out.list(3);
                        [*lease, *rollout, *resumed]
                            .into_iter()
                            .for_each(|value| out.int(value));
                    }
                });
                self.send(peer, &frame.finish());
            }
            Act::Release(peer, at) => {
                let lease = self
                    .leases
                    .get(at % self.leases.len().max(1))
                    .map_or(0, |it| it.1);
                self.send(
                    peer,
                    &FrameWriter::new("release")
                        .list("leases", 1, |out| out.int(lease))
                        .finish(),
                );
            }
            Act::NextBatch(peer, epoch, step) => {
                let head = FrameWriter::new("next_batch")
                    .int("epoch", epoch)
                    .int("step", step)
                    .int("part", 0);
                self.send(
                    peer,
                    &head
                        .int("rank", i64::from(peer == 4))
                        .int("world", 2)
                        .finish(),
                );
            }
            Act::Report(peer, kind, epoch, number) => {
                let head = FrameWriter::new(kind)
                    .int("epoch", epoch)
                    .int("step", number)
                    .int("version", number);
                let head = head.str("hash", "x").map("metrics", 0, |_| ());
                self.send(peer, &head.finish());
            }
            Act::Lost(peer) => {
                self.service.peer_lost(socket(peer), &[peer], self.now);
                self.pump();
            }
            Act::Later(seconds) => {
                self.now += seconds;
                self.service.tick(self.now);
                self.pump();
                self.service.tick(self.now); // Figures wait until all else is sent.
                self.pump();
                assert!(
                    self.service
                        .next_deadline()
                        .is_some_and(|due| due > self.now),
                    "a deadline passed unseen"
                );
            }
            Act::Bytes(peer, ref bytes) => self.send(peer, bytes),
        }
    }

    /// Everybody says hello, and the first version is there.
    fn begin(&mut self) {
        self.hello(3, 1, 0);
        (0..6)
            .filter(|peer| *peer != 3)
            .for_each(|peer| self.hello(peer, 1, 0));
        self.act(&Act::Report(3, "published", 1, 0));
        (0..3).for_each(|peer| self.act(&Act::Ready(peer, 8, 0, 0)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_peers_say_nothing_panics_and_the_books_balance(acts in prop::collection::vec(acts(), 0..160)) {
        let mut world = World::new();
        world.begin();
        for act in &acts {
            world.act(act);
            let difference = world.service.ledger().audit().difference();
            prop_assert_eq!(difference, None, "after {:?}", act);
            let counted: u64 = world.service.counters.errors.values().sum();
            prop_assert_eq!(counted, world.errors, "every error is a reply and a count");
        }
    }

    #[test]
    fn mutated_messages_are_answered_and_change_no_account(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in 0_usize..24,
    ) {
        let mut world = World::new();
        world.begin();
        let before = world.service.ledger().audit();
        let mut frame = FrameWriter::new("heartbeat").map("stats", 1, |out| {
            out.str("tokens_per_s");
            out.float(0.5);
        }).column::<i32>("tokens", 3).open();
        frame.fill(&[1, 2, 3]);
        let mut bytes = frame.finish();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut);
        world.service.handle(Socket::Rollouts, &[0], &bytes, 0.0);
        prop_assert!(!world.service.outgoing().is_empty());
        prop_assert_eq!(world.service.ledger().audit(), before);
    }
}

#[test]
fn nobody_gets_more_than_it_has_room_for_while_leases_are_on_their_way() {
    let mut credits = peers::Credits::default();
    assert!(credits.set(vec![8, 2], 0));
    credits.send(3, peers::TRAINING);
    credits.send(2, peers::EVALUATION);
    assert_eq!(
        (
            credits.room(peers::TRAINING),
            credits.room(peers::EVALUATION),
            credits.sent()
        ),
        (5, 0, 5)
    );
    assert!(credits.set(vec![6, 1], 2)); // said when two of the five had arrived
    assert_eq!(
        (
            credits.room(peers::TRAINING),
            credits.room(peers::EVALUATION)
        ),
        (5, 0)
    );
    assert!(!credits.set(vec![6, 1], 6)); // more than were sent
    assert!(!credits.set(vec![6, 1], 1)); // fewer than it has said before
    assert!(credits.set(vec![0, 1], 5));
    assert_eq!(
        (
            credits.room(peers::TRAINING),
            credits.room(peers::EVALUATION)
        ),
        (0, 1)
    );
}

#[test]
fn a_scorer_that_says_hello_again_has_no_lease_left() {
    let mut world = World::new();
    world.begin();
    let scorer = world.service.peers.find(Socket::Rollouts, &[2]).unwrap().0;
    let ready = || {
        FrameWriter::new("ready")
            .int("free", 8)
            .int("leases_seen", 0)
            .finish()
    };
    for (peer, lease, ..) in world.leases.clone() {
        world.chunk(peer, lease, 0, 1, true);
    }
    world.send(2, &ready());
    let leases = world.service.ledger().leases_of(scorer);
    assert!(!leases.is_empty());
    world.hello(2, 0, 0);
    assert!(world.service.ledger().leases_of(scorer).is_empty());
    world.send(2, &ready());
    let again = world.service.ledger().leases_of(scorer);
    assert_eq!(again.len(), leases.len());
    assert!(leases.iter().all(|lease| !again.contains(lease)));
}
