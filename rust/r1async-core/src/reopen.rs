//! A ledger with a history in a new life of the buffer.

use crate::group::State;
use crate::ids::{GroupId, Member};
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
        self.forget_hold();
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
        self.ready = self.ready_under(&settings);
        self.learner.connected = false;
        self.frontier.end = None;
        self.settings = settings;
        self.news = News {
            rollouts: true,
            scoring: true,
            batch: true,
            prompts: true,
            evaluated: true,
        };
        Ok(())
    }

    fn is_at_work(&self, member: Member) -> bool {
        let rollout = &self.groups[&member.group].members[member.index];
        matches!(rollout.state, State::Generating(_) | State::Scoring(..))
    }

    /// The ready groups in the order that another bound asks for.
    fn ready_under(&self, settings: &Settings) -> ReadySet {
        let mut ready = ReadySet::new(settings.max_staleness);
        ready.advance(self.next_bind());
        let groups: Vec<GroupId> = self.ready.in_order().collect();
        for id in groups {
            if let Some(closed) = &self.groups[&id].closed {
                ready.insert(id, closed.key);
            }
        }
        ready
    }
}
