"""`hanmaru rollout` on the real API server: a user's kubeconfig and rights, statuses as an operator would set them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hanmaru_cli.main import cli
from hanmaru_cluster.control_plane import ControlPlane
from hanmaru_contracts.crd.kinds import MODEL_DEPLOYMENT
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT
from hanmaru_testing.cluster_fixtures import Kubectl
from hanmaru_testing.examples import collection, example
from hanmaru_testing.roles import bind, install_people_roles, service_account, user

pytestmark = [pytest.mark.usefixtures("crds"), pytest.mark.timeout(120)]

NAME = "m"
FULL = f"modeldeployment.serving.hanmaru.dev/{NAME}"
REPLACING = ("Progressing", "True", "ReplacingReplicas", "1 of 2 replicas are ready; 1 of 2 run the current revision")
COMPLETE = ("Progressing", "True", "RolloutComplete", "1 replicas run the current revision")
AVAILABLE = ("Available", "True", "AllReplicasReady", "1 of 1 replicas are ready")
ROLE_DEADLINE_S = 20.0

Says = tuple[str, str, str, str]


class Deployment:
    """The test's ModelDeployment, and the operator's side of it."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._api = plane.api
        self._path = f"{collection(MODEL_DEPLOYMENT, namespace)}/{NAME}"
        self.namespace = namespace
        manifest = example("deployment-small")
        manifest["metadata"] = {"name": NAME}
        self._api.create(collection(MODEL_DEPLOYMENT, namespace), manifest)

    def read(self) -> dict[str, Any]:
        return self._api.get(self._path)

    def edit(self, spec: dict[str, Any]) -> None:
        self._api.patch(self._path, {"spec": spec})

    def delete(self) -> None:
        self._api.delete(self._path)

    def show(self, *conditions: Says, **status: Any) -> None:
        """Set the status as an operator does that has seen the object as it is now."""
        seen = self.read()
        generation = seen["metadata"]["generation"]
        stated = [
            {
                "type": kind,
                "status": holds,
                "reason": reason,
                "message": message,
                "observedGeneration": generation,
                "lastTransitionTime": "2026-11-22T00:00:00Z",
            }
            for kind, holds, reason, message in conditions
        ]
        restarted_at = seen["metadata"].get("annotations", {}).get(ANNOTATION_RESTARTED_AT, "")
        shown = {"observedGeneration": generation, "restartedAt": restarted_at, "replicas": 1, "readyReplicas": 1}
        self._api.patch(f"{self._path}/status", {"status": shown | {"conditions": stated} | status})


@pytest.fixture
def deployment(control_plane: ControlPlane, namespace: str) -> Deployment:
    return Deployment(control_plane, namespace)


Hanmaru = Callable[..., Result]


@pytest.fixture
def hanmaru(control_plane: ControlPlane, namespace: str) -> Hanmaru:
    """`hanmaru rollout` as the administrator, or by the kubeconfig given."""

    def run(*arguments: str, kubeconfig: Path | None = None) -> Result:
        login = ["--kubeconfig", str(kubeconfig or control_plane.kubeconfig), "-n", namespace]
        return CliRunner().invoke(cli, ["rollout", arguments[0], *login, *arguments[1:]])

    return run


@pytest.fixture
def following(control_plane: ControlPlane, deployment: Deployment) -> Iterator[subprocess.Popen[str]]:
    """A running `hanmaru rollout status md/m`, as a user starts it."""
    command = [sys.executable, "-m", "hanmaru_cli", "rollout", "status", f"md/{NAME}", "-n", deployment.namespace]
    environ = {**os.environ, "KUBECONFIG": str(control_plane.kubeconfig)}
    with subprocess.Popen(
        [*command, "--timeout", "60s"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_rollout_is_followed_to_its_end(deployment: Deployment, following: subprocess.Popen[str]) -> None:
    assert line_of(following) == "the operator has seen generation 0 of 1"
    pools = [{"name": "a100", "replicas": 2, "ready": 1, "waiting": 1}]
    deployment.show(REPLACING, ("Available", "False", "MinimumUnavailable", ""), revision="abc", pools=pools)
    assert line_of(following) == f"revision abc: {REPLACING[3]} [a100 1/2 ready, 1 waiting for devices]"
    deployment.show(COMPLETE, AVAILABLE, revision="abc")
    assert (
        line_of(following)
        == "revision abc: rolled out, 1 of 1 replicas are ready [a100 1/2 ready, 1 waiting for devices]"
    )
    assert following.wait(30) == 0


def test_an_edit_while_it_is_followed_is_followed_too(deployment: Deployment, following: subprocess.Popen[str]) -> None:
    line_of(following)
    deployment.show(REPLACING, AVAILABLE, revision="abc")
    assert REPLACING[3] in line_of(following)
    deployment.edit({"replicas": 2})
    assert "generation 1 of 2" in line_of(following)
    deployment.show(COMPLETE, AVAILABLE, revision="abc", readyReplicas=2)
    assert "rolled out, 2 of 2" in line_of(following)
    assert following.wait(30) == 0


def test_a_deployment_deleted_meanwhile_ends_it(deployment: Deployment, following: subprocess.Popen[str]) -> None:
    line_of(following)
    deployment.delete()
    assert following.wait(30) == 1
    assert following.stderr is not None
    assert f"hanmaru: {FULL} was deleted meanwhile" in following.stderr.read()


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ([("Progressing", "False", "DeadlineExceeded", "no progress within 60 s")], "DeadlineExceeded: no progress"),
        ([("LicenceNotAccepted", "True", "NotAccepted", "name it in licence.accepted")], "name it in licence.accepted"),
        ([("NameConflict", "True", "RouteTaken", "route `x` belongs to namespace `y`")], "NameConflict: route `x`"),
        ([("NotAllowed", "True", "PoolNotAllowed", "pool a does not take it")], "NotAllowed: pool a"),
        ([("Unschedulable", "True", "NoPoolFits", "pool a: heads do not divide")], "heads do not divide"),
    ],
)
def test_what_will_not_roll_out_is_status_1_with_the_reason(
    deployment: Deployment, hanmaru: Hanmaru, conditions: list[Says], said: str
) -> None:
    deployment.show(*conditions)
    result = hanmaru("status", NAME)
    assert result.exit_code == 1
    assert said in result.stderr
    assert f"kubectl describe md {NAME} -n {deployment.namespace}" in result.stderr


