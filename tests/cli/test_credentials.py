"""How a token is kept fresh. Certificates, authorities and login programs: `tests/operator/test_rollout_cli.py`."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest
from hanmaru_cli.credentials import RenewedToken, prove
from hanmaru_cli.kubeconfig import Access, Cluster, User


@pytest.mark.parametrize(
    ("accepted", "statuses", "logins"), [("old", [200, 200], 0), ("new", [200, 200], 1), ("", [401], 1)]
)
def test_a_refused_token_is_renewed_once(accepted: str, statuses: Sequence[int], logins: int) -> None:
    renewed = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200 if request.headers["Authorization"] == f"Bearer {accepted}" else 401)

    def renew() -> str:
        renewed.append(1)
        return "new"

    with httpx2.Client(transport=httpx2.MockTransport(answer), auth=RenewedToken("old", renew)) as client:
        assert [client.get("https://a.test/").status_code for _ in statuses] == statuses
    assert len(renewed) == logins


def access(user: User, **cluster: object) -> Access:
    return Access("mine", "default", Cluster("https://a.test", **cluster), user)  # type: ignore[arg-type]


def test_a_token_of_a_file_is_read_again_when_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    _, auth = prove(access(User(token_file=str(file))))
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["Authorization"])
        file.write_text("new")
        return httpx2.Response(200 if seen[-1] == "Bearer new" else 401)

    with httpx2.Client(transport=httpx2.MockTransport(answer), auth=auth) as client:
        assert client.get("https://a.test/").status_code == 200
    assert seen == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize(("insecure", "mode"), [(False, ssl.CERT_REQUIRED), (True, ssl.CERT_NONE)])
def test_a_server_is_trusted_blindly_only_when_told_to(insecure: bool, mode: ssl.VerifyMode) -> None:
    context, auth = prove(access(User(), insecure_skip_tls_verify=insecure))
    assert context.verify_mode is mode
    assert auth is None


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        (User(), {"certificate_authority_data": "???"}),
        (User(), {"certificate_authority_data": "bm8gUEVN"}),
        (User(), {"certificate_authority": "/nowhere"}),
        (User(token_file="/nowhere"), {}),
        (User(client_certificate_data="bm8gUEVN", client_key_data="bm8gUEVN"), {}),
    ],
)
def test_what_is_broken_is_found_before_anything_is_sent(user: User, cluster: dict[str, str]) -> None:
    with pytest.raises((OSError, ValueError)):
        prove(access(user, **cluster))
