"""What the API server's refusals mean, as a small tree; each is translated once, here.

`cluster` raises them; the queue turns them into waiting, `reconcile` turns some into conditions. Messages are the
server's own words, which name objects and fields but never hold a Secret's data.
"""

# ruff: noqa: N818 - the suffix would be on every one of them
from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError

_MESSAGE_CHARS = 1000
"""A refused StatefulSet can be quoted in full; conditions and logs need its beginning."""


class ClusterError(HanmaruError):
    """The API server refused, or did not answer; the subclass says which."""

    code_of_kind = ErrorCode.INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(self.code_of_kind, message[:_MESSAGE_CHARS], retry_after_s=retry_after_s)


class NotFound(ClusterError):
    """No such object, or its kind is not served (a CRD is missing)."""

    code_of_kind = ErrorCode.NOT_FOUND


class Conflict(ClusterError):
    """The object has changed since it was read, has another uid, or exists already: look again."""


class Gone(ClusterError):
    """The list or watch is too old to go on with: begin anew."""


class Invalid(ClusterError):
    """The object breaks a rule of the API or of an admission policy; trying the same again does not help."""

    code_of_kind = ErrorCode.INVALID_REQUEST


class Forbidden(ClusterError):
    """RBAC, a quota or an admission plugin says no."""


class TooMany(ClusterError):
    """The server asks for fewer requests; `retry_after_s` says how long to wait."""

    code_of_kind = ErrorCode.RATE_LIMIT_EXCEEDED


class Unreachable(ClusterError):
    """No answer in time, a broken connection, or a server that cannot serve now (5xx, 401 while it starts)."""


class NotLeader(ClusterError):
    """We do not hold the lease (any more), so nothing is written."""


class VerbNotListed(ClusterError):
    """Our own bug: `kinds` does not list what the code wants to do, so no role would allow it."""


_BY_STATUS: Mapping[int, type[ClusterError]] = {
    HTTPStatus.BAD_REQUEST: Invalid,
    HTTPStatus.UNAUTHORIZED: Unreachable,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Gone,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Invalid,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: Invalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: TooMany,
}


_UNKNOWN_FIELD = "failed to create typed patch object"
"""Server-side apply answers an unknown field with 500 and these words (API server 1.36)."""


class _Cause(msgspec.Struct):
    field: str = ""


class _Details(msgspec.Struct):
    retry_after_s: float | None = msgspec.field(name="retryAfterSeconds", default=None)
    causes: list[_Cause] = []


class _Status(msgspec.Struct):
    message: str = ""
    details: _Details | None = None


def from_answer(status: int, body: bytes, headers: Mapping[str, str]) -> ClusterError:
    """The error of an answer with this HTTP status (400 or more). What no table names is `Unreachable`: retried."""
    try:
        said = msgspec.json.decode(body, type=_Status)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # a proxy in between, or an overloaded server's plain text
        said = _Status(message=body[:_MESSAGE_CHARS].decode(errors="replace").strip())
    retry_after_s = _seconds(headers.get("retry-after"))
    if retry_after_s is None and said.details is not None:
        retry_after_s = said.details.retry_after_s
    kind = _BY_STATUS.get(status, Unreachable)
    if said.message.startswith(_UNKNOWN_FIELD):
        kind = Invalid
    if said.details is not None and any(cause.field == "metadata.uid" for cause in said.details.causes):
        kind = Conflict  # server-side apply calls another object of that name an invalid change of the uid
    return kind(said.message or f"the API server answered {status}", retry_after_s=retry_after_s)


def _seconds(header: str | None) -> float | None:
    """Of `Retry-After`, which the API server gives in whole seconds."""
    return float(header) if header is not None and header.isdecimal() else None
