//! The journal: what happened to the ledger, in order, as bytes; and the ledger again from those bytes.
//!
//! The ledger decides by what it is told alone, so its calls are its history. [`Recorded`] is a ledger that writes
//! them down, [`Replay`] a ledger that is told them again. *Events* hold the calls without what is bulky; *payload*
//! holds tokens, log-probabilities and prompts, one record for each event that has some. Nothing here opens a file:
//! `r1async-journal` keeps the two streams on a disk.

mod command;
mod record;
mod recorded;
mod replay;

pub use command::{Bound, Command};
pub use record::{Chain, Damage, First, HEADER_BYTES, Head, Kind, append, first, link};
pub use recorded::{Pending, Recorded, SnapshotError};
pub use replay::{Payload, Replay, ReplayError};
