//! What happens next on the virtual clock.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use r1async_core::HolderId;

use crate::scorers::Work;

/// Something that will happen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Event {
    /// The next rollout of a generator ends, if nothing changed its speed since (`plan` is the newest).
    Finish { generator: usize, plan: u64 },
    /// A generator has asked for rollouts for `slots` slots that were emptied.
    Room {
        generator: usize,
        life: u64,
        slots: usize,
    },
    /// A generator has a whole new version.
    Fetched { generator: usize, life: u64 },
    /// A generator serves the version that it fetched.
    Installed { generator: usize, life: u64 },
    /// A generator dies.
    Dies { generator: usize },
    /// The buffer notices that a generator is gone.
    Missed { holder: HolderId },
    /// A generator is there again.
    Returns { generator: usize },
    /// A rollout that was lent to a scorer is there.
    Arrived { scorer: usize, work: Work },
    /// A scorer has graded a rollout.
    Graded { scorer: usize, work: Work },
    /// The learner has done what it had to train, if nothing changed its speed since (`plan` is the newest).
    Trained { plan: u64 },
    /// The learner has written a checkpoint or is free for another reason.
    Free,
}

#[derive(Debug)]
struct Entry {
    at: f64,
    /// Events of one moment happen in the order in which they were planned.
    place: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at
            .total_cmp(&other.at)
            .then(self.place.cmp(&other.place))
    }
}

/// Events in the order of time.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    planned: u64,
}

impl Queue {
    pub(crate) fn plan(&mut self, at: f64, event: Event) {
        self.planned += 1;
        let place = self.planned;
        self.heap.push(Reverse(Entry { at, place, event }));
    }

    pub(crate) fn next_at(&self) -> Option<f64> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    pub(crate) fn pop(&mut self) -> Option<(f64, Event)> {
        self.heap
            .pop()
            .map(|Reverse(entry)| (entry.at, entry.event))
    }
}
