//! Generators, scorers and a learner that behave at random, and what must hold whatever they do.
#![allow(
    dead_code,
    missing_docs,
    reason = "each test binary uses its own part of this"
)]

mod peers;

use std::collections::{BTreeMap, BTreeSet};

use r1async_core::{
    Bind, BoundBatch, EvaluationRequest, Finish, HolderId, LeaseId, Ledger, OverAge, PolicyVersion,
    Prompt, RolloutId, Sampling, Settings, Step, Verdict,
};

/// What may happen next.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Admit,
    Lease,
    Send,
    SendAll,
    Work,
    SendLate,
    Install,
    LoseGenerator,
    Release,
    Announce,
    Score,
    ScoreAll,
    Verdict,
    VerdictAgain,
    LoseScorer,
    Bind,
    Step,
    Commit,
    Pass,
    RestartLearner,
    Evaluate,
    CancelEvaluation,
    Save,
    Restore,
}

/// All kinds, each with how often it happens: work about as often as trouble, or no step is ever done.
pub const KINDS: [(u32, Kind); 24] = [
    (6, Kind::Admit),
    (14, Kind::Lease),
    (6, Kind::Send),
    (12, Kind::SendAll),
    (4, Kind::Work),
    (2, Kind::SendLate),
    (6, Kind::Install),
    (1, Kind::LoseGenerator),
    (1, Kind::Release),
    (2, Kind::Announce),
    (4, Kind::Score),
    (12, Kind::ScoreAll),
    (4, Kind::Verdict),
    (1, Kind::VerdictAgain),
    (1, Kind::LoseScorer),
    (6, Kind::Bind),
    (14, Kind::Step),
    (2, Kind::Commit),
    (2, Kind::Pass),
    (1, Kind::RestartLearner),
    (1, Kind::Evaluate),
    (1, Kind::CancelEvaluation),
    (1, Kind::Save),
    (1, Kind::Restore),
];

/// One random act: what, and two numbers to choose with.
pub type Act = (Kind, u16, u16);

#[derive(Debug, Clone)]
struct Held {
    holder: HolderId,
    lease: LeaseId,
    rollout: RolloutId,
    tokens: usize,
    pin: Option<PolicyVersion>,
}

#[derive(Debug)]
pub struct World {
    pub ledger: Ledger,
    pub now: f64,
    settings: Settings,
    prompts: u64,
    epoch: u64,
    stepped: u64,
    published: u64,
    generators: Vec<(HolderId, PolicyVersion)>,
    next_holder: u64,
    held: Vec<Held>,
    /// Leases that were lost or done: their holders may not know.
    past: Vec<Held>,
    scoring: Vec<(HolderId, LeaseId)>,
    scored: Vec<(HolderId, LeaseId)>,
    /// The version of every token filed, by rollout.
    versions: BTreeMap<RolloutId, Vec<PolicyVersion>>,
    /// The lease under which each finished rollout was finished.
    finished: BTreeMap<RolloutId, LeaseId>,
    tokens_filed: u64,
    batches: BTreeMap<u64, BoundBatch>,
    evaluations: u64,
    saved: Option<(Vec<u8>, u64)>,
}

impl World {
    /// `prompts`: how many there are.
    pub fn new(settings: Settings, prompts: u64) -> Self {
        let ledger = Ledger::new(settings.clone()).unwrap();
        let mut world = World {
            ledger,
            now: 0.0,
            settings,
            prompts,
            epoch: 0,
            stepped: 0,
            published: 0,
            generators: Vec::new(),
            next_holder: 0,
            held: Vec::new(),
            past: Vec::new(),
            scoring: Vec::new(),
            scored: Vec::new(),
            versions: BTreeMap::new(),
            finished: BTreeMap::new(),
            tokens_filed: 0,
            batches: BTreeMap::new(),
            evaluations: 0,
            saved: None,
        };
        world.ledger.end_of_prompts(prompts);
        world.ledger.connect_learner(0, 0).unwrap();
        world.publish(0);
        world.generators = (0..2)
            .map(|_| (world.new_holder(), PolicyVersion::new(0, 0)))
            .collect();
        world
    }

    fn new_holder(&mut self) -> HolderId {
        self.next_holder += 1;
        HolderId(self.next_holder)
    }

    fn publish(&mut self, number: u64) {
        self.ledger
            .published(PolicyVersion::new(self.epoch, number), "hash")
            .unwrap();
        self.published = number;
    }

