//! Where prompts come from: the main sources share one window, a slow one may have a window of its own.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::GroupId;
use crate::settings::{OverAge, Settings};

/// The source of a prompt: 0 stands for all main sources, s for `Settings::windows[s - 1]`.
pub(crate) const MAIN: usize = 0;

impl Settings {
    /// Sources: all main ones together, and each with a window of its own.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.windows.len() + 1
    }

    /// The name of a source.
    #[must_use]
    pub fn source_name(&self, source: usize) -> &str {
        match source.checked_sub(1) {
            None => "main",
            Some(window) => &self.windows[window].name,
        }
    }

    /// The bound of tokens of `source`, in steps.
    pub(crate) fn bound_of(&self, source: usize) -> u64 {
        match source.checked_sub(1) {
            None => self.max_staleness,
            Some(window) => self.windows[window].max_staleness,
        }
    }

    /// Places of a source with its own window: `ceil((e_s + 1) * share_s * B)`.
    ///
    /// ```
    /// use r1async_core::{Settings, Window};
    /// let slow = Window { name: "slow".into(), max_staleness: 16, share: 0.1 };
    /// let settings = Settings { groups_per_step: 32, windows: vec![slow], ..Settings::default() };
    /// assert_eq!(settings.window_limit(1), 55);
    /// ```
    ///
    /// # Panics
    /// `source` is 0, or there is none of this number.
    #[must_use]
    pub fn window_limit(&self, source: usize) -> usize {
        let window = &self.windows[source - 1];
        let groups = (window.max_staleness + 1) as f64 * window.share * self.groups_per_step as f64;
        // Products like 3 * 0.1 * 10 lie a rounding error above the whole number that is meant.
        (groups - 1e-9).ceil() as usize
    }

    /// The oldest version of a token of `source` that `step` may train; `None` if age is no limit.
    pub(crate) fn oldest_of(&self, source: usize, step: u64) -> Option<u64> {
        match self.over_age {
            OverAge::Mask | OverAge::Drop => Some(step.saturating_sub(self.bound_of(source))),
            OverAge::Train => None,
        }
    }
}

/// Groups by source, each source's in order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BySource(Vec<BTreeSet<GroupId>>);

impl BySource {
    pub(crate) fn new(sources: usize) -> Self {
        Self(vec![BTreeSet::new(); sources])
    }

    pub(crate) fn insert(&mut self, source: usize, group: GroupId) {
        self.0[source].insert(group);
    }

    pub(crate) fn remove(&mut self, source: usize, group: GroupId) {
        self.0[source].remove(&group);
    }

    pub(crate) fn first(&self, source: usize) -> Option<GroupId> {
        self.0[source].first().copied()
    }

    pub(crate) fn len_of(&self, source: usize) -> usize {
        self.0[source].len()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(BTreeSet::len).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeSet::is_empty)
    }

    pub(crate) fn contains(&self, group: GroupId) -> bool {
        self.0.iter().any(|groups| groups.contains(&group))
    }

    pub(crate) fn iter_of(&self, source: usize) -> impl Iterator<Item = &GroupId> + '_ {
        self.0[source].iter()
    }

    /// All groups, source after source.
    pub(crate) fn iter(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.0.iter().flatten().copied()
    }
}
