use super::*;
use crate::frame::{FrameWriter, Nested};
use crate::group::Finish;

const CAP: usize = 1 << 20;

fn error(bytes: &[u8], role: Role) -> String {
    Message::read(&Frame::decode(bytes, CAP).unwrap(), role)
        .unwrap_err()
        .to_string()
}

fn chunks_of(
    counts: &[i64],
    tokens: usize,
    logprobs: usize,
    finish: impl Fn(&mut Nested),
) -> Vec<u8> {
    let mut open = FrameWriter::new("chunks")
        .list("items", counts.len(), |out| {
            for (lease, &count) in counts.iter().enumerate() {
                out.list(5);
                out.int(lease as i64);
                out.int(10);
                out.int(count);
                finish(out);
                out.list(1);
                out.list(3);
                out.int(1);
                out.int(7);
                out.int(count);
            }
        })
        .column::<i32>("tokens", tokens)
        .column::<f32>("logprobs", logprobs)
        .open();
    open.fill(&vec![5_i32; tokens]);
    open.fill(&vec![-0.5_f32; logprobs]);
    open.finish()
}

#[test]
fn chunks_say_where_their_tokens_lie() {
    let bytes = chunks_of(&[2, 0, 3], 5, 5, |out| out.str("length"));
    let frame = Frame::decode(&bytes, CAP).unwrap();
    let Message::Chunks(chunks) = Message::read(&frame, Role::Generator).unwrap() else {
        panic!()
    };
    assert_eq!(
        chunks
            .items
            .iter()
            .map(|item| item.tokens.clone())
            .collect::<Vec<_>>(),
        [0..2, 2..2, 2..5]
    );
    let last = Chunk {
        lease: 2,
        offset: 10,
        tokens: 2..5,
        finish: Some(Finish::Length),
        runs: vec![(1, 7, 3)],
    };
    assert_eq!(chunks.items[2], last);
    assert_eq!(&*chunks.logprobs, [-0.5; 5]);
}

#[test]
fn chunks_may_bring_verdicts_along() {
    let bytes = FrameWriter::new("chunks")
        .list("items", 0, |_| ())
        .list("verdicts", 1, |out| {
            out.list(4);
            out.int(7);
            out.float(0.5);
            out.map(1);
            out.str("accuracy");
            out.float(0.5);
            out.str("ok");
        })
        .column::<i32>("tokens", 0)
        .column::<f32>("logprobs", 0);
    let mut open = bytes.open();
    open.end_column();
    open.end_column();
    let bytes = open.finish();
    let frame = Frame::decode(&bytes, CAP).unwrap();
    let Message::Chunks(chunks) = Message::read(&frame, Role::Generator).unwrap() else {
        panic!()
    };
    let want = Graded {
        lease: 7,
        total: Some(0.5),
        parts: vec![("accuracy", 0.5)],
        status: "ok",
    };
    assert_eq!(chunks.verdicts, [want]);
}

#[test]
fn error_names_the_field_what_it_got_and_what_it_wants() {
    let said = |bytes: &[u8]| error(bytes, Role::Generator);
    assert_eq!(
        said(&chunks_of(&[1], 1, 1, |out| out.str("tired"))),
        "chunks: items[0][3] must be nil, stop or length, got \"tired\""
    );
    assert_eq!(
        said(&chunks_of(&[1, -1], 1, 1, Nested::nil)),
        "chunks: items[1][2] must be an integer >= 0, got -1"
    );
    assert!(said(&chunks_of(&[i64::MAX, i64::MAX, i64::MAX], 1, 1, Nested::nil)).starts_with(
        "chunks: column tokens must be as long as the header says, got 1 elements where the header says 1844"
    ));
    assert_eq!(
        said(&chunks_of(&[2], 2, 1, Nested::nil)),
        "chunks: column logprobs must be as long as the header says, got 1 elements where the header says 2"
    );
    assert_eq!(
        said(&FrameWriter::new("ready").finish()),
        "ready: free must be given, got nothing"
    );
    assert_eq!(
        said(&FrameWriter::new("ready").str("free", "8").finish()),
        "ready: free must be an integer >= 0, got \"8\""
    );
    let stats = FrameWriter::new("heartbeat").map("stats", 1, |out| {
        out.str("busy");
        out.list(0);
    });
    assert_eq!(
        said(&stats.finish()),
        "heartbeat: stats.busy must be a number, got a list of 0"
    );
    let no_columns = FrameWriter::new("chunks").list("items", 0, |_| ()).finish();
    assert_eq!(
        said(&no_columns),
        "chunks: column tokens must be i4, got no such column"
    );
}

