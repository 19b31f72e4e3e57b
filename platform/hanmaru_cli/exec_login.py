"""A kubeconfig's login program (`exec`): how it is asked, and what it answers.

`credentials` runs it before the first request, and again when its token is refused. The program speaks to its user by
standard error and, where it may, by standard input. What it printed is never shown: it holds the token.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_cli.kubeconfig import Access, Cluster, LoginProgram

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
    extra = {each.get("name", ""): each.get("value", "") for each in login.env}
    try:
        done = subprocess.run(
            [login.command, *login.args],
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


def _question(access: Access, login: LoginProgram, is_interactive: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"interactive": is_interactive}
    if login.provide_cluster_info:
        spec["cluster"] = _cluster(access.cluster)
    return {"kind": "ExecCredential", "apiVersion": login.api_version, "spec": spec}


def _cluster(cluster: Cluster) -> dict[str, Any]:
    """As the protocol has it: with the authority itself, whatever file it stands in."""
    told: dict[str, Any] = msgspec.to_builtins(cluster)
    file = told.pop("certificate-authority")
    if file and not cluster.certificate_authority_data:
        told["certificate-authority-data"] = base64.b64encode(Path(file).read_bytes()).decode()
    return {field: value for field, value in told.items() if value}


def _failed(access: Access, why: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, f"context {access.context!r} cannot log in: {why}")
