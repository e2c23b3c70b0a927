//! What a simulation came to.

use std::collections::BTreeMap;

use r1async_core::service::Figure;
use r1async_core::{BatchPart, BoundBatch, DropReason, StalenessHistogram, VersionRun};

/// Running sums; the figures of a stretch of time are the difference of two.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) at: f64,
    pub(crate) steps: u64,
    pub(crate) places: u64,
    pub(crate) finished_rollouts: u64,
    pub(crate) finished_units: u64,
    pub(crate) trained_rollouts: u64,
    pub(crate) trained_units: u64,
    /// Of rollouts with a token that has a loss, all tokens.
    pub(crate) trained_full_units: u64,
    pub(crate) staleness: StalenessHistogram,
    pub(crate) grading_s: f64,
    pub(crate) training_s: f64,
    pub(crate) decoding_slot_s: f64,
    pub(crate) installing_slot_s: f64,
    pub(crate) down_slot_s: f64,
    pub(crate) deaths: u64,
}

impl Tally {
    /// Counts a part of a batch; late members come with the last one. Answers the rollouts and all their tokens.
    pub(crate) fn part(
        &mut self,
        batch: &BoundBatch,
        part: &BatchPart,
        tokens_per_unit: u32,
        lengths: &mut LengthBins,
    ) -> (u64, u64) {
        let (mut units, mut rollouts) = (0, 0);
        for (_, rollout) in batch.rollouts_of(part) {
            rollouts += 1;
            units += rollout.tokens.len() as u64;
            self.trained_units += lengths.trained(&rollout.runs, &rollout.over_age);
            let young = rollout.runs.iter().zip(&rollout.over_age);
            for (run, _) in young.filter(|(_, over)| !**over) {
                let staleness = batch.step.0.saturating_sub(run.version.number);
                let tokens = u64::from(run.count) * u64::from(tokens_per_unit);
                self.staleness.add(staleness, tokens);
            }
        }
        self.trained_rollouts += rollouts;
        self.trained_full_units += units;
        (rollouts, units * u64::from(tokens_per_unit))
    }

    /// What came since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let before: BTreeMap<u64, u64> = earlier.staleness.counts().collect();
        let mut staleness = StalenessHistogram::default();
        for (age, tokens) in self.staleness.counts() {
            staleness.add(age, tokens - before.get(&age).copied().unwrap_or(0));
        }
        Self {
            at: self.at - earlier.at,
            steps: self.steps - earlier.steps,
            places: self.places - earlier.places,
            finished_rollouts: self.finished_rollouts - earlier.finished_rollouts,
            finished_units: self.finished_units - earlier.finished_units,
            trained_rollouts: self.trained_rollouts - earlier.trained_rollouts,
            trained_units: self.trained_units - earlier.trained_units,
            trained_full_units: self.trained_full_units - earlier.trained_full_units,
            staleness,
            grading_s: self.grading_s - earlier.grading_s,
            training_s: self.training_s - earlier.training_s,
            decoding_slot_s: self.decoding_slot_s - earlier.decoding_slot_s,
            installing_slot_s: self.installing_slot_s - earlier.installing_slot_s,
            down_slot_s: self.down_slot_s - earlier.down_slot_s,
            deaths: self.deaths - earlier.deaths,
        }
    }
}

/// Bins of length an octave: rollouts of one bin differ by 2 % at most.
const BINS_PER_OCTAVE: f64 = 32.0;

/// Sums over rollouts of about one length.
#[derive(Debug, Clone, Copy, Default)]
struct LengthBin {
    rollouts: u64,
    /// Tokens of the first tenth of each.
    prefix: f64,
    /// Those of them that had a loss.
    trained_prefix: f64,
}

/// What became of rollouts by their length.
#[derive(Debug, Default)]
pub(crate) struct LengthBins(Vec<LengthBin>);

