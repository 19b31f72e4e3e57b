from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml
from hanmaru_cli.doctor.finding import Mark
from hanmaru_cli.doctor.objects import Definition
from hanmaru_cli.doctor.platform_checks import (
    LABEL_PART_OF,
    LEAST_KUBERNETES,
    PART_OF,
    check_kinds,
    check_leader,
    check_release,
    check_server,
)
from hanmaru_cli.doctor.world import Listed
from hanmaru_testing.crds import shipped
from hanmaru_testing.doctor_world import NOW, lease, listed, part, words, world, worst
from hanmaru_testing.go_programs import ROOT
from hanmaru_testing.helm import render


@pytest.mark.parametrize(
    ("version", "mark"),
    [("v1.36.3", Mark.OK), ("v1.32.0+k3s1", Mark.OK), ("v1.31.9", Mark.FAIL), ("", Mark.UNSEEN), ("?", Mark.UNSEEN)],
)
def test_the_lowest_kubernetes_is_1_32(version: str, mark: Mark) -> None:
    assert worst(check_server(world(version=version))) is mark


@pytest.mark.parametrize(
    ("server_time", "said"),
    [(NOW - 4.0, ""), (NOW - 30.0, "30 s ahead of"), (NOW + 90.0, "90 s behind"), (None, "")],
)
def test_a_clock_that_is_off_is_said(server_time: float | None, said: str) -> None:
    found = words(check_server(world(server_time=server_time)))
    assert (said in found) if said else not found


def test_the_lowest_kubernetes_is_the_charts() -> None:
    chart = yaml.safe_load((ROOT / "charts/hanmaru/Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={'.'.join(map(str, LEAST_KUBERNETES))}.0-0"


def definitions() -> list[dict[str, Any]]:
    return shipped()


def seen(raw: list[dict[str, Any]]) -> Listed[Definition]:
    return listed(*(msgspec.convert(one, Definition) for one in raw))


def test_the_kinds_as_the_chart_ships_them_are_of_this_version() -> None:
    findings = check_kinds(world(definitions=seen(definitions())))
    assert words(findings) == ""
    assert "fields of this version" in findings[0].seen


def test_a_field_that_a_kind_lacks_makes_it_too_old_to_use() -> None:
    raw = definitions()
    spec = raw[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["topology"]
    findings = check_kinds(world(definitions=seen(raw)))
    assert worst(findings) is Mark.FAIL
    assert "spec.topology" in words(findings)
    assert "hanmaru-crds" in words(findings)


def test_a_field_more_than_we_know_is_a_newer_release() -> None:
    raw = definitions()
    raw[2]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["colour"] = {}
    findings = check_kinds(world(definitions=seen(raw)))
    assert (worst(findings), "spec.colour" in words(findings)) == (Mark.WARN, True)


def test_kinds_that_are_not_served_are_to_be_installed() -> None:
    findings = check_kinds(world(pools=Listed(is_served=False)))
    assert worst(findings) is Mark.FAIL
    assert "acceleratorpools" in words(findings)


@pytest.mark.parametrize(
    ("parts", "mark", "said"),
    [
        ([part("operator"), part("gateway"), part("ray-head")], Mark.OK, ""),
        ([part("operator"), part("gateway", ready=0, replicas=2)], Mark.FAIL, "0 of 2"),
        ([part("operator"), part("gateway", ready=1, replicas=2)], Mark.WARN, "1 of 2"),
        ([part("operator")], Mark.FAIL, "there is no gateway"),
        ([part("operator", replicas=0, ready=0), part("gateway")], Mark.FAIL, "scaled to 0"),
        ([part("operator"), part("gateway"), part("collector", ready=0, replicas=0)], Mark.WARN, "scaled to 0"),
        ([part("operator", version="9.9"), part("gateway")], Mark.WARN, "9.9"),
        ([], Mark.FAIL, "helm upgrade --install"),
    ],
)
def test_each_part_of_a_release_is_judged(parts: list[Any], mark: Mark, said: str) -> None:
    findings = check_release(world(workloads=listed(*parts)))
    assert worst(findings) is mark, words(findings)
    assert said in words(findings)


def test_a_release_that_may_be_elsewhere_is_not_said_to_be_missing() -> None:
    assert worst(check_release(world(workloads=listed(), narrowed_to="models"))) is Mark.UNSEEN


def test_a_second_release_is_said() -> None:
    other = msgspec.structs.replace(
        part("operator"), metadata=msgspec.structs.replace(part("operator").metadata, namespace="other")
    )
    assert "2 releases" in words(check_release(world(workloads=listed(part("operator"), part("gateway"), other))))


@pytest.mark.parametrize(
    ("leases", "said"),
    [
        ([lease()], ""),
        ([lease(seconds_ago=16)], ""),
        ([lease(seconds_ago=60)], "last seen 60 s ago"),
        ([lease(holder="")], "no operator leads"),
        ([lease(holder=None)], "no operator leads"),
        ([], "no operator leads"),
    ],
)
def test_an_operator_has_to_lead(leases: list[Any], said: str) -> None:
    found = words(check_leader(world(leases=listed(*leases))))
    assert (said in found) if said else not found


def test_the_charts_parts_have_the_labels_and_names_that_the_doctor_looks_for() -> None:
    objects = render()
    made = [one for one in objects if one["kind"] in ("Deployment", "StatefulSet")]
    assert {one["metadata"]["labels"][LABEL_PART_OF] for one in made} == {PART_OF}
    assert {one["spec"]["template"]["metadata"]["labels"][LABEL_PART_OF] for one in made} == {PART_OF}
    parts = {one["metadata"]["labels"]["app.kubernetes.io/component"]: one["metadata"]["name"] for one in made}
    assert {"operator", "gateway", "ray-head", "redis"} <= parts.keys()
    leases = [one["metadata"]["name"] for one in objects if one["kind"] == "Lease"]
    assert leases == [parts["operator"]]
