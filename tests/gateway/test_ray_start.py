"""What a Ray node is told: every port, and no more of Ray than is used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hanmaru_gateway.ray_start import (
    ENV_GCS_REDIS_PASSWORD_FILE,
    ENV_GCS_REDIS_USER,
    NODE_RESOURCE,
    NUM_PORTS,
    RayNode,
    adjust,
    to_argv,
)

HEAD = RayNode(Path("/run/ray"), "192.0.2.1", 6380)
NODE = RayNode(Path("/run/ray"), "192.0.2.2", 6380, "head.example:6380", {NODE_RESOURCE: 1})


def test_a_head_has_no_dashboard_and_a_node_has_room_for_one_replica() -> None:
    assert {"--head", "--port=6380", "--include-dashboard=false", "--no-monitor"} <= set(to_argv(HEAD))
    assert {"--address=head.example:6380", '--resources={"hanmaru_gateway": 1}'} <= set(to_argv(NODE))
    assert not any("password" in word for word in to_argv(HEAD))


@pytest.mark.parametrize("node", [HEAD, NODE])
def test_no_two_ports_are_the_same_and_all_are_in_the_block(node: RayNode) -> None:
    ports = [int(value) for name, _, value in (word.partition("=") for word in to_argv(node)) if name.endswith("port")]
    assert len(ports) == len(set(ports))
    assert all(6380 <= port < 6380 + NUM_PORTS for port in ports)


def test_no_server_for_clients_is_started_and_the_password_comes_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("word\n")
    monkeypatch.setenv(ENV_GCS_REDIS_USER, "ray")
    monkeypatch.setenv(ENV_GCS_REDIS_PASSWORD_FILE, str(tmp_path / "password"))
    params = SimpleNamespace(ray_client_server_port=10001, redis_username="", redis_password="")
    adjust(params, head=True)
    assert vars(params) == {"ray_client_server_port": None, "redis_username": "ray", "redis_password": "word"}