def test_time_that_is_up_is_status_1(deployment: Deployment, hanmaru: Hanmaru) -> None:
    deployment.show(REPLACING)
    result = hanmaru("status", NAME, "--timeout", "200ms")
    assert result.exit_code == 1
    assert f"{FULL} is not rolled out after 0.2s: 1 of 2 replicas are ready" in result.stderr


def test_one_look_as_json(deployment: Deployment, hanmaru: Hanmaru) -> None:
    deployment.show(COMPLETE, AVAILABLE, revision="abc")
    result = hanmaru("status", f"modeldeployment/{NAME}", "--no-watch", "-o", "json")
    shown = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (shown["outcome"], shown["revision"], shown["ready"], shown["desired"]) == ("Complete", "abc", 1, 1)


def test_pause_and_resume_set_the_field_and_say_when_it_is_so_already(deployment: Deployment, hanmaru: Hanmaru) -> None:
    for command, is_paused, first, again in (
        ("pause", True, f"{FULL} paused\n", f"{FULL} is paused already\n"),
        ("resume", False, f"{FULL} resumed\n", f"{FULL} is not paused\n"),
    ):
        assert hanmaru(command, NAME).stdout == first
        assert deployment.read()["spec"]["rollout"]["paused"] is is_paused
        generation = deployment.read()["metadata"]["generation"]
        second = hanmaru(command, NAME)
        assert (second.exit_code, second.stdout) == (0, again)
        assert deployment.read()["metadata"]["generation"] == generation


def test_fields_are_changed_under_a_name_of_their_own(deployment: Deployment, hanmaru: Hanmaru) -> None:
    hanmaru("pause", NAME)
    managers = {entry["manager"]: entry["fieldsV1"] for entry in deployment.read()["metadata"]["managedFields"]}
    assert managers["hanmaru-cli"] == {"f:spec": {"f:rollout": {"f:paused": {}}}}


def test_a_restart_is_waited_for_though_it_changes_no_generation(deployment: Deployment, hanmaru: Hanmaru) -> None:
    deployment.show(COMPLETE, AVAILABLE)
    assert hanmaru("status", NAME).exit_code == 0
    assert hanmaru("restart", NAME).stdout == f"{FULL} restarted\n"
    metadata = deployment.read()["metadata"]
    assert metadata["generation"] == 1
    assert metadata["annotations"][ANNOTATION_RESTARTED_AT].endswith("Z")
    assert "has not seen the last restart" in hanmaru("status", NAME, "--no-watch").stdout
    deployment.show(COMPLETE, AVAILABLE)
    assert hanmaru("status", NAME).exit_code == 0


def test_what_is_paused_is_not_restarted(deployment: Deployment, hanmaru: Hanmaru) -> None:
    hanmaru("pause", NAME)
    result = hanmaru("restart", NAME)
    assert result.exit_code == 1
    assert f"first run `hanmaru rollout resume {NAME} -n {deployment.namespace}`" in result.stderr
    assert "annotations" not in deployment.read()["metadata"]


def test_no_such_deployment(hanmaru: Hanmaru, namespace: str) -> None:
    for command in ("status", "pause", "resume", "restart"):
        result = hanmaru(command, "absent")
        assert result.exit_code == 1
        assert f"there is no ModelDeployment 'absent' in namespace '{namespace}'; `kubectl get md -A`" in result.stderr


def changed(plane: ControlPlane, folder: Path, **cluster: Any) -> Path:
    """The administrator's kubeconfig with other fields of the cluster."""
    document = yaml.safe_load(plane.kubeconfig.read_text())
    document["clusters"][0]["cluster"] |= cluster
    file = folder / "kubeconfig"
    file.write_text(json.dumps(document))
    return file


