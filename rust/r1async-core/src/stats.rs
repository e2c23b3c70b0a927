//! Figures for people: what is held in which state, what was trained and how old it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::audit::DropReason;
use crate::batch::BoundRollout;
use crate::ids::Step;
use crate::ledger::Ledger;
use crate::shape::{Coverage, Coverages};
use crate::staleness::StalenessHistogram;
use crate::statistics::GroupStatistics;
use crate::waste::{Waste, WasteBySource};

/// Abstention statuses counted by name; a scorer that invents more has them counted together.
const MAX_STATUSES: usize = 64;

/// Figures of one moment; counters count from the start of the run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Places taken, as seen by a generator that has the version last published.
    pub places: usize,
    /// Places there are.
    pub place_limit: usize,
    /// Groups queued: admitted, not yet lent.
    pub groups_queued: usize,
    /// Groups with a member that is not scored yet.
    pub groups_open: usize,
    /// Groups that wait for a batch.
    pub groups_ready: usize,
    /// Groups in batches that are not trained yet.
    pub groups_bound: usize,
    /// Groups trained.
    pub groups_trained: u64,
    /// Groups dropped, by reason.
    pub groups_dropped: BTreeMap<DropReason, u64>,
    /// Rollouts of open groups that wait for a generator.
    pub rollouts_waiting: usize,
    /// Rollouts lent to generators, evaluation included.
    pub rollouts_generating: usize,
    /// Finished rollouts that wait for a scorer, evaluation included.
    pub rollouts_unscored: usize,
    /// The same by pool.
    pub unscored_by_pool: BTreeMap<String, usize>,
    /// Rollouts lent to scorers, evaluation included.
    pub rollouts_scoring: usize,
    /// Groups of evaluations that are not complete.
    pub evaluation_groups: usize,
    /// Steps reported.
    pub steps: u64,
    /// Steps trained: safe in a checkpoint.
    pub committed: u64,
    /// Tokens received.
    pub tokens: u64,
    /// Tokens that had a loss in a reported step.
    pub tokens_stepped: u64,
    /// Rollouts that had a loss in a reported step.
    pub rollouts_stepped: u64,
    /// Staleness of tokens that had a loss in a reported step.
    pub staleness: StalenessHistogram,
    /// Tokens older than the bound that were trained all the same (`OverAge::Train`).
    pub over_age_trained: u64,
    /// Mean, over stepped rollouts, of the versions between first and last token.
    pub generation_age: f64,
    /// Mean, over stepped rollouts, of the versions between last token and training.
    pub queue_age: f64,
    /// Tokens that died of age, as a share of those generated (decayed by 3 % a step).
    pub waste: f64,
    /// Tokens of stepped batches and of dropped groups that were not trained, by source and why.
    pub waste_by_source: Vec<(String, Waste)>,
    /// The trained share of the first tenth of the longest tenth of each batch's rollouts.
    pub prefix_coverage: f64,
    /// The trained share of tokens, from the shortest quarter of each batch's rollouts to the longest.
    pub length_quarters: [f64; 4],
    /// Groups that trained before all their members were scored.
    pub closed_early: u64,
    /// Members of such groups that were trained later.
    pub late_members: u64,
    /// Members of such groups that are still to train.
    pub late_waiting: usize,
    /// The pacing w as it is now.
    pub pacing: f64,
    /// Seconds that steps were held for unfinished rollouts.
    pub held_s: f64,
    /// Steps that were held.
    pub holds: u64,
    /// Holds that ended at their deadline.
    pub hold_timeouts: u64,
    /// Mean reward of the groups of the newest batch.
    pub reward_mean: f64,
    /// Mean pass rate of the groups of the newest batch.
    pub pass_rate: f64,
    /// Groups of equal rewards that were trained.
    pub zero_variance_trained: u64,
    /// Groups of equal rewards dropped for the step that is bound next.
    pub refills: u64,
    /// Leases of generators lost to deadlines or lost peers.
    pub leases_lost: u64,
    /// Leases of scorers lost to deadlines or lost peers.
    pub score_leases_lost: u64,
    /// Verdicts that came after their lease had ended.
    pub late_verdicts: u64,
    /// Chunks that came after their lease had ended.
    pub late_chunks: u64,
    /// Chunks that left out tokens before them.
    pub gaps: u64,
    /// Chunks refused.
    pub invalid: u64,
    /// Abstentions, by status (at most 64 statuses, the rest under `other`).
    pub abstentions: BTreeMap<String, u64>,
}

/// Counters of events, from the start of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) groups_dropped: BTreeMap<DropReason, u64>,
    pub(crate) abstentions: BTreeMap<String, u64>,
    pub(crate) held_s: f64,
    pub(crate) holds: u64,
    pub(crate) hold_timeouts: u64,
    pub(crate) zero_variance_trained: u64,
    pub(crate) leases_lost: u64,
    pub(crate) score_leases_lost: u64,
    pub(crate) late_verdicts: u64,
    pub(crate) late_chunks: u64,
    pub(crate) gaps: u64,
    pub(crate) invalid: u64,
    pub(crate) closed_early: u64,
    /// Tokens received, and those that were never in a batch.
    pub(crate) waste: WasteBySource,
}

impl Counters {
    pub(crate) fn group_dropped(&mut self, reason: DropReason) {
        *self.groups_dropped.entry(reason).or_default() += 1;
    }

