use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn sglang_of(json: &str) -> Result<Sampled, EngineJsonError> {
    parse_engine_json(json.as_bytes(), EngineShape::Sglang)
}

fn vllm_of(json: &str) -> Result<Sampled, EngineJsonError> {
    parse_engine_json(json.as_bytes(), EngineShape::Vllm)
}

fn two() -> Sampled {
    Sampled {
        tokens: vec![5, 0],
        logprobs: vec![-0.5, -2.0],
    }
}

#[test]
fn sglang_list_and_whole_answer_read_the_same() {
    let list = "[[-0.5,5,null], [-2e0, 0, \" \\u00e9\\\"\"]]";
    assert_eq!(sglang_of(list), Ok(two()));
    let answer = format!(
        "{{\"text\": \"a\", \"meta_info\": {{\"id\": \"x\", \"output_token_logprobs\": {list}, \"n\": [1.5, {{}}]}}}} "
    );
    assert_eq!(sglang_of(&answer), Ok(two()));
    assert_eq!(sglang_of("[]"), Ok(Sampled::default()));
}

#[test]
fn vllm_completion_and_chat_read_the_same() {
    let named = r#"{"tokens": ["token_id:5", "token_id:0"], "token_logprobs": [-0.5, -2], "top_logprobs": null}"#;
    assert_eq!(vllm_of(named), Ok(two()));
    let whole = r#"{"id": "c", "choices": [{"index": 0, "text": "ab", "logprobs":
        {"tokens": ["a", "b"], "token_logprobs": [-0.5, -2.0], "text_offset": [0, 1]}, "token_ids": [5, 0]}]}"#;
    assert_eq!(vllm_of(whole), Ok(two()));
    let chat = r#"{"choices": [{"message": {"content": "ab"}, "logprobs": {"content": [
        {"token": "token_id:5", "logprob": -0.5, "bytes": [97], "top_logprobs": []},
        {"top_logprobs": [], "logprob": -2.0, "token": "token_id:0"}]}}]}"#;
    assert_eq!(vllm_of(chat), Ok(two()));
}

#[test]
fn what_is_wrong_is_named_with_its_byte() {
    let text = |result: Result<Sampled, EngineJsonError>| result.unwrap_err().to_string();
    assert_eq!(
        text(sglang_of("[[null,5,null]]")),
        "want a number at byte 2"
    );
    assert_eq!(
        text(sglang_of("[[-0.5,-1,null]]")),
        "want a token id: a whole number from 0 to 2^31 - 1 at byte 7"
    );
    assert_eq!(
        text(sglang_of("[[-0.5,2147483648,null]]")),
        "want a token id: a whole number from 0 to 2^31 - 1 at byte 7"
    );
    assert_eq!(
        text(sglang_of("[[-1e39,1,null]]")),
        "want a logprob that is finite in single precision at byte 2"
    );
    assert_eq!(
        text(sglang_of("[[-0.5,1,null],]")),
        "want [logprob, id, text] at byte 15"
    );
    assert_eq!(
        text(sglang_of("[] []")),
        "want the end of the document at byte 3"
    );
    assert_eq!(
        text(sglang_of("{\"meta_info\": {}}")),
        "the answer has no meta_info.output_token_logprobs"
    );
    assert_eq!(
        text(vllm_of("{\"tokens\": [\"a\"], \"token_logprobs\": [-1]}")),
        "want a string token_id:N (or ask the engine for token_ids) at byte 13"
    );
    assert_eq!(
        text(vllm_of("{\"token_ids\": [1, 2], \"token_logprobs\": [-1]}")),
        "2 token ids and 1 logprobs; want as many of each"
    );
    assert_eq!(
        text(vllm_of(
            "{\"token_logprobs\": [-1], \"token_logprobs\": [-1]}"
        )),
        "token_logprobs is given again at byte 42"
    );
    assert_eq!(
        text(vllm_of("{\"choices\": [{}, {}]}")),
        "want the end of the list: one choice at byte 15"
    );
}

#[test]
fn what_json_does_not_allow_is_refused() {
    for number in [
        "01",
        "+1",
        "1.",
        ".5",
        "1e",
        "-",
        "NaN",
        "-Infinity",
        "0x1",
        "1_0",
    ] {
        assert!(
            sglang_of(&format!("[[{number},1,null]]")).is_err(),
            "{number}"
        );
    }
    for string in ["\"\\x\"", "\"\\u12g4\"", "\"\n\"", "\"open", "'a'"] {
        assert!(
            sglang_of(&format!("[[-1,1,{string}]]")).is_err(),
            "{string}"
        );
    }
    assert!(parse_engine_json(b"[[-1,1,\"\xff\"]]", EngineShape::Sglang).is_err());
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(70), "]".repeat(70));
    assert!(sglang_of(&deep).is_err());
}

/// What serde_json finds in the same bytes.
fn expected(entries: &[Value]) -> Sampled {
    Sampled {
        tokens: entries
            .iter()
            .map(|entry| entry[1].as_i64().expect("an id") as i32)
            .collect(),
        logprobs: entries
            .iter()
            .map(|entry| entry[0].as_f64().expect("a logprob") as f32)
            .collect(),
    }
}

proptest! {
    #[test]
    fn whatever_serde_json_writes_is_read_back(
        entries in prop::collection::vec((-1e30_f64..0.0, 0..i32::MAX, any::<Option<String>>()), 0..40),
        pretty: bool,
    ) {
        let entries: Vec<Value> = entries.into_iter().map(|(logprob, id, text)| json!([logprob, id, text])).collect();
        let answer = json!({"text": "\u{1f600}", "meta_info": {"a": [null, true, {"b": -1}], "output_token_logprobs": entries}});
        let bytes = if pretty { serde_json::to_vec_pretty(&answer) } else { serde_json::to_vec(&answer) };
        let bytes = bytes.expect("a value can be written");
        prop_assert_eq!(parse_engine_json(&bytes, EngineShape::Sglang), Ok(expected(&entries)));
    }

    #[test]
    fn no_bytes_make_it_panic_and_what_it_takes_is_json(mut bytes in Just(
        br#"{"text": "\u00e9", "meta_info": {"n": 1e3, "output_token_logprobs": [[-0.25, 7, null], [-1.5, 9, "b"]]}}"#.to_vec()
    ), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index) {
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        for shape in [EngineShape::Sglang, EngineShape::Vllm] {
            if parse_engine_json(&bytes, shape).is_ok() {
                prop_assert!(serde_json::from_slice::<Value>(&bytes).is_ok());
            }
        }
    }
}
