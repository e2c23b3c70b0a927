//! Runs small enough to be worked out by hand, and what holds in every run.

use r1async_core::{Baseline, OverAge, Settings, ZeroVariance};
use r1async_sim::{
    Distribution, Failures, Generators, LearnerModel, Lengths, Machine, Model, Outcome, Rewards,
    Scorers, SimulationError, Weights, simulate,
};

/// One rollout a group, one group a step.
fn settings(max_staleness: u64, steps: u64) -> Settings {
    Settings {
        group_size: 1,
        min_group_size: 1,
        groups_per_step: 1,
        baseline: Baseline::None,
        steps,
        max_staleness,
        pacing: max_staleness,
        waste_budget: 1.0,
        max_tokens: 1000,
        rollout_deadline_s: 1e6,
        scoring_deadline_s: 1e6,
        group_deadline_s: 1e7,
        ..Settings::default()
    }
}

/// One slot that samples 10 tokens in 10 s; 2 s for a verdict; 3 s for a step.
fn model() -> Model {
    Model {
        seed: 0,
        seconds: 0.0,
        warmup_steps: 2,
        tokens_per_unit: 1,
        generators: Generators {
            count: 1,
            slots: 1,
            chunk_tokens: 64,
            token_s: 1.0,
            token_alone_s: 1.0,
            turnaround_s: 0.0,
            start_s: 0.0,
        },
        lengths: Lengths {
            completion: Distribution::Constant(10.0),
            shared: 0.0,
            prompt: 5.0,
        },
        scorers: Scorers {
            count: 1,
            workers: 1,
            queue: 8,
            verdict_s: Distribution::Constant(2.0),
            travel_s: 0.0,
            failure_rate: 0.0,
        },
        learner: LearnerModel {
            step_s: 1.5,
            group_s: 0.0,
            token_s: 0.1,
            checkpoint_every: 1,
            checkpoint_s: 0.0,
        },
        weights: Weights {
            transfer_s: 0.0,
            install_s: 0.0,
        },
        machine: Machine {
            cores: 0.0,
            others: 0.0,
        },
        failures: Failures {
            per_hour: 0.0,
            noticed_s: 1.0,
            back_s: 5.0,
        },
        rewards: Rewards { a: 1.0, b: 1.0 },
    }
}

fn close(got: f64, want: f64) {
    assert!(
        (got - want).abs() < 1e-6 * want.abs().max(1.0),
        "got {got}, want {want}"
    );
}

fn ages(outcome: &Outcome) -> Vec<(u64, u64)> {
    outcome.staleness.counts().collect()
}

#[test]
fn bound_0_does_one_thing_after_another() {
    // 10 s to sample, 2 to grade, 1.5 + 0.1 * (10 + 5) = 3 to train.
    let outcome = simulate(&settings(0, 20), &model()).unwrap();
    close(outcome.steps_per_s, 1.0 / 15.0);
    close(outcome.seconds, 20.0 * 15.0);
    close(outcome.generators.busy, 10.0 / 15.0);
    close(outcome.scorers.busy, 2.0 / 15.0);
    close(outcome.learner.busy, 3.0 / 15.0);
    close(outcome.trained_tokens_per_s, 10.0 / 15.0);
    assert_eq!(
        (outcome.staleness.mean(), outcome.staleness.max()),
        (0.0, 0)
    );
    assert!(outcome.waste.is_empty());
    close(outcome.length_ratio, 1.0);
    close(outcome.prefix_coverage, 1.0);
}

#[test]
fn bound_1_trains_while_it_samples() {
    // The slot never rests. Version v + 1 comes 5 s into the rollout of step v + 1: half of it has staleness 1.
    let outcome = simulate(&settings(1, 40), &model()).unwrap();
    close(outcome.steps_per_s, 1.0 / 10.0);
    close(outcome.generators.busy, 1.0);
    let counts = ages(&outcome);
    assert_eq!(counts.len(), 2);
    assert_eq!(counts[0].1, counts[1].1);
    assert_eq!(outcome.max_staleness, 1);
}

