//! What everybody may know: the state of the run in every reply, figures, and what is waited for.

use super::peers::{Peer, RoleState, TRAINING};
use super::{Figure, Service, Socket};
use crate::audit::{Account, DropReason};
use crate::frame::FrameWriter;
use crate::messages::Role;

/// What every message of the buffer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StateLine {
    epoch: i64,
    version: i64,
    published: i64,
    /// The run's last version, once the learner has said that it is done: prompts may run out before `steps`.
    last: i64,
    state: &'static str,
}

impl StateLine {
    pub(super) fn head(self, kind: &str) -> FrameWriter {
        FrameWriter::new(kind)
            .int("epoch", self.epoch)
            .int("version", self.version)
            .int("published", self.published)
            .int("final", self.last)
            .str("state", self.state)
    }
}

impl Service {
    pub(super) fn state_line(&self) -> StateLine {
        let epoch = self.ledger.epoch();
        let state = match epoch {
            _ if self.stopping => "stopping",
            None => "waiting",
            Some(_) => "running",
        };
        StateLine {
            epoch: epoch.map_or(-1, |epoch| epoch as i64),
            version: epoch.map_or(-1, |_| self.ledger.steps_done() as i64),
            published: self
                .ledger
                .published_version()
                .map_or(-1, |(version, _)| version.number as i64),
            last: if self.learners.finished {
                self.ledger.steps_done() as i64
            } else {
                -1
            },
            state,
        }
    }

    pub(super) fn head(&self, kind: &str) -> FrameWriter {
        self.state_line().head(kind)
    }

    pub(super) fn publish(&mut self, kind: &str, event: FrameWriter) {
        self.push(Socket::Events, kind.into(), event.finish());
    }

    /// Publishes a change of state.
    pub(super) fn tell_state(&mut self) {
        let line = self.state_line();
        if self.told != Some(line) {
            self.told = Some(line);
            self.publish("state", line.head("state"));
        }
    }

    /// Publishes figures when they are due. They count all that is held, so what waits to be sent goes first: they
    /// come with the next call, or an interval later if there is something every time.
    pub(super) fn publish_figures(&mut self) {
        let last_moment = self.next_figures + self.settings.interval_s;
        let is_busy = !self.outgoing.is_empty() && self.now < last_moment;
        if self.now < self.next_figures || is_busy {
            return;
        }
        self.next_figures = self.now + self.settings.interval_s;
        let (buffer, audit, peers) = (self.stats(), self.audit(), self.peer_figures());
        let waits = self.wait_figures(self.now);
        let mut head = self.head("stats");
        for (name, figure) in [("buffer", buffer), ("audit", audit), ("peers", peers)] {
            head = head.figure(name, &figure);
        }
        self.publish("stats", head.figure("waits", &waits));
    }

    fn peer_figures(&self) -> Figure {
        let figure = |peer: &Peer| {
            Figure::Map(vec![
                ("name".into(), Figure::Text(peer.name.clone())),
                ("role".into(), Figure::Text(peer.role().name().into())),
                (
                    "stats".into(),
                    Figure::map(
                        peer.stats
                            .iter()
                            .map(|(name, value)| (name.clone(), *value)),
                    ),
                ),
                ("silent_s".into(), Figure::Float(self.now - peer.heard)),
                ("waits_for".into(), Figure::Text(self.waits_for(peer))),
            ])
        };
        Figure::List(self.peers.iter().map(|(_, peer)| figure(peer)).collect())
    }

