//! Batches in memory that a learner of the same machine maps, instead of bytes that travel through a socket.

use std::fmt;

use super::Service;
use crate::ids::HolderId;

/// Memory that the buffer's process writes and learners read. What is given to one is its alone until it frees it: a
/// batch never changes under a learner.
pub trait BatchMemory: fmt::Debug + Send {
    /// Room for `bytes`; `None`: there is none now, and the batch travels.
    fn room(&mut self, holder: HolderId, bytes: usize) -> Option<Room<'_>>;
    /// These segments are not looked at any more. What is not the holder's is left alone.
    fn free(&mut self, holder: HolderId, segments: &[i64]);
    /// Nobody will free what this holder was given: what it has mapped stays its, as long as it lives.
    fn forget(&mut self, holder: HolderId);
}

/// Where a batch is written, and where a learner finds it.
#[derive(Debug)]
pub struct Room<'a> {
    /// The process whose descriptor it is.
    pub process: u32,
    /// The descriptor of its file.
    pub descriptor: i32,
    /// Its number, of which no other has the same while this buffer lives.
    pub segment: u64,
    /// It; at least as long as was asked for.
    pub bytes: &'a mut [u8],
}

/// Memory, and the machine whose processes can map it.
#[derive(Debug)]
pub(super) struct Shared {
    machine: String,
    pub(super) memory: Box<dyn BatchMemory>,
}

impl Service {
    /// From now on learners that say they are on `machine` get their batches in `memory`.
    pub fn share_memory(&mut self, machine: String, memory: Box<dyn BatchMemory>) {
        self.shared = Some(Shared { machine, memory });
    }

    /// Whether a learner that names its machine can map what is shared.
    pub(super) fn can_map(&self, machine: Option<&str>) -> bool {
        let shared = self.shared.as_ref();
        machine.is_some_and(|named| shared.is_some_and(|shared| shared.machine == named))
    }

    pub(super) fn forget_memory(&mut self, holder: HolderId) {
        if let Some(shared) = &mut self.shared {
            shared.memory.forget(holder);
        }
    }
}
