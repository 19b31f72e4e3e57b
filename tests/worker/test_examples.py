"""Flags in the examples of pools and deployments are flags that the worker hands to its engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import ModelDeploymentSpec
from hanmaru_contracts.crd.v1alpha1.tenant import ModelRef
from hanmaru_contracts.wire.engine_spec import EngineSpec, EngineType
from hanmaru_worker.engines import ENGINES, Launch
from hanmaru_worker.settings import GroupRank

EXAMPLES = Path(__file__).parents[2] / "operator/examples"


def manifests(kind: str) -> Iterator[dict[str, Any]]:
    for file in sorted(EXAMPLES.rglob("*.yaml")):
        yield from (each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each["kind"] == kind)


def given_flags() -> Iterator[tuple[str, EngineType, tuple[str, ...]]]:
    """Where flags stand, the engine that gets them, and the flags."""
    engines = {}
    for pool in manifests("AcceleratorPool"):
        name, engine = pool["metadata"]["name"], AcceleratorPoolSpec.model_validate(pool["spec"]).engine
        engines[name] = engine.type
        yield f"pool {name}", engine.type, engine.args
    for deployment in manifests("ModelDeployment"):
        name, spec = deployment["metadata"]["name"], ModelDeploymentSpec.model_validate(deployment["spec"])
        for entry in spec.pools:
            args = (entry.serving or spec.serving).extra_args
            yield f"deployment {name} on {entry.name}", engines.get(entry.name, EngineType.SGLANG), args


GIVEN = sorted({each for each in given_flags() if each[2]})


@pytest.mark.parametrize(("engine", "args"), [each[1:] for each in GIVEN], ids=[each[0] for each in GIVEN])
def test_flags_of_an_example_reach_the_engine(engine: EngineType, args: tuple[str, ...], tmp_path: Path) -> None:
    spec = EngineSpec(
        model=ModelRef(namespace="team", name="exaone"),
        route="exaone",
        engine=engine,
        checkpoint="/model",
        context_tokens=4096,
        extra_args=args,
    )
    launch = Launch(spec, GroupRank(), "127.0.0.1", 30000, tmp_path / "keys", tmp_path, cpus=(0,), inherited={})
    assert ENGINES[engine].argv(launch)[-len(args) :] == args


def test_the_examples_give_flags() -> None:
    assert {where.split()[0] for where, _, _ in GIVEN} == {"pool", "deployment"}
