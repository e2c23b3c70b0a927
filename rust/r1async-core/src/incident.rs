//! Faults that were noticed: each by name, with what it hit and what was done about it.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::figure::Figure;
use crate::ids::{GroupId, HolderId, Member, RolloutId};
use crate::ledger::Ledger;

/// Groups and rollouts that an incident or a wait names at most; the first ones.
pub(crate) const NAMED: usize = 16;
/// Incidents kept until somebody takes them; past that the oldest are forgotten.
const KEPT: usize = 256;

/// One fault. docs/progress.md lists the names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Incident {
    /// What went wrong: `lost_rollout`.
    pub name: Cow<'static, str>,
    /// What was done about it: `requeued`.
    pub act: Cow<'static, str>,
    /// Whose fault it looks like.
    pub holder: Option<HolderId>,
    /// Its name; the service fills it in.
    pub role: String,
    /// Groups it hit, at most [`NAMED`] of them.
    pub groups: Vec<GroupId>,
    /// Rollouts it hit, at most [`NAMED`] of them.
    pub rollouts: Vec<RolloutId>,
    /// Prompts it hit, by their place in the order of the source.
    pub prompts: Vec<u64>,
    /// Rollouts (or what the name says) that it hit in all.
    pub count: u64,
    /// Seconds that were allowed; 0 where nothing is waited for.
    pub deadline_s: f64,
    /// Seconds from the last good sign to the naming.
    pub named_after_s: f64,
    /// More about it, in words.
    pub text: String,
}

impl Incident {
    pub(crate) fn new(name: &'static str, act: &'static str) -> Self {
        Self {
            name: name.into(),
            act: act.into(),
            ..Self::default()
        }
    }

    /// It hit this rollout too.
    pub(crate) fn hit(&mut self, rollout: RolloutId, group: GroupId) {
        self.count += 1;
        if self.rollouts.len() < NAMED {
            self.rollouts.push(rollout);
        }
        if self.groups.len() < NAMED && !self.groups.contains(&group) {
            self.groups.push(group);
        }
    }

    pub(crate) fn figure(&self) -> Figure {
        let ids = |ids: Vec<u64>| Figure::List(ids.into_iter().map(Figure::from).collect());
        let text = |text: &str| Figure::Text(text.to_owned());
        let entries: [(&str, Figure); 10] = [
            ("name", text(&self.name)),
            ("act", text(&self.act)),
            ("role", text(&self.role)),
            ("groups", ids(self.groups.iter().map(|id| id.0).collect())),
            (
                "rollouts",
                ids(self.rollouts.iter().map(|id| id.0).collect()),
            ),
            ("prompts", ids(self.prompts.clone())),
            ("count", self.count.into()),
            ("deadline_s", self.deadline_s.into()),
            ("named_after_s", self.named_after_s.into()),
            ("text", text(&self.text)),
        ];
        Figure::map(entries)
    }
}

/// Incidents that nobody has taken yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Incidents(VecDeque<Incident>);

impl Incidents {
    pub(crate) fn push(&mut self, incident: Incident) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(incident);
    }

    /// The newest one, if it is the same fault of the same holder: what one tick finds is told as one.
    fn like(&mut self, name: &str, act: &str, holder: Option<HolderId>) -> Option<&mut Incident> {
        let same = |it: &&mut Incident| it.name == name && it.act == act && it.holder == holder;
        self.0.back_mut().filter(same)
    }
}

impl Ledger {
    /// Faults noticed since the last call, oldest first.
    pub fn take_incidents(&mut self) -> Vec<Incident> {
        std::mem::take(&mut self.incidents.0).into()
    }

    /// A deadline passed over a rollout.
    pub(crate) fn overdue(
        &mut self,
        (name, act): (&'static str, &'static str),
        holder: Option<HolderId>,
        member: Member,
        (deadline_s, after_s): (f64, f64),
    ) {
        let rollout = self.groups[&member.group].rollout_id(member.index);
        if self.incidents.like(name, act, holder).is_none() {
            self.incidents.push(Incident {
                holder,
                deadline_s,
                ..Incident::new(name, act)
            });
        }
        if let Some(incident) = self.incidents.like(name, act, holder) {
            incident.hit(rollout, member.group);
            incident.named_after_s = incident.named_after_s.max(after_s);
        }
    }
}
