"""One error tree for all programs. A boundary (HTTP, gRPC, exit code) translates it once, by a table."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """What went wrong, as data; each boundary has a complete table from these to its own codes."""

    INVALID_REQUEST = "invalid_request"
    """The request is malformed or names a field or value that is not allowed."""
    INVALID_API_KEY = "invalid_api_key"
    """No key, an unknown, expired or revoked one, or its tenant is suspended."""
    MODEL_NOT_FOUND = "model_not_found"
    """No such model, or not for this tenant: the two are told apart nowhere."""
    NOT_FOUND = "not_found"
    """No such route."""
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    """Prompt and wanted output do not fit in the model's context."""
    BODY_TOO_LARGE = "body_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    """The client took too long to send its request."""
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    """A tenant's limit is used up for now; `retry_after_s` says for how long."""
    NO_WORKER = "no_worker"
    """No capable worker is registered."""
    STORE_UNAVAILABLE = "store_unavailable"
    """Redis cannot be reached, so nothing new can be admitted."""
    WORKER_LOST = "worker_lost"
    """The worker died, hung or answered nonsense while it served the request."""
    WORKER_REFUSED = "worker_refused"
    """The engine refused a request that the gateway had admitted."""
    SHUTTING_DOWN = "shutting_down"
    CONFIGURATION = "configuration"
    """A setting or a file is wrong; the program cannot start or go on."""
    ENGINE_FAILED = "engine_failed"
    """The engine could not start, died, or stopped answering."""
    INTERNAL = "internal"
    """Our own bug."""


class HanmaruError(Exception):
    """Raised by any program; `message` is for people and holds no prompt and no key.

    `retry_after_s` is set when trying again later can help; `param` names the request field at fault.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, retry_after_s: float | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param
