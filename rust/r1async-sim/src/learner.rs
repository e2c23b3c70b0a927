//! The learner: waits for a batch, trains it, publishes weights, writes checkpoints.

use r1async_core::{Bind, PolicyVersion, Step, WaitReason};

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

impl Simulation {
    /// Asks for the next batch, and begins to train it if it is there.
    pub(crate) fn ask_for_batch(&mut self) -> Result<(), SimulationError> {
        let step = Step(self.ledger.steps_done());
        let unit = u64::from(self.model.tokens_per_unit);
        let bound = match self.ledger.bind_batch(self.now, step) {
            Ok(Bind::Ready(bound)) => bound,
            Ok(Bind::Wait(WaitReason::Hold { .. })) => {
                self.ask_later();
                return Ok(());
            }
            Ok(Bind::Wait(_)) => return Ok(()),
            Ok(Bind::Finished) => {
                self.learner = LearnerState::Done;
                return Ok(());
            }
            Err(error) => return Err(SimulationError::Refused(error.to_string())),
        };
        let (mut units, mut rollouts) = (0, 0);
        for (_, rollout) in bound.rollouts() {
            units += rollout.tokens.len() as u64;
            rollouts += 1;
            let trained = self.lengths.trained(&rollout.runs, &rollout.over_age);
            self.tally.trained_units += trained;
            for (run, _) in rollout
                .runs
                .iter()
                .zip(&rollout.over_age)
                .filter(|(_, over)| !**over)
            {
                let staleness = bound.step.0.saturating_sub(run.version.number);
                self.tally
                    .staleness
                    .add(staleness, u64::from(run.count) * unit);
            }
        }
        self.tally.trained_rollouts += rollouts;
        self.tally.trained_full_units += units;
        let tokens = (units * unit) as f64 + self.model.lengths.prompt * rollouts as f64;
        let seconds = self.model.learner.step_s + self.model.learner.token_s * tokens;
        self.tally.training_s += seconds;
        self.learner = LearnerState::Busy;
        self.queue.plan(self.now + seconds, Event::Stepped);
        Ok(())
    }

    /// A hold is looked at a hundred times a step, not after every verdict: each look counts the
    /// tokens of a whole batch.
    fn ask_later(&mut self) {
        let step_s = self.now / self.tally.steps.max(1) as f64;
        self.learner = LearnerState::Held;
        self.queue
            .plan(self.now + step_s / LOOKS_A_STEP, Event::Free);
    }

    /// A step is done: its weights go out; every few steps a checkpoint is written.
    pub(crate) fn end_step(&mut self) -> Result<(), SimulationError> {
        let step = self.ledger.steps_done();
        self.ledger.stepped(EPOCH, Step(step)).map_err(refused)?;
        let version = step + 1;
        self.tally.steps += 1;
        self.sample_places();
        let settings = self.ledger.settings();
        if version.is_multiple_of(settings.publish_every) || version == settings.steps {
            self.publish(version)?;
        }
        let every = self.model.learner.checkpoint_every;
        let checkpoint_s = if version.is_multiple_of(every) {
            self.model.learner.checkpoint_s
        } else {
            0.0
        };
        if version.is_multiple_of(every) {
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
