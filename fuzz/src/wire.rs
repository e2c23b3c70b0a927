//! One frame, read as every role's.

use r1async_core::frame::Frame;
use r1async_core::messages::{Hello, Message, PROTOCOL, Role};

/// Size cap of the frame, so small that a fuzzer also reaches what is over it.
const CAP: usize = 4096;

/// Decodes the bytes and reads them as each role's message.
///
/// # Panics
/// The decoder breaks a promise: columns beyond the frame, or token ranges beyond their column.
pub fn read(bytes: &[u8]) {
    let Ok(frame) = Frame::decode(bytes, CAP) else {
        return;
    };
    assert!(bytes.len() <= CAP);
    if Hello::protocol(&frame).is_ok() {
        let _ = Hello::read(&frame, PROTOCOL);
    }
    for role in [
        Role::Generator,
        Role::Scorer,
        Role::Evaluator,
        Role::Learner,
    ] {
        match Message::read(&frame, role) {
            Ok(Message::Chunks(chunks)) => {
                assert_eq!(chunks.tokens.len(), chunks.logprobs.len());
                let mut end = 0;
                for item in &chunks.items {
                    assert_eq!(item.tokens.start, end);
                    end = item.tokens.end;
                    assert!(end <= chunks.tokens.len());
                }
            }
            Ok(Message::Evaluate(evaluate)) => {
                assert_eq!(evaluate.prompts.len(), evaluate.metas.len());
                let within = |prompt: &std::ops::Range<usize>| {
                    evaluate.prompt_tokens.get(prompt.clone()).is_some()
                };
                assert!(evaluate.prompts.iter().all(within));
            }
            // The text of an error is made of what the peer sent.
            Err(error) => assert!(error.to_string().len() < 4096),
            Ok(_) => {}
        }
    }
}
