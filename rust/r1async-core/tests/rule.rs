//! The staleness rule under random settings and a virtual clock: nothing gets stuck, no token over the bound
//! trains, nothing is lost at bound 0, and the books balance.
//!
//! A few hundred settings here; all of them with `R1ASYNC_RULE_CASES=4000 cargo test --release --test rule`.

mod common {
    pub mod clock;
}

use common::clock::{Clock, Rng, World};
use r1async_core::{OverAge, Settings, StalenessMode, Window, ZeroVariance};

const CASES: u64 = 300;

fn settings(rng: &mut Rng) -> Settings {
    let group_size = 1 + rng.below(8) as usize;
    let e = rng.below(9);
    let slow_bound = 4 + rng.below(28);
    let slow = rng.chance(0.3) && (e > 0 || slow_bound > 0);
    let window = Window {
        name: "slow".to_owned(),
        max_staleness: slow_bound,
        share: 0.1 + 0.4 * rng.unit(),
    };
    Settings {
        group_size,
        min_group_size: (group_size / 2).max(1),
        groups_per_step: 1 + rng.below(8) as usize,
        part_groups: if rng.chance(0.3) {
            1 + rng.below(3) as usize
        } else {
            0
        },
        steps: 5 + rng.below(12),
        max_staleness: e,
        pacing: rng.below(e + 1),
        mode: if rng.chance(0.3) {
            StalenessMode::Adaptive
        } else {
            StalenessMode::Fixed
        },
        close_early: rng.chance(0.8),
        windows: if slow { vec![window] } else { Vec::new() },
        over_age: if rng.chance(0.8) {
            OverAge::Mask
        } else {
            OverAge::Drop
        },
        waste_budget: [0.0, 0.02, 0.05, 0.2, 1.0][rng.below(5) as usize],
        // A hold ends by the end of a rollout, not by its own deadline: that is what is looked at.
        hold_deadline_s: 1e6,
        zero_variance: if rng.chance(0.5) {
            ZeroVariance::Drop
        } else {
            ZeroVariance::Train
        },
        max_refills: 1 + rng.below(64),
        baseline: if group_size == 1 {
            r1async_core::Baseline::None
        } else {
            r1async_core::Baseline::Mean
        },
        lease_s: 1e5,
        rollout_deadline_s: 1e5,
        scoring_deadline_s: 1e5,
        group_deadline_s: 1e6,
        max_tokens: 1 << 16,
        ..Settings::default()
    }
}

#[test]
fn no_random_setting_sticks_trains_over_the_bound_or_loses_tokens_at_bound_0() {
    let cases = std::env::var("R1ASYNC_RULE_CASES").map_or(CASES, |text| text.parse().unwrap());
    let mut totals = (0, 0, 0, 0);
    for case in 0..cases {
        let mut rng = Rng::new(case);
        let settings = settings(&mut rng);
        let clock = Clock::random(&mut rng);
        let e = settings.max_staleness;
        let name = format!("case {case}: {clock:?} {settings:?}");
        let stats = World::new(settings, clock, rng, name.clone()).run();
        let main = &stats.waste_by_source[0].1;
        if e == 0 {
            assert_eq!(main.of_age(), 0, "lost at bound 0: {name}");
        }
        totals.0 += stats.steps;
        totals.1 += stats.late_members;
        totals.2 += stats.holds;
        totals.3 += main.of_age();
    }
    println!(
        "{cases} settings, {} steps, {} late members, {} holds, {} tokens over age in main sources",
        totals.0, totals.1, totals.2, totals.3
    );
    assert!(
        totals.1 > 0 && totals.2 > 0 && totals.3 > 0,
        "the settings exercise the rule"
    );
}
