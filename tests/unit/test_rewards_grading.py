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
