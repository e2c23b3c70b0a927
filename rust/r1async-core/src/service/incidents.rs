//! Waits with the names of peers, and faults on their way to whoever listens.

use super::peers::{Peer, RoleState};
use super::{Figure, Service};
use crate::ids::{GroupId, HolderId, RolloutId};
use crate::incident::{Incident, NAMED};
use crate::messages::{Reported, Role};
use crate::pacing::{may_sample, oldest_sampling};
use crate::waits::{Wait, Work};

/// Incidents of one name that are told; more are only counted.
const TOLD: u64 = 1000;
/// Names that incidents are counted by; what more names a client invents is counted together.
const MAX_NAMES: usize = 64;
/// Share of its deadline after which quiet work is named.
const QUIET_SHARE: f64 = 0.25;

impl Service {
    /// What the run waits for.
    #[must_use]
    pub fn waits(&self, now: f64) -> Vec<Wait> {
        let mut waits: Vec<Wait> = [Role::Learner, Role::Generator, Role::Scorer]
            .into_iter()
            .filter(|&role| !self.learners.finished && !self.has(role))
            .map(|role| {
                let name = role.name();
                Wait::new("role", format!("no {name} is connected"))
            })
            .collect();
        waits.extend(self.filter_wait(now));
        let asked = self.learner_since();
        waits.extend(self.ledger.waits(now).into_iter().map(|mut wait| {
            if matches!(wait.name, "groups" | "train") {
                wait.seconds = asked.map(|since| now - since);
            }
            wait
        }));
        waits.extend(self.peers.iter().filter_map(|(_, peer)| self.fence(peer)));
        for (holder, work) in self.ledger.work(now) {
            if work.quiet_s >= QUIET_SHARE * work.deadline_s {
                waits.extend(self.quiet(holder, &work));
            }
        }
        waits
    }

    /// The same as figures.
    #[must_use]
    pub fn wait_figures(&self, now: f64) -> Figure {
        Figure::List(self.waits(now).iter().map(Wait::figure).collect())
    }

    fn has(&self, role: Role) -> bool {
        self.peers.iter().any(|(_, peer)| peer.role() == role)
    }

    fn learner_since(&self) -> Option<f64> {
        self.peers.iter().find_map(|(_, peer)| match &peer.state {
            RoleState::Learner(rank) if rank.rank == 0 => Some(rank.since),
            _ => None,
        })
    }

    /// A generator whose weights are too old for any lease.
    fn fence(&self, peer: &Peer) -> Option<Wait> {
        let RoleState::Generator(generator) = &peer.state else {
            return None;
        };
        self.ledger.published_version()?; // Before that it is the weights that are waited for.
        let (w, position) = (self.ledger.pacing(), self.ledger.position()?);
        let oldest = oldest_sampling(w, position);
        let installed = generator
            .installed
            .filter(|&it| !may_sample(w, position, it))?;
        let text = format!(
            "{} has version {installed}; leases need version {oldest} or newer",
            peer.name
        );
        Some(Wait {
            role: peer.name.clone(),
            ..Wait::new("fenced", text)
        })
    }

    /// A generator that brings no token, or a scorer that brings no verdict.
    fn quiet(&self, holder: HolderId, work: &Work) -> Option<Wait> {
        let name = self.peers.get(holder)?.name.clone();
        let (kind, lacks) = match work.scoring {
            true => ("scoring", "no verdict"),
            false => ("generating", "no token"),
        };
        let mut wait = Wait {
            role: name.clone(),
            seconds: Some(work.quiet_s),
            ..Wait::new(kind, String::new())
        };
        self.ledger.name_members(&mut wait, work.members.iter());
        wait.text = format!(
            "{name} is busy with {} rollouts of groups {} (rollouts {}), {lacks} for {:.0} s",
            work.count,
            list(&wait.groups),
            list(&wait.rollouts),
            work.quiet_s
        );
        Some(wait)
    }

    /// Filters take every group: the learner waits for a batch that may never be.
    fn filter_wait(&self, now: f64) -> Option<Wait> {
        let (since, named) = self.filtered_since?;
        let filtered = self.ledger.filtered();
        named.then(|| Wait {
            seconds: Some(now - since),
            groups: filtered.groups.clone(),
            ..Wait::new("filters", self.filter_text())
        })
    }

