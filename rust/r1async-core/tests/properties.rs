//! Whatever generators, scorers and learners do, and in whatever order: nothing is lost, nothing is
//! given twice, the books balance, the bound holds, and the run comes to its end.

mod common {
    pub mod world;
}

use common::world::{Act, KINDS, World};
use proptest::prelude::*;
use r1async_core::{Baseline, OverAge, Settings, StalenessMode, Window, ZeroVariance};

fn settings() -> impl Strategy<Value = Settings> {
    let sizes = (1usize..5, 1usize..4, 1u64..6, 1usize..4);
    let pacing = (0u64..4, 0u64..4, 0u64..4);
    let rules = (
        0..3usize,
        0u32..3,
        prop::sample::select(vec![0.0, 0.05, 0.3, 1.0]),
        any::<bool>(),
    );
    let more = (
        any::<bool>(),
        0u64..4,
        prop::sample::select(vec![1.0, 1.5, 2.0]),
        1u32..4,
        any::<bool>(),
        prop::option::of((1u64..8, 0.1f64..1.0)),
        (any::<bool>(), 0usize..3),
    );
    (sizes, pacing, rules, more).prop_map(|(sizes, pacing, rules, more)| {
        let (group_size, groups_per_step, steps, min) = sizes;
        let max_staleness = pacing.0;
        let w = pacing.1.min(max_staleness);
        let publish_every = 1 + pacing.2.min(w);
        let slow = more.5.map(|(max_staleness, share)| Window {
            name: "slow".to_owned(),
            max_staleness: max_staleness.max(publish_every - 1),
            share,
        });
        Settings {
            close_early: more.4,
            windows: slow.into_iter().collect(),
            mode: if more.6.0 {
                StalenessMode::Adaptive
            } else {
                StalenessMode::Fixed
            },
            group_size,
            min_group_size: min.min(group_size),
            groups_per_step,
            part_groups: more.6.1,
            steps,
            max_staleness,
            pacing: w,
            publish_every,
            over_age: [OverAge::Mask, OverAge::Drop, OverAge::Train][rules.0],
            retries: rules.1,
            waste_budget: rules.2,
            hold_deadline_s: 25.0,
            baseline: if group_size == 1 {
                Baseline::None
            } else {
                Baseline::Std
            },
            zero_variance: if more.0 {
                ZeroVariance::Drop
            } else {
                ZeroVariance::Train
            },
            max_refills: more.1,
            oversample: more.2,
            drop_truncated: rules.3,
            rollout_deadline_s: 60.0,
            lease_s: 30.0,
            group_deadline_s: 100.0,
            scoring_deadline_s: 20.0,
            score_retries: 1,
            max_attempts: more.3,
            max_tokens: 12,
            ..Settings::default()
        }
    })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let kinds = KINDS.map(|(often, kind)| (often, Just(kind))).to_vec();
    let kind = prop::strategy::Union::new_weighted(kinds);
    prop::collection::vec((kind, any::<u16>(), any::<u16>()), 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_given_twice_and_the_run_ends(settings in settings(), prompts in 0u64..40, acts in acts()) {
        let mut world = World::new(settings, prompts);
        for act in acts {
            world.act(act);
        }
        world.drive_to_the_end();
    }

    /// The traps of pacing: with nothing but work to do, no setting stops the run.
    #[test]
    fn no_setting_stops_the_run(settings in settings(), prompts in 0u64..60) {
        World::new(settings, prompts).drive_to_the_end();
    }
}
