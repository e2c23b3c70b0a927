use std::sync::Arc;

use super::*;
use crate::frame::{Element, Frame, Value};
use crate::group::{Prompt, Score};
use crate::ids::{GroupId, PolicyVersion, RolloutId, Step};
use crate::staleness::VersionRun;
use crate::statistics::{StdKind, group_statistics};

fn rollout(number: u64, tokens: &[i32], runs: &[(u64, u32, bool)], part: &str) -> BoundRollout {
    let versions = |(version, count, _): &(u64, u32, bool)| {
        VersionRun::new(PolicyVersion::new(2, *version), *count)
    };
    BoundRollout {
        rollout: RolloutId(number),
        tokens: tokens.to_vec(),
        logprobs: tokens.iter().map(|token| -(*token as f32) / 4.0).collect(),
        runs: runs.iter().map(versions).collect(),
        over_age: runs.iter().map(|(_, _, over)| *over).collect(),
        score: Score {
            total: 0.5,
            parts: vec![(part.into(), 1.0)],
            status: "ok".into(),
        },
        advantage: -0.25,
        finish: if number == 1 {
            Finish::Length
        } else {
            Finish::Stop
        },
        finish_version: PolicyVersion::new(2, runs.last().unwrap().0),
    }
}

/// Two groups: one of a prompt of 2 tokens and two rollouts, one of a prompt of 1 token and one rollout.
fn batch() -> BoundBatch {
    let group = |group: u64, prompt: &[i32], rollouts: Vec<BoundRollout>| BoundGroup {
        group: GroupId(group),
        source: 0,
        prompt: Arc::new(Prompt {
            ordinal: group,
            tokens: prompt.to_vec(),
            meta: Vec::new(),
            pool: 0,
        }),
        statistics: group_statistics(&[0.5], StdKind::Population, 1.0).unwrap(),
        rollouts,
    };
    let first = vec![
        rollout(0, &[7, 8, 9], &[(3, 1, true), (4, 2, false)], "accuracy"),
        rollout(1, &[5], &[(4, 1, false)], "accuracy"),
    ];
    let second = vec![rollout(2, &[6, 6], &[(5, 2, false)], "format")];
    BoundBatch {
        step: Step(5),
        groups: vec![group(0, &[1, 2], first), group(1, &[3], second)],
        late: Vec::new(),
    }
}

fn packed(share: &Share) -> Vec<u8> {
    pack(
        &batch(),
        &batch().whole(),
        share,
        0.75,
        FrameWriter::new("batch").int("epoch", 2),
    )
}

fn elements<T: Element>(frame: &Frame<'_>, name: &str) -> Vec<T> {
    frame
        .column(name)
        .unwrap()
        .elements::<T>()
        .unwrap()
        .into_owned()
}

#[test]
fn whole_batch_is_packed_in_place_in_line() {
    let share = &shares(&batch(), &batch().whole(), 1, 1000)[0];
    let bytes = packed(share);
    assert_eq!(bytes.len(), bytes.capacity());
    let frame = Frame::decode(&bytes, 1 << 20).unwrap();
    assert_eq!(
        elements::<i32>(&frame, "token_ids"),
        [1, 2, 7, 8, 9, 1, 2, 5, 3, 6, 6]
    );
    let logprobs = [
        0.0, 0.0, -1.75, -2.0, -2.25, 0.0, 0.0, -1.25, 0.0, -1.5, -1.5,
    ];
    assert_eq!(elements::<f32>(&frame, "behavior_logprobs"), logprobs);
    assert_eq!(elements::<i32>(&frame, "cu_seqlens"), [0, 5, 8, 11]);
    assert_eq!(elements::<i32>(&frame, "prompt_lens"), [2, 2, 1]);
    assert_eq!(elements::<f32>(&frame, "advantages"), [-0.25; 3]);
    assert_eq!(elements::<f64>(&frame, "rewards"), [0.5; 3]);
    assert_eq!(elements::<i64>(&frame, "groups"), [0, 0, 1]);
    assert_eq!(elements::<i64>(&frame, "rollouts"), [0, 1, 2]);
    assert_eq!(elements::<i32>(&frame, "finish_versions"), [4, 4, 5]);
    assert_eq!(elements::<u8>(&frame, "truncated"), [0, 1, 0]);
    assert_eq!(elements::<i32>(&frame, "run_versions"), [3, 4, 4, 5]);
    assert_eq!(elements::<i32>(&frame, "run_lengths"), [1, 2, 1, 2]);
    assert_eq!(elements::<i32>(&frame, "cu_runs"), [0, 2, 3, 4]);
    assert_eq!(elements::<u8>(&frame, "over_age"), [1, 0, 0, 0]);
    let accuracy = elements::<f32>(&frame, "part:accuracy");
    assert!(accuracy[..2] == [1.0, 1.0] && accuracy[2].is_nan());
    assert!(elements::<f32>(&frame, "part:format")[0].is_nan());
    for (name, want) in [
        ("step", 5),
        ("total_rollouts", 3),
        ("total_groups", 2),
        ("epoch", 2),
    ] {
        assert_eq!(frame.get(name), Some(&Value::Int(want)), "{name}");
    }
    assert_eq!(frame.get("total_completion_tokens"), Some(&Value::Int(6)));
    assert_eq!(frame.get("total_loss_tokens"), Some(&Value::Int(5)));
    assert_eq!(frame.get("temperature"), Some(&Value::Float(0.75)));
    let whole = Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(3)])]);
    assert_eq!(frame.get("micro_batches"), Some(&whole));
}

#[test]
fn ranks_share_the_totals_and_nothing_else() {
    let shares = shares(&batch(), &batch().whole(), 2, 1000);
    assert_eq!(
        shares
            .iter()
            .map(|share| share.places.clone())
            .collect::<Vec<_>>(),
        [vec![0], vec![1, 2]]
    );
    let bytes = packed(&shares[1]);
    let frame = Frame::decode(&bytes, 1 << 20).unwrap();
    assert_eq!(elements::<i64>(&frame, "rollouts"), [1, 2]);
    assert_eq!(elements::<i32>(&frame, "cu_seqlens"), [0, 3, 6]);
    assert_eq!(elements::<i32>(&frame, "cu_runs"), [0, 1, 2]);
    assert_eq!(frame.get("total_rollouts"), Some(&Value::Int(3)));
}

#[test]
fn rank_without_a_rollout_gets_empty_columns() {
    let bytes = packed(&Share {
        places: vec![],
        micro_batches: vec![(0, 0)],
    });
    let frame = Frame::decode(&bytes, 1 << 20).unwrap();
    assert_eq!(elements::<i32>(&frame, "cu_seqlens"), [0]);
    assert_eq!(elements::<i32>(&frame, "token_ids"), [0_i32; 0]);
    assert_eq!(elements::<f32>(&frame, "part:accuracy"), [0_f32; 0]);
}