    /// Does one act, and checks what must hold after every one.
    pub fn act(&mut self, (kind, a, b): Act) {
        let (a, b) = (usize::from(a), usize::from(b));
        match kind {
            Kind::Admit => self.admit(b % 9 == 0),
            Kind::Lease => self.lease(a, b % 13),
            Kind::Send => self.send(a, b),
            Kind::SendAll => self.send_all(a, b),
            Kind::Work => self.work(b % 4),
            Kind::SendLate => self.send_late(a, b),
            Kind::Install => self.install(a),
            Kind::LoseGenerator => self.lose_generator(a),
            Kind::Release => self.release(a),
            Kind::Announce => self.announce(a),
            Kind::Score => self.lease_scoring(a, b % 5),
            Kind::ScoreAll => self.score_all(b),
            Kind::Verdict => self.verdict(a, b),
            Kind::VerdictAgain => self.verdict_again(a),
            Kind::LoseScorer => self.lose_scorer(a),
            Kind::Bind => drop(self.bind()),
            Kind::Step if self.bind() => self.step(),
            Kind::Step => {}
            Kind::Commit => self.ledger.committed(self.epoch, self.stepped).unwrap(),
            Kind::Pass => self.pass(b),
            Kind::RestartLearner => self.restart_learner(a),
            Kind::Evaluate => self.evaluate(a),
            Kind::CancelEvaluation => {
                self.ledger
                    .cancel_evaluation(&format!("e{}", a as u64 % (self.evaluations + 1)));
                self.ledger.take_evaluated();
            }
            Kind::Save => self.save(),
            Kind::Restore if a % 2 == 0 => self.restore(),
            Kind::Restore => {}
        }
        self.check();
    }

    /// What must hold at every moment.
    pub fn check(&self) {
        let audit = self.ledger.audit();
        assert_eq!(audit.difference(), None);
        let stats = self.ledger.stats();
        if self.settings.over_age != OverAge::Train {
            assert!(
                stats.staleness.max() <= self.settings.max_staleness,
                "{:?}",
                stats.staleness
            );
        }
        assert!(stats.places <= self.settings.place_limit() + stats.groups_bound);
        let next = self.ledger.next_deadline();
        assert!(
            next.is_none_or(|at| at > self.now),
            "a deadline at {next:?} is past {}",
            self.now
        );
        let generating = self.held.len();
        assert!(
            stats.rollouts_generating <= generating,
            "{} > {generating}",
            stats.rollouts_generating
        );
    }

    fn admit(&mut self, reject_first: bool) {
        let mut reject = reject_first;
        for ordinal in self.ledger.wanted_prompts() {
            assert!(ordinal < self.prompts);
            if std::mem::take(&mut reject) {
                self.ledger.reject_prompt(ordinal).unwrap();
            } else {
                self.ledger
                    .admit(
                        ordinal,
                        vec![1; 1 + ordinal as usize % 3],
                        ordinal.to_le_bytes().to_vec(),
                    )
                    .unwrap();
            }
        }
    }

    /// The learner asks for its next batch. Answers whether there is one.
    pub fn bind(&mut self) -> bool {
        let step = self.stepped;
        let batch = match self.ledger.bind_batch(self.now, Step(step)).unwrap() {
            Bind::Ready(batch) => batch.clone(),
            Bind::Wait(_) | Bind::Finished => return false,
        };
        assert_eq!(batch.step, Step(step));
        if let Some(before) = self.batches.get(&step) {
            assert_eq!(*before, batch, "handed out again: the same batch");
        } else {
            self.check_batch(&batch);
            self.batches.insert(step, batch);
        }
        true
    }

    fn check_batch(&self, batch: &BoundBatch) {
        let trained = self
            .batches
            .values()
            .flat_map(|other| other.rollouts().map(|(_, rollout)| rollout.rollout));
        let mut seen: BTreeSet<RolloutId> = trained.collect();
        assert!(batch.groups.len() <= self.settings.groups_per_step);
        for (group, rollout) in batch.rollouts() {
            assert!(
                seen.insert(rollout.rollout),
                "{} is given twice",
                rollout.rollout
            );
            assert_eq!(
                rollout.rollout.0 / self.settings.group_size as u64,
                group.group.0
            );
            let covered = rollout
                .runs
                .iter()
                .flat_map(|run| std::iter::repeat_n(run.version, run.count as usize));
            assert_eq!(covered.collect::<Vec<_>>(), self.versions[&rollout.rollout]);
            assert!(rollout.loss_tokens() > 0);
            for (run, &over_age) in rollout.runs.iter().zip(&rollout.over_age) {
                let age = batch
                    .step
                    .0
                    .checked_sub(run.version.number)
                    .expect("no token is newer than its step");
                let too_old = age > self.settings.max_staleness;
                assert_eq!(over_age, too_old && self.settings.over_age == OverAge::Mask);
                assert!(!(too_old && self.settings.over_age == OverAge::Drop));
            }
        }
    }

    fn step(&mut self) {
        self.ledger.stepped(self.epoch, Step(self.stepped)).unwrap();
        self.ledger.stepped(self.epoch, Step(self.stepped)).unwrap();
        self.stepped += 1;
        if self.stepped.is_multiple_of(self.settings.publish_every) {
            self.publish(self.stepped);
        }
    }

    fn pass(&mut self, b: usize) {
        self.now += (b % 40) as f64;
        self.ledger.tick(self.now);
    }

