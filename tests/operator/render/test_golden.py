"""Everything that is rendered for three deployments, as files that a person can read and a change has to show in.

`HANMARU_UPDATE_GOLDEN=1` writes them anew. A change of a pod template here reaches users as `DefaultsOutdated`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hanmaru_contracts.names import ReplicaId
from hanmaru_operator.render.bundle import Bundle, revision_manifests
from hanmaru_operator.render.group import ReplicaSecrets, replica_manifests
from hanmaru_operator.render.settings import RedisFile
from hanmaru_testing.rendered import OWNER, SETTINGS, cpu_bundle, gpu_bundle, npu_bundle

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "bundle"),
    [
        ("two-nodes-of-gpus-from-a-hub", gpu_bundle()),
        ("cores-and-a-claim", cpu_bundle()),
        ("npus-and-an-image", npu_bundle()),
    ],
)
def test_rendered_manifests_are_those_in_the_file(name: str, bundle: Bundle) -> None:
    replica = ReplicaId("k-exaone-x7k2p")
    manifests = [
        *revision_manifests(bundle, OWNER),
        *replica_manifests(
            bundle, OWNER, replica, ReplicaSecrets(bytes(32), {RedisFile.PASSWORD: "password"}), SETTINGS
        ),
    ]
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("HANMARU_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True))
    assert manifests == list(yaml.safe_load_all(file.read_text()))


class _Plain(yaml.SafeDumper):
    """Without anchors: shared objects are written out each time."""

    def ignore_aliases(self, data: object) -> bool:
        return True
