//! What the corpora begin with. A fuzzer that starts from less gets no further than the first check.

use crate::messages as say;
use crate::service::{self, ROLES};

/// Every message of docs/protocol.md for `wire`, two short runs for `service`: target, name, bytes.
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let messages = messages();
    let mut each_alone = greetings();
    for (index, message) in messages.iter().enumerate() {
        service::write_frame(&mut each_alone, index as u8 % 8, message);
    }
    let mut seeds: Vec<_> = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| ("wire", format!("message-{index}"), message))
        .collect();
    seeds.push(("service", "each-message".to_owned(), each_alone));
    seeds.push(("service", "run".to_owned(), run()));
    seeds
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
    for (peer, role) in ROLES.iter().enumerate().take(6) {
        let hello = say::hello(role, i64::from(peer == 4), 1, 0);
        service::write_frame(&mut script, peer as u8, &hello);
    }
    service::write_frame(&mut script, 3, &say::report("published", 1, 0));
    script
}

/// Six rollouts sampled, graded and trained in two parts, the buffer killed between them and after the commit. Leases
/// are numbered from 1, in every life of the buffer.
fn run() -> Vec<u8> {
    let mut script = greetings();
    service::write_frame(&mut script, 0, &say::ready(6, 0, 1, 0));
    for lease in 1..=4 {
        sample(&mut script, lease);
    }
    service::write_frame(&mut script, 2, &say::ready(8, 0, 1, 0));
    (7..=10).for_each(|lease| grade(&mut script, lease));
    ask(&mut script, 0);
    service::write_restart(&mut script, false);
    script.extend(greetings());
    service::write_frame(&mut script, 0, &say::ready(2, 0, 1, 0));
    service::write_frame(&mut script, 2, &say::ready(8, 0, 1, 0));
    (1..=2).for_each(|lease| sample(&mut script, lease));
    (3..=4).for_each(|lease| grade(&mut script, lease));
    (0..2).for_each(|part| ask(&mut script, part));
    for (kind, number) in [("stepped", 0), ("published", 1), ("committed", 1)] {
        service::write_frame(&mut script, 3, &say::report(kind, 1, number));
    }
    service::write_restart(&mut script, true);
    service::write_pass(&mut script, 8);
    script
}

fn sample(script: &mut Vec<u8>, lease: i64) {
    let sampled = say::chunks(lease, 0, 3, (1, 0), Some("stop"));
    service::write_frame(script, 0, &sampled);
}

fn grade(script: &mut Vec<u8>, lease: i64) {
    let graded = say::verdict(lease, Some((lease % 2) as f64));
    service::write_frame(script, 2, &graded);
}

/// Both ranks ask for a part of the first batch.
fn ask(script: &mut Vec<u8>, part: i64) {
    for rank in 0..2 {
        let asked = say::next_batch(1, 0, part, i64::from(rank));
        service::write_frame(script, 3 + rank, &asked);
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
                _ => |script: &[u8]| drop(service::play(script)),
            };
            play(&seed);
            play(&seed[..seed.len() / 2]);
            play(&seed[seed.len() / 2..]);
        }
    }
}
