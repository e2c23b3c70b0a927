//! How fast a journal is written and read back: `cargo run --release -p r1async-journal --example read_back`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Buffer, identity, options, settings};
use r1async_journal::Journal;

const STEPS: u64 = 2000;
const TOKENS: usize = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut buffer = Buffer::create(folder.path(), options());
    let began = Instant::now();
    for step in 0..STEPS {
        buffer.sample(step, TOKENS);
        buffer.train(step);
    }
    let wrote = began.elapsed().as_secs_f64();
    let (events, payload) = buffer.journal.bytes();
    let bytes = (events + payload) as f64 / 1e6;
    drop(buffer.journal);
    let mut seconds = Vec::new();
    for _ in 0..9 {
        let (_, _, recovery) = Journal::open(folder.path(), identity(), options(), settings())?;
        seconds.push(recovery.seconds);
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "{bytes:.1} MB written in {wrote:.2} s with {STEPS} batches handed out, read back in {:.4} s: {:.0} MB/s",
        seconds[4],
        bytes / seconds[4]
    );
    Ok(())
}