#[test]
fn each_role_has_its_messages() {
    let verdicts = FrameWriter::new("verdicts")
        .list("items", 0, |_| ())
        .finish();
    assert!(Message::read(&Frame::decode(&verdicts, CAP).unwrap(), Role::Scorer).is_ok());
    assert_eq!(
        error(&verdicts, Role::Generator),
        "verdicts is not a message of a generator"
    );
    let stepped = FrameWriter::new("stepped").finish();
    assert_eq!(
        error(&stepped, Role::Evaluator),
        "stepped is not a message of a evaluator"
    );
    assert_eq!(
        error(&FrameWriter::new("pickle").finish(), Role::Learner),
        "unknown message type \"pickle\""
    );
}

#[test]
fn verdict_that_is_no_number_is_read_and_left_to_the_ledger() {
    let verdicts = FrameWriter::new("verdicts").list("items", 2, |out| {
        for total in [Some(f64::NAN), None] {
            out.list(4);
            out.int(3);
            match total {
                Some(total) => out.float(total),
                None => out.nil(),
            }
            out.map(1);
            out.str("accuracy");
            out.int(1);
            out.str("ok");
        }
    });
    let bytes = verdicts.finish();
    let frame = Frame::decode(&bytes, CAP).unwrap();
    let Message::Verdicts(items) = Message::read(&frame, Role::Scorer).unwrap() else {
        panic!()
    };
    assert!(items[0].total.unwrap().is_nan());
    assert_eq!(
        items[1],
        Graded {
            lease: 3,
            total: None,
            parts: vec![("accuracy", 1.0)],
            status: "ok"
        }
    );
}

#[test]
fn hello_of_a_learner_says_more() {
    let hello = |rank: i64| {
        let writer = FrameWriter::new("hello")
            .int("protocol", 1)
            .str("role", "learner")
            .str("name", "learner-0");
        writer
            .str("run", "demo")
            .int("rank", rank)
            .int("world", 2)
            .int("epoch", 3)
            .int("step", 20)
            .finish()
    };
    let bytes = hello(1);
    let frame = Frame::decode(&bytes, CAP).unwrap();
    let read = Hello::read(&frame, Hello::protocol(&frame).unwrap()).unwrap();
    assert_eq!(
        read.learner,
        Some(LearnerHello {
            rank: 1,
            world: 2,
            epoch: 3,
            step: 20,
            machine: None,
        })
    );
    let bytes = hello(2);
    let said = Hello::read(&Frame::decode(&bytes, CAP).unwrap(), 1)
        .unwrap_err()
        .to_string();
    assert_eq!(said, "hello: rank must be 0 <= rank < world, got 2");
}

#[test]
fn evaluation_has_a_meta_for_every_prompt() {
    let evaluate = |lens: &[i32], metas: usize| {
        let writer = FrameWriter::new("evaluate")
            .str("id", "after")
            .int("samples", 2)
            .list("pin", 2, |out| {
                out.int(1);
                out.int(20);
            });
        let writer = writer.map("sampling", 5, |out| {
            for (name, value) in [("temperature", 0.6), ("top_p", 0.95)] {
                out.str(name);
                out.float(value);
            }
            for (name, value) in [("top_k", 0), ("max_tokens", 64)] {
                out.str(name);
                out.int(value);
            }
            out.str("greedy");
            out.bool(false);
        });
        let writer = writer.list("metas", metas, |out| {
            (0..metas).for_each(|_| out.bin(b"{}"))
        });
        let mut open = writer
            .column::<i32>("prompt_tokens", 5)
            .column::<i32>("prompt_lens", lens.len())
            .open();
        open.fill(&[1, 2, 3, 4, 5]);
        open.fill(lens);
        open.finish()
    };
    let bytes = evaluate(&[2, 3], 2);
    let frame = Frame::decode(&bytes, CAP).unwrap();
    let Message::Evaluate(read) = Message::read(&frame, Role::Evaluator).unwrap() else {
        panic!()
    };
    assert_eq!(
        (read.pin, read.samples, read.prompts),
        ((1, 20), 2, vec![0..2, 2..5])
    );
    assert_eq!(read.sampling.max_tokens, 64);
    let said = |lens: &[i32], metas: usize| error(&evaluate(lens, metas), Role::Evaluator);
    assert!(said(&[2, 3], 1).contains("column prompt_lens"));
    assert!(said(&[2, 2], 2).contains("column prompt_tokens"));
    assert!(said(&[2, -3], 2).contains("column prompt_tokens"));
}
