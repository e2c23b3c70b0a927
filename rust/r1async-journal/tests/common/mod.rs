//! A small run, driven by hand.
#![allow(
    dead_code,
    missing_docs,
    reason = "each test binary uses its own part of this"
)]

use std::path::Path;
use std::time::Duration;

use r1async_core::journal::Recorded;
use r1async_core::{
    BindPart, ChunkRef, Finish, PolicyVersion, Settings, Step, Verdict, VersionRun,
};
use r1async_journal::{Durability, Identity, Journal, Options};

pub fn settings() -> Settings {
    Settings {
        group_size: 2,
        min_group_size: 2,
        groups_per_step: 2,
        steps: 50_000,
        ..Settings::default()
    }
}

pub fn identity() -> Identity {
    Identity {
        run: "test".to_owned(),
        seed: 7,
        group_size: 2,
        data: "abc".to_owned(),
    }
}

pub fn options() -> Options {
    Options {
        durability: Durability::Group {
            interval: Duration::from_millis(1),
            bytes: 1 << 20,
        },
        snapshot_bytes: 1 << 30,
        keep_all: false,
    }
}

pub struct Buffer {
    pub journal: Journal,
    pub ledger: Recorded,
    pub epoch: u64,
}

impl Buffer {
    pub fn create(folder: &Path, options: Options) -> Self {
        let (journal, ledger) = Journal::create(folder, identity(), options, settings()).unwrap();
        let mut buffer = Self {
            journal,
            ledger,
            epoch: 0,
        };
        buffer.connect(0);
        buffer
    }

    pub fn open(folder: &Path, options: Options) -> Self {
        let (journal, ledger, _) = Journal::open(folder, identity(), options, settings()).unwrap();
        let epoch = ledger.epoch().map_or(0, |epoch| epoch + 1);
        let step = ledger.committed_steps();
        let mut buffer = Self {
            journal,
            ledger,
            epoch,
        };
        buffer.connect(step);
        buffer
    }

    fn connect(&mut self, step: u64) {
        self.ledger.connect_learner(self.epoch, step).unwrap();
        self.ledger
            .published(PolicyVersion::new(self.epoch, step), "hash")
            .unwrap();
        self.write();
    }

    pub fn write(&mut self) {
        if let Some(mut pending) = self.ledger.take_pending() {
            self.journal.write(&mut pending).unwrap();
        }
    }

    /// Everything up to a batch that is handed out; `tokens` for each rollout.
    pub fn sample(&mut self, step: u64, tokens: usize) {
        for ordinal in self.ledger.wanted_prompts() {
            self.ledger
                .admit_from(ordinal, vec![ordinal as i32; 3], vec![1, 2], 0)
                .unwrap();
        }
        let generator = self.ledger.new_holder("generator", "generator-0");
        let scorer = self.ledger.new_holder("scorer", "scorer-0");
        let version = PolicyVersion::new(self.epoch, step);
        let now = self.ledger.now() + 1.0;
        for lease in self.ledger.lease_rollouts(now, generator, version, 4, 4) {
            let done = lease.resume.len();
            let ids: Vec<i32> = (0..tokens as i32)
                .map(|at| at + lease.rollout.0 as i32)
                .collect();
            let chunk = ChunkRef {
                lease: lease.lease,
                offset: done,
                tokens: &ids,
                logprobs: &vec![-0.5; tokens],
                runs: &[VersionRun::new(version, tokens as u32)],
                finish: Some(Finish::Stop),
            };
            self.ledger.chunk(now + 1.0, generator, chunk).unwrap();
        }
        for lease in self.ledger.lease_scoring(now + 2.0, scorer, 9) {
            let verdict = Verdict::Score {
                total: (lease.rollout.0 % 2) as f64,
                parts: Vec::new(),
                status: "ok".to_owned(),
            };
            self.ledger.verdict(now + 3.0, scorer, lease.lease, verdict);
        }
        self.ledger.holder_lost(generator);
        self.ledger.holder_lost(scorer);
        self.write();
    }

    pub fn train(&mut self, step: u64) {
        let now = self.ledger.now() + 1.0;
        let bound = self.ledger.bind_part(now, Step(step), 0).unwrap();
        assert!(matches!(bound, BindPart::Ready(..)), "{bound:?}");
        self.ledger
            .stepped_with(self.epoch, Step(step), None)
            .unwrap();
        let version = PolicyVersion::new(self.epoch, step + 1);
        self.ledger.published(version, "hash").unwrap();
        self.write();
    }

    pub fn commit(&mut self, step: u64) {
        self.ledger.committed(self.epoch, step).unwrap();
        self.write();
    }
}
