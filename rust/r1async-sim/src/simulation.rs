//! The run: one event after another, and after each whatever the ledger says has become possible.

use r1async_core::{HolderId, Ledger, NEVER_S, Settings, SettingsError};
use thiserror::Error;

use crate::generators::Generator;
use crate::learner::{LearnerState, Training, refused};
use crate::model::{Model, ModelError};
use crate::queue::{Event, Queue};
use crate::results::{LengthBins, Outcome, Parts, Tally};
use crate::rollouts::Prompts;
use crate::rooms::Rooms;
use crate::scorers::Scorer;

/// The one learner life of a simulation.
pub(crate) const EPOCH: u64 = 0;

/// A run that cannot be simulated, or did not go well.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SimulationError {
    /// A number of the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A setting of the ledger.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Nothing can happen any more, and the run is not over.
    #[error(
        "the simulated run stands still at {at:.3} s after {steps} steps; it waits for: {waits}"
    )]
    Stalled {
        /// Virtual seconds.
        at: f64,
        /// Steps done.
        steps: u64,
        /// What for.
        waits: String,
    },
    /// The ledger refused what a sound role would do, or its accounts do not balance: a bug of ours.
    #[error("the ledger refused: {0}")]
    Refused(String),
}

/// A run in the making.
pub(crate) struct Simulation {
    pub(crate) model: Model,
    pub(crate) ledger: Ledger,
    pub(crate) queue: Queue,
    pub(crate) now: f64,
    pub(crate) generators: Vec<Generator>,
    pub(crate) scorers: Vec<Scorer>,
    pub(crate) learner: LearnerState,
    pub(crate) training: Training,
    /// The part of a processor that each role at work has now.
    pub(crate) share: f64,
    /// The newest version that can be had.
    pub(crate) published: Option<u64>,
    /// Holders ever named.
    pub(crate) holders: u64,
    /// Generators whose speed or rollouts changed since their next end was planned.
    pub(crate) changed: Vec<bool>,
    pub(crate) changed_list: Vec<usize>,
    pub(crate) rooms: Rooms,
    pub(crate) newest_installed: u64,
    pub(crate) rollouts_wanted: bool,
    pub(crate) scoring_wanted: bool,
    /// What every rollout's tokens are: the ledger does not look.
    pub(crate) tokens: Vec<i32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) prompts: Prompts,
    pub(crate) tally: Tally,
    pub(crate) lengths: LengthBins,
    /// Where the measured steps begin and end.
    measured: (Option<Tally>, Option<Tally>),
    last_measured_step: u64,
}

/// Simulates a run of `settings.steps` steps, or of `model.seconds`. Tokens in `settings` are those of the
/// run; how many of them one held token stands for is the model's.
///
/// # Errors
/// Numbers that cannot be; a run that comes to a stand-still; accounts that do not balance at the end.
pub fn simulate(settings: &Settings, model: &Model) -> Result<Outcome, SimulationError> {
    Simulation::new(settings, model.clone().checked()?)?.run()
}

impl Simulation {
    fn new(settings: &Settings, model: Model) -> Result<Self, SimulationError> {
        let ledger = Ledger::new(Settings {
            max_tokens: settings.max_tokens.div_ceil(model.tokens_per_unit),
            // Chunks are sent when something changes, not every few seconds: only deaths lose leases here.
            lease_s: NEVER_S,
            ..settings.clone()
        })?;
        let (generators, scorers) = (&model.generators, &model.scorers);
        let (count, slots) = (generators.count, generators.slots);
        let holders = (count + scorers.count) as u64;
        let cap = ledger.settings().max_tokens as usize;
        // Once the last groups are open, generators run dry: that is no speed to measure.
        let draining = ledger.settings().pacing + 1;
        let last_measured_step = settings
            .steps
            .saturating_sub(draining)
            .max(model.warmup_steps + 1)
            .min(settings.steps);
        Ok(Self {
            generators: (0..count)
                .map(|index| Generator::new(HolderId(index as u64 + 1), slots))
                .collect(),
            scorers: (0..scorers.count)
                .map(|index| {
                    Scorer::new(
                        HolderId((count + index) as u64 + 1),
                        scorers.queue,
                        scorers.workers,
                    )
                })
                .collect(),
            ledger,
            queue: Queue::default(),
            now: 0.0,
            learner: LearnerState::Waiting,
            training: Training::default(),
            share: 1.0,
            published: None,
            holders,
            changed: vec![false; count],
            changed_list: Vec::with_capacity(count),
            rooms: Rooms::new(count, slots),
            newest_installed: 0,
            rollouts_wanted: true,
            scoring_wanted: false,
            tokens: vec![0; cap],
            logprobs: vec![0.0; cap],
            prompts: Prompts::default(),
            tally: Tally::default(),
            lengths: LengthBins::default(),
            measured: (None, None),
            last_measured_step,
            model,
        })
    }

    fn run(mut self) -> Result<Outcome, SimulationError> {
        self.ledger.connect_learner(EPOCH, 0).map_err(refused)?;
        self.publish(0)?;
        for index in 0..self.generators.len() {
            self.plan_death(index);
        }
        self.settle()?;
        while self.learner != LearnerState::Done && !self.is_over() {
            self.advance_time()?;
            self.settle()?;
        }
        self.finish()
    }

