"""The one table from error codes to HTTP, and the OpenAI body an error is told in. Pure; called by `asgi`."""

from __future__ import annotations

import math

import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError

STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.REQUEST_TIMEOUT: 408,
    ErrorCode.RATE_LIMIT_EXCEEDED: 429,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.STORE_UNAVAILABLE: 503,
    ErrorCode.WORKER_LOST: 502,
    ErrorCode.WORKER_REFUSED: 400,
    ErrorCode.SHUTTING_DOWN: 503,
    ErrorCode.CONFIGURATION: 500,
    ErrorCode.ENGINE_FAILED: 502,
    ErrorCode.INTERNAL: 500,
}

_DEFAULT_RETRY_AFTER_S = 1
_encoder = msgspec.json.Encoder()


def error_type(code: ErrorCode) -> str:
    """OpenAI's `type` of an error; its `code` is ours."""
    if code is ErrorCode.INVALID_API_KEY:
        return "authentication_error"
    if code is ErrorCode.RATE_LIMIT_EXCEEDED:
        return "rate_limit_error"
    return "invalid_request_error" if STATUS[code] < 500 else "server_error"


def error_body(error: HanmaruError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _encoder.encode(
        {
            "error": {
                "message": error.message,
                "type": error_type(error.code),
                "param": error.param,
                "code": error.code.value,
            }
        }
    )


def error_event(error: HanmaruError) -> bytes:
    """The last event of a stream that could not be finished."""
    return b"data: " + error_body(error) + b"\n\n"


def retry_after(error: HanmaruError) -> bytes | None:
    """Value of `Retry-After`, whole seconds; on 429 and 503 always."""
    if error.retry_after_s is not None:
        return str(max(1, math.ceil(error.retry_after_s))).encode()
    return str(_DEFAULT_RETRY_AFTER_S).encode() if STATUS[error.code] in (429, 503) else None
