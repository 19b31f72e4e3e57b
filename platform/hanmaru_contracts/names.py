"""Every name that two programs must agree on: ports, headers, environment variables, ids.

Redis keys have a module of their own (`redis_keys`). Nothing here decides anything.
"""

from __future__ import annotations

from typing import NewType

TenantId = NewType("TenantId", str)
"""A tenant's name, unique among the tenants the gateway honours."""
ReplicaId = NewType("ReplicaId", str)
"""One worker group (all ranks of one engine), unique within its model."""
ModelId = NewType("ModelId", str)
"""A model's identity, `namespace/name`; callers use its route name instead."""
RequestId = NewType("RequestId", str)
"""Made by the gateway, always `REQUEST_ID_CHARS` long: the engine aborts every id that *starts with* the one given."""

REQUEST_ID_CHARS = 36
"""`req-` and 32 hexadecimal digits."""

# Ports (defaults; a replica's engine and supervisor add the index of the worker on its machine).
GATEWAY_HTTP_PORT = 8000
GATEWAY_GRPC_PORT = 9000
GATEWAY_METRICS_PORT = 9090
ENGINE_HTTP_PORT = 30000
SUPERVISOR_HTTP_PORT = 30100
REDIS_PORT = 6379
RAY_GCS_PORT = 6380
"""Ray's own default is Redis's port."""
OPERATOR_HTTP_PORT = 9080
"""Health and metrics of the operator."""

# Headers.
HEADER_REQUEST_ID = "x-request-id"
HEADER_TRACEPARENT = "traceparent"

# Environment variables read by more than one program or set by whoever starts it.
ENV_HOME = "HANMARU_HOME"
"""Folder for caches, state and logs of one machine; default `~/.cache/hanmaru`."""
ENV_LOG_DIR = "HANMARU_LOG_DIR"
"""Folder for the engines' own logs; default `logs` under `HANMARU_HOME`."""
ENV_REDIS_URL = "HANMARU_REDIS_URL"
"""`redis://host:port/0`, or `redis+sentinel://` or `redis+cluster://` with several hosts; `rediss…` for TLS
(docs/redis.md). Without credentials: those come by file."""
ENV_REDIS_USER = "HANMARU_REDIS_USER"
ENV_REDIS_PASSWORD_FILE = "HANMARU_REDIS_PASSWORD_FILE"
ENV_REDIS_CA_FILE = "HANMARU_REDIS_CA_FILE"
"""PEM of the authorities that signed Redis's certificates; absent: the system's."""
ENV_REDIS_CERT_FILE = "HANMARU_REDIS_CERT_FILE"
"""PEM of a client certificate, where Redis asks for one; with its key."""
ENV_REDIS_KEY_FILE = "HANMARU_REDIS_KEY_FILE"
ENV_REDIS_SERVER_NAME = "HANMARU_REDIS_SERVER_NAME"
"""Name in Redis's certificates, where it is not the address that is connected to."""
ENV_REDIS_SENTINEL_USER = "HANMARU_REDIS_SENTINEL_USER"
ENV_REDIS_SENTINEL_PASSWORD_FILE = "HANMARU_REDIS_SENTINEL_PASSWORD_FILE"
"""Of the sentinels themselves; absent: they ask for none."""
ENV_TIER_KEY_FILE = "HANMARU_TIER_KEY_FILE"
"""File with the key, in hexadecimal (mode 0600), that seals the pages of the model's shared cache; absent: no cache."""


def tier_variable(redis_variable: str) -> str:
    """What says of the shared cache's Redis what `redis_variable`, one of those above, says of the platform's."""
    return redis_variable.replace("HANMARU_REDIS_", "HANMARU_TIER_REDIS_")


