//! A small run around a ledger: one generator, one scorer and one learner that do as the test says.
#![allow(
    dead_code,
    missing_docs,
    reason = "each test binary uses its own part of this"
)]

use r1async_core::{
    Bind, BoundBatch, ChunkAck, ChunkError, ChunkRef, Finish, HolderId, LeaseId, Ledger,
    PolicyVersion, RolloutLease, Settings, Step, Verdict, VerdictAck, VersionRun, WaitReason,
};

pub const GENERATOR: HolderId = HolderId(1);
pub const OTHER_GENERATOR: HolderId = HolderId(2);
pub const SCORER: HolderId = HolderId(11);

/// Groups of 2, one group a step, on-policy unless a test says otherwise; no step is ever held.
pub fn settings() -> Settings {
    Settings {
        group_size: 2,
        min_group_size: 1,
        groups_per_step: 1,
        steps: 10,
        max_staleness: 0,
        pacing: 0,
        waste_budget: 1.0,
        max_tokens: 100,
        ..Settings::default()
    }
}

/// Bound e with the widest pacing.
pub fn with_bound(e: u64, settings: Settings) -> Settings {
    Settings {
        max_staleness: e,
        pacing: e,
        ..settings
    }
}

pub struct Run {
    pub ledger: Ledger,
    pub epoch: u64,
    pub now: f64,
}

impl Run {
    /// A run whose learner has connected and published version 0, with all wanted prompts admitted.
    pub fn new(settings: Settings) -> Self {
        Self::with_prompts(u64::MAX, settings)
    }

    /// The same, with so many prompts.
    pub fn with_prompts(prompts: u64, settings: Settings) -> Self {
        let mut ledger = Ledger::new(settings).unwrap();
        ledger.end_of_prompts(prompts);
        let mut run = Run {
            ledger,
            epoch: 0,
            now: 0.0,
        };
        run.ledger.connect_learner(0, 0).unwrap();
        run.publish(0);
        run.admit();
        run
    }

    pub fn admit(&mut self) {
        for ordinal in self.ledger.wanted_prompts() {
            self.ledger
                .admit(ordinal, vec![1, 2, 3], format!("{ordinal}").into_bytes())
                .unwrap();
        }
    }

    pub fn version(&self, number: u64) -> PolicyVersion {
        PolicyVersion::new(self.epoch, number)
    }

    pub fn publish(&mut self, number: u64) {
        let version = self.version(number);
        self.ledger.published(version, "hash").unwrap();
    }

    /// Leases for a generator that has version `installed`.
    pub fn lease(&mut self, installed: u64, free: usize) -> Vec<RolloutLease> {
        self.admit();
        let installed = self.version(installed);
        let leases = self
            .ledger
            .lease_rollouts(self.now, GENERATOR, installed, free, 64);
        self.admit();
        leases
    }

    pub fn try_send(
        &mut self,
        lease: LeaseId,
        offset: usize,
        runs: &[(u64, u32)],
        finish: Option<Finish>,
    ) -> Result<ChunkAck, ChunkError> {
        let count = runs.iter().map(|(_, count)| *count as usize).sum::<usize>();
        let tokens: Vec<i32> = (offset..offset + count)
            .map(|position| position as i32)
            .collect();
        let logprobs = vec![-0.5; count];
        let runs: Vec<VersionRun> = runs
            .iter()
            .map(|&(number, count)| VersionRun::new(self.version(number), count))
            .collect();
        let chunk = ChunkRef {
            lease,
            offset,
            tokens: &tokens,
            logprobs: &logprobs,
            runs: &runs,
            finish,
        };
        self.ledger.chunk(self.now, GENERATOR, chunk)
    }

    /// Tokens of an unfinished rollout: (version, count) runs from `offset` on.
    pub fn send(&mut self, lease: LeaseId, offset: usize, runs: &[(u64, u32)]) -> ChunkAck {
        self.try_send(lease, offset, runs, None).unwrap()
    }

    /// The last tokens of a rollout.
    pub fn finish(&mut self, lease: LeaseId, offset: usize, runs: &[(u64, u32)]) -> ChunkAck {
        self.try_send(lease, offset, runs, Some(Finish::Stop))
            .unwrap()
    }

    /// Scores every finished rollout, in the order in which they finished.
    pub fn score(&mut self, rewards: &[f64]) {
        let leases = self.ledger.lease_scoring(self.now, SCORER, rewards.len());
        assert_eq!(
            leases.len(),
            rewards.len(),
            "as many finished rollouts as rewards"
        );
        for (lease, &total) in leases.iter().zip(rewards) {
            assert_eq!(self.verdict(lease.lease, total), VerdictAck::Held);
        }
    }

    pub fn verdict(&mut self, lease: LeaseId, total: f64) -> VerdictAck {
        let parts = vec![("accuracy".to_owned(), total)];
        let verdict = Verdict::Score {
            total,
            parts,
            status: "ok".to_owned(),
        };
        self.ledger.verdict(self.now, SCORER, lease, verdict)
    }

    pub fn abstain(&mut self, lease: LeaseId) -> VerdictAck {
        self.ledger.verdict(
            self.now,
            SCORER,
            lease,
            Verdict::Abstain {
                status: "lost".to_owned(),
            },
        )
    }

    /// Leases, finishes and scores one whole group whose tokens are all of the version installed.
    pub fn complete_group(&mut self, installed: u64, tokens: u32, rewards: &[f64]) -> u64 {
        let leases = self.lease(installed, rewards.len());
        assert_eq!(leases.len(), rewards.len(), "a place for one more group");
        for lease in &leases {
            self.finish(lease.lease, 0, &[(installed, tokens)]);
        }
        self.score(rewards);
        leases[0].group.0
    }

    /// The batch of `step`, which must be there.
    pub fn batch(&mut self, step: u64) -> BoundBatch {
        match self.ledger.bind_batch(self.now, Step(step)).unwrap() {
            Bind::Ready(batch) => batch.clone(),
            other => panic!("no batch for step {step}: {other:?}"),
        }
    }

    pub fn groups(&mut self, step: u64) -> Vec<u64> {
        self.batch(step)
            .groups
            .iter()
            .map(|group| group.group.0)
            .collect()
    }

    /// What the learner waits for; there must be no batch.
    pub fn wait(&mut self, step: u64) -> WaitReason {
        match self.ledger.bind_batch(self.now, Step(step)).unwrap() {
            Bind::Wait(reason) => reason,
            other => panic!("step {step} does not wait: {other:?}"),
        }
    }

    /// The learner does the step and publishes its version.
    pub fn step(&mut self, step: u64) {
        self.ledger.stepped(self.epoch, Step(step)).unwrap();
        self.publish(step + 1);
    }

    pub fn commit(&mut self, steps: u64) {
        self.ledger.committed(self.epoch, steps).unwrap();
    }

    pub fn pass(&mut self, seconds: f64) {
        self.now += seconds;
        self.ledger.tick(self.now);
    }

    pub fn restart_learner(&mut self, steps: u64) {
        self.epoch += 1;
        self.ledger.connect_learner(self.epoch, steps).unwrap();
        self.publish(steps);
    }
}