#[test]
fn a_step_is_held_for_the_tokens_that_generators_have_told_of() {
    // Step v is bound when version v comes out, while every token of version v - 1, which has its last chance then,
    // is of a rollout that goes on. Whoever tells of them only with the last one makes the rule blind.
    let waste = |chunk_tokens| {
        let rule = Settings {
            group_size: 4,
            min_group_size: 2,
            groups_per_step: 8,
            waste_budget: 0.0,
            baseline: Baseline::Mean,
            hold_deadline_s: 1e6,
            ..settings(1, 200)
        };
        let mut many = model();
        many.generators.slots = 32;
        many.generators.chunk_tokens = chunk_tokens;
        many.lengths.completion = Distribution::Lognormal {
            median: 40.0,
            sigma: 1.0,
        };
        many.scorers.workers = 32;
        many.scorers.queue = 1000;
        many.scorers.verdict_s = Distribution::Constant(0.0);
        many.learner.step_s = 120.0;
        many.learner.token_s = 0.0;
        let outcome = simulate(&rule, &many).unwrap();
        outcome.waste.values().sum::<f64>()
    };
    let (told, blind) = (waste(1), waste(1000));
    assert_eq!(told, 0.0);
    assert!(blind > 0.02, "{blind}");
}

#[test]
fn every_delay_is_added_where_it_belongs() {
    // 1 s to ask for a rollout, 0.5 s on the way to and from the scorer, 2 s to fetch weights, 4 s to install them, 5 s for every second step's checkpoint.
    let mut slow = model();
    slow.generators.turnaround_s = 1.0;
    slow.weights = Weights {
        transfer_s: 2.0,
        install_s: 4.0,
    };
    slow.learner.checkpoint_every = 2;
    slow.scorers.travel_s = 0.5;
    slow.learner.checkpoint_s = 5.0;
    // Bound 0: 10 + 0.5 + 2 + 3 + 2 + 4; the request and the checkpoint are over by the time that the weights are in.
    close(
        simulate(&settings(0, 20), &slow).unwrap().steps_per_s,
        1.0 / 21.5,
    );
    // Bound 1: 10 to sample, 1 to ask, 4 to install.
    close(
        simulate(&settings(1, 40), &slow).unwrap().steps_per_s,
        1.0 / 15.0,
    );
}

#[test]
fn slots_slow_each_other_down() {
    // Alone 1 s a token, two slots 1.5 s: pairs of rollouts take 15 s and end together.
    let mut pair = model();
    pair.generators = Generators {
        slots: 2,
        token_s: 1.5,
        ..pair.generators
    };
    let two = Settings {
        groups_per_step: 2,
        ..settings(0, 20)
    };
    pair.scorers.workers = 2;
    pair.learner = LearnerModel {
        step_s: 3.0,
        token_s: 0.0,
        ..pair.learner
    };
    close(simulate(&two, &pair).unwrap().steps_per_s, 1.0 / 20.0);
    // One worker grades them one after the other.
    pair.scorers.workers = 1;
    close(simulate(&two, &pair).unwrap().steps_per_s, 1.0 / 22.0);
}

#[test]
fn lengths_are_capped_and_rounded_to_units() {
    let mut long = model();
    long.lengths.completion = Distribution::Empirical(vec![5000.0]);
    long.tokens_per_unit = 10;
    let capped = Settings {
        max_tokens: 100,
        ..settings(0, 10)
    };
    // 100 tokens at 1 s, 2 s, 1.5 + 0.1 * 105.
    close(simulate(&capped, &long).unwrap().steps_per_s, 1.0 / 114.0);
}

