//! Writes the seed corpora: every message of docs/protocol.md for `wire`, two short runs for `service`.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`, from the repository's root.

use std::path::Path;

use r1async_fuzz::messages as say;
use r1async_fuzz::service::{self, ROLES};

fn main() -> std::io::Result<()> {
    let messages = messages();
    for (index, message) in messages.iter().enumerate() {
        save("wire", &format!("message-{index}"), message)?;
    }
    let mut each_alone = greetings();
    for (index, message) in messages.iter().enumerate() {
        service::write_frame(&mut each_alone, index as u8 % 8, message);
    }
    save("service", "each-message", &each_alone)?;
    let run = run();
    // A seed that gets nowhere would leave the fuzzer before the first lease for ever.
    assert_eq!(service::play(&run).rollouts.trained, 4);
    save("service", "run", &run)
}

fn save(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

fn messages() -> Vec<Vec<u8>> {
    let mut all = vec![
        say::ready(8, 0, 1, 0),
        say::chunks(1, 0, 3, (1, 0), None),
        say::chunks(2, 0, 3, (1, 0), Some("stop")),
        say::verdict(5, Some(1.0)),
        say::verdict(6, None),
        say::announce(1, 0, 3),
        say::release(3),
        say::evaluate("e", (1, 0), 2),
        say::cancel("e"),
        say::heartbeat(),
        say::bye(),
        say::next_batch(1, 0, 0),
    ];
    all.extend(ROLES.map(|role| say::hello(role, 0, 1, 0)));
    all.extend(["stepped", "published", "committed", "finish"].map(|kind| say::report(kind, 1, 0)));
    all
}

fn greetings() -> Vec<u8> {
    let mut script = Vec::new();
    for (peer, role) in ROLES.iter().enumerate().take(6) {
        let hello = say::hello(role, i64::from(peer == 4), 1, 0);
        service::write_frame(&mut script, peer as u8, &hello);
    }
    service::write_frame(&mut script, 3, &say::report("published", 1, 0));
    script
}

/// Four rollouts sampled, graded, trained and committed; leases are numbered from 1.
fn run() -> Vec<u8> {
    let mut script = greetings();
    service::write_frame(&mut script, 0, &say::ready(4, 0, 1, 0));
    service::write_frame(&mut script, 2, &say::ready(8, 0, 1, 0));
    for lease in 1..=4 {
        let sampled = say::chunks(lease, 0, 3, (1, 0), Some("stop"));
        service::write_frame(&mut script, 0, &sampled);
    }
    for lease in 5..=8 {
        let graded = say::verdict(lease, Some((lease % 2) as f64));
        service::write_frame(&mut script, 2, &graded);
    }
    for rank in 0..2 {
        let asked = say::next_batch(1, 0, i64::from(rank));
        service::write_frame(&mut script, 3 + rank, &asked);
    }
    for (kind, number) in [("stepped", 0), ("published", 1), ("committed", 1)] {
        service::write_frame(&mut script, 3, &say::report(kind, 1, number));
    }
    script.extend([14, 0]);
    service::write_pass(&mut script, 8);
    script
}
