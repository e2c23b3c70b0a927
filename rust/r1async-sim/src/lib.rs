//! A whole run under a virtual clock: the real [`r1async_core::Ledger`] decides, and everything around it
//! (generators, scorers, learner, weight pushes, failures) is a model with a few numbers.
//!
//! Deterministic: the same model and seed give the same result on every machine. What a rollout is like
//! (its length, its reward) depends on the seed and its number alone, so two rules are compared on the
//! same rollouts.

mod generators;
mod learner;
mod model;
mod queue;
mod random;
mod results;
mod rollouts;
mod rooms;
mod scorers;
mod simulation;

pub use model::{
    Distribution, Failures, Generators, LearnerModel, Lengths, Machine, Model, ModelError, Rewards,
    Scorers, Weights,
};
pub use results::{Outcome, Pool};
pub use simulation::{SimulationError, simulate};
