//! The journal on a disk.
//!
//! ```text
//! events            every call of the ledger, for the whole run; small
//! payload-000002    tokens, log-probabilities and prompts since the snapshot of that number
//! snapshot-000002   the whole ledger at that moment, and how far the events had come
//! ```
//! A start reads the newest snapshot and what follows it. Each snapshot begins a new payload file and removes the one
//! before (unless all is kept), so the payload on disk is bounded by what is live. What goes into the streams and
//! what they mean is `r1async_core::journal`'s.

mod audit;
mod disk;
mod error;
mod files;
mod history;
mod journal;
mod stream;

pub use audit::{Fate, RunAudit};
pub use disk::Place;
pub use error::JournalError;
pub use files::Identity;
pub use history::{History, Told};
pub use journal::{Durability, Journal, Options, Recovery};
