from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hanmaru_cli.exec_login import Credentials, log_in
from hanmaru_cli.kubeconfig import Access, Cluster, LoginProgram, User
from hanmaru_contracts.errors import HanmaruError

V1 = "client.authentication.k8s.io/v1"
CLUSTER = {"server": "https://a.test", "certificate-authority-data": "Y2E="}
ACCESS = Access("mine", "default", Cluster("https://a.test", certificate_authority_data="Y2E="), User())


def program(script: str, **more: Any) -> LoginProgram:
    return LoginProgram(api_version=V1, command=sys.executable, args=("-c", script), **more)


def printing(status: dict[str, str]) -> LoginProgram:
    return program(f"print({json.dumps(json.dumps({'status': status}))})")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"token": "t"}, Credentials(token="t")),
        ({"clientCertificateData": "c", "clientKeyData": "k"}, Credentials(certificate="c", key="k")),
        ({"token": "t", "expirationTimestamp": "2026-11-22T00:00:00Z"}, Credentials(token="t")),
    ],
)
def test_a_login_program_gives_a_token_or_a_certificate(status: dict[str, str], expected: Credentials) -> None:
    assert log_in(ACCESS, printing(status)) == expected


@pytest.mark.parametrize(("asks_for_cluster", "cluster"), [(False, None), (True, CLUSTER)])
def test_a_login_program_is_told_what_it_is_for(asks_for_cluster: bool, cluster: dict[str, str] | None) -> None:
    told = "os.environ['KUBERNETES_EXEC_INFO'] + os.environ['E']"
    echo = f"import json, os; print(json.dumps({{'status': {{'token': {told}}}}}))"
    login = program(echo, env=({"name": "E", "value": "!"},), provide_cluster_info=asks_for_cluster)
    heard = json.loads(log_in(ACCESS, login).token.removesuffix("!"))
    assert (heard["kind"], heard["apiVersion"]) == ("ExecCredential", V1)
    assert heard["spec"].get("cluster") == cluster


@pytest.mark.parametrize(
    ("login", "said"),
    [
        (program("raise SystemExit(3)"), "ended with status 3"),
        (program("print('hello')"), "printed no credentials"),
        (program("print('{}')"), "printed no credentials"),
        (printing({}), "printed no credentials"),
        (printing({"clientCertificateData": "c"}), "printed no credentials"),
        (LoginProgram(api_version=V1, command="/nowhere/login"), "/nowhere/login is not there; install it"),
        (LoginProgram(api_version=V1, command="/nowhere/login", install_hint="brew it\n"), "is not there: brew it"),
        (LoginProgram(api_version=V1, command="/"), "gave no answer"),
        (program("", interactive_mode="Always"), "needs a terminal"),
    ],
)
def test_a_login_that_fails_says_how(login: LoginProgram, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(HanmaruError, match=f"context 'mine' cannot log in: .*{said}"):
        log_in(ACCESS, login)


def test_what_a_failed_login_printed_is_not_repeated() -> None:
    with pytest.raises(HanmaruError) as raised:
        log_in(ACCESS, program("print('hidden-token')"))
    assert "hidden-token" not in raised.value.message


def test_a_login_program_is_told_the_authority_that_stands_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("ca")
    cluster = Cluster("https://a.test", certificate_authority=str(tmp_path / "ca.crt"))
    echo = "import json, os; print(json.dumps({'status': {'token': os.environ['KUBERNETES_EXEC_INFO']}}))"
    found = log_in(Access("mine", "default", cluster, User()), program(echo, provide_cluster_info=True))
    assert json.loads(found.token)["spec"]["cluster"] == CLUSTER


def test_login_programs_are_not_asked_for_by_a_shell(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    login = LoginProgram(api_version=V1, command=f"touch {marker}")
    with pytest.raises(HanmaruError, match="is not there"):
        log_in(ACCESS, login)
    assert not marker.exists()
