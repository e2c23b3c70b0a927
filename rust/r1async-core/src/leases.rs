//! Who has borrowed what, and until when.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, HolderId, LeaseId, Member, PolicyVersion};
use crate::timers::{Moment, Timer, Timers};

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Work {
    Generate,
    Score,
    /// Generation is done; kept until the group closes, to answer what is sent again.
    Sent,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// `None`: it is gone, but may come back for the lease until the timer fires.
    pub(crate) holder: Option<HolderId>,
    pub(crate) member: Member,
    pub(crate) work: Work,
    /// The version it is pinned to, for evaluation.
    pub(crate) pin: Option<PolicyVersion>,
    pub(crate) since: f64,
    /// When its timer fires.
    pub(crate) until: f64,
}

/// What a generator or scorer has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Holder {
    /// By the moment when their timers fire: the first has been quiet longest.
    leases: BTreeSet<(Moment, LeaseId)>,
    /// Leases of evaluations among them, all of one version.
    pinned: usize,
    pin: Option<PolicyVersion>,
    /// When it gave its last verdict.
    verdict_at: Option<f64>,
}

/// All leases. One that is lent out is in its holder's set and has a timer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Leases {
    table: FxHashMap<LeaseId, Lease>,
    holders: FxHashMap<HolderId, Holder>,
    /// Leases ever made; `incarnation` keeps them apart from those of an earlier life of the buffer.
    made: u64,
    incarnation: u64,
    generating: usize,
    scoring: usize,
}

impl Leases {
    pub(crate) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            ..Self::default()
        }
    }

    pub(crate) fn get(&self, lease: LeaseId) -> Option<Lease> {
        self.table.get(&lease).copied()
    }

    /// The lease, if `holder` has it for `work`.
    pub(crate) fn held_by(&self, lease: LeaseId, holder: HolderId, work: Work) -> Option<Lease> {
        self.get(lease)
            .filter(|held| held.holder == Some(holder) && held.work == work)
    }

    pub(crate) fn new_id(&mut self) -> LeaseId {
        self.made += 1;
        LeaseId((self.incarnation << 40) + self.made)
    }

    /// Lends out under an id that nobody holds.
    pub(crate) fn begin(&mut self, id: LeaseId, lease: Lease, timers: &mut Timers) {
        if let Some(holder) = lease.holder {
            let holder = self.holders.entry(holder).or_default();
            holder.leases.insert((Moment(lease.until), id));
            if lease.pin.is_some() {
                holder.pinned += 1;
                holder.pin = lease.pin;
            }
        }
        match lease.work {
            Work::Generate => self.generating += 1,
            Work::Score => self.scoring += 1,
            Work::Sent => unreachable!("a lease begins with work to do"),
        }
        timers.set(lease.until, Timer::Lease(id));
        self.table.insert(id, lease);
    }

    /// Nobody holds the lease any more; it is forgotten. Nothing happens to one that is not known.
    pub(crate) fn end(&mut self, id: LeaseId, timers: &mut Timers) -> Option<Lease> {
        let lease = self.table.remove(&id)?;
        self.let_go(id, lease, timers);
        Some(lease)
    }

    /// Generation is done: the holder is free of it, but the lease is remembered.
    pub(crate) fn mark_sent(&mut self, id: LeaseId, timers: &mut Timers) {
        if let Some(held) = self.table.get_mut(&id) {
            let lease = *held;
            held.work = Work::Sent;
            self.let_go(id, lease, timers);
        }
    }

    fn let_go(&mut self, id: LeaseId, lease: Lease, timers: &mut Timers) {
        match lease.work {
            Work::Generate => self.generating -= 1,
            Work::Score => self.scoring -= 1,
            Work::Sent => return,
        }
        timers.clear(lease.until, Timer::Lease(id));
        let holder = lease.holder.and_then(|it| self.holders.get_mut(&it));
        if let Some(holder) = holder {
            holder.leases.remove(&(Moment(lease.until), id));
            if lease.pin.is_some() {
                holder.pinned -= 1;
            }
        }
    }

    /// The lease changes hands, and runs until `until`; `None` leaves it to whoever announces it.
    pub(crate) fn hand_over(
        &mut self,
        id: LeaseId,
        holder: Option<HolderId>,
        until: f64,
        timers: &mut Timers,
    ) {
        if let Some(lease) = self.end(id, timers) {
            let lease = Lease {
                holder,
                until,
                ..lease
            };
            self.begin(id, lease, timers);
        }
    }

    /// The lease runs from `now` again.
    pub(crate) fn renew(&mut self, id: LeaseId, until: f64, timers: &mut Timers) {
        let known = self.table.get_mut(&id);
        if let Some(lease) = known.filter(|lease| lease.until != until) {
            timers.clear(lease.until, Timer::Lease(id));
            if let Some(holder) = lease.holder.and_then(|it| self.holders.get_mut(&it)) {
                holder.leases.remove(&(Moment(lease.until), id));
                holder.leases.insert((Moment(until), id));
            }
            lease.until = until;
            timers.set(until, Timer::Lease(id));
        }
    }

    /// The version of the evaluations that `holder` works on, if it does.
    pub(crate) fn pin_of(&self, holder: HolderId) -> Option<PolicyVersion> {
        self.holders
            .get(&holder)
            .filter(|holder| holder.pinned > 0)
            .and_then(|holder| holder.pin)
    }

    pub(crate) fn gave_verdict(&mut self, holder: HolderId, now: f64) {
        self.holders.entry(holder).or_default().verdict_at = Some(now);
    }

    pub(crate) fn last_verdict(&self, holder: HolderId) -> Option<f64> {
        self.holders
            .get(&holder)
            .and_then(|holder| holder.verdict_at)
    }

    /// Every lease, in the order in which they were made.
    pub(crate) fn all(&self) -> Vec<LeaseId> {
        let mut leases: Vec<LeaseId> = self.table.keys().copied().collect();
        leases.sort_unstable();
        leases
    }

    /// All that `holder` has, in order.
    pub(crate) fn of(&self, holder: HolderId) -> Vec<LeaseId> {
        let leases = self.holders.get(&holder).map(|holder| &holder.leases);
        let mut leases: Vec<LeaseId> = leases.into_iter().flatten().map(|&(_, id)| id).collect();
        leases.sort_unstable();
        leases
    }

    /// What each holder at work has: how many leases, and those whose timers fire first, at most `most`.
    pub(crate) fn at_work(
        &self,
        most: usize,
    ) -> impl Iterator<Item = (HolderId, usize, Vec<Lease>)> {
        let of = move |(&id, holder): (&HolderId, &Holder)| {
            let first = holder.leases.iter().take(most);
            let leases: Vec<Lease> = first.map(|(_, lease)| self.table[lease]).collect();
            (!leases.is_empty()).then_some((id, holder.leases.len(), leases))
        };
        self.holders.iter().filter_map(of)
    }

    /// Groups of rollouts that `holder` generates.
    pub(crate) fn generating_groups(&self, holder: HolderId) -> BTreeSet<GroupId> {
        let leases = self.holders.get(&holder).map(|holder| &holder.leases);
        leases
            .into_iter()
            .flatten()
            .filter_map(|(_, id)| self.table.get(id))
            .filter(|lease| lease.work == Work::Generate)
            .map(|lease| lease.member.group)
            .collect()
    }

    pub(crate) fn forget(&mut self, holder: HolderId) {
        self.holders.remove(&holder);
    }

    pub(crate) fn generating(&self) -> usize {
        self.generating
    }

    pub(crate) fn scoring(&self) -> usize {
        self.scoring
    }
}