    pub(crate) fn abstained(&mut self, status: &str) {
        let is_named =
            self.abstentions.len() < MAX_STATUSES || self.abstentions.contains_key(status);
        let name = if is_named { status } else { "other" };
        *self.abstentions.entry(name.to_owned()).or_default() += 1;
    }
}

/// What was trained: of one batch, or summed over many.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    staleness: StalenessHistogram,
    rollouts: u64,
    tokens: u64,
    over_age_trained: u64,
    generation_age: u64,
    queue_age: u64,
    groups: u64,
    reward_sum: f64,
    pass_sum: f64,
    pub(crate) late_members: u64,
    /// What was bound and not trained; what was never bound is with the counters.
    pub(crate) waste: WasteBySource,
    pub(crate) coverages: Coverages,
}

impl Figures {
    /// A rollout that trains, under the bound `e`.
    pub(crate) fn rollout(&mut self, rollout: &BoundRollout, step: Step, e: u64) {
        let finished = rollout.finish_version.number;
        let mut lowest = finished;
        for (run, _) in rollout
            .runs
            .iter()
            .zip(&rollout.over_age)
            .filter(|(_, over_age)| !**over_age)
        {
            let age = step.0.saturating_sub(run.version.number);
            let tokens = u64::from(run.count);
            self.staleness.add(age, tokens);
            self.tokens += tokens;
            self.over_age_trained += if age > e { tokens } else { 0 };
            lowest = lowest.min(run.version.number);
        }
        self.rollouts += 1;
        self.generation_age += finished - lowest;
        self.queue_age += step.0.saturating_sub(finished);
    }

    pub(crate) fn group(&mut self, statistics: &GroupStatistics) {
        self.groups += 1;
        self.reward_sum += statistics.mean;
        self.pass_sum += statistics.pass_rate;
    }

    pub(crate) fn add(&mut self, other: &Figures) {
        for (staleness, tokens) in other.staleness.counts() {
            self.staleness.add(staleness, tokens);
        }
        self.rollouts += other.rollouts;
        self.tokens += other.tokens;
        self.over_age_trained += other.over_age_trained;
        self.generation_age += other.generation_age;
        self.queue_age += other.queue_age;
        self.groups += other.groups;
        self.reward_sum += other.reward_sum;
        self.pass_sum += other.pass_sum;
        self.late_members += other.late_members;
        self.waste.add(&other.waste);
        self.coverages.add(&other.coverages);
    }
}

fn mean(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

impl Ledger {
    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut figures = self.figures.clone();
        let stepped = self
            .batches
            .iter()
            .filter(|batch| batch.bound.step.0 < self.learner.stepped);
        stepped.for_each(|batch| figures.add(&batch.figures));
        let newest = self
            .batches
            .back()
            .map_or(&self.figures, |batch| &batch.figures);
        let counters = self.counters.clone();
        let mut waste = counters.waste.clone();
        waste.add(&figures.waste);
        let sources = 0..self.settings.sources();
        let late = self
            .late
            .iter()
            .map(|id| self.late_members(&self.groups[id]));
        Stats {
            places: self.places(
                self.published_version()
                    .map_or(0, |(version, _)| version.number),
            ),
            place_limit: self.place_limit(),
            groups_queued: self.queued.len(),
            groups_open: self.open.len(),
            groups_ready: self.ready.len(),
            groups_bound: self
                .batches
                .iter()
                .chain(&self.filling)
                .map(|batch| batch.bound.groups.len())
                .sum(),
            groups_trained: self.books.prompts.trained,
            groups_dropped: counters.groups_dropped,
            rollouts_waiting: self.waiting.len(),
            rollouts_generating: self.leases.generating(),
            rollouts_unscored: self.unscored.len(),
            unscored_by_pool: self
                .unscored_by_pool()
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            rollouts_scoring: self.leases.scoring(),
            evaluation_groups: self.evaluations.open_groups(),
            steps: self.learner.stepped,
            committed: self.learner.committed,
            tokens: self.books.tokens.incoming,
            tokens_stepped: figures.tokens,
            rollouts_stepped: figures.rollouts,
            over_age_trained: figures.over_age_trained,
            generation_age: mean(figures.generation_age as f64, figures.rollouts),
            queue_age: mean(figures.queue_age as f64, figures.rollouts),
            staleness: figures.staleness,
            waste: self.waste.share(),
            waste_by_source: sources
                .map(|source| {
                    (
                        self.settings.source_name(source).to_owned(),
                        *waste.of(source),
                    )
                })
                .collect(),
            prefix_coverage: figures.coverages.prefix.share(),
            length_quarters: figures.coverages.quarters.map(Coverage::share),
            closed_early: counters.closed_early,
            late_members: figures.late_members,
            late_waiting: late.sum(),
            pacing: self.pace.w,
            held_s: counters.held_s,
            holds: counters.holds,
            hold_timeouts: counters.hold_timeouts,
            reward_mean: mean(newest.reward_sum, newest.groups),
            pass_rate: mean(newest.pass_sum, newest.groups),
            zero_variance_trained: counters.zero_variance_trained,
            refills: self.refills,
            leases_lost: counters.leases_lost,
            score_leases_lost: counters.score_leases_lost,
            late_verdicts: counters.late_verdicts,
            late_chunks: counters.late_chunks,
            gaps: counters.gaps,
            invalid: counters.invalid,
            abstentions: counters.abstentions,
        }
    }
}
