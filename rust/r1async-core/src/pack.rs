//! One rank's share of a batch as the frame that travels: the columns of `types.Batch`, written in place.
//!
//! The frame is allocated once, its exact size; tokens and logprobs are copied once, from the rollout into
//! the column that torch will read. Prompt tokens have logprob 0, and every rollout repeats its prompt.

use std::collections::BTreeSet;

use crate::balance::{Share, split};
use crate::batch::{BatchPart, BoundBatch, BoundGroup, BoundRollout};
use crate::frame::{Bytes, FrameWriter, Open, Sealed};
use crate::group::Finish;

/// Splits a part of a batch over `ranks` ranks by the length of its rollouts, prompt and completion (see [`split`]).
///
/// # Panics
/// `ranks` is zero.
#[must_use]
pub fn shares(
    batch: &BoundBatch,
    part: &BatchPart,
    ranks: usize,
    micro_batch_tokens: usize,
) -> Vec<Share> {
    let lengths: Vec<usize> = batch
        .rollouts_of(part)
        .map(|(group, rollout)| length(group, rollout))
        .collect();
    split(&lengths, ranks, micro_batch_tokens)
}

/// The `batch` message of one rank, of one part. `head` names its type and what every reply says; the batch's
/// epoch is there too.
#[must_use]
pub fn pack(
    batch: &BoundBatch,
    part: &BatchPart,
    share: &Share,
    temperature: f64,
    head: FrameWriter,
) -> Vec<u8> {
    Packing::new(batch, part, share, temperature, head).write()
}

/// A `batch` message whose size is known, and which is still to be written where it will lie.
#[derive(Debug)]
pub struct Packing<'a> {
    sealed: Sealed,
    mine: Vec<(&'a BoundGroup, &'a BoundRollout)>,
    /// Names of the parts of rewards.
    parts: BTreeSet<&'a str>,
}

impl<'a> Packing<'a> {
    /// As [`pack`].
    #[must_use]
    pub fn new(
        batch: &'a BoundBatch,
        part: &BatchPart,
        share: &Share,
        temperature: f64,
        head: FrameWriter,
    ) -> Self {
        let all: Vec<(&BoundGroup, &BoundRollout)> = batch.rollouts_of(part).collect();
        let mine: Vec<(&BoundGroup, &BoundRollout)> =
            share.places.iter().map(|&place| all[place]).collect();
        let parts: BTreeSet<&str> = all
            .iter()
            .flat_map(|(_, rollout)| rollout.score.parts.iter().map(|(name, _)| name.as_str()))
            .collect();
        let head = totals(head, batch, part, &all)
            .float("temperature", temperature)
            .list("parts", parts.len(), |out| {
                parts.iter().for_each(|name| out.str(name))
            })
            .list("micro_batches", share.micro_batches.len(), |out| {
                for (begin, end) in &share.micro_batches {
                    out.list(2);
                    out.int(*begin as i64);
                    out.int(*end as i64);
                }
            });
        let sealed = announce(head, &mine, &parts).seal();
        Self {
            sealed,
            mine,
            parts,
        }
    }

    /// Bytes of the message.
    #[must_use]
    pub fn size(&self) -> usize {
        self.sealed.size()
    }

    /// The message, in memory of its own.
    #[must_use]
    pub fn write(self) -> Vec<u8> {
        let mut frame = self.sealed.open();
        fill(&mut frame, &self.mine, &self.parts);
        frame.finish()
    }

    /// The same bytes at the start of `memory`.
    ///
    /// # Panics
    /// It is shorter than [`Packing::size`].
    pub fn write_at(self, memory: &mut [u8]) {
        let mut frame = self.sealed.open_at(memory);
        fill(&mut frame, &self.mine, &self.parts);
        let _ = frame.finish();
    }
}

fn fill<B: Bytes>(
    frame: &mut Open<B>,
    mine: &[(&BoundGroup, &BoundRollout)],
    parts: &BTreeSet<&str>,
) {
    write_tokens(frame, mine);
    write_rollouts(frame, mine);
    write_runs(frame, mine);
    for name in parts {
        let of = |rollout: &BoundRollout| {
            rollout
                .score
                .parts
                .iter()
                .find(|(part, _)| part == name)
                .map(|(_, it)| *it)
        };
        column(
            frame,
            mine.iter()
                .map(|(_, rollout)| of(rollout).unwrap_or(f64::NAN) as f32),
        );
    }
}

fn length(group: &BoundGroup, rollout: &BoundRollout) -> usize {
    group.prompt.tokens.len() + rollout.tokens.len()
}

