//! The rollout buffer of r1async as a state machine.
//!
//! Nothing here reads a clock, opens a socket or starts a thread: `now` (seconds), versions and bytes
//! are arguments, and what is to be sent comes back as values. So the same code runs behind the
//! sockets, in a property test and in a simulation, and what it decides can be replayed.
//!
//! [`Ledger`] is the state of a run: groups of rollouts, who works on them, what the learner trains.
//! [`journal`] writes down its history and tells it again.

mod audit;
mod batch;
mod chunk;
mod columns;
mod consistency;
mod early;
mod engine_json;
mod evaluation;
mod figure;
mod group;
mod ids;
mod incident;
mod learner;
mod lease;
mod leases;
mod ledger;
mod pacing;
mod prompts;
mod quarantine;
mod ready;
mod reopen;
mod scoring;
mod settings;
mod shape;
mod sources;
mod staleness;
mod statistics;
mod stats;
mod timers;
mod trace;
mod waits;
mod waste;

pub mod balance;
pub mod frame;
pub mod journal;
pub mod messages;
pub mod pack;
pub mod service;

pub use audit::{Account, Audit, DropReason};
pub use batch::{BatchPart, Bind, BindError, BindPart, BoundBatch, BoundGroup, BoundRollout};
pub use chunk::{ChunkError, ChunkRef};
pub use engine_json::{EngineJsonError, EngineShape, Sampled, parse_engine_json};
pub use evaluation::{EvaluateError, EvaluatedGroup, EvaluatedMember, EvaluationRequest};
pub use group::{Finish, Outcome, Prompt, Score};
pub use ids::{EVALUATION_BIT, GroupId, HolderId, LeaseId, PolicyVersion, RolloutId, Step};
pub use incident::Incident;
pub use learner::LearnerError;
pub use lease::{Announcement, ChunkAck, RolloutLease};
pub use ledger::{Ledger, News};
pub use prompts::AdmitError;
pub use quarantine::{Filtered, Quarantined};
pub use scoring::{ScoreLease, Verdict, VerdictAck};
pub use settings::{
    OverAge, Sampling, ScoringPool, Settings, SettingsError, StalenessMode, Window, ZeroVariance,
};
pub use staleness::{StalenessHistogram, VersionRun, VersionRuns, staleness};
pub use statistics::{Baseline, GroupStatistics, StdKind, advantages, group_statistics};
pub use stats::Stats;
pub use timers::NEVER_S;
pub use trace::Event;
pub use waits::{Wait, WaitReason};
pub use waste::Waste;
