"""Token ids and lengths that the model does not have never reach an engine, which they would end."""

from __future__ import annotations

import json

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.admission.fields import parse_request
from hanmaru_gateway.admission.vocabulary import check_against_model
from hanmaru_gateway.request import Kind


def _check(**fields: object) -> None:
    body = json.dumps({"model": "k", "messages": [{"role": "user", "content": "x"}]} | fields)
    check_against_model(parse_request(Kind.CHAT, body.encode()), vocabulary_tokens=100, output_tokens=10)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stop_token_ids", [1, 100], "has token id 100; this model has ids 0 to 99"),
        ("logit_bias", {"99": 1, "100": 1}, "has token id 100; this model has ids 0 to 99"),
        ("min_tokens", 11, "is 11, but the answer may have 10 tokens"),
    ],
)
def test_what_the_model_does_not_have_is_refused_by_name(field: str, value: object, said: str) -> None:
    with pytest.raises(HanmaruError, match=said) as caught:
        _check(**{field: value})
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, field)


def test_what_it_has_passes() -> None:
    _check()
    _check(stop_token_ids=[0, 99], logit_bias={"99": 1, "0": -1}, min_tokens=10)
