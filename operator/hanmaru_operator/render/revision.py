"""What users wrote that matters to a running engine, its hash, and the revision made of it and the pinned image. Pure.

`bundle` keeps a snapshot under each revision. A field that a newer operator adds to the API must not change the hash of
objects that do not set it, or an upgrade would reload every model: absent and empty values are left out, and
`tests/operator/render/test_revision.py` holds hashes that may never change. A new field whose default is not empty has
to be left out here while it has that default.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.crd.v1alpha1.model_deployment import DeploymentPool, ModelDeploymentSpec, Serving, Source
from pydantic import BaseModel

from hanmaru_operator.types import Revision

REVISION_CHARS = 10
_HASH_CHARS = 16


@dataclass(frozen=True, slots=True)
class Written:
    """What users wrote for one pool's replicas of a deployment."""

    deployment: ModelDeploymentSpec
    entry: DeploymentPool
    """Of `deployment.pools`."""
    pool: AcceleratorPoolSpec
    restarted_at: str = ""
    """Value of the deployment's annotation `restarted-at`; each new one is a new revision."""

    @property
    def source(self) -> Source:
        """The pool's own checkpoint, or the deployment's."""
        return self.entry.source or self.deployment.source

    @property
    def serving(self) -> Serving:
        """The pool's own settings, or the deployment's."""
        return self.entry.serving or self.deployment.serving


def what_was_written(written: Written) -> dict[str, Any]:
    """Everything of the specs that a running engine depends on.

    Left out: what moves or counts replicas (nodes, replicas, rollout, weight), and who may use them.
    """
    spec, pool = written.deployment, written.pool
    # Sets, so their order means nothing.
    sets = {"dtypes": sorted(pool.capabilities.dtypes), "features": sorted(pool.capabilities.features)}
    typed: dict[str, Any] = _without_empty(
        {
            "source": _dump(written.source),
            "serving": _dump(written.serving),
            "route": spec.route.name,
            "lifecycle": _dump(spec.lifecycle, "stopped"),
            "pool": {
                "name": written.entry.name,
                "engine": _dump(pool.engine),
                "devices": _dump(pool.devices),
                "capabilities": _dump(pool.capabilities) | sets,
                "tolerations": [_dump(toleration) for toleration in pool.nodes.tolerations],
            },
            "restartedAt": written.restarted_at,
        }
    )
    # Opaque: an empty object in them may mean something.
    return typed | {"podTemplates": [pool.pod_template, written.serving.pod_template]}


def written_hash(written: Written) -> str:
    """Hexadecimal digits; equal exactly when users wrote the same."""
    return digest(what_was_written(written))[:_HASH_CHARS]


def revision_of(written: Written, image: str) -> Revision:
    """The revision of what users wrote, run by that image."""
    return Revision(digest([what_was_written(written), image])[:REVISION_CHARS])


def source_hash(source: Source) -> str:
    """Hexadecimal digits; equal exactly when two sources name the same checkpoint in the same way."""
    return digest(_without_empty(_dump(source)))[:REVISION_CHARS]


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its objects' keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _dump(model: BaseModel, *left_out: str) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude={"pod_template", *left_out})


def _without_empty(value: Any) -> Any:
    """The value without absent and empty members, at any depth."""
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", [], {})}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value