    fn is_over(&self) -> bool {
        self.model.seconds > 0.0 && self.now >= self.model.seconds
    }

    /// The next event or deadline happens.
    fn advance_time(&mut self) -> Result<(), SimulationError> {
        let (event_at, deadline) = (self.queue.next_at(), self.ledger.next_deadline());
        match (event_at, deadline) {
            (None, None) => Err(self.stalled()),
            (event_at, Some(deadline)) if event_at.is_none_or(|at| deadline <= at) => {
                self.now = self.now.max(deadline);
                self.ledger.tick(self.now);
                self.drop_lost();
                Ok(())
            }
            _ => {
                let Some((at, event)) = self.queue.pop() else {
                    return Err(self.stalled());
                };
                self.now = at;
                self.happen(event)
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), SimulationError> {
        match event {
            Event::Finish { generator, plan } => self.finish_rollouts(generator, plan),
            Event::Room {
                generator,
                life,
                slots,
            } => self.add_room(generator, life, slots),
            Event::Fetched { generator, life } => self.begin_install(generator, life),
            Event::Installed { generator, life } => self.end_install(generator, life),
            Event::Dies { generator } => self.die(generator),
            Event::Missed { holder } => self.ledger.holder_lost(holder),
            Event::Returns { generator } => self.come_back(generator),
            Event::Arrived { scorer, work } => self.receive(scorer, work),
            Event::Graded { scorer, work } => self.give_verdict(scorer, work),
            Event::Trained { plan } => self.end_training(plan)?,
            Event::Free => {
                self.learner = LearnerState::Waiting;
                self.ask_for_batch()?;
            }
        }
        Ok(())
    }

    /// Hands out whatever has become possible, and what that makes possible in turn.
    fn settle(&mut self) -> Result<(), SimulationError> {
        loop {
            let news = self.ledger.take_news();
            let rollouts = std::mem::take(&mut self.rollouts_wanted) || news.rollouts;
            let scoring = std::mem::take(&mut self.scoring_wanted) || news.scoring;
            let batch = news.batch && self.learner == LearnerState::Waiting;
            if news.prompts {
                self.admit_prompts()?;
            }
            if batch {
                self.ask_for_batch()?;
            }
            if rollouts {
                self.offer_rollouts();
            }
            if scoring {
                self.offer_scoring();
            }
            if !(rollouts || scoring || batch || news.prompts) {
                break;
            }
        }
        self.share_cores();
        self.plan_ends();
        Ok(())
    }

    /// Whoever is at work goes on at the speed that the machine leaves each.
    fn share_cores(&mut self) {
        if self.model.machine.cores == 0.0 {
            return;
        }
        let decoding = self
            .generators
            .iter()
            .filter(|generator| generator.decodes());
        let busy = decoding.count() + usize::from(self.training.is_going_on());
        let share = self.model.machine.share(busy);
        if share != self.share {
            for index in 0..self.generators.len() {
                self.advance(index);
            }
            self.advance_training();
            self.share = share;
            self.plan_training();
        }
    }

    fn admit_prompts(&mut self) -> Result<(), SimulationError> {
        for ordinal in self.ledger.wanted_prompts() {
            self.ledger
                .admit(ordinal, vec![0], ordinal.to_le_bytes().to_vec())
                .map_err(refused)?;
        }
        Ok(())
    }

    /// The sums of this moment.
    fn tally_now(&mut self) -> Tally {
        self.advance_training();
        let mut tally = Tally {
            at: self.now,
            ..self.tally.clone()
        };
        for index in 0..self.generators.len() {
            self.advance(index);
            let generator = &self.generators[index];
            tally.decoding_slot_s += generator.decoding_slot_s;
            tally.installing_slot_s += generator.installing_slot_s;
            tally.down_slot_s += generator.down_slot_s;
        }
        tally
    }

    /// `steps` are done: perhaps the measured ones begin or end here.
    pub(crate) fn after_step(&mut self, steps: u64) {
        if steps == self.model.warmup_steps {
            self.measured.0 = Some(self.tally_now());
        }
        if steps == self.last_measured_step {
            self.measured.1 = Some(self.tally_now());
        }
    }

    fn finish(mut self) -> Result<Outcome, SimulationError> {
        let steps = self.ledger.steps_done();
        self.ledger.committed(EPOCH, steps).map_err(refused)?;
        if let Some(difference) = self.ledger.audit().difference() {
            return Err(SimulationError::Refused(difference));
        }
        let whole = self.tally_now();
        let begin = self.measured.0.take().unwrap_or_default();
        let measured = self
            .measured
            .1
            .take()
            .unwrap_or_else(|| whole.clone())
            .since(&begin);
        let (model, ledger, lengths) = (&self.model, &self.ledger, &self.lengths);
        Ok(Outcome::new(&Parts {
            model,
            ledger,
            whole: &whole,
            measured: &measured,
            lengths,
        }))
    }

    fn stalled(&self) -> SimulationError {
        SimulationError::Stalled {
            at: self.now,
            steps: self.ledger.steps_done(),
            waits: {
                let waits = self.ledger.waits(self.now).into_iter();
                waits.map(|wait| wait.text).collect::<Vec<_>>().join("; ")
            },
        }
    }
}
