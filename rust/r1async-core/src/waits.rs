//! What the run waits for: by name, with ids, and in words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::figure::Figure;
use crate::ids::{GroupId, HolderId, Member, RolloutId, Step};
use crate::incident::NAMED;
use crate::leases::{self, Lease};
use crate::ledger::Ledger;
use crate::sources::MAIN;

/// Why a batch is not there yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WaitReason {
    /// Too few groups are ready.
    Groups {
        /// The step.
        step: Step,
        /// Groups that are ready.
        ready: usize,
        /// Groups that are wanted.
        want: usize,
        /// Groups that are open.
        open: usize,
    },
    /// All prompts are used up, and the last batch waits for late members: nothing else is left to train.
    Late {
        /// The step.
        step: Step,
        /// Late members that are not scored yet.
        rollouts: usize,
        /// Their groups, at most eight of them.
        groups: Vec<GroupId>,
    },
    /// Enough are ready, but binding now would let too many tokens of unfinished rollouts die of age.
    Hold {
        /// The step.
        step: Step,
        /// Unfinished rollouts with tokens at their last chance.
        rollouts: usize,
        /// Their groups, at most eight of them.
        groups: Vec<GroupId>,
        /// Tokens that would die.
        tokens: u64,
        /// Seconds held so far.
        seconds: f64,
    },
}

impl WaitReason {
    /// The same wait, so many seconds after it began.
    pub(crate) fn after(&self, elapsed_s: f64) -> Self {
        let mut later = self.clone();
        if let WaitReason::Hold { seconds, .. } = &mut later {
            *seconds = elapsed_s;
        }
        later
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitReason::Groups {
                step,
                ready,
                want,
                open,
            } => {
                write!(
                    f,
                    "groups: {ready} of {want} ready for step {step}, {open} open"
                )
            }
            WaitReason::Late {
                step,
                rollouts,
                groups,
            } => {
                let names = names(groups);
                write!(
                    f,
                    "late: step {step}, the last, waits for {rollouts} rollouts of groups {names}"
                )
            }
            WaitReason::Hold {
                step,
                rollouts,
                groups,
                tokens,
                seconds,
            } => {
                let names = names(groups);
                write!(
                    f,
                    "hold: step {step} waits for {rollouts} rollouts of groups {names} ({tokens} tokens dying), {seconds:.1} s"
                )
            }
        }
    }
}

fn names(groups: &[GroupId]) -> String {
    let names: Vec<String> = groups.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Something that the run waits for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wait {
    /// What for, as in docs/progress.md: `groups`.
    pub name: &'static str,
    /// The same in words, with numbers.
    pub text: String,
    /// For how long, where that is known.
    pub seconds: Option<f64>,
    /// Whom it is about, if it is about one.
    pub role: String,
    /// Groups that it is about, at most 16 of them, the oldest.
    pub groups: Vec<GroupId>,
    /// Rollouts that it is about, at most 16 of them, the oldest.
    pub rollouts: Vec<RolloutId>,
}

impl Wait {
    pub(crate) fn new(name: &'static str, text: String) -> Self {
        Self {
            name,
            text,
            ..Self::default()
        }
    }

    pub(crate) fn figure(&self) -> Figure {
        let ids = |ids: Vec<u64>| Figure::List(ids.into_iter().map(Figure::from).collect());
        let entries = [
            ("name", Figure::Text(self.name.to_owned())),
            ("text", Figure::Text(self.text.clone())),
            ("role", Figure::Text(self.role.clone())),
            ("groups", ids(self.groups.iter().map(|id| id.0).collect())),
            (
                "rollouts",
                ids(self.rollouts.iter().map(|id| id.0).collect()),
            ),
        ];
        let seconds = self.seconds.map(|seconds| ("seconds", seconds.into()));
        Figure::map(entries.into_iter().chain(seconds))
    }
}

/// What one generator or scorer has, and for how long none of it has moved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    pub(crate) scoring: bool,
    pub(crate) count: usize,
    /// Seconds since the last sign of the rollout that has been quiet longest.
    pub(crate) quiet_s: f64,
    /// Seconds that it may be quiet.
    pub(crate) deadline_s: f64,
    /// Those that have been quiet longest, as many as are named.
    pub(crate) members: BTreeSet<Member>,
}

impl Ledger {
    /// Everything the run waits for now, each by name; empty if nothing.
    ///
    /// ```
    /// use r1async_core::{Ledger, Settings};
    /// let ledger = Ledger::new(Settings::default())?;
    /// let waits: Vec<String> = ledger.waits(0.0).into_iter().map(|wait| wait.text).collect();
    /// assert_eq!(waits, ["learner: none has connected", "prompts: 48 wanted"]);
    /// # Ok::<(), r1async_core::SettingsError>(())
    /// ```
    #[must_use]
    pub fn waits(&self, now: f64) -> Vec<Wait> {
        if self.is_finished() {
            return self.evaluation_waits();
        }
        let mut waits: Vec<Wait> = self.learner_wait(now).into_iter().collect();
        waits.extend(self.admission_waits());
        waits.extend(self.source_wait());
        if !self.waiting.is_empty() {
            let text = format!(
                "generator: {} rollouts of open groups wait for one",
                self.waiting.len()
            );
            let mut wait = Wait::new("generator", text);
            self.name_members(&mut wait, self.waiting.iter());
            waits.push(wait);
        }
        if !self.unscored.is_empty() {
            let by_pool = self.unscored_by_pool();
            let of: Vec<String> = match by_pool.as_slice() {
                [_] => Vec::new(),
                pools => pools
                    .iter()
                    .filter(|(_, count)| *count > 0)
                    .map(|(name, count)| format!("{count} of pool {name}"))
                    .collect(),
            };
            let of = if of.is_empty() {
                String::new()
            } else {
                format!(" ({})", of.join(", "))
            };
            let text = format!(
                "scorer: {} finished rollouts wait for one{of}",
                self.unscored.len()
            );
            let mut wait = Wait::new("scorer", text);
            self.name_members(&mut wait, self.unscored.values());
            waits.push(wait);
        }
        waits.extend(self.evaluation_waits());
        waits
    }

