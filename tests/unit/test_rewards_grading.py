"""Lines of `r1async grade` as they are read, before a worker sees them."""

import json

import pytest
from r1async.rewards.grading import Line, Result, parse_line


@pytest.mark.parametrize(("num_tokens", "fits"), [(0, True), (2**63 - 1, True), (2**63, False), (-1, False)])
def test_number_of_tokens_that_the_pipe_cannot_carry_is_refused(num_tokens, fits):
    """Beyond 64 bits a batch could not be written, and its worker and the other lines' verdicts went with it."""
    found = parse_line(json.dumps({"id": 1, "completion": "x", "num_tokens": num_tokens}).encode(), ())
    assert isinstance(found, Line if fits else Result)
    if isinstance(found, Result):
        assert found.verdict is not None
        assert found.verdict.status == "invalid"
        assert found.verdict.detail.startswith("num_tokens: must be a whole number")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"id": 1, "completion": "x", "answer": NaN}', "answer: must be a finite number"),
        (b'{"id": 1, "completion": "x", "answer": 1e999}', "answer: must be a finite number"),
        (b'{"id": NaN, "completion": "x", "answer": 1}', "id: has NaN"),
        (b'{"id": [-Infinity], "completion": "x", "answer": 1}', "id: has NaN"),
        (b'{"id": 1, "completion": "x\xff", "answer": 1}', "not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "not JSON: "),
        (b'{"id": 1, "completion": "x", "answer": 1} 2', "not JSON: Extra data"),
        (b'{"completion": "x", "answer": 1}', "id: is missing"),
        (b'{"id": 1, "completion": ["x"], "answer": 1}', "completion: must be a text, got list"),
        (b'{"id": 1, "completion": "x", "answer": true}', "answer: must be a text or a number"),
    ],
)
def test_line_that_cannot_be_graded_says_why(line: bytes, why: str):
    found = parse_line(line, ("answer",))
    assert isinstance(found, Result)
    assert found.verdict is not None
    assert (found.verdict.total, found.verdict.status) == (None, "invalid")
    assert found.verdict.detail.startswith(why)
