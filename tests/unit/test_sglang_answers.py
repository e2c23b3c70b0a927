"""Reading what an SGLang server answers, in every shape that 0.5.23 was seen to give."""

from __future__ import annotations

import json

import numpy as np
import pytest
from r1async.generator.engine import EngineError
from r1async.generator.sglang_answers import Chunk, EventStream, Finish, Labels, error_message, read_chunk
from r1async.types import PolicyVersion, VersionRun


def chunk(tokens: list[int], total: int, **meta: object) -> bytes:
    """An answer with the last ``tokens`` of ``total``; a token's logprob is minus its id / 8."""
    return json.dumps(
        {
            "output_ids": tokens,
            "meta_info": {
                "id": "a",
                "finish_reason": None,
                "weight_version": "1@1",
                "output_token_logprobs": [[-token / 8, token, None] for token in tokens],
                "completion_tokens": total,
                "cached_tokens": 0,
                **meta,
            },
        }
    ).encode()


def test_events_are_whole_however_the_bytes_are_cut():
    data = b'data: {"a": 1}\n\ndata: {"b": "\\n\\n"}\n\ndata: [DONE]\n\n'
    wanted = [b'{"a": 1}', b'{"b": "\\n\\n"}', b"[DONE]"]
    for size in range(1, len(data) + 1):
        stream = EventStream()
        found = [event for i in range(0, len(data), size) for event in stream.feed(data[i : i + size])]
        assert found == wanted, size


def test_an_event_that_is_not_whole_is_kept_back():
    stream = EventStream()
    assert stream.feed(b"data: 1\n\ndata: 2\n") == [b"1"]
    assert stream.feed(b"\n") == [b"2"]
    assert stream.feed(b"") == []


def test_an_incremental_stream_gives_each_token_once():
    have, tokens, logprobs = 0, [], []
    for part, total in (([5], 1), ([6, 7], 3), ([], 3), ([8], 4)):
        read = read_chunk(chunk(part, total))
        new, told = read.after(have)
        have, tokens, logprobs = total, tokens + new, logprobs + told
    assert tokens == [5, 6, 7, 8]
    assert logprobs == [-5 / 8, -6 / 8, -7 / 8, -1.0]


def test_a_cumulative_stream_gives_each_token_once():
    have, tokens = 0, []
    for total in (1, 3, 4):
        new, _ = read_chunk(chunk([5, 6, 7, 8][:total], total)).after(have)
        have, tokens = total, tokens + new
    assert tokens == [5, 6, 7, 8]


def test_a_joined_chunk_that_repeats_everything_gives_each_token_once():
    """Two increments and the whole, which the server joins for a slow reader when it aborts a queued request."""
    read = read_chunk(chunk([6, 7, 5, 6, 7], 3))
    assert read.after(1) == ([6, 7], [-6 / 8, -7 / 8])


def test_a_hole_in_a_stream_is_an_error():
    with pytest.raises(EngineError, match="hole: 1 tokens up to token 4, 2 had come"):
        read_chunk(chunk([8], 4)).after(2)
    with pytest.raises(EngineError, match="hole"):
        read_chunk(chunk([5], 1)).after(2)


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        ({"type": "stop", "matched": 2}, Finish("stop", 2)),
        ({"type": "length", "length": 3}, Finish("length")),
        ({"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}, Finish("abort")),
        ({"type": "abort", "message": "Abort in waiting queue"}, Finish("abort")),
    ],
)
def test_ends(reason, wanted):
    read = read_chunk(chunk([5], 1, finish_reason=reason, weight_versions=[{"version": "1@1", "start": 0, "end": 1}]))
    assert read.finish == wanted
    assert read.spans == (("1@1", 1),)


