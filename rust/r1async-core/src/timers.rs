//! Deadlines in the order in which they pass.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, LeaseId, Member};

/// Whose deadline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Timer {
    Lease(LeaseId),
    Rollout(Member),
    Group(GroupId),
    Hold,
}

/// A point in time with a total order.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Moment(pub(crate) f64);

impl PartialEq for Moment {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Timers that are set. Whoever sets one remembers its moment, to clear it by.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Timers(BTreeSet<(Moment, Timer)>);

impl Timers {
    pub(crate) fn set(&mut self, at: f64, timer: Timer) {
        self.0.insert((Moment(at), timer));
    }

    pub(crate) fn clear(&mut self, at: f64, timer: Timer) {
        self.0.remove(&(Moment(at), timer));
    }

    pub(crate) fn contains(&self, at: f64, timer: Timer) -> bool {
        self.0.contains(&(Moment(at), timer))
    }

    /// How many are set for anything but `timer`.
    pub(crate) fn set_for_others_than(&self, timer: Timer) -> usize {
        self.0.iter().filter(|(_, other)| *other != timer).count()
    }

    pub(crate) fn next(&self) -> Option<f64> {
        self.0.first().map(|(at, _)| at.0)
    }

    /// Takes the earliest timer whose moment is not after `now`.
    pub(crate) fn pop_due(&mut self, now: f64) -> Option<Timer> {
        self.next().filter(|&at| at <= now)?;
        self.0.pop_first().map(|(_, timer)| timer)
    }
}
