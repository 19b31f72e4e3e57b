"""A kubeconfig's login program (`exec`): how it is run, and its token on every request.

`api_server` logs in once before the first request, because the credentials may be a certificate, and again when the
API server refuses a token: those of the clouds live for minutes, a rollout for hours. The program speaks to its user by
standard error and, where it may, by standard input. What it printed is never shown: it holds the token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from http import HTTPStatus
from typing import Any

import httpx2
import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_cli.kubeconfig import Access, LoginProgram

LOGIN_TIMEOUT_S = 300.0
"""Some wait for a person in a browser."""


class Credentials(msgspec.Struct, frozen=True):
    """What the program printed: a token, a certificate with its key, or both."""

    token: str = ""
    certificate: str = msgspec.field(name="clientCertificateData", default="")
    """PEM."""
    key: str = msgspec.field(name="clientKeyData", default="")


class _Printed(msgspec.Struct):
    status: Credentials


def log_in(access: Access, login: LoginProgram) -> Credentials:
    """Run the program. Raises HanmaruError (CONFIGURATION)."""
    is_interactive = login.interactive_mode != "Never" and sys.stdin is not None and sys.stdin.isatty()
    if login.interactive_mode == "Always" and not is_interactive:
        raise _failed(access, f"{login.command} needs a terminal to log in")
    extra = {each.get("name", ""): each.get("value", "") for each in login.env or ()}
    try:
        done = subprocess.run(
            [login.command, *(login.args or ())],
            env={**os.environ, **extra, "KUBERNETES_EXEC_INFO": json.dumps(_question(access, login, is_interactive))},
            stdin=None if is_interactive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=LOGIN_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        hint = f": {login.install_hint.strip()}" if login.install_hint else "; install it, or use another context"
        raise _failed(access, f"its login program {login.command} is not there{hint}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(access, f"its login program {login.command} gave no answer ({type(error).__name__})") from error
    if done.returncode != 0:
        raise _failed(access, f"its login program {login.command} ended with status {done.returncode}")
    try:
        found = msgspec.json.decode(done.stdout, type=_Printed).status
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = Credentials()
    if not found.token and not (found.certificate and found.key):
        raise _failed(access, f"its login program {login.command} printed no credentials")
    return found


class TokenFromLogin(httpx2.Auth):
    """Puts the token on each request, and asks for a new one when it is refused."""

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


def _question(access: Access, login: LoginProgram, is_interactive: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"interactive": is_interactive}
    if login.provide_cluster_info:
        spec["cluster"] = dict(access.cluster or {})
    return {"kind": "ExecCredential", "apiVersion": login.api_version, "spec": spec}


def _failed(access: Access, why: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, f"context {access.context!r} cannot log in: {why}")
