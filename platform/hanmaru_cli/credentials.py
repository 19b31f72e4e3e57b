"""A user's credentials and trust as httpx2 takes them: who the server must be, and who we are.

`api_server` calls it once a command. A token of a file or of a login program is asked for anew when it is refused:
those of the clouds live for minutes, a rollout for hours.
"""

from __future__ import annotations

import base64
import ssl
import tempfile
from collections.abc import Callable, Generator
from http import HTTPStatus
from pathlib import Path

import httpx2

from hanmaru_cli.exec_login import log_in
from hanmaru_cli.kubeconfig import Access, Cluster, User


class RenewedToken(httpx2.Auth):
    """Puts a token on each request, and asks for a new one when it is refused."""

    def __init__(self, token: str, renew: Callable[[], str]) -> None:
        self._token = token
        self._renew = renew

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Called by httpx2 for each request."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        response = yield request
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            self._token = self._renew()
            request.headers["Authorization"] = f"Bearer {self._token}"
            yield request


def prove(access: Access) -> tuple[ssl.SSLContext, httpx2.Auth | None]:
    """What to connect with; logs in if need be. Raises HanmaruError, OSError, and ValueError when malformed."""
    user, login = access.user, access.user.login
    context = _trust(access.cluster)
    if user.client_certificate or user.client_certificate_data:
        _load_pair(
            context,
            _pem(user.client_certificate_data, user.client_certificate),
            _pem(user.client_key_data, user.client_key),
        )
    auth = _auth(user)
    if auth is None and login is not None:
        found = log_in(access, login)
        if found.certificate:
            _load_pair(context, found.certificate, found.key)
        if found.token:
            auth = RenewedToken(found.token, lambda: log_in(access, login).token)
    return context, auth


def _trust(cluster: Cluster) -> ssl.SSLContext:
    if cluster.certificate_authority or cluster.certificate_authority_data:
        pem = _pem(cluster.certificate_authority_data, cluster.certificate_authority)
        context = ssl.create_default_context(cadata=pem)
    else:
        context = ssl.create_default_context()
    if cluster.insecure_skip_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _auth(user: User) -> httpx2.Auth | None:
    if user.token_file:

        def read() -> str:
            return Path(user.token_file).read_text(encoding="utf-8").strip()

        return RenewedToken(read(), read)
    if user.token:
        return RenewedToken(user.token, lambda: user.token)
    return httpx2.BasicAuth(user.username, user.password) if user.username else None


def _pem(data: str, file: str) -> str:
    """Where both are given, the kubeconfig's own data counts."""
    return base64.b64decode(data, validate=True).decode() if data else Path(file).read_text(encoding="utf-8")


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """OpenSSL takes a pair from a file alone; only we can read this one, and it is gone at once."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:
        both.write(f"{certificate}\n{key}\n")
        both.flush()
        context.load_cert_chain(both.name)
