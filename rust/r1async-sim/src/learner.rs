//! The learner: waits for a batch, trains it, publishes weights, writes checkpoints.

use r1async_core::{BatchPart, BindPart, PolicyVersion, Step, WaitReason};

use crate::queue::Event;
use crate::simulation::{EPOCH, Simulation, SimulationError};

/// Looks at a hold in the time of a step.
const LOOKS_A_STEP: f64 = 100.0;

/// What the learner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LearnerState {
    /// It has asked for the next batch.
    Waiting,
    /// Its step is held; it asks again soon.
    Held,
    /// It trains, or writes a checkpoint.
    Busy,
    /// There is nothing more to train.
    Done,
}

/// The work on the step that is being trained, in seconds of a whole processor.
#[derive(Debug, Default)]
pub(crate) struct Training {
    left_s: f64,
    /// When that was so.
    at: f64,
    /// The newest plan for its end; none while nothing is trained.
    plan: Option<u64>,
    plans: u64,
    /// Parts of the batch that it has had.
    parts: usize,
    /// Nothing of the batch is missing.
    is_whole: bool,
}

impl Training {
    pub(crate) fn is_going_on(&self) -> bool {
        self.plan.is_some()
    }
}

impl Simulation {
    /// Asks for the next batch, or for the next part of it, and begins to train it if it is there.
    pub(crate) fn ask_for_batch(&mut self) -> Result<(), SimulationError> {
        let step = Step(self.ledger.steps_done());
        let part = self.training.parts;
        self.tell_last_chances(step.0);
        let answer = self.ledger.bind_part(self.now, step, part);
        match answer.map_err(refused)? {
            BindPart::Ready(batch, part) => {
                let unit = self.model.tokens_per_unit;
                let tokens = self.tally.part(batch, &part, unit, &mut self.lengths);
                self.train(&part, tokens);
            }
            BindPart::Wait(WaitReason::Hold { .. }) => self.ask_later(),
            BindPart::Wait(_) => {}
            BindPart::Finished => self.learner = LearnerState::Done,
        }
        Ok(())
    }

    /// Begins to train a part of `rollouts` and their tokens. What a step costs however few tokens it has comes last.
    fn train(&mut self, part: &BatchPart, (rollouts, tokens): (u64, u64)) {
        let model = &self.model.learner;
        let tokens = tokens as f64 + self.model.lengths.prompt * rollouts as f64;
        let base_s = if part.last { model.step_s } else { 0.0 };
        let groups = part.groups.len() as f64;
        let seconds = base_s + model.group_s * groups + model.token_s * tokens;
        self.learner = LearnerState::Busy;
        self.training.parts += 1;
        self.training.is_whole = part.last;
        self.training.left_s = seconds;
        self.training.at = self.now;
        self.training.plan = Some(0);
        self.plan_training();
    }

    /// Lets the training come as far as it is now; before anything changes its speed.
    pub(crate) fn advance_training(&mut self) {
        if self.training.is_going_on() {
            let seconds = self.now - self.training.at;
            self.tally.training_s += seconds;
            self.training.left_s -= seconds * self.share;
        }
        self.training.at = self.now;
    }

    /// Plans the end of what is trained now.
    pub(crate) fn plan_training(&mut self) {
        if self.training.is_going_on() {
            self.training.plans += 1;
            let plan = self.training.plans;
            self.training.plan = Some(plan);
            let at = self.now + self.training.left_s.max(0.0) / self.share;
            self.queue.plan(at, Event::Trained { plan });
        }
    }

    /// What was to be trained is, if the plan is still the newest: a step is done, or a part of one.
    pub(crate) fn end_training(&mut self, plan: u64) -> Result<(), SimulationError> {
        if self.training.plan != Some(plan) {
            return Ok(());
        }
        self.advance_training();
        self.training.plan = None;
        if self.training.is_whole {
            self.training.parts = 0;
            return self.end_step();
        }
        self.learner = LearnerState::Waiting;
        self.ask_for_batch()
    }

    /// A hold is looked at a hundred times a step, not after every verdict.
    fn ask_later(&mut self) {
        let step_s = self.now / self.tally.steps.max(1) as f64;
        self.learner = LearnerState::Held;
        self.queue
            .plan(self.now + step_s / LOOKS_A_STEP, Event::Free);
    }

    /// A step is done: its weights go out; every few steps a checkpoint is written.
    fn end_step(&mut self) -> Result<(), SimulationError> {
        let step = self.ledger.steps_done();
        self.ledger.stepped(EPOCH, Step(step)).map_err(refused)?;
        let version = step + 1;
        self.tally.steps += 1;
        self.sample_places();
        let settings = self.ledger.settings();
        let is_last = version == settings.steps;
        if version.is_multiple_of(settings.publish_every) || is_last {
            self.publish(version)?;
        }
        let learner = &self.model.learner;
        let mut checkpoint_s = 0.0;
        if version.is_multiple_of(learner.checkpoint_every) || is_last {
            checkpoint_s = learner.checkpoint_s;
            self.ledger.committed(EPOCH, version).map_err(refused)?;
        }
        self.queue.plan(self.now + checkpoint_s, Event::Free);
        self.after_step(version);
        Ok(())
    }

    pub(crate) fn publish(&mut self, version: u64) -> Result<(), SimulationError> {
        self.ledger
            .published(PolicyVersion::new(EPOCH, version), "")
            .map_err(refused)?;
        self.published = Some(version);
        for index in 0..self.generators.len() {
            self.fetch(index);
        }
        Ok(())
    }

    fn sample_places(&mut self) {
        self.tally.places += self.ledger.stats().places as u64;
    }
}

pub(crate) fn refused(error: impl ToString) -> SimulationError {
    SimulationError::Refused(error.to_string())
}