def test_a_server_without_our_kinds_is_told_apart(
    control_plane: ControlPlane, hanmaru: Hanmaru, tmp_path: Path
) -> None:
    # Below /version there is no API: what the server says then is what it says of a group that nobody installed.
    elsewhere = changed(control_plane, tmp_path, server=f"{control_plane.url}/version")
    result = hanmaru("status", NAME, kubeconfig=elsewhere)
    assert result.exit_code == 1
    assert "does not know ModelDeployments: install the CRDs (chart hanmaru-crds)" in result.stderr


@pytest.mark.parametrize(
    ("cluster", "server"),
    [({"server": "https://127.0.0.1:1"}, "https://127.0.0.1:1"), ({"proxy-url": "http://127.0.0.1:1"}, "https://127")],
    ids=["no server", "no proxy"],
)
def test_nobody_there(
    control_plane: ControlPlane, hanmaru: Hanmaru, tmp_path: Path, cluster: dict[str, str], server: str
) -> None:
    result = hanmaru("status", NAME, kubeconfig=changed(control_plane, tmp_path, **cluster))
    assert result.exit_code == 1
    assert f"no answer from {server}" in result.stderr
    assert "is context 'hanmaru-test' the one you mean?" in result.stderr


@pytest.mark.parametrize(("name", "status"), [("kubernetes.default.svc", 0), ("somebody.else", 1)])
def test_the_servers_certificate_is_held_against_the_name_that_is_asked_for(
    control_plane: ControlPlane, deployment: Deployment, hanmaru: Hanmaru, tmp_path: Path, name: str, status: int
) -> None:
    file = changed(control_plane, tmp_path, **{"tls-server-name": name})
    assert hanmaru("status", NAME, "--no-watch", kubeconfig=file).exit_code == status


def test_credentials_that_are_not_accepted(control_plane: ControlPlane, hanmaru: Hanmaru, tmp_path: Path) -> None:
    document = yaml.safe_load(control_plane.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": "nobodys"}
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(document))
    result = hanmaru("status", NAME, kubeconfig=file)
    assert result.exit_code == 2
    assert "does not accept the credentials of context 'hanmaru-test'; log in again" in result.stderr
    assert "nobodys" not in result.stderr


def test_a_login_programs_certificate_and_token_are_used(
    control_plane: ControlPlane, deployment: Deployment, hanmaru: Hanmaru, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl("create", "serviceaccount", "robot", "-n", deployment.namespace)
    bind(control_plane.api, "cluster-admin", service_account(deployment.namespace, "robot"), deployment.namespace)
    token = kubectl("create", "token", "robot", "-n", deployment.namespace).strip()
    document = yaml.safe_load(control_plane.kubeconfig.read_text())
    pair = {field: document["users"][0]["user"][f"client-{field}-data"] for field in ("certificate", "key")}
    for status in ({"token": token}, pem(pair)):
        printed = tmp_path / "credential.json"
        printed.write_text(json.dumps({"status": status}))
        login = {"apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [str(printed)]}
        document["users"][0]["user"] = {"exec": login | {"interactiveMode": "Never"}}
        file = tmp_path / "kubeconfig"
        file.write_text(json.dumps(document))
        await_allowed(hanmaru, file)


def pem(pair: dict[str, str]) -> dict[str, str]:
    decoded = {field: base64.b64decode(value).decode() for field, value in pair.items()}
    return {"clientCertificateData": decoded["certificate"], "clientKeyData": decoded["key"]}


def await_allowed(hanmaru: Hanmaru, kubeconfig: Path) -> None:
    """The authorizer follows new bindings by watching."""
    deadline_s = time.monotonic() + ROLE_DEADLINE_S
    while (result := hanmaru("status", NAME, "--no-watch", kubeconfig=kubeconfig)).exit_code:
        assert time.monotonic() < deadline_s, result.stderr
        time.sleep(0.1)


def test_rights_are_the_users_own(control_plane: ControlPlane, deployment: Deployment, hanmaru: Hanmaru) -> None:
    who = f"looker-{uuid.uuid4().hex[:8]}"
    kubeconfig = control_plane.kubeconfig_for(who)
    refused = hanmaru("status", NAME, kubeconfig=kubeconfig)
    assert refused.exit_code == 1
    assert f'User "{who}" cannot get resource "modeldeployments"' in refused.stderr
    assert f"ask for the role `view` in namespace '{deployment.namespace}'" in refused.stderr

    install_people_roles(control_plane.api)
    bind(control_plane.api, "hanmaru-view", user(who), deployment.namespace)
    await_allowed(hanmaru, kubeconfig)
    refused = hanmaru("pause", NAME, kubeconfig=kubeconfig)
    assert refused.exit_code == 1
    assert "cannot patch resource" in refused.stderr
    assert "ask for the role `edit`" in refused.stderr
    assert not deployment.read()["spec"]["rollout"]["paused"]
