"""A Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler, and kwok for the nodes.

Tests get one for a whole run (`tests/support/hanmaru_testing/cluster_fixtures.py`), people by
`python -m hanmaru_cluster up`. Everything it needs is in one temporary folder, gone with it. Kubelets are not here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hanmaru_cluster.api import ApiClient, ApiError
from hanmaru_cluster.build import Programs, find_programs
from hanmaru_cluster.certificates import CertificateAuthority, KeyPair, service_account_key
from hanmaru_cluster.kubeconfig import write_kubeconfig
from hanmaru_cluster.kwok import start_kwok
from hanmaru_cluster.ports import free_port
from hanmaru_cluster.processes import Processes

HEARTBEAT_TIMEOUT_S = 8
"""A node whose lease is older is marked Unknown and tainted (40 s in a usual cluster)."""
START_DEADLINE_S = 60.0
KUBECTL_DEADLINE_S = 120.0
ADMIN_GROUP = "system:masters"
_ETCD, _APISERVER, _CONTROLLERS, _SCHEDULER = "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"
_SERVICE_RANGE = "10.96.0.0/16"
_FIRST_SERVICE = "10.96.0.1"


class ControlPlane:
    """A running control plane; a context manager."""

    def __init__(self) -> None:
        self._programs: Programs = find_programs()
        self._authority = CertificateAuthority()
        self.folder = Path(tempfile.mkdtemp(prefix="hanmaru-cluster-"))
        self._processes = Processes(self.folder)
        self._etcd_port = free_port()
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self._authority_file = self._write("ca.crt", self._authority.certificate)
        self.kubeconfig = self.kubeconfig_for("admin", [ADMIN_GROUP])
        """Of a user who may do everything."""
        admin = self._write_pair("admin", self._authority.client("admin", [ADMIN_GROUP]))
        self.api = ApiClient(self.url, authority=self._authority_file, certificate=admin[0], key=admin[1])
        """Speaks as that user."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._processes.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything. Raises RuntimeError when a program had ended by itself, with the end of its log."""
        ended = self._processes.ended()
        logs = "\n".join(f"{name} ended with {status}:\n{self._log_end(name)}" for name, status in ended.items())
        self._processes.stop("kwok", _CONTROLLERS, _SCHEDULER)
        self._processes.stop(_APISERVER)  # before etcd, without which it would not end
        self._processes.stop(_ETCD)
        self._processes.close()
        if ended and error is None:
            raise RuntimeError(logs)

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of this user in these groups, who may do what RBAC allows; kept as long as the control plane."""
        name = re.sub(r"[^a-z0-9-]", "-", user.lower())
        return write_kubeconfig(
            self.folder / f"{name}.kubeconfig",
            url=self.url,
            authority=self._authority.certificate,
            client=self._authority.client(user, groups),
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What the real kubectl prints, run as the administrator. Raises RuntimeError with its words when it fails."""
        done = subprocess.run(
            [str(self._programs.kubectl), *arguments],
            input=stdin,
            # A home of its own: kubectl remembers kinds by address, and another cluster may have had this one.
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "KUBECONFIG": str(self.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=KUBECTL_DEADLINE_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def create_namespace(self, name: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Make a namespace and wait until it takes pods."""
        self.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        self._await_service_account(name)

    def stop_apiserver(self) -> None:
        """Take the API server away at once, as a crash would; connections break."""
        self._processes.kill(_APISERVER)

    def start_apiserver(self) -> None:
        """Start the API server, at its same address, and wait until it is ready."""
        self._processes.start(_APISERVER, [str(self._programs.kube_apiserver), *self._apiserver_flags()])
        self._await(_APISERVER, self.api.is_ready)

    def _start(self) -> None:
        programs = self._programs
        self._lay_out()
        self._processes.start(_ETCD, [str(programs.etcd), *self._etcd_flags()])
        self.start_apiserver()
        self._processes.start(_CONTROLLERS, [str(programs.kube_controller_manager), *self._controller_manager_flags()])
        self._processes.start(_SCHEDULER, [str(programs.kube_scheduler), *self._scheduler_flags()])
        kwok = self.kubeconfig_for("kwok", [ADMIN_GROUP])
        start_kwok(self._processes, programs.kwok, kwok, lease_s=HEARTBEAT_TIMEOUT_S)
        self._await_service_account("default")  # which also tells that the controllers run

    def _await_service_account(self, namespace: str) -> None:
        """Wait until a new namespace has its `default` ServiceAccount, without which it takes no pods."""

        def is_there() -> bool:
            try:
                self.api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
            except ApiError:
                return False
            return True

        self._await(_CONTROLLERS, is_there)

    def _await(self, program: str, reached: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + START_DEADLINE_S
        while not reached():
            if program in self._processes.ended() or time.monotonic() > deadline_s:
                raise RuntimeError(f"{program} does not start:\n{self._log_end(program)}")
            time.sleep(0.05)

    def _lay_out(self) -> None:
        reached_by = ["127.0.0.1", "localhost", _FIRST_SERVICE, "kubernetes.default.svc"]
        self._write_pair("apiserver", self._authority.server("kube-apiserver", reached_by))
        self._write("service-accounts.key", service_account_key())

    def _etcd_flags(self) -> list[str]:
        url = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{free_port()}"
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # what it holds is thrown away with it
            "--log-level=warn",
        ]

    def _apiserver_flags(self) -> list[str]:
        return [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",  # it would refuse a loopback address, again and again
            f"--secure-port={self._port}",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--client-ca-file={self._authority_file}",
            f"--tls-cert-file={self.folder / 'apiserver.crt'}",
            f"--tls-private-key-file={self.folder / 'apiserver.key'}",
            "--authorization-mode=RBAC",
            "--anonymous-auth=false",
            f"--service-cluster-ip-range={_SERVICE_RANGE}",
            f"--service-account-key-file={self.folder / 'service-accounts.key'}",
            f"--service-account-signing-key-file={self.folder / 'service-accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--enable-admission-plugins=PodSecurity",
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=2000",
            "--profiling=false",
        ]

    def _controller_manager_flags(self) -> list[str]:
        syncs = (
            "deployment",
            "endpoint",
            "namespace",
            "replicaset",
            "service-endpoint",
            "serviceaccount-token",
            "statefulset",
        )
        return [
            f"--kubeconfig={self.kubeconfig_for('system:kube-controller-manager')}",
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.folder / 'service-accounts.key'}",
            f"--root-ca-file={self._authority_file}",
            # The client's own limits (20 a second) would be what a benchmark measures.
            "--kube-api-qps=2000",
            "--kube-api-burst=4000",
            *(f"--concurrent-{name}-syncs=20" for name in syncs),
            "--horizontal-pod-autoscaler-sync-period=1s",
            "--horizontal-pod-autoscaler-downscale-stabilization=1s",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={HEARTBEAT_TIMEOUT_S}s",
            # Taints at once; by default one node in ten seconds gets them, and none in a small cluster that is half dead.
            "--node-eviction-rate=100",
            "--secondary-node-eviction-rate=100",
            "--large-cluster-size-threshold=0",
        ]

    def _scheduler_flags(self) -> list[str]:
        kubeconfig = self.kubeconfig_for("system:kube-scheduler")
        config = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 2000, "burst": 4000},
            "leaderElection": {"leaderElect": False},
            # Tests wait for pods that did not fit at first (10 s otherwise).
            "podMaxBackoffSeconds": 2,
        }
        return [f"--config={self._write('scheduler.json', json.dumps(config).encode())}", "--secure-port=0"]

    def _write_pair(self, name: str, pair: KeyPair) -> tuple[Path, Path]:
        return self._write(f"{name}.crt", pair.certificate), self._write(f"{name}.key", pair.key)

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / name  # the folder is its owner's alone
        path.write_bytes(content)
        return path

    def _log_end(self, name: str) -> str:
        return self._processes.log_path(name).read_text(errors="replace")[-3000:]