#[test]
fn a_generator_that_died_goes_on_from_what_was_received() {
    let mut mortal = model();
    mortal.failures = Failures {
        per_hour: 60.0,
        noticed_s: 0.0,
        back_s: 1.0,
    };
    let lenient = Settings {
        max_attempts: 1000,
        ..settings(0, 200)
    };
    let outcome = simulate(&lenient, &mortal).unwrap();
    // A death a minute of life costs the second until it is back; nothing is sampled twice.
    assert!(
        outcome.deaths > 20 && outcome.leases_lost > 10,
        "{outcome:?}"
    );
    assert!(outcome.waste.is_empty());
    assert!(outcome.steps_per_s > 1.0 / 15.0 * 0.95 && outcome.steps_per_s < 1.0 / 15.0);
}

/// A run with a bit of everything, different for each `seed`.
fn varied(seed: u64) -> (Settings, Model) {
    let pick = |salt: u64, values: &[f64]| {
        let mixed = (seed + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left((salt * 11 % 64) as u32);
        values[(mixed.wrapping_mul(salt + 0xbf58_476d) >> 33) as usize % values.len()]
    };
    let e = pick(1, &[0.0, 1.0, 2.0, 5.0]) as u64;
    let settings = Settings {
        group_size: 4,
        min_group_size: 2,
        groups_per_step: pick(2, &[1.0, 3.0, 8.0]) as usize,
        baseline: Baseline::Std,
        steps: 60,
        max_staleness: e,
        pacing: if pick(3, &[0.0, 1.0]) > 0.0 { e } else { e / 2 },
        waste_budget: pick(4, &[0.0, 0.05, 1.0]),
        over_age: if pick(5, &[0.0, 0.0, 1.0]) > 0.0 {
            OverAge::Drop
        } else {
            OverAge::Mask
        },
        zero_variance: if pick(6, &[0.0, 1.0]) > 0.0 {
            ZeroVariance::Drop
        } else {
            ZeroVariance::Train
        },
        max_tokens: pick(7, &[60.0, 100_000.0]) as u32,
        hold_deadline_s: 1e6,
        ..settings(e, 60)
    };
    let mut model = model();
    model.seed = seed;
    model.generators = Generators {
        count: pick(8, &[1.0, 3.0]) as usize,
        slots: pick(9, &[2.0, 4.0, 17.0]) as usize,
        chunk_tokens: pick(16, &[1.0, 8.0, 64.0]) as u32,
        token_s: 0.2,
        token_alone_s: 0.1,
        turnaround_s: pick(10, &[0.0, 0.3]),
        start_s: pick(15, &[0.0, 0.5]),
    };
    model.lengths.completion = Distribution::Lognormal {
        median: 20.0,
        sigma: pick(11, &[0.3, 1.2]),
    };
    model.lengths.shared = pick(12, &[0.0, 0.5, 1.0]);
    model.scorers.verdict_s = Distribution::Lognormal {
        median: pick(13, &[0.01, 1.0]),
        sigma: 0.5,
    };
    model.scorers.failure_rate = pick(14, &[0.0, 0.2]);
    model.learner.token_s = pick(15, &[0.0001, 0.005]);
    model.weights = Weights {
        transfer_s: pick(16, &[0.0, 0.7]),
        install_s: pick(17, &[0.0, 0.2]),
    };
    model.failures.per_hour = pick(18, &[0.0, 20.0]);
    (settings, model)
}

#[test]
fn no_run_stops_or_trains_a_token_over_the_bound() {
    // The end of every simulation checks that the accounts balance.
    for seed in 0..120 {
        let (settings, model) = varied(seed);
        let outcome =
            simulate(&settings, &model).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(outcome.steps, 60, "seed {seed}");
        assert!(
            outcome.max_staleness <= settings.max_staleness,
            "seed {seed}"
        );
        assert_eq!(outcome.over_age_share, 0.0, "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (settings, model) = varied(7);
    let outcome = simulate(&settings, &model).unwrap();
    assert_eq!(outcome, simulate(&settings, &model).unwrap());
    let other = Model { seed: 8, ..model };
    assert_ne!(outcome, simulate(&settings, &other).unwrap());
}

#[test]
fn time_ends_a_run_too() {
    let timed = Model {
        seconds: 100.0,
        ..model()
    };
    let outcome = simulate(&settings(0, 1000), &timed).unwrap();
    assert_eq!(outcome.steps, 6); // 15 s each, and 10 s into the seventh
    assert!(outcome.seconds >= 100.0 && outcome.seconds < 116.0);
}

#[test]
fn a_run_that_cannot_go_on_says_what_it_waits_for() {
    // Every verdict is an abstention and no group ever trains: each prompt makes room for the next.
    let mut mute = model();
    mute.scorers.failure_rate = 1.0;
    mute.seconds = 1000.0;
    let outcome = simulate(&settings(0, 5), &mute).unwrap();
    assert_eq!(outcome.steps, 0);
    assert!((outcome.waste["too_few_scored"] - 1.0).abs() < 1e-12);
    // Weights that may be two versions old, but never come: nobody may sample.
    let never = Settings {
        publish_every: 3,
        pacing: 1,
        ..settings(2, 5)
    };
    let error = simulate(&never, &model()).unwrap_err();
    assert!(matches!(error, SimulationError::Settings(_)), "{error}");
}

#[test]
fn a_number_that_cannot_be_is_refused_by_name() {
    let mut wrong = model();
    wrong.lengths.shared = 1.5;
    let error = simulate(&settings(0, 5), &wrong).unwrap_err();
    assert_eq!(error.to_string(), "lengths.shared must be 0 to 1, got 1.5");
}

#[test]
fn a_streamed_step_trains_what_is_ready_while_the_batch_fills() {
    // One slot: groups of one rollout come 10 s after one another; 2 a step, each 4 s to train, and 1 s for the step.
    // At bound 0 a whole batch is there after 10 + 10 + 2 s and takes 9; streamed, 4 s of them are over by then.
    let mut long = model();
    long.learner.step_s = 1.0;
    long.learner.group_s = 4.0;
    long.learner.token_s = 0.0;
    let mut two = Settings {
        groups_per_step: 2,
        ..settings(0, 20)
    };
    close(simulate(&two, &long).unwrap().steps_per_s, 1.0 / 31.0);
    two.part_groups = 1;
    let outcome = simulate(&two, &long).unwrap();
    close(outcome.steps_per_s, 1.0 / 27.0);
    close(outcome.learner.busy, 9.0 / 27.0);
    assert_eq!(outcome.max_staleness, 0);
}

#[test]
fn roles_that_share_a_core_slow_each_other_down_and_only_while_both_work() {
    // Bound 0: sampling and training take turns, so one core is enough for them.
    let mut shared = model();
    shared.machine.cores = 1.0;
    close(
        simulate(&settings(0, 20), &shared).unwrap().steps_per_s,
        1.0 / 15.0,
    );
    // Something else that always runs takes half of it: 20 s to sample, 2 to grade, 6 to train.
    shared.machine.others = 1.0;
    close(
        simulate(&settings(0, 20), &shared).unwrap().steps_per_s,
        1.0 / 28.0,
    );
    // Bound 1: the slot never rests, 3 s of every step are trained beside it on halves of the core. Of a rollout's
    // 10 s of work, 3 are done in the 6 s of training, 7 in 7.
    shared.machine.others = 0.0;
    let outcome = simulate(&settings(1, 40), &shared).unwrap();
    close(outcome.steps_per_s, 1.0 / 13.0);
    close(outcome.learner.busy, 6.0 / 13.0);
    // Two cores are enough for two roles.
    shared.machine.cores = 2.0;
    close(
        simulate(&settings(1, 40), &shared).unwrap().steps_per_s,
        1.0 / 10.0,
    );
}

#[test]
fn a_rollout_starts_some_time_after_its_loan() {
    // 3 s for the message and the prompt: 3 + 10 to sample, 2 to grade, 3 to train.
    let mut late = model();
    late.generators.start_s = 3.0;
    close(
        simulate(&settings(0, 20), &late).unwrap().steps_per_s,
        1.0 / 18.0,
    );
}
