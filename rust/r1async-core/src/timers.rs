//! Deadlines in the order in which they pass.

use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use rustc_hash::FxHashSet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{GroupId, LeaseId, Member};

/// Whose deadline it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

impl Hash for Moment {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// Lanes of deadlines. Most are now and one of a few constants, so that few lanes take them in order.
const LANES: usize = 8;
/// Cleared timers that may stay in the lanes however few are set.
const SLACK: usize = 1024;

/// A deadline from here on never passes, and costs nothing: seconds since a begin that no run lives to.
pub const NEVER_S: f64 = 1e30;

type Entry = (Moment, Timer);

/// Timers that are set, but for those that never fire. Whoever sets one remembers its moment, to clear it by.
///
/// Setting appends to a lane whose last deadline is not later; clearing only crosses out. The first of every lane is
/// set, so that the next deadline is one of those.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    set: FxHashSet<Entry>,
    /// Each in order, with timers that were cleared meanwhile.
    lanes: [VecDeque<Entry>; LANES],
    /// What no lane takes in order.
    rest: BTreeSet<Entry>,
}

impl Timers {
    pub(crate) fn set(&mut self, at: f64, timer: Timer) {
        if at >= NEVER_S {
            return;
        }
        let entry = (Moment(at), timer);
        if !self.set.insert(entry) {
            return;
        }
        let mut lanes = self.lanes.iter_mut();
        match lanes.find(|lane| lane.back().is_none_or(|last| *last <= entry)) {
            // It was cleared, and is still there.
            Some(lane) if lane.back() == Some(&entry) => {}
            Some(lane) => lane.push_back(entry),
            None => drop(self.rest.insert(entry)),
        }
        self.tidy();
    }

    pub(crate) fn clear(&mut self, at: f64, timer: Timer) {
        if at >= NEVER_S {
            return;
        }
        let entry = (Moment(at), timer);
        if self.set.remove(&entry) {
            self.cross_out(&entry);
        }
    }

    /// It is not set any more: no lane begins with it.
    fn cross_out(&mut self, entry: &Entry) {
        self.rest.remove(entry);
        for lane in &mut self.lanes {
            if lane.front() == Some(entry) {
                while lane.front().is_some_and(|first| !self.set.contains(first)) {
                    lane.pop_front();
                }
            }
        }
    }

    /// Takes cleared timers out of the lanes when they are most of what is there.
    fn tidy(&mut self) {
        let there: usize = self.lanes.iter().map(VecDeque::len).sum();
        if there > 2 * self.set.len() + SLACK {
            for lane in &mut self.lanes {
                lane.retain(|entry| self.set.contains(entry));
            }
        }
    }

    /// Whether it is set, as far as it ever fires.
    pub(crate) fn contains(&self, at: f64, timer: Timer) -> bool {
        at >= NEVER_S || self.set.contains(&(Moment(at), timer))
    }

    /// How many are set for anything but `timer`.
    pub(crate) fn set_for_others_than(&self, timer: Timer) -> usize {
        self.set.iter().filter(|(_, other)| *other != timer).count()
    }

    fn first(&self) -> Option<&Entry> {
        let firsts = self.lanes.iter().filter_map(VecDeque::front);
        firsts.chain(self.rest.first()).min()
    }

    pub(crate) fn next(&self) -> Option<f64> {
        self.first().map(|(at, _)| at.0)
    }

    /// Takes the earliest timer whose moment is not after `now`.
    pub(crate) fn pop_due(&mut self, now: f64) -> Option<Timer> {
        let entry = *self.first().filter(|(at, _)| at.0 <= now)?;
        self.set.remove(&entry);
        self.cross_out(&entry);
        Some(entry.1)
    }
}

impl Serialize for Timers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let set: BTreeSet<&Entry> = self.set.iter().collect();
        set.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Timers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut timers = Self::default();
        for (at, timer) in BTreeSet::<Entry>::deserialize(deserializer)? {
            timers.set(at.0, timer);
        }
        Ok(timers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timer(number: u64) -> Timer {
        match number % 3 {
            0 => Timer::Lease(LeaseId(number / 3)),
            1 => Timer::Group(GroupId(number / 3)),
            _ => Timer::Hold,
        }
    }

    proptest! {
        #[test]
        fn they_are_due_in_the_order_of_a_sorted_set(
            moves in prop::collection::vec((0u8..4, 0u64..40, 0u64..12), 1..600),
        ) {
            let (mut timers, mut sorted) = (Timers::default(), BTreeSet::new());
            let mut now = 0.0;
            for (what, number, wait) in moves {
                let entry = (Moment(now + wait as f64), timer(number));
                match what {
                    0 | 1 => {
                        timers.set(entry.0.0, entry.1);
                        sorted.insert(entry);
                    }
                    2 => {
                        let cleared = sorted.iter().nth(number as usize).copied().unwrap_or(entry);
                        timers.clear(cleared.0.0, cleared.1);
                        sorted.remove(&cleared);
                    }
                    _ => {
                        now += wait as f64 / 4.0;
                        let due = sorted.first().filter(|(at, _)| at.0 <= now).copied();
                        prop_assert_eq!(timers.pop_due(now), due.map(|(_, timer)| timer));
                        due.map(|due| sorted.remove(&due));
                    }
                }
                prop_assert_eq!(timers.next(), sorted.first().map(|(at, _)| at.0));
                prop_assert_eq!(timers.set_for_others_than(Timer::Hold), {
                    sorted.iter().filter(|(_, timer)| *timer != Timer::Hold).count()
                });
            }
            let saved = rmp_serde::to_vec(&timers).unwrap();
            prop_assert_eq!(&saved, &rmp_serde::to_vec(&sorted).unwrap());
            let mut again: Timers = rmp_serde::from_slice(&saved).unwrap();
            for (_, timer) in sorted {
                prop_assert_eq!(again.pop_due(f64::INFINITY), Some(timer));
            }
            prop_assert_eq!(again.next(), None);
        }
    }

    #[test]
    fn a_timer_that_is_set_and_cleared_again_and_again_is_there_once() {
        let mut timers = Timers::default();
        timers.set(0.0, Timer::Hold);
        for _ in 0..10 * SLACK {
            timers.clear(1.0, Timer::Lease(LeaseId(1)));
            timers.set(1.0, Timer::Lease(LeaseId(1)));
        }
        assert_eq!(timers.lanes.iter().map(VecDeque::len).sum::<usize>(), 2);
        assert_eq!(timers.pop_due(2.0), Some(Timer::Hold));
        assert_eq!(timers.pop_due(2.0), Some(Timer::Lease(LeaseId(1))));
        assert_eq!(timers.pop_due(2.0), None);
    }

    #[test]
    fn cleared_timers_do_not_pile_up_behind_one_that_stays() {
        let mut timers = Timers::default();
        for number in 0..100_000 {
            timers.set(number as f64, Timer::Lease(LeaseId(number)));
            if number > 0 {
                timers.clear(number as f64, Timer::Lease(LeaseId(number)));
            }
        }
        let there: usize = timers.lanes.iter().map(VecDeque::len).sum();
        assert!(there <= SLACK + 3, "{there} held for 1 that is set");
        assert_eq!(timers.next(), Some(0.0));
    }
}