    fn restart_learner(&mut self, a: usize) {
        let old = self.epoch;
        let committed = self.ledger.committed_steps();
        // A step may be in the checkpoint although its report was lost with the learner.
        let newest = self.stepped + u64::from(self.batches.contains_key(&self.stepped));
        let step = committed + a as u64 % (newest - committed + 1);
        self.epoch += 1;
        self.ledger.connect_learner(self.epoch, step).unwrap();
        self.stepped = step;
        assert!(self.ledger.connect_learner(old, step).is_err());
        assert!(self.ledger.stepped(old, Step(step)).is_err());
        assert!(self.ledger.committed(old, step).is_err());
        self.publish(step);
    }

    fn evaluate(&mut self, a: usize) {
        let prompts: Vec<Prompt> = (0..=a as u64 % 3)
            .map(|ordinal| Prompt {
                ordinal,
                tokens: vec![1],
                meta: Vec::new(),
            })
            .collect();
        let id = format!("e{}", self.evaluations);
        self.evaluations += 1;
        let sampling = Sampling {
            temperature: 0.6,
            top_p: 0.95,
            top_k: 0,
            max_tokens: 12,
            greedy: false,
        };
        let pin = PolicyVersion::new(self.epoch, self.published);
        let samples = 1 + a / 3 % 3;
        self.ledger
            .evaluate(EvaluationRequest {
                id,
                pin,
                samples,
                sampling,
                prompts,
            })
            .unwrap();
    }

    fn save(&mut self) {
        self.saved = Some((self.ledger.checkpoint(), self.ledger.committed_steps()));
    }

    /// Every process ends; the run goes on from what was saved last.
    fn restore(&mut self) {
        let Some((saved, committed)) = self.saved.clone() else {
            return;
        };
        self.settings.incarnation += 1;
        let mut ledger = Ledger::new(self.settings.clone()).unwrap();
        ledger.restore(&saved).unwrap();
        ledger.end_of_prompts(self.prompts);
        self.epoch += 1;
        ledger.connect_learner(self.epoch, committed).unwrap();
        let audit = ledger.audit();
        self.tokens_filed = audit.tokens.incoming + audit.evaluation_tokens.incoming;
        self.ledger = ledger;
        self.stepped = committed;
        self.publish(committed);
        let trained = self.batches.range(..committed);
        self.batches = trained
            .map(|(step, batch)| (*step, batch.clone()))
            .collect();
        let (versions, finished) = Default::default();
        (self.versions, self.finished) = (versions, finished);
        for held in [&mut self.held, &mut self.past] {
            held.clear();
        }
        self.scoring.clear();
        self.scored.clear();
        for generator in &mut self.generators {
            generator.1 = PolicyVersion::new(self.epoch, committed);
        }
    }

    /// Everybody does their work until the run is finished; time passes only when nothing else can happen.
    pub fn drive_to_the_end(&mut self) {
        let mut idle = 0;
        while !self.ledger.is_finished() {
            let before = self.progress();
            self.work(0);
            self.check();
            idle = if self.progress() == before {
                idle + 1
            } else {
                0
            };
            assert!(idle < 3, "stuck: {:?}", self.ledger.waits(self.now));
            if idle > 0 {
                self.now = self.ledger.next_deadline().unwrap_or(self.now);
                self.ledger.tick(self.now);
            }
        }
        self.ledger.committed(self.epoch, self.stepped).unwrap();
        let audit = self.ledger.audit();
        assert_eq!(audit.difference(), None);
        assert_eq!(
            (audit.prompts.live, audit.rollouts.live, audit.tokens.live),
            (0, 0, 0)
        );
    }

    fn progress(&self) -> (r1async_core::Audit, u64, usize, usize, usize) {
        let stats = self.ledger.stats();
        let scoring = stats.rollouts_scoring + stats.rollouts_unscored;
        (
            self.ledger.audit(),
            self.stepped,
            stats.rollouts_generating,
            scoring,
            stats.groups_ready,
        )
    }

    /// Everybody does some work; `unfinished` of 4 rollouts do not end.
    fn work(&mut self, unfinished: usize) {
        self.admit(false);
        for index in 0..self.generators.len() {
            self.install(index);
            self.lease(index * 4, 5);
            self.admit(false);
        }
        for (index, held) in self.held.clone().into_iter().enumerate() {
            let finish = (index % 4 >= unfinished).then_some(Finish::Stop);
            self.send_chunk(&held, held.tokens, 2, finish);
        }
        self.lease_scoring(0, 20);
        for (holder, lease) in std::mem::take(&mut self.scoring) {
            let total = (lease.0 % 2) as f64;
            let verdict = Verdict::Score {
                total,
                parts: Vec::new(),
                status: String::new(),
            };
            self.ledger.verdict(self.now, holder, lease, verdict);
        }
        if self.bind() {
            self.step();
        }
    }
}
