"""One reading of the credentials for both clients."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.connection import kopf_login, read_connection
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User


def kubeconfig(path: Path, user: dict[str, object]) -> dict[str, str]:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://k:6443", "certificate-authority": "ca.crt"}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return {"KUBECONFIG": str(path)}


def test_kopf_logs_in_as_we_do(tmp_path: Path) -> None:
    environ = kubeconfig(tmp_path / "config", {"token": "t", "client-certificate": "a.crt", "client-key": "a.key"})
    login = kopf_login(read_connection(environ))
    assert (login.server, login.token) == ("https://k:6443", "t")
    assert login.ca_path == str(tmp_path / "ca.crt")
    assert (login.certificate_path, login.private_key_path) == (str(tmp_path / "a.crt"), str(tmp_path / "a.key"))


def test_a_rotated_token_is_read_at_the_next_login(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    config = KubeConfig.from_one(
        cluster=Cluster(server="https://k"), user=User(token="old", token_file=str(token))
    ).get()
    assert config is not None
    assert kopf_login(config).token == "old"
    token.write_text("new\n")
    assert kopf_login(config).token == "new"


@pytest.mark.parametrize(
    "user", [{"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "login"}}, {"auth-provider": {}}]
)
def test_login_programs_are_refused_in_words(tmp_path: Path, user: dict[str, object]) -> None:
    if user == {"auth-provider": {}}:
        user = {"auth-provider": {"name": "x"}}
    with pytest.raises(HanmaruError, match="login programs") as caught:
        read_connection(kubeconfig(tmp_path / "config", user))
    assert caught.value.code is ErrorCode.CONFIGURATION


@pytest.mark.parametrize("text", [None, "{}", "current-context: c", "]["])
def test_a_broken_kubeconfig_is_a_wrong_setting(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HanmaruError, match="KUBECONFIG") as caught:
        read_connection({"KUBECONFIG": str(path)})
    assert caught.value.code is ErrorCode.CONFIGURATION
