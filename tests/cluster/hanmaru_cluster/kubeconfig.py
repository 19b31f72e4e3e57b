"""Kubeconfig files that hold everything they need: no path in them breaks when the file is copied."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from hanmaru_cluster.certificates import KeyPair


def write_kubeconfig(path: Path, *, url: str, authority: bytes, client: KeyPair) -> Path:
    """Write a file (JSON, which is YAML) that reaches `url` as `client`; only its owner may read it."""
    cluster = {"server": url, "certificate-authority-data": _base64(authority)}
    user = {"client-certificate-data": _base64(client.certificate), "client-key-data": _base64(client.key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "hanmaru-test", "cluster": cluster}],
        "users": [{"name": "client", "user": user}],
        "contexts": [{"name": "hanmaru-test", "context": {"cluster": "hanmaru-test", "user": "client"}}],
        "current-context": "hanmaru-test",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(document, indent=1))
    return path


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