def test_a_request_ended_in_the_queue_has_no_tokens():
    """Without prompt_tokens, cached_tokens and logprobs, and with a span of nothing."""
    body = {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "id": "a",
            "finish_reason": {"type": "abort", "message": "Abort in waiting queue"},
            "weight_version": "1@1",
            "e2e_latency": 0.1,
            "weight_versions": [{"version": "1@1", "start": 0, "end": 0}],
            "completion_tokens": 0,
        },
    }
    read = read_chunk(json.dumps(body).encode())
    assert (read.after(0), read.spans, read.finish) == (([], []), (), Finish("abort"))


@pytest.mark.parametrize(
    "reason",
    [
        {"type": "stop", "matched": "NaN happened"},
        {"type": "abort", "message": "out of memory", "status_code": 500, "err_type": "InternalServerError"},
        {"type": "something new"},
    ],
)
def test_an_end_that_nobody_asked_for_is_an_error(reason):
    with pytest.raises(EngineError, match=r"ended a request with .*type"):
        read_chunk(chunk([5], 1, finish_reason=reason))


def test_versions_of_several_updates():
    labels = Labels()
    one, two = PolicyVersion(1, 7), PolicyVersion(2, 8)
    assert (labels.add(one), labels.add(two)) == ("7@1", "8@2")
    spans = [
        {"version": "7@1", "start": 0, "end": 2},
        {"version": "8@2", "start": 2, "end": 2},
        {"version": "7@1", "start": 2, "end": 3},
    ]
    read = read_chunk(chunk([5, 6, 7], 3, weight_versions=spans))
    assert read.spans is not None
    assert labels.runs(read.spans) == [VersionRun(version=one, count=2), VersionRun(version=one, count=1)]


def test_a_label_that_is_not_ours_is_an_error():
    labels = Labels()
    labels.add(PolicyVersion(1, 7))
    with pytest.raises(EngineError, match=r"'default', which we did not install \(our last: 7@1\)"):
        labels.version("default")


@pytest.mark.parametrize(
    "spans",
    [
        [{"version": "7@1", "start": 1, "end": 3}],
        [{"version": "7@1", "start": 0, "end": 1}, {"version": "8@1", "start": 2, "end": 3}],
        [{"version": "7@1", "start": 0, "end": -1}],
    ],
)
def test_spans_with_gaps_are_an_error(spans):
    with pytest.raises(EngineError, match="not consecutive"):
        read_chunk(chunk([5, 6, 7], 3, weight_versions=spans))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"error": {"message": "Duplicate request ID detected: a", "code": 400}}, "Duplicate request ID detected: a"),
        ({"error": "top_p must be in (0, 1], got 2"}, "top_p must be"),
        ({"success": False, "message": "no such path"}, "no such path"),
        ("plain words", "plain words"),
    ],
)
def test_errors_have_several_shapes(answer, says):
    assert says in error_message(answer)


def test_an_error_within_a_stream_is_an_error():
    with pytest.raises(EngineError, match="refused a request: too long"):
        read_chunk(b'{"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}')


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"text": "a"}',
        chunk([5], 1).replace(b"-0.625", b"null"),
        chunk([5], 1).replace(b"-0.625", b"NaN"),
        chunk([5], 1).replace(b'"completion_tokens"', b'"tokens"'),
    ],
)
def test_what_is_no_answer_is_an_error(body):
    with pytest.raises(EngineError, match="SGLang's answer"):
        read_chunk(body)


def test_logprobs_after_top_p_replace_those_before():
    read = read_chunk(chunk([5, 6], 2, output_token_sampling_logprobs=[-0.25, 0.0]))
    assert read.after(0) == ([5, 6], [-0.25, 0.0])
    with pytest.raises(EngineError, match="for 2 tokens"):
        read_chunk(chunk([5, 6], 2, output_token_sampling_logprobs=[-0.25]))


def test_a_chunk_is_what_it_says():
    read = read_chunk(chunk([5], 1, cached_tokens=12))
    assert isinstance(read, Chunk)
    assert read.token_ids.dtype == np.int32
    assert (read.label, read.cached, read.finish, read.spans) == ("1@1", 12, None, None)