impl LengthBins {
    fn bin(&mut self, length: u64) -> &mut LengthBin {
        let index = ((length as f64).log2() * BINS_PER_OCTAVE) as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, LengthBin::default());
        }
        &mut self.0[index]
    }

    pub(crate) fn generated(&mut self, length: u64) {
        let bin = self.bin(length);
        bin.rollouts += 1;
        bin.prefix += length as f64 / 10.0;
    }

    /// Counts a rollout of a batch; answers its tokens that have a loss.
    pub(crate) fn trained(&mut self, runs: &[VersionRun], over_age: &[bool]) -> u64 {
        let length: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        let tenth = length as f64 / 10.0;
        let (mut begin, mut trained, mut of_prefix) = (0.0, 0, 0.0);
        for (run, over) in runs.iter().zip(over_age) {
            let end = begin + f64::from(run.count);
            if !over {
                trained += u64::from(run.count);
                of_prefix += (end.min(tenth) - begin).max(0.0);
            }
            begin = end;
        }
        self.bin(length).trained_prefix += of_prefix;
        trained
    }

    /// Trained share of the first tenth of the longest tenth of all rollouts.
    fn prefix_coverage(&self) -> f64 {
        let all: u64 = self.0.iter().map(|bin| bin.rollouts).sum();
        let mut wanted = all as f64 / 10.0;
        let (mut prefix, mut trained) = (0.0, 0.0);
        for bin in self.0.iter().rev().filter(|bin| bin.rollouts > 0) {
            let share = (wanted / bin.rollouts as f64).min(1.0);
            prefix += share * bin.prefix;
            trained += share * bin.trained_prefix;
            wanted -= share * bin.rollouts as f64;
            if wanted <= 0.0 {
                break;
            }
        }
        ratio(trained, prefix)
    }
}

/// How a pool spent its time, as shares of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pool {
    /// At work.
    pub busy: f64,
    /// With nothing to do.
    pub idle: f64,
    /// Neither: a generator that installs weights or is down.
    pub out: f64,
}

/// What a simulation came to. Rates, shares of time and staleness are those of the steps between warm-up and the
/// end of the prompts; accounts are those of the whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Virtual seconds of the whole run.
    pub seconds: f64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Virtual seconds that rates are taken over.
    pub measured_s: f64,
    /// Steps that rates are taken over.
    pub measured_steps: u64,
    /// Optimizer steps a second.
    pub steps_per_s: f64,
    /// Sampled tokens of finished rollouts a second.
    pub generated_tokens_per_s: f64,
    /// Tokens with a loss a second.
    pub trained_tokens_per_s: f64,
    /// Trained rollouts a second.
    pub rollouts_per_s: f64,
    /// Slots of generators.
    pub generators: Pool,
    /// Workers of scorers.
    pub scorers: Pool,
    /// The learner.
    pub learner: Pool,
    /// Staleness of tokens that had a loss.
    pub staleness: StalenessHistogram,
    /// Staleness of the oldest token of the whole run that had a loss.
    pub max_staleness: u64,
    /// Of the tokens of the whole run that had a loss, the share that was over the bound.
    pub over_age_share: f64,
    /// Tokens that were generated and not trained, as a share of all that were one or the other, by reason.
    pub waste: BTreeMap<&'static str, f64>,
    /// Mean length of rollouts that trained / mean length of those generated.
    pub length_ratio: f64,
    /// Trained share of the first tenth of the longest tenth of rollouts.
    pub prefix_coverage: f64,
    /// Places taken at the end of a step, mean.
    pub places: f64,
    /// Places there are.
    pub place_limit: usize,
    /// Steps held for unfinished rollouts.
    pub holds: u64,
    /// Seconds they were held.
    pub held_s: f64,
    /// Generator leases lost.
    pub leases_lost: u64,
    /// Deaths of generators.
    pub deaths: u64,
    /// Groups dropped.
    pub groups_dropped: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// All of it as a tree of named values.
    #[must_use]
    pub fn figure(&self) -> Figure {
        let pool = |pool: Pool| {
            map([
                ("busy", pool.busy.into()),
                ("idle", pool.idle.into()),
                ("out", pool.out.into()),
            ])
        };
        let histogram = self.staleness.counts();
        let histogram = histogram.map(|(age, tokens)| (age.to_string(), Figure::from(tokens)));
        let staleness = map([
            ("mean", self.staleness.mean().into()),
            ("p95", self.staleness.p95().into()),
            ("max", self.max_staleness.into()),
            ("histogram", Figure::Map(histogram.collect())),
        ]);
        map([
            ("seconds", self.seconds.into()),
            ("steps", self.steps.into()),
            ("measured_s", self.measured_s.into()),
            ("measured_steps", self.measured_steps.into()),
            ("steps_per_s", self.steps_per_s.into()),
            ("generated_tokens_per_s", self.generated_tokens_per_s.into()),
            ("trained_tokens_per_s", self.trained_tokens_per_s.into()),
            ("rollouts_per_s", self.rollouts_per_s.into()),
            (
                "pools",
                map([
                    ("generators", pool(self.generators)),
                    ("scorers", pool(self.scorers)),
                    ("learner", pool(self.learner)),
                ]),
            ),
            ("staleness", staleness),
            ("over_age_share", self.over_age_share.into()),
            (
                "waste",
                map(self
                    .waste
                    .iter()
                    .map(|(&reason, &share)| (reason, share.into()))),
            ),
            (
                "waste_share",
                self.waste
                    .values()
                    .fold(0.0, |sum, share| sum + share)
                    .into(),
            ),
            ("length_ratio", self.length_ratio.into()),
            ("prefix_coverage", self.prefix_coverage.into()),
            ("places", self.places.into()),
            ("place_limit", self.place_limit.into()),
            ("holds", self.holds.into()),
            ("held_s", self.held_s.into()),
            ("leases_lost", self.leases_lost.into()),
            ("deaths", self.deaths.into()),
            (
                "groups_dropped",
                map(self
                    .groups_dropped
                    .iter()
                    .map(|(&reason, &groups)| (reason, groups.into()))),
            ),
        ])
    }
}

