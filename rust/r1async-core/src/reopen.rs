//! A ledger with a history in a new life of the buffer.

use std::sync::Arc;

use crate::group::State;
use crate::ids::{GroupId, Member};
use crate::incident::Incidents;
use crate::leases::Leases;
use crate::ledger::{Ledger, News};
use crate::ready::ReadySet;
use crate::settings::{Settings, SettingsError};

impl Ledger {
    /// The buffer starts again: nobody holds anything, and `settings` are what it decides by from now on.
    ///
    /// Rollouts that were lent wait again, with the tokens received so far, at no cost of an attempt; a generator that
    /// still works on one may announce it. Evaluations are given up: an evaluator that connects asks again. Whether
    /// the source has ended is found out anew.
    ///
    /// # Errors
    /// A setting that cannot work, or another group size: rollout numbers would not fit. Nothing has changed.
    pub fn reopen(&mut self, settings: Settings) -> Result<(), SettingsError> {
        settings.validate()?;
        if settings.group_size != self.settings.group_size {
            return Err(SettingsError {
                name: "group_size",
                want: format!(
                    "{}, as the rollouts of this run are numbered by it",
                    self.settings.group_size
                ),
                got: settings.group_size.to_string(),
            });
        }
        let names = |settings: &Settings| -> Vec<String> {
            let windows = settings.windows.iter();
            windows.map(|window| window.name.clone()).collect()
        };
        if names(&settings) != names(&self.settings) {
            return Err(SettingsError {
                name: "windows",
                want: format!(
                    "of {:?}, as the groups of this run belong to them",
                    names(&self.settings)
                ),
                got: format!("of {:?}", names(&settings)),
            });
        }
        self.forget_hold();
        self.name_pools_again(&settings);
        for lease in self.leases.all() {
            if let Some(held) = self.leases.end(lease, &mut self.timers)
                && self.is_at_work(held.member)
            {
                self.wait_again(held.member);
            }
        }
        for name in self.evaluations.names() {
            self.cancel_evaluation(&name);
        }
        self.leases = Leases::new(settings.incarnation);
        self.learner.connected = false;
        self.frontier.end = None;
        self.incidents = Incidents::default();
        self.pace.reopen(&settings);
        self.settings = settings;
        self.sort_again();
        self.news = News {
            rollouts: true,
            scoring: true,
            batch: true,
            prompts: true,
            evaluated: true,
        };
        Ok(())
    }

    /// Groups keep their pool by its name; of one that is no more they are the first pool's.
    fn name_pools_again(&mut self, settings: &Settings) {
        let old = |pool: usize| self.settings.pool_name(pool);
        let new = |name: &str| (0..settings.pools()).find(|&pool| settings.pool_name(pool) == name);
        let moved: Vec<usize> = (0..self.settings.pools())
            .map(|pool| new(old(pool)).unwrap_or(0))
            .collect();
        if moved.iter().copied().eq(0..moved.len()) {
            return;
        }
        for group in self.groups.values_mut() {
            let pool = moved[group.prompt.pool];
            Arc::make_mut(&mut group.prompt).pool = pool;
        }
        let unscored = std::mem::take(&mut self.unscored);
        self.unscored = unscored
            .into_iter()
            .map(|((pool, place), member)| ((moved[pool], place), member))
            .collect();
    }

    fn is_at_work(&self, member: Member) -> bool {
        let rollout = &self.groups[&member.group].members[member.index];
        matches!(rollout.state, State::Generating(_) | State::Scoring(..))
    }

    /// The ready and the ripe groups, in the order that other bounds ask for.
    fn sort_again(&mut self) {
        let step = self.next_bind();
        self.ready = ReadySet::default();
        self.ripe = ReadySet::default();
        self.ready.advance(step);
        self.ripe.advance(step);
        let mut ids: Vec<GroupId> = self.groups.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let group = self.groups.get_mut(&id).expect("its own key");
            let bound = self.settings.bound_of(group.source);
            if let Some(closed) = &mut group.closed {
                closed.key.bound = bound;
                self.ready.insert(id, closed.key);
            }
            group.ripe = None;
            if self.open.contains(id) {
                self.ripen(id);
            }
        }
    }
}
