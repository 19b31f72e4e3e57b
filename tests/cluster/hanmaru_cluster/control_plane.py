"""A Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler, and kwok for the nodes.

Tests get one for a whole run (`hanmaru_testing.cluster_fixtures`), people by `python -m hanmaru_cluster up`.
Everything it needs is in one temporary folder that goes with it. Kubelets are not here.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hanmaru_cluster import flags, kwok
from hanmaru_cluster.api import ApiClient, ApiError
from hanmaru_cluster.build import find_programs
from hanmaru_cluster.certificates import CertificateAuthority, KeyPair, service_account_key
from hanmaru_cluster.kubeconfig import write_kubeconfig
from hanmaru_cluster.ports import free_port
from hanmaru_cluster.processes import Processes

START_DEADLINE_S = 60.0
"""Four seconds on two idle cores; a test run may share them."""
KUBECTL_DEADLINE_S = 120.0
ADMIN_GROUP = "system:masters"
_ETCD, _APISERVER, _CONTROLLERS, _SCHEDULER = "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"
_KWOK = "kwok"


class ControlPlane:
    """A running control plane; a context manager, to be entered once. Its methods may be called from any thread.

    With hundreds of nodes a longer `heartbeat_timeout_s` keeps their leases from filling the machine.
    """

    def __init__(self, *, heartbeat_timeout_s: int = flags.HEARTBEAT_TIMEOUT_S) -> None:
        self._programs = find_programs()
        self._authority = CertificateAuthority()
        folder = Path(tempfile.mkdtemp(prefix="hanmaru-cluster-"))
        self._layout = flags.Layout(folder, free_port(), free_port(), free_port(), heartbeat_timeout_s)
        self._processes = Processes(folder)
        self._layout.authority.write_bytes(self._authority.certificate)
        self.kubeconfig = self.kubeconfig_for("admin", [ADMIN_GROUP])
        """Of a user who may do everything."""
        self._write_pair("admin", self._authority.client("admin", [ADMIN_GROUP]))
        self.api = ApiClient(
            self.url,
            authority=self._layout.authority,
            certificate=self._layout.certificate("admin"),
            key=self._layout.key("admin"),
        )
        """Speaks as that user."""

    @property
    def url(self) -> str:
        """Of the API server, `https://127.0.0.1:…`."""
        return self._layout.url

    def __enter__(self) -> Self:
        """Start everything; returns when namespaces can take pods. Raises RuntimeError with the log of what failed."""
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
        self._processes.stop(_KWOK, _CONTROLLERS, _SCHEDULER)
        self._processes.stop(_APISERVER)  # before etcd, without which it would not end
        self._processes.stop(_ETCD)
        self._processes.close()
        if ended and error is None:
            raise RuntimeError(logs)

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of this user in these groups, who may do what RBAC allows; it goes with the control plane."""
        return write_kubeconfig(
            self._layout.kubeconfig(user),
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
            env={**os.environ, "HOME": str(self._layout.folder), "KUBECONFIG": str(self.kubeconfig)},
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
        self._processes.start(_APISERVER, [str(self._programs.kube_apiserver), *flags.apiserver(self._layout)])
        self._await(_APISERVER, self.api.is_ready)

    def restart_controllers(self) -> None:
        """Start controller manager and scheduler anew: by themselves they need up to a minute after an outage.

        Each of their watches has doubled its waiting with each try.
        """
        self._processes.stop(_CONTROLLERS, _SCHEDULER)
        self._start_controllers()

    def _start(self) -> None:
        programs, layout, start = self._programs, self._layout, self._processes.start
        self._lay_out()
        start(_ETCD, [str(programs.etcd), *flags.etcd(layout)])
        self.start_apiserver()
        self._start_controllers()
        start(_KWOK, [str(programs.kwok), *flags.kwok(layout)])
        self._await_service_account("default")  # which also tells that the controllers run

    def _start_controllers(self) -> None:
        programs, layout, start = self._programs, self._layout, self._processes.start
        start(_CONTROLLERS, [str(programs.kube_controller_manager), *flags.controller_manager(layout)])
        start(_SCHEDULER, [str(programs.kube_scheduler), *flags.scheduler(layout)])

    def _lay_out(self) -> None:
        """Write the certificates, keys and kubeconfigs that the programs are told of."""
        layout = self._layout
        reached_by = ["127.0.0.1", "localhost", flags.FIRST_SERVICE, "kubernetes.default.svc"]
        self._write_pair("apiserver", self._authority.server("kube-apiserver", reached_by))
        layout.service_account_key.write_bytes(service_account_key())
        layout.scheduler_config.write_text(json.dumps(flags.scheduler_config(layout)))
        layout.kwok_config.write_text(kwok.config())
        self.kubeconfig_for(flags.CONTROLLERS_USER)
        self.kubeconfig_for(flags.SCHEDULER_USER)
        self.kubeconfig_for(flags.KWOK_USER, [ADMIN_GROUP])

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

    def _write_pair(self, name: str, pair: KeyPair) -> None:
        # The folder is its owner's alone.
        self._layout.certificate(name).write_bytes(pair.certificate)
        self._layout.key(name).write_bytes(pair.key)

    def _log_end(self, name: str) -> str:
        return self._processes.log_path(name).read_text(errors="replace")[-3000:]
