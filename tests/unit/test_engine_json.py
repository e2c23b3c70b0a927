"""Engine answers to columns, beside Python's own json."""

import json
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from r1async._core import parse_logprobs_json

LOGPROBS = st.floats(-1e30, 0.0)
ENTRIES = st.lists(st.tuples(LOGPROBS, st.integers(0, 2**31 - 1), st.none() | st.text(max_size=4)), max_size=30)


def same(columns, ids, logprobs):
    tokens, values = columns
    assert (tokens.dtype, values.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(tokens, np.array(ids, np.int32))
    np.testing.assert_array_equal(values, np.array(logprobs, np.float64).astype(np.float32))


@given(ENTRIES, st.sampled_from([None, 1]), st.booleans())
def test_sglang_answer_is_what_json_and_numpy_make_of_it(entries, indent, ascii_only):
    logprobs, ids = [each[0] for each in entries], [each[1] for each in entries]
    answer = {"text": "é\n", "meta_info": {"finish_reason": None, "output_token_logprobs": entries, "n": [1e3, {}]}}
    for document in (entries, answer):
        body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
        same(parse_logprobs_json(body, "sglang"), ids, logprobs)


@given(ENTRIES, st.booleans())
def test_vllm_completion_and_chat_are_what_json_and_numpy_make_of_them(entries, as_ids):
    logprobs, ids = [each[0] for each in entries], [each[1] for each in entries]
    names = [f"token_id:{token}" for token in ids]
    content = [
        {"token": name, "logprob": value, "top_logprobs": []} for name, value in zip(names, logprobs, strict=True)
    ]
    for inner in ({"tokens": names, "token_logprobs": logprobs, "text_offset": []}, {"content": content}):
        choice = {"index": 0, "logprobs": inner} | ({"token_ids": ids} if as_ids else {})
        for document in (inner, {"id": "x", "choices": [choice]}):
            same(parse_logprobs_json(json.dumps(document).encode(), "vllm"), ids, logprobs)


def test_wrong_answers_name_the_byte():
    with pytest.raises(ValueError, match="want a number at byte 2"):
        parse_logprobs_json(b"[[null, 5, null]]", "sglang")
    with pytest.raises(ValueError, match="at byte 13"):
        parse_logprobs_json(b'{"tokens": ["a"], "token_logprobs": [-1.0]}', "vllm")
    with pytest.raises(ValueError, match="shape must be one of sglang, vllm"):
        parse_logprobs_json(b"[]", cast(Any, "other"))
