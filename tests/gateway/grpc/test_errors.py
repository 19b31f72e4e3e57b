"""Claims about errors over gRPC: the table is complete, and metadata stays what gRPC can carry."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.grpc.errors import STATUS, trailing_metadata


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == set(ErrorCode)
    assert StatusCode.OK not in STATUS.values()
    assert StatusCode.UNKNOWN not in STATUS.values()


def test_what_may_work_again_is_told_apart_from_what_will_not() -> None:
    again = {code for code, status in STATUS.items() if status is StatusCode.UNAVAILABLE}
    assert again == {
        ErrorCode.NO_WORKER,
        ErrorCode.STORE_UNAVAILABLE,
        ErrorCode.WORKER_LOST,
        ErrorCode.SHUTTING_DOWN,
    }


@pytest.mark.parametrize(
    ("error", "metadata"),
    [
        (HanmaruError(ErrorCode.INTERNAL, "x"), {"hanmaru-error-code": "internal"}),
        (
            HanmaruError(ErrorCode.RATE_LIMIT_EXCEEDED, "x", retry_after_s=0.2),
            {"hanmaru-error-code": "rate_limit_exceeded", "retry-after-s": "1"},
        ),
        (
            HanmaruError(ErrorCode.NO_WORKER, "x", retry_after_s=4.1),
            {"hanmaru-error-code": "no_worker", "retry-after-s": "5"},
        ),
        (
            HanmaruError(ErrorCode.INVALID_REQUEST, "x", param="messages[0].content"),
            {"hanmaru-error-code": "invalid_request", "hanmaru-error-param": "messages[0].content"},
        ),
        (
            HanmaruError(ErrorCode.INVALID_REQUEST, "x", param="한글\n"),
            {"hanmaru-error-code": "invalid_request"},
        ),
    ],
)
def test_metadata_says_what_a_program_can_act_on(error: HanmaruError, metadata: dict[str, str]) -> None:
    assert dict(trailing_metadata(error)) == metadata
