//! Groups that wait for a batch, in the order in which they train.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::GroupId;

/// What the order depends on, fixed when a group closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadyKey {
    /// Lowest version of any token that may train.
    pub(crate) oldest: u64,
    /// The group is of no use to a step whose oldest trainable version is above this.
    pub(crate) useful_to: u64,
}

/// Ready groups in order of `max(oldest + e, v)`, then group number, for the step v bound next.
///
/// Groups whose deadline `oldest + e` has come are tied at v, in order of their numbers: were they
/// sorted by deadline, over-age groups would push out fresh ones.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReadySet {
    max_staleness: u64,
    step: u64,
    due: BTreeSet<GroupId>,
    later: BTreeSet<(u64, GroupId)>,
    by_use: BTreeSet<(u64, GroupId)>,
}

impl ReadySet {
    pub(crate) fn new(max_staleness: u64) -> Self {
        let (due, later, by_use) = Default::default();
        Self {
            max_staleness,
            step: 0,
            due,
            later,
            by_use,
        }
    }

    pub(crate) fn insert(&mut self, group: GroupId, key: ReadyKey) {
        if key.oldest + self.max_staleness <= self.step {
            self.due.insert(group);
        } else {
            self.later.insert((key.oldest, group));
        }
        self.by_use.insert((key.useful_to, group));
    }

    pub(crate) fn remove(&mut self, group: GroupId, key: ReadyKey) {
        if !self.due.remove(&group) {
            self.later.remove(&(key.oldest, group));
        }
        self.by_use.remove(&(key.useful_to, group));
    }

    /// The next batch is that of `step`. Each group changes from later to due once.
    pub(crate) fn advance(&mut self, step: u64) {
        self.step = self.step.max(step);
        while let Some(&(oldest, group)) = self.later.first() {
            if oldest + self.max_staleness > self.step {
                break;
            }
            self.later.pop_first();
            self.due.insert(group);
        }
    }

    /// A group without a token as young as `oldest_trainable`.
    pub(crate) fn first_useless(&self, oldest_trainable: u64) -> Option<GroupId> {
        self.by_use
            .first()
            .filter(|(useful_to, _)| *useful_to < oldest_trainable)
            .map(|&(_, group)| group)
    }

    /// Groups in the order in which they train.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.due
            .iter()
            .copied()
            .chain(self.later.iter().map(|&(_, group)| group))
    }

    /// Groups that have tokens at, or past, their last chance.
    pub(crate) fn due(&self) -> usize {
        self.due.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_use.len()
    }

    pub(crate) fn contains(&self, group: GroupId, key: ReadyKey) -> bool {
        self.by_use.contains(&(key.useful_to, group))
            && (self.due.contains(&group) != self.later.contains(&(key.oldest, group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(oldest: u64) -> ReadyKey {
        ReadyKey {
            oldest,
            useful_to: oldest,
        }
    }

    fn order(ready: &ReadySet) -> Vec<u64> {
        ready.in_order().map(|group| group.0).collect()
    }

    #[test]
    fn order_is_deadline_but_never_before_the_step_then_number() {
        let mut ready = ReadySet::new(2);
        for (group, oldest) in [(9, 0), (4, 5), (7, 3), (2, 4), (8, 5)] {
            ready.insert(GroupId(group), key(oldest));
        }
        ready.advance(5);
        // Deadlines 2 and 5 are both 5 at step 5; then 6; then 7 twice.
        assert_eq!(order(&ready), [7, 9, 2, 4, 8]);
        assert_eq!(ready.due(), 2);
        ready.advance(6);
        assert_eq!(order(&ready), [2, 7, 9, 4, 8]);
        ready.insert(GroupId(1), key(4));
        assert_eq!(order(&ready), [1, 2, 7, 9, 4, 8]);
    }

    #[test]
    fn useless_groups_come_first_by_age() {
        let mut ready = ReadySet::new(1);
        ready.insert(GroupId(3), key(4));
        ready.insert(GroupId(5), key(2));
        assert_eq!(ready.first_useless(3), Some(GroupId(5)));
        ready.remove(GroupId(5), key(2));
        assert_eq!(ready.first_useless(4), None);
        assert_eq!((ready.len(), order(&ready)), (1, vec![3]));
    }
}