/// What the learner normalises by: over all ranks, and in the end over all parts.
fn totals(
    head: FrameWriter,
    batch: &BoundBatch,
    part: &BatchPart,
    all: &[(&BoundGroup, &BoundRollout)],
) -> FrameWriter {
    let completion: usize = all.iter().map(|(_, rollout)| rollout.tokens.len()).sum();
    let loss: u64 = all.iter().map(|(_, rollout)| rollout.loss_tokens()).sum();
    head.int("step", batch.step.0 as i64)
        .int("part", part.place as i64)
        .bool("last", part.last)
        .int("total_rollouts", all.len() as i64)
        .int("total_groups", part.groups.len() as i64)
        .int("total_completion_tokens", completion as i64)
        .int("total_loss_tokens", loss as i64)
}

/// Names the columns in the order in which they are written below.
fn announce(
    head: FrameWriter,
    mine: &[(&BoundGroup, &BoundRollout)],
    parts: &BTreeSet<&str>,
) -> FrameWriter {
    let n = mine.len();
    let tokens = mine
        .iter()
        .map(|(group, rollout)| length(group, rollout))
        .sum();
    let runs = mine.iter().map(|(_, rollout)| rollout.runs.len()).sum();
    let head = head
        .column::<i32>("token_ids", tokens)
        .column::<f32>("behavior_logprobs", tokens)
        .column::<i32>("cu_seqlens", n + 1)
        .column::<i32>("prompt_lens", n)
        .column::<f32>("advantages", n)
        .column::<f64>("rewards", n)
        .column::<i64>("groups", n)
        .column::<i64>("rollouts", n)
        .column::<i32>("finish_versions", n)
        .column::<u8>("truncated", n)
        .column::<i32>("run_versions", runs)
        .column::<i32>("run_lengths", runs)
        .column::<i32>("cu_runs", n + 1)
        .column::<u8>("over_age", runs);
    parts.iter().fold(head, |head, name| {
        head.column::<f32>(format!("part:{name}"), n)
    })
}

fn column<B: Bytes, T: crate::frame::Element>(
    frame: &mut Open<B>,
    elements: impl IntoIterator<Item = T>,
) {
    frame.put_each(elements);
    frame.end_column();
}

fn write_tokens<B: Bytes>(frame: &mut Open<B>, mine: &[(&BoundGroup, &BoundRollout)]) {
    for (group, rollout) in mine {
        frame.put(&group.prompt.tokens);
        frame.put(&rollout.tokens);
    }
    frame.end_column();
    for (group, rollout) in mine {
        frame.put_zeros::<f32>(group.prompt.tokens.len());
        frame.put(&rollout.logprobs);
    }
    frame.end_column();
}

fn write_rollouts<B: Bytes>(frame: &mut Open<B>, mine: &[(&BoundGroup, &BoundRollout)]) {
    column(
        frame,
        running_sum(mine.iter().map(|(group, rollout)| length(group, rollout))),
    );
    column(
        frame,
        mine.iter()
            .map(|(group, _)| group.prompt.tokens.len() as i32),
    );
    column(
        frame,
        mine.iter().map(|(_, rollout)| rollout.advantage as f32),
    );
    column(frame, mine.iter().map(|(_, rollout)| rollout.score.total));
    column(frame, mine.iter().map(|(group, _)| group.group.0 as i64));
    column(
        frame,
        mine.iter().map(|(_, rollout)| rollout.rollout.0 as i64),
    );
    column(
        frame,
        mine.iter()
            .map(|(_, rollout)| rollout.finish_version.number as i32),
    );
    column(
        frame,
        mine.iter()
            .map(|(_, rollout)| u8::from(rollout.finish == Finish::Length)),
    );
}

fn write_runs<B: Bytes>(frame: &mut Open<B>, mine: &[(&BoundGroup, &BoundRollout)]) {
    let runs = || mine.iter().flat_map(|(_, rollout)| &rollout.runs);
    column(frame, runs().map(|run| run.version.number as i32));
    column(frame, runs().map(|run| run.count as i32));
    column(
        frame,
        running_sum(mine.iter().map(|(_, rollout)| rollout.runs.len())),
    );
    column(
        frame,
        mine.iter()
            .flat_map(|(_, rollout)| &rollout.over_age)
            .map(|over| u8::from(*over)),
    );
}

/// 0 and the sum after each. Fits 32 bits: a frame of 2^31 tokens would have 17 GB.
fn running_sum(sizes: impl Iterator<Item = usize>) -> impl Iterator<Item = i32> {
    let sums = sizes.scan(0_usize, |sum, size| {
        *sum += size;
        Some(*sum as i32)
    });
    std::iter::once(0).chain(sums)
}

#[cfg(test)]
mod tests;