    /// What the learner waits for, or the run for the learner.
    fn learner_wait(&self, now: f64) -> Option<Wait> {
        match (self.learner.epoch, self.learner.connected) {
            (None, _) => {
                let text = "learner: none has connected".to_owned();
                return Some(Wait::new("learner", text));
            }
            (Some(epoch), false) => {
                let text = format!("learner: the one of epoch {epoch} is gone");
                return Some(Wait::new("learner", text));
            }
            (Some(epoch), true) if self.published_version().is_none() => {
                let text = format!("weights: the learner of epoch {epoch} has published none");
                return Some(Wait::new("weights", text));
            }
            _ => {}
        }
        let stepped = self.learner.stepped;
        if stepped < self.next_bind() {
            return Some(Wait::new("train", format!("learner trains step {stepped}")));
        }
        let reason = self.peek_wait(now)?;
        let (name, groups, seconds) = match &reason {
            WaitReason::Groups { .. } => ("groups", self.oldest_open(), None),
            WaitReason::Hold {
                groups, seconds, ..
            } => ("hold", groups.clone(), Some(*seconds)),
            WaitReason::Late { groups, .. } => ("late", groups.clone(), None),
        };
        Some(Wait {
            groups,
            seconds,
            ..Wait::new(name, reason.to_string())
        })
    }

    fn oldest_open(&self) -> Vec<GroupId> {
        let mut open: Vec<GroupId> = self.open.iter().collect();
        open.sort_unstable();
        open.truncate(NAMED);
        open
    }

    /// Why no group is opened.
    fn admission_waits(&self) -> Vec<Wait> {
        let Some((published, _)) = self.published_version() else {
            return Vec::new();
        };
        let full = |source: usize| {
            let (places, limit, of) = if source == MAIN {
                (
                    self.places(published.number),
                    self.place_limit(),
                    String::new(),
                )
            } else {
                let places = self.window_places(source, published.number);
                let of = format!(" in the window of {:?}", self.settings.source_name(source));
                (places, self.settings.window_limit(source), of)
            };
            if places < limit || self.queued.len_of(source) == 0 {
                return None;
            }
            let groups = self.oldest_open();
            let oldest = groups
                .first()
                .map_or(String::new(), |group| format!(", waiting on group {group}"));
            let text = format!(
                "places: {places} of {limit} taken{of}, seen from version {published}{oldest}"
            );
            Some(Wait {
                groups,
                ..Wait::new("places", text)
            })
        };
        (0..self.settings.sources()).filter_map(full).collect()
    }

    /// Why no prompt comes.
    fn source_wait(&self) -> Option<Wait> {
        let wanted = self.wanted_prompts().len();
        if wanted > 0 {
            return Some(Wait::new("prompts", format!("prompts: {wanted} wanted")));
        }
        let left = self.queued.len() + self.open.len();
        if !self.prompts_used_up() || left == 0 {
            return None;
        }
        let text = format!("end of data: the prompts are used up, {left} groups are in flight");
        Some(Wait {
            groups: self.in_flight(),
            ..Wait::new("end_of_data", text)
        })
    }

    /// Groups that are open or will be, the oldest first.
    pub(crate) fn in_flight(&self) -> Vec<GroupId> {
        let mut left: Vec<GroupId> = self.open.iter().chain(self.queued.iter()).collect();
        left.sort_unstable();
        left.truncate(NAMED);
        left
    }

    fn evaluation_waits(&self) -> Vec<Wait> {
        let progress = self.evaluations.progress();
        progress
            .map(|(name, pin, done, of)| {
                let text = format!("evaluation: {name} of version {pin}, {done} of {of} prompts");
                Wait::new("evaluation", text)
            })
            .collect()
    }

    /// Puts the ids of the first members into a wait.
    pub(crate) fn name_members<'a>(
        &self,
        wait: &mut Wait,
        members: impl Iterator<Item = &'a Member>,
    ) {
        for member in members.take(NAMED) {
            let group = &self.groups[&member.group];
            wait.rollouts.push(group.rollout_id(member.index));
            if wait.groups.last() != Some(&group.id) {
                wait.groups.push(group.id);
            }
        }
    }

    /// What every generator and scorer has. Costs the same however much that is.
    pub(crate) fn work(&self, now: f64) -> BTreeMap<HolderId, Work> {
        let work = |(holder, count, leases): (HolderId, usize, Vec<Lease>)| {
            let first = leases[0];
            let scoring = first.work == leases::Work::Score;
            let (deadline_s, moved) = if scoring {
                let verdict = self.leases.last_verdict(holder);
                let moved = verdict.map_or(first.since, |at| at.max(first.since));
                (
                    self.settings.scoring_lease_s(self.pool_of(first.member)),
                    moved,
                )
            } else {
                let lease_s = self.settings.lease_s;
                (lease_s, first.until - lease_s)
            };
            let work = Work {
                scoring,
                count,
                quiet_s: (now - moved).max(0.0),
                deadline_s,
                members: leases.iter().map(|lease| lease.member).collect(),
            };
            (holder, work)
        };
        self.leases.at_work(NAMED).map(work).collect()
    }
}