    fn filter_text(&self) -> String {
        let filtered = self.ledger.filtered();
        let reasons: Vec<String> = filtered
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        format!(
            "filters: none of {} groups in a row may train ({}), the newest are groups {}",
            filtered.count,
            reasons.join(", "),
            list(&filtered.groups)
        )
    }

    /// A peer is lost against its will: said with what it had.
    pub(super) fn lose(&mut self, holder: HolderId, why: &str) {
        if let Some(peer) = self.peers.get(holder).filter(|_| !self.stopping) {
            let mut incident = Incident {
                holder: Some(holder),
                role: peer.name.clone(),
                deadline_s: self.settings.peer_deadline_s,
                named_after_s: self.now - peer.heard,
                text: format!("{}: {why}", peer.name),
                ..Incident::new("lost_peer", "its work is requeued")
            };
            let work = self.ledger.work(self.now);
            if let Some(work) = work.get(&holder) {
                let mut wait = Wait::default();
                self.ledger.name_members(&mut wait, work.members.iter());
                incident.count = work.count as u64;
                (incident.groups, incident.rollouts) = (wait.groups, wait.rollouts);
            }
            self.tell(incident);
        }
        self.leave(holder, true);
    }

    /// A client names a fault of its own.
    pub(super) fn reported(&mut self, holder: HolderId, reported: &Reported<'_>) {
        let seconds = |seconds: f64| if seconds.is_finite() { seconds } else { 0.0 };
        let role = self
            .peers
            .get(holder)
            .map_or(String::new(), |peer| peer.name.clone());
        let first = |ids: &[i64]| {
            ids.iter()
                .take(NAMED)
                .map(|&id| id as u64)
                .collect::<Vec<_>>()
        };
        self.tell(Incident {
            name: reported.name.to_owned().into(),
            act: reported.act.to_owned().into(),
            holder: Some(holder),
            role,
            groups: first(&reported.groups).into_iter().map(GroupId).collect(),
            rollouts: first(&reported.rollouts)
                .into_iter()
                .map(RolloutId)
                .collect(),
            count: reported.rollouts.len() as u64,
            deadline_s: seconds(reported.deadline_s),
            named_after_s: seconds(reported.named_after_s),
            text: reported.text.to_owned(),
            ..Incident::default()
        });
        self.answer(holder, "alive", |head| head);
    }

    /// The source has no more prompts while groups are in flight.
    pub(super) fn name_end_of_data(&mut self, ordinal: u64) {
        let groups = self.ledger.in_flight();
        if groups.is_empty() {
            return;
        }
        self.tell(Incident {
            count: groups.len() as u64,
            text: format!(
                "the source ended at prompt {ordinal} with groups {} in flight",
                list(&groups)
            ),
            groups,
            ..Incident::new("end_of_data", "trains what is in flight")
        });
    }

    /// Tells what the ledger has noticed, and that filters take everything once they do.
    pub(super) fn tell_incidents(&mut self) {
        for mut incident in self.ledger.take_incidents() {
            let peer = incident.holder.and_then(|holder| self.peers.get(holder));
            incident.role = peer.map_or(String::new(), |peer| peer.name.clone());
            self.tell(incident);
        }
        let filtered = self.ledger.filtered();
        if filtered.count == 0 {
            self.filtered_since = None;
            return;
        }
        let (since, named) = *self.filtered_since.get_or_insert((self.now, false));
        let allowed =
            (self.settings.filtered_batches * self.settings.ledger.groups_per_step) as u64;
        if !named && filtered.count >= allowed {
            self.filtered_since = Some((since, true));
            let text = self.filter_text();
            let filtered = self.ledger.filtered();
            self.tell(Incident {
                groups: filtered.groups.clone(),
                count: filtered.count,
                named_after_s: self.now - since,
                text,
                ..Incident::new("filtered_out", "waits for one that trains")
            });
        }
    }

    fn tell(&mut self, incident: Incident) {
        let counts = &mut self.counters.incidents;
        let known = counts.len() < MAX_NAMES || counts.contains_key(incident.name.as_ref());
        let name = if known {
            incident.name.as_ref()
        } else {
            "other"
        };
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        if *count <= TOLD {
            let frame = self.head("incident").figure("incident", &incident.figure());
            self.publish("incident", frame);
        }
    }
}

fn list(ids: &[impl ToString]) -> String {
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    names.join(", ")
}
