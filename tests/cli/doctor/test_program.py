from __future__ import annotations

from hanmaru_cli.doctor.finding import Mark, exit_status
from hanmaru_cli.doctor.program import judge
from hanmaru_cli.doctor.world import World
from hanmaru_testing.doctor_world import listed, part, unseen, words, world, worst


def test_a_healthy_cluster_has_nothing_to_mend() -> None:
    findings = judge(world())
    assert (words(findings), exit_status(findings)) == ("", 0)


def test_whatever_may_not_be_looked_at_is_said_and_is_no_failure() -> None:
    lists = [name for name, field in World.__dataclass_fields__.items() if "Listed" in str(field.type)]
    assert len(lists) > 15
    for name in lists:
        findings = judge(world(**{name: unseen("SENTINEL is forbidden")}))
        assert worst(findings) in (Mark.OK, Mark.UNSEEN, Mark.NOTE), (name, words(findings))
    everything = judge(world(**{name: unseen("SENTINEL is forbidden") for name in lists}))
    assert exit_status(everything) == 0
    assert "SENTINEL" in words(everything)


def test_an_empty_cluster_is_told_its_next_steps_in_order() -> None:
    empty = world(**{name: listed() for name in ("workloads", "leases", "pools", "deployments", "tenants", "pods")})
    to_mend = [finding.to_do for finding in judge(empty) if finding.mark is not Mark.OK]
    assert [next(word for word in ("helm", "AcceleratorPool", "ModelDeployment", "key new", "kubectl") if word in line)
            for line in to_mend] == ["helm", "kubectl", "ModelDeployment", "key new"]  # fmt: skip


def test_lists_of_one_namespace_alone_are_said_to_be_that() -> None:
    assert "namespace models alone" in words(judge(world(narrowed_to="models")))


def test_only_a_failure_makes_the_status_1() -> None:
    assert exit_status(judge(world(workloads=listed(part("operator"), part("gateway", ready=0))))) == 1
    assert exit_status(judge(world(workloads=listed(part("operator", ready=1, replicas=2), part("gateway"))))) == 0
