"""A small client of the Kubernetes API for the cluster's own use and for tests: JSON in, JSON out, no types, no cache.

The operator's client is another one; this one has no opinion about objects and needs only the standard library.
"""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REQUEST_TIMEOUT_S = 30.0
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server refused: its HTTP status and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class ApiClient:
    """Speaks to one API server as one user; a connection for each request, so any thread may use it."""

    def __init__(self, url: str, *, authority: Path, certificate: Path, key: Path) -> None:
        self._netloc = urlsplit(url).netloc
        self._tls = ssl.create_default_context(cafile=str(authority))
        self._tls.load_cert_chain(certificate, key)

    def get(self, path: str) -> dict[str, Any]:
        """Read an object or a list: `/api/v1/nodes/a`. Raises ApiError."""
        return self.request("GET", path)

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create `body` in the collection `path`. Raises ApiError."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Merge `body` into the object (or a subresource) at `path`. Raises ApiError."""
        return self.request("PATCH", path, body, content_type=MERGE_PATCH)

    def delete(self, path: str) -> None:
        """Ask for the deletion of an object or of a collection; what is gone already is no error. Raises ApiError."""
        try:
            self.request("DELETE", path)
        except ApiError as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def changes(self, path: str, since: str) -> list[dict[str, Any]]:
        """Watch events of the collection `path` after a resource version until now, oldest first. Raises ApiError.

        The API server ends a watch after a second at the least, so this takes one.
        """
        status, text = self._exchange("GET", f"{path}?watch=1&resourceVersion={since}&timeoutSeconds=1", None, "")
        events: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        refusal = next((event["object"] for event in events if event.get("type") == "ERROR"), None)
        if status >= http.client.BAD_REQUEST or refusal:
            raise ApiError(status, text)
        return events

    def is_ready(self) -> bool:
        """Whether the API server answers and calls itself ready."""
        try:
            return self._exchange("GET", "/readyz", None, "text/plain")[0] == http.client.OK
        except OSError:
            return False

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """One exchange; the answer's JSON. Raises ApiError, and OSError when nobody answers."""
        status, text = self._exchange(method, path, None if body is None else json.dumps(body), content_type)
        answer: dict[str, Any] = json.loads(text) if text.startswith("{") else {"message": text}
        if status >= http.client.BAD_REQUEST:
            raise ApiError(status, str(answer.get("message")))
        return answer

    def _exchange(self, method: str, path: str, body: str | None, content_type: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(self._netloc, timeout=REQUEST_TIMEOUT_S, context=self._tls)
        try:
            connection.request(method, path, body, {"Content-Type": content_type})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()
