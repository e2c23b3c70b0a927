//! How fast a day of a 64-generator run simulates: `cargo run --release --example day [SECONDS]`.

use std::time::Instant;

use mimalloc::MiMalloc;
use r1async_core::Settings;
use r1async_sim::{
    Distribution, Failures, Generators, LearnerModel, Lengths, Machine, Model, Rewards, Scorers,
    Weights, simulate,
};

/// As in the extension, which `r1async simulate` runs in.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|text| text.parse().expect("a number"));
    let seconds = arguments.next().unwrap_or(86400.0);
    let waste_budget = arguments.next().unwrap_or(0.05);
    let settings = Settings {
        group_size: 16,
        min_group_size: 8,
        groups_per_step: 128,
        steps: 1 << 30,
        max_staleness: 8,
        pacing: 8,
        max_tokens: 8192,
        waste_budget,
        ..Settings::default()
    };
    let model = Model {
        seed: 0,
        seconds,
        warmup_steps: 20,
        tokens_per_unit: 20,
        generators: Generators {
            count: 64,
            slots: 64,
            chunk_tokens: 64,
            token_s: 0.025,
            token_alone_s: 0.012,
            turnaround_s: 0.1,
            start_s: 0.0,
        },
        lengths: Lengths {
            completion: Distribution::Lognormal {
                median: 650.0,
                sigma: 1.0,
            },
            shared: 0.3,
            prompt: 200.0,
        },
        scorers: Scorers {
            count: 4,
            workers: 16,
            queue: 256,
            verdict_s: Distribution::Lognormal {
                median: 0.05,
                sigma: 1.0,
            },
            travel_s: 0.0,
            failure_rate: 0.01,
        },
        learner: LearnerModel {
            step_s: 1.0,
            group_s: 0.0,
            token_s: 4e-6,
            checkpoint_every: 20,
            checkpoint_s: 5.0,
        },
        weights: Weights {
            transfer_s: 1.0,
            install_s: 0.2,
        },
        machine: Machine {
            cores: 0.0,
            others: 0.0,
        },
        failures: Failures {
            per_hour: 0.02,
            noticed_s: 20.0,
            back_s: 120.0,
        },
        rewards: Rewards { a: 1.0, b: 1.0 },
    };
    let begin = Instant::now();
    let outcome = simulate(&settings, &model).expect("a run that goes through");
    let took = begin.elapsed().as_secs_f64();
    println!("{outcome:#?}");
    let rollouts = outcome.rollouts_per_s * outcome.measured_s;
    println!(
        "{took:.1} s for {:.0} s and {rollouts:.0} rollouts",
        outcome.seconds
    );
}
