//! Whole messages, as the roles send them.

use r1async_core::frame::FrameWriter;
use r1async_core::messages::PROTOCOL;

/// The run that the service target serves.
pub const RUN: &str = "fuzz";

pub fn hello(role: &str, rank: i64, epoch: i64, step: i64) -> Vec<u8> {
    let head = FrameWriter::new("hello").int("protocol", PROTOCOL);
    let head = head.str("role", role).str("name", role).str("run", RUN);
    let head = head.int("rank", rank).int("world", 2);
    head.int("epoch", epoch).int("step", step).finish()
}

pub fn ready(free: i64, leases_seen: i64, epoch: i64, version: i64) -> Vec<u8> {
    let head = FrameWriter::new("ready").int("free", free);
    let head = head.int("eval_free", free).int("capacity", 8);
    let head = head.int("leases_seen", leases_seen).int("epoch", epoch);
    head.int("version", version).str("hash", "h").finish()
}

/// Tokens for one lease: `count` of version (epoch, version); the last of them if `finish` names why.
pub fn chunks(
    lease: i64,
    offset: i64,
    count: usize,
    version: (i64, i64),
    finish: Option<&str>,
) -> Vec<u8> {
    let head = FrameWriter::new("chunks").list("items", 1, |out| {
        out.list(5);
        [lease, offset, count as i64]
            .into_iter()
            .for_each(|value| out.int(value));
        match finish {
            Some(reason) => out.str(reason),
            None => out.nil(),
        }
        out.list(1);
        out.list(3);
        [version.0, version.1, count as i64]
            .into_iter()
            .for_each(|value| out.int(value));
    });
    let head = head.column::<i32>("tokens", count);
    let mut open = head.column::<f32>("logprobs", count).open();
    open.fill(&vec![4_i32; count]);
    open.fill(&vec![-0.5_f32; count]);
    open.finish()
}

pub fn verdict(lease: i64, total: Option<f64>) -> Vec<u8> {
    let head = FrameWriter::new("verdicts").list("items", 1, |out| {
        out.list(4);
        out.int(lease);
        match total {
            Some(total) => out.float(total),
            None => out.nil(),
        }
        out.map(1);
        out.str("accuracy");
        out.float(1.0);
        out.str("ok");
    });
    head.finish()
}

pub fn announce(lease: i64, rollout: i64, offset: i64) -> Vec<u8> {
    let head = FrameWriter::new("announce").list("items", 1, |out| {
        out.list(3);
        [lease, rollout, offset]
            .into_iter()
            .for_each(|value| out.int(value));
    });
    head.finish()
}

pub fn release(lease: i64) -> Vec<u8> {
    let head = FrameWriter::new("release").list("leases", 1, |out| out.int(lease));
    head.finish()
}

pub fn evaluate(id: &str, pin: (i64, i64), samples: i64) -> Vec<u8> {
    let head = FrameWriter::new("evaluate").str("id", id);
    let head = head.list("pin", 2, |out| {
        out.int(pin.0);
        out.int(pin.1);
    });
    let head = head.int("samples", samples).map("sampling", 5, |out| {
        out.str("temperature");
        out.float(0.6);
        out.str("top_p");
        out.float(0.95);
        out.str("top_k");
        out.int(0);
        out.str("max_tokens");
        out.int(8);
        out.str("greedy");
        out.bool(false);
    });
    let head = head.list("metas", 2, |out| {
        out.bin(b"{}");
        out.bin(b"{}");
    });
    let head = head.column::<i32>("prompt_tokens", 3);
    let mut open = head.column::<i32>("prompt_lens", 2).open();
    open.fill(&[1_i32, 2, 3]);
    open.fill(&[1_i32, 2]);
    open.finish()
}

pub fn cancel(id: &str) -> Vec<u8> {
    FrameWriter::new("cancel_evaluation").str("id", id).finish()
}

pub fn heartbeat() -> Vec<u8> {
    let head = FrameWriter::new("heartbeat").map("stats", 1, |out| {
        out.str("tokens_per_s");
        out.float(0.5);
    });
    head.finish()
}

pub fn incident(name: &str) -> Vec<u8> {
    let head = FrameWriter::new("incident").str("name", name);
    let head = head.str("act", "left out");
    let head = head.list("groups", 1, |out| out.int(0));
    let head = head.list("rollouts", 1, |out| out.int(1));
    let head = head.float("deadline_s", 5.0).float("named_after_s", 5.5);
    head.str("text", "rollout 1 is late").finish()
}

pub fn bye() -> Vec<u8> {
    FrameWriter::new("bye").finish()
}

pub fn next_batch(epoch: i64, step: i64, part: i64, rank: i64) -> Vec<u8> {
    let head = FrameWriter::new("next_batch").int("epoch", epoch);
    head.int("step", step)
        .int("part", part)
        .int("rank", rank)
        .int("world", 2)
        .finish()
}

/// `stepped`, `published`, `committed` or `finish`.
pub fn report(kind: &str, epoch: i64, number: i64) -> Vec<u8> {
    let head = FrameWriter::new(kind).int("epoch", epoch);
    let head = head.int("step", number).int("version", number);
    let head = head.str("hash", "h").bool("last", false);
    let head = head.map("metrics", 2, |out| {
        out.str("loss");
        out.float(0.5);
        out.str("lengths");
        out.list(1);
        out.int(3);
    });
    head.finish()
}