    fn waits_for(&self, peer: &Peer) -> String {
        match &peer.state {
            // It says ready once its engine has proven itself; what it has installed, its heartbeat says before.
            RoleState::Generator(generator) if generator.installed.is_none() => {
                let installed = peer
                    .stats
                    .get("version")
                    .is_some_and(|&version| version >= 0.0);
                if installed {
                    "the proof of its engine"
                } else {
                    "weights"
                }
                .into()
            }
            RoleState::Generator(generator) if generator.credits.room(TRAINING) > 0 => {
                "leases".into()
            }
            RoleState::Scorer(scorer) if scorer.credits.any_room() => "finished rollouts".into(),
            RoleState::Learner(rank) if !rank.welcomed => "rank 0".into(),
            RoleState::Learner(rank) if rank.wants.is_some() => "a batch".into(),
            _ => String::new(),
        }
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> Figure {
        let stats = self.ledger.stats();
        let counts = |counts: Vec<(String, u64)>| Figure::map(counts);
        let of_role = |role: Role| {
            self.peers
                .iter()
                .filter(|(_, peer)| peer.role() == role)
                .count()
        };
        let mut entries: Vec<(String, Figure)> = stats_figures(&stats);
        let counters = &self.counters;
        entries.extend(
            [
                ("messages", counters.messages.into()),
                ("bytes", counters.bytes.into()),
                ("batches_sent", counters.batches_sent.into()),
                ("batches_mapped", counters.batches_mapped.into()),
                ("peers_lost", counters.peers_lost.into()),
                (
                    "errors",
                    counts(
                        counters
                            .errors
                            .iter()
                            .map(|(code, n)| ((*code).into(), *n))
                            .collect(),
                    ),
                ),
                (
                    "prompts_rejected",
                    counts(
                        counters
                            .rejected
                            .iter()
                            .map(|(why, n)| (why.clone(), *n))
                            .collect(),
                    ),
                ),
                (
                    "incidents",
                    counts(counters.incidents.clone().into_iter().collect()),
                ),
                ("quarantined", self.ledger.quarantined().len().into()),
                ("filtered", self.ledger.filtered().count.into()),
                ("generators", of_role(Role::Generator).into()),
                ("scorers", of_role(Role::Scorer).into()),
                ("evaluators", of_role(Role::Evaluator).into()),
                ("learner_ranks", of_role(Role::Learner).into()),
                ("learner_finished", Figure::Bool(self.learners.finished)),
                ("finished", Figure::Bool(self.ledger.is_finished())),
            ]
            .map(|(name, figure): (&str, Figure)| (name.to_owned(), figure)),
        );
        Figure::Map(entries)
    }

    /// The accounts of this moment.
    #[must_use]
    pub fn audit(&self) -> Figure {
        let audit = self.ledger.audit();
        let mut entries: Vec<(String, Figure)> = audit
            .accounts()
            .into_iter()
            .map(|(name, account)| (name.to_owned(), account_figure(account)))
            .collect();
        let difference = audit.difference();
        entries.push(("trained_twice".into(), audit.trained_twice.into()));
        entries.push(("balanced".into(), Figure::Bool(difference.is_none())));
        entries.push((
            "difference".into(),
            Figure::Text(difference.unwrap_or_default()),
        ));
        Figure::Map(entries)
    }
}

fn account_figure(account: &Account) -> Figure {
    let dropped = DropReason::ALL
        .iter()
        .map(|&reason| (reason.name(), account.dropped_for(reason)));
    Figure::Map(vec![
        ("in".into(), account.incoming.into()),
        ("trained".into(), account.trained.into()),
        (
            "dropped".into(),
            Figure::map(dropped.filter(|(_, count)| *count > 0)),
        ),
        ("live".into(), account.live.into()),
    ])
}

fn stats_figures(stats: &crate::stats::Stats) -> Vec<(String, Figure)> {
    let histogram = stats
        .staleness
        .counts()
        .map(|(staleness, tokens)| (staleness.to_string(), tokens));
    let staleness = Figure::Map(vec![
        ("mean".into(), stats.staleness.mean().into()),
        ("p95".into(), stats.staleness.p95().into()),
        ("max".into(), stats.staleness.max().into()),
        ("histogram".into(), Figure::map(histogram)),
    ]);
    let dropped = stats
        .groups_dropped
        .iter()
        .map(|(reason, count)| (reason.name(), *count));
    let of_source = |waste: &crate::waste::Waste| {
        Figure::map([
            ("generated", waste.generated),
            ("own_length", waste.own_length),
            ("siblings", waste.siblings),
            ("queue", waste.queue),
            ("dropped", waste.dropped),
        ])
    };
    let waste = stats
        .waste_by_source
        .iter()
        .map(|(source, waste)| (source.clone(), of_source(waste)));
    let quarters = stats.length_quarters.map(Figure::Float);
    let unscored = stats.unscored_by_pool.iter();
    let unscored = unscored.map(|(pool, count)| (pool.clone(), *count));
    let figures: [(&str, Figure); 44] = [
        ("places", stats.places.into()),
        ("place_limit", stats.place_limit.into()),
        ("groups_queued", stats.groups_queued.into()),
        ("groups_open", stats.groups_open.into()),
        ("groups_ready", stats.groups_ready.into()),
        ("groups_bound", stats.groups_bound.into()),
        ("groups_trained", stats.groups_trained.into()),
        ("groups_dropped", Figure::map(dropped)),
        ("rollouts_waiting", stats.rollouts_waiting.into()),
        ("rollouts_generating", stats.rollouts_generating.into()),
        ("rollouts_unscored", stats.rollouts_unscored.into()),
        ("unscored_by_pool", Figure::map(unscored)),
        ("rollouts_scoring", stats.rollouts_scoring.into()),
        ("evaluation_groups", stats.evaluation_groups.into()),
        ("steps", stats.steps.into()),
        ("committed", stats.committed.into()),
        ("tokens", stats.tokens.into()),
        ("tokens_stepped", stats.tokens_stepped.into()),
        ("rollouts_stepped", stats.rollouts_stepped.into()),
        ("staleness", staleness),
        ("over_age_trained", stats.over_age_trained.into()),
        ("generation_age", stats.generation_age.into()),
        ("queue_age", stats.queue_age.into()),
        ("waste", stats.waste.into()),
        ("waste_by_source", Figure::map(waste)),
        ("prefix_coverage", stats.prefix_coverage.into()),
        ("length_quarters", Figure::List(quarters.into())),
        ("closed_early", stats.closed_early.into()),
        ("late_members", stats.late_members.into()),
        ("late_waiting", stats.late_waiting.into()),
        ("pacing", stats.pacing.into()),
        ("held_s", stats.held_s.into()),
        ("holds", stats.holds.into()),
        ("hold_timeouts", stats.hold_timeouts.into()),
        ("reward_mean", stats.reward_mean.into()),
        ("pass_rate", stats.pass_rate.into()),
        ("zero_variance_trained", stats.zero_variance_trained.into()),
        ("refills", stats.refills.into()),
        ("leases_lost", stats.leases_lost.into()),
        ("score_leases_lost", stats.score_leases_lost.into()),
        ("late_verdicts", stats.late_verdicts.into()),
        ("late_chunks", stats.late_chunks.into()),
        ("gaps", stats.gaps.into()),
        ("invalid", stats.invalid.into()),
    ];
    let abstentions = Figure::map(
        stats
            .abstentions
            .iter()
            .map(|(status, count)| (status.clone(), *count)),
    );
    let figures = figures.map(|(name, figure)| (name.to_owned(), figure));
    figures
        .into_iter()
        .chain([("abstentions".to_owned(), abstentions)])
        .collect()
}
