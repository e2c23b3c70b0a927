//! Groups that wait for a batch, in the order in which they train.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::GroupId;

/// What the order depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadyKey {
    /// Lowest version of any token that may train.
    pub(crate) oldest: u64,
    /// The group is of no use to a step whose oldest trainable version is above this.
    pub(crate) useful_to: u64,
    /// The bound of its source.
    pub(crate) bound: u64,
}

impl ReadyKey {
    /// The step that trains all of its tokens, or none ever will.
    fn deadline(&self) -> u64 {
        self.oldest + self.bound
    }

    /// The last step that can train any of its tokens.
    pub(crate) fn last_use(&self) -> u64 {
        self.useful_to.saturating_add(self.bound)
    }
}

/// Groups in order of `max(oldest + e_s, v)`, then smaller e_s, then number, for the step v bound next.
///
/// Groups whose deadline `oldest + e_s` has come are tied at v: were they sorted by deadline, over-age
/// groups would push out fresh ones.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ReadySet {
    step: u64,
    due: BTreeSet<(u64, GroupId)>,
    later: BTreeSet<(u64, u64, GroupId)>,
    by_use: BTreeSet<(u64, GroupId)>,
}

impl ReadySet {
    pub(crate) fn insert(&mut self, group: GroupId, key: ReadyKey) {
        if key.deadline() <= self.step {
            self.due.insert((key.bound, group));
        } else {
            self.later.insert((key.deadline(), key.bound, group));
        }
        self.by_use.insert((key.last_use(), group));
    }

    pub(crate) fn remove(&mut self, group: GroupId, key: ReadyKey) {
        if !self.due.remove(&(key.bound, group)) {
            self.later.remove(&(key.deadline(), key.bound, group));
        }
        self.by_use.remove(&(key.last_use(), group));
    }

    /// The next batch is that of `step`. Each group changes from later to due once.
    pub(crate) fn advance(&mut self, step: u64) {
        self.step = self.step.max(step);
        while let Some(&(deadline, bound, group)) = self.later.first() {
            if deadline > self.step {
                break;
            }
            self.later.pop_first();
            self.due.insert((bound, group));
        }
    }

    /// A group without a token that `step` may train.
    pub(crate) fn first_useless(&self, step: u64) -> Option<GroupId> {
        self.by_use
            .first()
            .filter(|(last_use, _)| *last_use < step)
            .map(|&(_, group)| group)
    }

    /// Groups that have tokens at, or past, their last chance: (e_s, group), in order.
    pub(crate) fn due(&self) -> impl Iterator<Item = (u64, GroupId)> + '_ {
        self.due.iter().copied()
    }

    /// The others, in order.
    pub(crate) fn later(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.later.iter().map(|&(_, _, group)| group)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_use.len()
    }

    pub(crate) fn contains(&self, group: GroupId, key: ReadyKey) -> bool {
        self.by_use.contains(&(key.last_use(), group))
            && (self.due.contains(&(key.bound, group))
                != self.later.contains(&(key.deadline(), key.bound, group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(oldest: u64, bound: u64) -> ReadyKey {
        ReadyKey {
            oldest,
            useful_to: oldest,
            bound,
        }
    }

    fn order(ready: &ReadySet) -> Vec<u64> {
        let due = ready.due().map(|(_, group)| group.0);
        due.chain(ready.later().map(|group| group.0)).collect()
    }

    #[test]
    fn order_is_deadline_but_never_before_the_step_then_number() {
        let mut ready = ReadySet::default();
        for (group, oldest) in [(9, 0), (4, 5), (7, 3), (2, 4), (8, 5)] {
            ready.insert(GroupId(group), key(oldest, 2));
        }
        ready.advance(5);
        // Deadlines 2 and 5 are both 5 at step 5; then 6; then 7 twice.
        assert_eq!(order(&ready), [7, 9, 2, 4, 8]);
        assert_eq!(ready.due().count(), 2);
        ready.advance(6);
        assert_eq!(order(&ready), [2, 7, 9, 4, 8]);
        ready.insert(GroupId(1), key(4, 2));
        assert_eq!(order(&ready), [1, 2, 7, 9, 4, 8]);
    }

    #[test]
    fn of_equal_deadlines_the_smaller_bound_comes_first() {
        let mut ready = ReadySet::default();
        for (group, oldest, bound) in [(1, 0, 16), (2, 14, 2), (3, 12, 4), (4, 1, 16)] {
            ready.insert(GroupId(group), key(oldest, bound));
        }
        assert_eq!(order(&ready), [2, 3, 1, 4]); // 16 three times, then 17.
        ready.advance(17);
        assert_eq!(order(&ready), [2, 3, 1, 4]); // All at 17: by bound, then number.
    }

    #[test]
    fn useless_groups_come_first_by_their_last_step() {
        let mut ready = ReadySet::default();
        ready.insert(GroupId(3), key(4, 1));
        ready.insert(GroupId(5), key(2, 1));
        ready.insert(GroupId(6), key(1, 9));
        assert_eq!(ready.first_useless(4), Some(GroupId(5)));
        ready.remove(GroupId(5), key(2, 1));
        assert_eq!(ready.first_useless(5), None);
        assert_eq!((ready.len(), order(&ready)), (2, vec![3, 6]));
    }
}
