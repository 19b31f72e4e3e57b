"""The table from error codes to HTTP is complete, and bodies have OpenAI's shape."""

from __future__ import annotations

import json

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.http.errors import STATUS, error_body, error_event, error_type, retry_after


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_bodies_have_openais_shape(code: ErrorCode) -> None:
    error = json.loads(error_body(HanmaruError(code, "what was seen", param="field")))["error"]
    assert error == {"message": "what was seen", "type": error_type(code), "param": "field", "code": code.value}
    assert error_event(HanmaruError(code, "x")).startswith(b'data: {"error":')


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (HanmaruError(ErrorCode.RATE_LIMIT_EXCEEDED, "", retry_after_s=0.01), b"1"),
        (HanmaruError(ErrorCode.RATE_LIMIT_EXCEEDED, "", retry_after_s=12.3), b"13"),
        (HanmaruError(ErrorCode.NO_WORKER, ""), b"1"),
        (HanmaruError(ErrorCode.SHUTTING_DOWN, ""), b"1"),
        (HanmaruError(ErrorCode.INVALID_REQUEST, ""), None),
    ],
)
def test_retry_after_is_whole_seconds_where_trying_again_helps(error: HanmaruError, told: bytes | None) -> None:
    assert retry_after(error) == told
