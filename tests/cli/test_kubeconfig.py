from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hanmaru_cli import kubeconfig
from hanmaru_cli.kubeconfig import Access, read_access
from hanmaru_contracts.errors import ErrorCode, HanmaruError


def write(file: Path, *names: str, current: str | None = None, **user: Any) -> Path:
    """A kubeconfig with a context, cluster and user of each name."""
    document = {
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}.test"}} for name in names],
        "users": [{"name": name, "user": user or {"token": f"token-{name}"}} for name in names],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": name, "namespace": f"ns-{name}"}} for name in names
        ],
        "current-context": current,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(document))
    return file


def server_of(access: Access) -> tuple[str, str]:
    return access.server, access.namespace


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("https://b.test", "ns-b")),
        ({"context": "a"}, ("https://a.test", "ns-a")),
        ({"context": "a", "namespace": "mine"}, ("https://a.test", "mine")),
        ({"namespace": "mine"}, ("https://b.test", "mine")),
    ],
)
def test_context_and_namespace_come_from_the_command_line_else_from_the_file(
    tmp_path: Path, asked: dict[str, str], expected: tuple[str, str]
) -> None:
    file = write(tmp_path / "config", "a", "b", current="b")
    assert server_of(read_access({"KUBECONFIG": str(file)}, **asked)) == expected


def test_a_context_without_a_namespace_means_default(tmp_path: Path) -> None:
    file = write(tmp_path / "config", "a", current="a")
    document = yaml.safe_load(file.read_text())
    del document["contexts"][0]["context"]["namespace"]
    file.write_text(yaml.safe_dump(document))
    assert read_access({"KUBECONFIG": str(file)}).namespace == "default"


def test_several_files_are_one_and_the_first_word_counts(tmp_path: Path) -> None:
    first = write(tmp_path / "1", "a")
    second = write(tmp_path / "2", "a", "b", current="b")
    third = write(tmp_path / "3", "c", current="c")
    second.write_text(second.read_text().replace("https://a.test", "https://other.test"))
    environ = {"KUBECONFIG": f"{first}:{tmp_path / 'missing'}:{second}:{third}"}
    assert read_access(environ).context == "b"
    assert read_access(environ, context="a").server == "https://a.test"
    assert read_access(environ, context="c").server == "https://c.test"


def test_the_file_asked_for_wins_over_the_environment(tmp_path: Path) -> None:
    file, other = write(tmp_path / "1", "a", current="a"), write(tmp_path / "2", "b", current="b")
    assert read_access({"KUBECONFIG": str(other)}, kubeconfig=str(file)).context == "a"


def test_paths_are_relative_to_the_file_they_stand_in(tmp_path: Path) -> None:
    login = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./bin/login", "args": ["-x"]}
    user = {"client-certificate": "me.crt", "client-key": "/keys/me.key", "exec": login}
    access = read_access({}, kubeconfig=str(write(tmp_path / "deep" / "config", "a", current="a", **user)))
    assert access.user.client_certificate == str(tmp_path / "deep" / "me.crt")
    assert access.user.client_key == "/keys/me.key"
    assert access.user.login is not None
    assert access.user.login.command == str(tmp_path / "deep" / "bin/login")


def test_a_login_program_of_the_path_keeps_its_name(tmp_path: Path) -> None:
    login = {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"}
    access = read_access({}, kubeconfig=str(write(tmp_path / "config", "a", current="a", exec=login)))
    assert access.user.login is not None
    assert access.user.login.command == "aws"


@pytest.mark.parametrize(
    ("text", "asked", "said"),
    [
        (None, {}, "set KUBECONFIG or give --kubeconfig"),
        (None, {"kubeconfig": "/nowhere/config"}, "no kubeconfig /nowhere/config"),
        ("{}", {}, "has no current context; give --context with one of: none"),
        ("- a", {}, "is not a kubeconfig"),
        ("a: [", {}, "is not a kubeconfig"),
        ("contexts: [{context: {}}]", {}, "is not a kubeconfig: 'name'"),
        ("contexts: [{name: a, context: {cluster: b}}]\ncurrent-context: a", {}, "names cluster 'b', which is not"),
        ("contexts: [{name: a, context: {}}]\ncurrent-context: a", {}, "names cluster None"),
        ("contexts: [{name: a, context: {cluster: b}}]", {"context": "c"}, "no context 'c'; give --context"),
    ],
)
def test_what_cannot_be_used_is_said_with_what_to_do(
    tmp_path: Path, text: str | None, asked: dict[str, str], said: str
) -> None:
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    with pytest.raises(HanmaruError, match=said.replace("(", r"\(")) as raised:
        read_access({"KUBECONFIG": str(file)}, **asked)
    assert raised.value.code is ErrorCode.CONFIGURATION
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"token": "t", "as": "root"}, "`as` is not done here"),
        ({"token": "t", "as-groups": ["system:masters"]}, "`as-groups` is not done here"),
        ({"auth-provider": {"name": "gcp"}}, "`auth-provider` is not done here"),
        ({"client-certificate": "a.crt"}, "a client certificate and its key belong together"),
        ({"token": 5}, "cannot be read"),
    ],
)
def test_a_user_that_cannot_be_played_is_refused_and_never_left_out(
    tmp_path: Path, user: dict[str, Any], said: str
) -> None:
    file = write(tmp_path / "config", "a", current="a", **user)
    with pytest.raises(HanmaruError, match=said):
        read_access({}, kubeconfig=str(file))


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ServiceAccount's folder of a pod without a kubeconfig."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kubeconfig, "SERVICE_ACCOUNT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("host", "server"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pod_acts_as_its_service_account(pod: Path, host: str, server: str) -> None:
    (pod / "namespace").write_text("own")
    access = read_access({"KUBERNETES_SERVICE_HOST": host})
    assert server_of(access) == (server, "own")
    assert access.user.token_file == str(pod / "token")


@pytest.mark.usefixtures("pod")
def test_a_pod_without_a_service_account_needs_a_kubeconfig() -> None:
    with pytest.raises(HanmaruError, match="this pod has no ServiceAccount to act with; give --kubeconfig"):
        read_access({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
