//! Generators, scorers and a learner under a virtual clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use r1async_core::{
    BatchPart, BindPart, BoundBatch, ChunkAck, ChunkRef, Finish, HolderId, LeaseId, Ledger,
    OverAge, PolicyVersion, Settings, Stats, Step, Verdict, VersionRun,
};

/// Deterministic numbers (splitmix64).
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal, by the sum of twelve.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// How fast everything is; a token takes a second.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    slots: usize,
    sigma: f64,
    step_s: f64,
    install_s: f64,
    verdict_s: f64,
    slow_verdict_s: f64,
    abstains: f64,
    agrees: f64,
}

impl Clock {
    pub fn random(rng: &mut Rng) -> Self {
        Self {
            slots: 1 + rng.below(40) as usize,
            sigma: 0.3 + 1.1 * rng.unit(),
            step_s: [1.0, 20.0, 100.0][rng.below(3) as usize],
            install_s: if rng.chance(0.3) {
                50.0 * rng.unit()
            } else {
                0.0
            },
            verdict_s: [0.0, 1.0, 50.0][rng.below(3) as usize],
            slow_verdict_s: 500.0 * rng.unit(),
            abstains: if rng.chance(0.4) {
                0.5 * rng.unit()
            } else {
                0.0
            },
            agrees: 0.7 * rng.unit(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Tokens(LeaseId),
    Verdict(LeaseId),
    Stepped,
    Install(u64),
}

/// An event at a moment; the number keeps the order of events of one moment.
#[derive(Debug, PartialEq)]
struct At(f64, u64, Event);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

#[derive(Debug)]
struct Decoding {
    done: usize,
    length: usize,
}

const GENERATOR: HolderId = HolderId(1);
const SCORER: HolderId = HolderId(2);
/// Tokens of one chunk.
const CHUNK: usize = 4;

pub struct World {
    name: String,
    ledger: Ledger,
    settings: Settings,
    clock: Clock,
    rng: Rng,
    now: f64,
    events: BinaryHeap<Reverse<At>>,
    events_made: u64,
    decoding: BTreeMap<LeaseId, Decoding>,
    installed: u64,
    training: bool,
    steps: u64,
    /// Parts of the next batch that the learner has.
    parts: usize,
    trained: std::collections::BTreeSet<u64>,
}

impl World {
    pub fn new(settings: Settings, clock: Clock, rng: Rng, name: String) -> Self {
        let mut ledger = Ledger::new(settings.clone()).unwrap_or_else(|e| panic!("{e}: {name}"));
        ledger.connect_learner(0, 0).unwrap();
        ledger
            .published(PolicyVersion::new(0, 0), "weights")
            .unwrap();
        Self {
            name,
            ledger,
            settings,
            clock,
            rng,
            now: 0.0,
            events: BinaryHeap::new(),
            events_made: 0,
            decoding: BTreeMap::new(),
            installed: 0,
            training: false,
            steps: 0,
            parts: 0,
            trained: std::collections::BTreeSet::new(),
        }
    }

    /// The whole run; what it says of itself at the end.
    pub fn run(mut self) -> Stats {
        self.hand_out();
        while !self.ledger.is_finished() {
            let Some(Reverse(At(now, _, event))) = self.events.pop() else {
                panic!("stuck: {:?}; {}", self.ledger.waits(self.now), self.name);
            };
            self.now = now;
            self.ledger.tick(now);
            self.happen(event);
            self.hand_out();
        }
        self.ledger.committed(0, self.steps).unwrap();
        let audit = self.ledger.audit();
        assert_eq!(audit.difference(), None, "{}", self.name);
        let live = (audit.prompts.live, audit.rollouts.live, audit.tokens.live);
        assert_eq!(live, (0, 0, 0), "{}", self.name);
        self.ledger.stats()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tokens(lease) => self.send(lease),
            Event::Verdict(lease) => self.judge(lease),
            Event::Stepped => {
                let step = Step(self.steps);
                self.ledger.stepped(0, step).unwrap();
                self.steps += 1;
                self.training = false;
                let version = PolicyVersion::new(0, self.steps);
                self.ledger.published(version, "weights").unwrap();
                self.at(self.clock.install_s, Event::Install(self.steps));
                assert_eq!(self.ledger.audit().difference(), None, "{}", self.name);
            }
            Event::Install(version) => self.installed = self.installed.max(version),
        }
    }

    fn at(&mut self, seconds: f64, event: Event) {
        self.events_made += 1;
        self.events
            .push(Reverse(At(self.now + seconds, self.events_made, event)));
    }

    /// Everything that is possible now: prompts, leases, verdicts, a batch.
    fn hand_out(&mut self) {
        loop {
            self.admit();
            let free = self.clock.slots - self.decoding.len();
            let installed = PolicyVersion::new(0, self.installed);
            let leases =
                self.ledger
                    .lease_rollouts(self.now, GENERATOR, installed, free, self.clock.slots);
            let more = !leases.is_empty();
            for lease in leases {
                let length = 10.0 * (self.clock.sigma * self.rng.normal()).exp();
                let length = (length.ceil() as usize).clamp(1, 80);
                let done = lease.resume.len();
                self.decoding.insert(lease.lease, Decoding { done, length });
                let tokens = CHUNK.min(length - done);
                self.at(tokens as f64, Event::Tokens(lease.lease));
            }
            for lease in self.ledger.lease_scoring(self.now, SCORER, usize::MAX >> 1) {
                let slow = self.source_of(lease.prompt.ordinal) > 0;
                let mean = if slow {
                    self.clock.slow_verdict_s
                } else {
                    self.clock.verdict_s
                };
                let seconds = mean * 2.0 * self.rng.unit();
                self.at(seconds, Event::Verdict(lease.lease));
            }
            if !self.training {
                self.train();
            }
            // What a batch drops for age frees places and brings prompts back.
            let news = self.ledger.take_news();
            if !(more || news.rollouts || news.prompts || news.batch) {
                return;
            }
        }
    }

    fn source_of(&self, ordinal: u64) -> usize {
        match self.settings.windows.first() {
            Some(window) => usize::from((ordinal * 37 % 100) as f64 <= 100.0 * window.share),
            None => 0,
        }
    }

    fn admit(&mut self) {
        loop {
            let wanted = self.ledger.wanted_prompts();
            if wanted.is_empty() {
                return;
            }
            for ordinal in wanted {
                let source = self.source_of(ordinal);
                self.ledger
                    .admit_from(ordinal, vec![1], ordinal.to_le_bytes().to_vec(), source)
                    .unwrap();
            }
        }
    }

    fn send(&mut self, lease: LeaseId) {
        let Some(decoding) = self.decoding.get_mut(&lease) else {
            return;
        };
        let count = CHUNK.min(decoding.length - decoding.done);
        let offset = decoding.done;
        decoding.done += count;
        let (done, length) = (decoding.done, decoding.length);
        let version = PolicyVersion::new(0, self.installed);
        let chunk = ChunkRef {
            lease,
            offset,
            tokens: &vec![1; count],
            logprobs: &vec![-1.0; count],
            runs: &[VersionRun::new(version, count as u32)],
            finish: (done == length).then_some(Finish::Stop),
        };
        let ack = self.ledger.chunk(self.now, GENERATOR, chunk).unwrap();
        if ack == ChunkAck::Lost || done == length {
            self.decoding.remove(&lease);
        } else {
            let next = CHUNK.min(length - done);
            self.at(next as f64, Event::Tokens(lease));
        }
    }

    fn judge(&mut self, lease: LeaseId) {
        let status = "ok".to_owned();
        let verdict = if self.rng.chance(self.clock.abstains) {
            Verdict::Abstain { status }
        } else {
            let right = self.rng.chance(0.5 * (1.0 - self.clock.agrees));
            Verdict::Score {
                total: f64::from(u8::from(right)),
                parts: Vec::new(),
                status,
            }
        };
        self.ledger.verdict(self.now, SCORER, lease, verdict);
    }

    fn train(&mut self) {
        let Some(batch) = self.last_part() else {
            return;
        };
        self.check(&batch);
        self.training = true;
        self.at(self.clock.step_s, Event::Stepped);
    }

    /// Takes all parts there are; the whole batch once the last one is there.
    fn last_part(&mut self) -> Option<BoundBatch> {
        loop {
            let part = self.parts;
            match self
                .ledger
                .bind_part(self.now, Step(self.steps), part)
                .unwrap()
            {
                BindPart::Ready(batch, BatchPart { last: true, .. }) => {
                    self.parts = 0;
                    return Some(batch.clone());
                }
                BindPart::Ready(..) => self.parts += 1,
                BindPart::Wait(_) | BindPart::Finished => return None,
            }
        }
    }

    fn check(&mut self, batch: &BoundBatch) {
        assert!(batch.groups.len() <= self.settings.groups_per_step);
        for (group, rollout) in batch.rollouts() {
            assert!(
                self.trained.insert(rollout.rollout.0),
                "twice: {}",
                self.name
            );
            let e = match group.source {
                0 => self.settings.max_staleness,
                slow => self.settings.windows[slow - 1].max_staleness,
            };
            for (run, over_age) in rollout.runs.iter().zip(&rollout.over_age) {
                let age = batch.step.0 - run.version.number;
                assert_eq!(age > e, *over_age, "age {age}: {}", self.name);
                assert!(!over_age || self.settings.over_age == OverAge::Mask);
            }
        }
    }
}
