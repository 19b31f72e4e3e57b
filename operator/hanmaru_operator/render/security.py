"""Pod Security "restricted", as every pod of ours has it unless a pool's template adds a device's capability."""

from __future__ import annotations

from hanmaru_operator.types import Manifest

RUN_AS = 10001
"""User and group of every pod; images need no entry for it."""

POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": RUN_AS,
    "runAsGroup": RUN_AS,
    "fsGroup": RUN_AS,
    # A volume with hundreds of gigabytes is not walked through again at each start.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