fn map(entries: impl IntoIterator<Item = (&'static str, Figure)>) -> Figure {
    Figure::Map(
        entries
            .into_iter()
            .map(|(name, figure)| (name.to_owned(), figure))
            .collect(),
    )
}

/// 0 of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn pool(busy: f64, out: f64, whole: f64) -> Pool {
    let (busy, out) = (ratio(busy, whole), ratio(out, whole));
    Pool {
        busy,
        idle: (1.0 - busy - out).max(0.0),
        out,
    }
}

/// What the result is made of.
pub(crate) struct Parts<'a> {
    pub(crate) model: &'a crate::model::Model,
    pub(crate) ledger: &'a r1async_core::Ledger,
    /// The whole run.
    pub(crate) whole: &'a Tally,
    /// The steps that rates are taken over.
    pub(crate) measured: &'a Tally,
    pub(crate) lengths: &'a LengthBins,
}

impl Outcome {
    pub(crate) fn new(parts: &Parts<'_>) -> Self {
        let Parts {
            model,
            ledger,
            whole,
            measured,
            lengths,
        } = *parts;
        let (stats, audit) = (ledger.stats(), ledger.audit());
        let (seconds, unit) = (measured.at, f64::from(model.tokens_per_unit));
        let slots = (model.generators.count * model.generators.slots) as f64;
        let workers = (model.scorers.count * model.scorers.workers) as f64;
        let bound = ledger.settings().max_staleness;
        let over: u64 = whole
            .staleness
            .counts()
            .filter(|(age, _)| *age > bound)
            .map(|(_, tokens)| tokens)
            .sum();
        let settled = audit.tokens.incoming - audit.tokens.live;
        let waste = DropReason::ALL
            .into_iter()
            .map(|reason| (reason.name(), audit.tokens.dropped_for(reason)))
            .filter(|(_, tokens)| *tokens > 0)
            .map(|(reason, tokens)| (reason, ratio(tokens as f64, settled as f64)))
            .collect();
        let mean = |units: u64, rollouts: u64| ratio(units as f64, rollouts as f64);
        let generated = mean(whole.finished_units, whole.finished_rollouts);
        let dropped = stats
            .groups_dropped
            .iter()
            .map(|(reason, &groups)| (reason.name(), groups));
        Self {
            seconds: whole.at,
            steps: whole.steps,
            measured_s: seconds,
            measured_steps: measured.steps,
            steps_per_s: ratio(measured.steps as f64, seconds),
            generated_tokens_per_s: ratio(measured.finished_units as f64 * unit, seconds),
            trained_tokens_per_s: ratio(measured.trained_units as f64 * unit, seconds),
            rollouts_per_s: ratio(measured.trained_rollouts as f64, seconds),
            generators: pool(
                measured.decoding_slot_s,
                measured.installing_slot_s + measured.down_slot_s,
                slots * seconds,
            ),
            scorers: pool(measured.grading_s, 0.0, workers * seconds),
            learner: pool(measured.training_s, 0.0, seconds),
            max_staleness: whole.staleness.max(),
            over_age_share: ratio(over as f64, whole.staleness.total() as f64),
            staleness: measured.staleness.clone(),
            waste,
            length_ratio: ratio(
                mean(whole.trained_full_units, whole.trained_rollouts),
                generated,
            ),
            prefix_coverage: lengths.prefix_coverage(),
            places: ratio(measured.places as f64, measured.steps as f64),
            place_limit: stats.place_limit,
            holds: stats.holds,
            held_s: stats.held_s,
            leases_lost: stats.leases_lost,
            deaths: whole.deaths,
            groups_dropped: dropped.collect(),
        }
    }
}