ENV_PLATFORM_SECRET_FILE = "HANMARU_PLATFORM_SECRET_FILE"
"""The one secret of `keys`, held by operator and gateways only (mode 0600)."""
ENV_TENANTS_FILE = "HANMARU_TENANTS_FILE"
ENV_TLS_CERT_FILE = "HANMARU_TLS_CERT_FILE"
"""PEM certificate chain for the gateway's REST and gRPC listeners; absent: plain text."""
ENV_TLS_KEY_FILE = "HANMARU_TLS_KEY_FILE"
ENV_ENGINE_SPEC = "HANMARU_ENGINE_SPEC"
"""Path of the JSON file that holds the worker's `EngineSpec`."""
ENV_REPLICA_ID = "HANMARU_REPLICA_ID"
ENV_REPLICA_KEY_FILE = "HANMARU_REPLICA_KEY_FILE"
"""File with this replica's key in hexadecimal (mode 0600): all the secret a worker ever learns."""
ENV_GROUP_RANK = "HANMARU_GROUP_RANK"
ENV_GROUP_SIZE = "HANMARU_GROUP_SIZE"
ENV_GROUP_ADDRESS = "HANMARU_GROUP_ADDRESS"
"""`host:port` where rank 0 of the group waits for the others."""
ENV_GROUP_PEERS = "HANMARU_GROUP_PEERS"
"""Host names of all ranks in order of rank, with commas; the worker lets its engine hear only these."""
ENV_OPERATOR_SETTINGS_FILE = "HANMARU_OPERATOR_SETTINGS_FILE"
"""YAML of what an installation decides; the chart writes it."""
ENV_POD_NAME = "POD_NAME"
ENV_POD_NAMESPACE = "POD_NAMESPACE"
ENV_ADVERTISE_HOST = "HANMARU_ADVERTISE_HOST"
"""Host that gateways reach this worker by; default 127.0.0.1."""

API_KEY_PREFIX = "hmk_"
"""Every API key begins with it, so that secret scanners can find leaked ones."""

# Kubernetes: labels and annotations of what the operator makes. Users' objects carry none of the operator's.
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "hanmaru"
LABEL_COMPONENT = "app.kubernetes.io/component"
COMPONENT_WORKER = "worker"
COMPONENT_MODEL_FACTS = "model-facts"
"""The pod that reads a checkpoint's `config.json` for the planner."""
LABEL_DEPLOYMENT = "serving.hanmaru.dev/deployment"
LABEL_REPLICA = "serving.hanmaru.dev/replica"
LABEL_POOL = "serving.hanmaru.dev/pool"
LABEL_REVISION = "serving.hanmaru.dev/revision"
LABEL_WRITTEN = "serving.hanmaru.dev/written"
"""On a revision's snapshot: hash of what users wrote."""
LABEL_SOURCE = "serving.hanmaru.dev/source"
"""On a model-facts pod: hash of the source it reads."""
LABEL_POD_INDEX = "apps.kubernetes.io/pod-index"
"""A pod's rank in its group; set by the StatefulSet controller."""
ANNOTATION_PLANNED_NODE = "serving.hanmaru.dev/planned-node"
"""On a pod of ours: the node its affinity was narrowed to."""
ANNOTATION_GATE_LIFTED_AT = "serving.hanmaru.dev/gate-lifted-at"
"""On a pod of ours: RFC 3339 time at which our gate was lifted."""
ANNOTATION_LIFTED_WITH = "serving.hanmaru.dev/lifted-with"
"""On a pod of ours: digest of the pods that its group consisted of when our gate was lifted."""
ANNOTATION_RESTARTED_AT = "serving.hanmaru.dev/restarted-at"
"""On a ModelDeployment, set by its owner (`hanmaru rollout restart`): a new value is a new revision."""
GATE_GROUP = "serving.hanmaru.dev/group"
"""The scheduling gate of a group's pods."""
FIELD_MANAGER = "hanmaru-operator"
ENGINE_CONTAINER = "engine"
RENDEZVOUS_PORT = 20000
"""Where rank 0 of a group waits for the others."""
