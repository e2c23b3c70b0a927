//! What the corpora begin with. A fuzzer that starts from less gets no further than the first check.

use crate::journal;
use crate::messages as say;
use crate::service::{self, ROLES, act};
use crate::weights;

/// Kinds of `act::REPORT`.
const STEPPED: u8 = 0;
const PUBLISHED: u8 = 1;
const COMMITTED: u8 = 2;

/// Every message of docs/protocol.md, a short run of the buffer, damages of a journal, encoded tensors: target, name, bytes.
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = vec![("service", "run".to_owned(), run())];
    for (index, message) in messages().into_iter().enumerate() {
        for peer in [0, 2, 3, 5] {
            let mut script = greetings();
            service::write_frame(&mut script, peer, &message);
            seeds.push(("service", format!("message-{index}-of-{peer}"), script));
        }
        seeds.push(("wire", format!("message-{index}"), message));
    }
    for (index, script) in damages().into_iter().chain(journal::bodies()).enumerate() {
        seeds.push(("journal", format!("script-{index}"), script));
    }
    for (index, bytes) in weights::seeds().into_iter().enumerate() {
        seeds.push(("weights", format!("pair-{index}"), bytes));
    }
    seeds
}

/// Each kind of damage to each file, early and late in it.
fn damages() -> Vec<Vec<u8>> {
    let mut scripts = vec![vec![journal::reads::DAMAGED]];
    for kind in 0..journal::DAMAGES {
        for file in 0..journal::NAMES.len() as u8 {
            for at in [1, 40, 230] {
                // The position, then what is to be found there, if anything.
                let script = [journal::reads::DAMAGED, file, kind, at, 1, 3, 0, 7, 7, 7];
                scripts.push(script.to_vec());
            }
        }
    }
    scripts
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
        say::incident("late_rollout"),
        say::next_batch(1, 0, 0, 0),
    ];
    all.extend(ROLES.map(|role| say::hello(role, 0, 1, 0)));
    all.extend(["stepped", "published", "committed", "finish"].map(|kind| say::report(kind, 1, 0)));
    all
}

fn greetings() -> Vec<u8> {
    let mut script = Vec::new();
    for peer in 0..6 {
        script.extend([act::HELLO, peer, 1, 0]);
    }
    script.extend([act::REPORT, 3, PUBLISHED, 1, 0]);
    script
}

/// Six rollouts sampled, graded and trained in two parts, the buffer killed between them and after the commit. Leases
/// are numbered from 1 in every life of the buffer.
fn run() -> Vec<u8> {
    let mut script = greetings();
    script.extend([act::READY, 0, 6, 0, 1, 0]);
    (1..=4).for_each(|lease| sample(&mut script, lease));
    script.extend([act::READY, 2, 8, 0, 1, 0]);
    (7..=10).for_each(|lease| grade(&mut script, lease));
    ask(&mut script, 0);
    script.extend([act::RESTART, 0, 0]);
    script.extend(greetings());
    script.extend([act::READY, 0, 2, 0, 1, 0]);
    script.extend([act::READY, 2, 8, 0, 1, 0]);
    (1..=2).for_each(|lease| sample(&mut script, lease));
    (3..=4).for_each(|lease| grade(&mut script, lease));
    (0..2).for_each(|part| ask(&mut script, part));
    for (kind, number) in [(STEPPED, 0), (PUBLISHED, 1), (COMMITTED, 1)] {
        script.extend([act::REPORT, 3, kind, 1, number]);
    }
    script.extend([act::RESTART, 0, 1]);
    script.extend([act::PASS, 0, 8]);
    script
}

/// Three tokens of version (1, 0), and the end.
fn sample(script: &mut Vec<u8>, lease: u8) {
    script.extend([act::CHUNK, 0, lease, 0, 3, 1, 0, 1]);
}

/// A reward of 0 or 1.
fn grade(script: &mut Vec<u8>, lease: u8) {
    script.extend([act::VERDICT, 2, lease, 3 + lease % 2]);
}

/// Both ranks ask for a part of the first batch.
fn ask(script: &mut Vec<u8>, part: u8) {
    for peer in [3, 4] {
        script.extend([act::NEXT_BATCH, peer, 1, 0, part]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use r1async_core::frame::Frame;
    use r1async_core::messages::{Hello, Message, PROTOCOL, Role};

    #[test]
    fn every_message_is_one_that_some_role_may_send() {
        for message in messages() {
            let frame = Frame::decode(&message, 4096).unwrap();
            let is_read = |role| Message::read(&frame, role).is_ok();
            let roles = [
                Role::Generator,
                Role::Scorer,
                Role::Evaluator,
                Role::Learner,
            ];
            let said = roles.into_iter().any(is_read);
            assert!(
                said || Hello::read(&frame, PROTOCOL).is_ok(),
                "{}",
                frame.kind
            );
        }
    }

    #[test]
    fn the_run_trains_a_batch_in_parts_and_over_two_restarts() {
        assert_eq!(service::play(&run()).rollouts.trained, 6);
    }

    #[test]
    fn every_seed_is_played_and_so_is_each_of_its_halves() {
        for (target, _, seed) in all() {
            let play = match target {
                "wire" => crate::wire::read,
                "journal" => journal::play,
                "weights" => weights::apply,
                _ => |script: &[u8]| _ = service::play(script),
            };
            play(&seed);
            play(&seed[..seed.len() / 2]);
            play(&seed[seed.len() / 2..]);
        }
    }
}
