"""The one table from our errors to gRPC's status codes, and how an error travels in trailing metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from grpc import StatusCode
from hanmaru_contracts.errors import ErrorCode, HanmaruError

STATUS: Mapping[ErrorCode, StatusCode] = MappingProxyType(
    {
        ErrorCode.INVALID_REQUEST: StatusCode.INVALID_ARGUMENT,
        ErrorCode.INVALID_API_KEY: StatusCode.UNAUTHENTICATED,
        ErrorCode.MODEL_NOT_FOUND: StatusCode.NOT_FOUND,
        ErrorCode.NOT_FOUND: StatusCode.UNIMPLEMENTED,
        ErrorCode.METHOD_NOT_ALLOWED: StatusCode.UNIMPLEMENTED,
        ErrorCode.CONTEXT_LENGTH_EXCEEDED: StatusCode.INVALID_ARGUMENT,
        # What gRPC itself answers to a message beyond its bound.
        ErrorCode.BODY_TOO_LARGE: StatusCode.RESOURCE_EXHAUSTED,
        ErrorCode.REQUEST_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
        ErrorCode.RATE_LIMIT_EXCEEDED: StatusCode.RESOURCE_EXHAUSTED,
        # UNAVAILABLE is the one code that says: the same request may work in a moment.
        ErrorCode.NO_WORKER: StatusCode.UNAVAILABLE,
        ErrorCode.STORE_UNAVAILABLE: StatusCode.UNAVAILABLE,
        ErrorCode.WORKER_LOST: StatusCode.UNAVAILABLE,
        ErrorCode.SHUTTING_DOWN: StatusCode.UNAVAILABLE,
        ErrorCode.WORKER_REFUSED: StatusCode.INVALID_ARGUMENT,
        ErrorCode.CONFIGURATION: StatusCode.INTERNAL,
        ErrorCode.ENGINE_FAILED: StatusCode.INTERNAL,
        ErrorCode.INTERNAL: StatusCode.INTERNAL,
    }
)

METADATA_ERROR_CODE = "hanmaru-error-code"
METADATA_ERROR_PARAM = "hanmaru-error-param"
METADATA_RETRY_AFTER = "retry-after-s"


def trailing_metadata(error: HanmaruError) -> tuple[tuple[str, str], ...]:
    """What a client program may want to act on: our code, the field at fault, whole seconds to wait."""
    metadata = [(METADATA_ERROR_CODE, error.code.value)]
    # A field's name can be a caller's own word; metadata takes printable ASCII alone.
    if error.param is not None and error.param.isascii() and error.param.isprintable():
        metadata.append((METADATA_ERROR_PARAM, error.param))
    if error.retry_after_s is not None:
        metadata.append((METADATA_RETRY_AFTER, str(max(1, math.ceil(error.retry_after_s)))))
    return tuple(metadata)
