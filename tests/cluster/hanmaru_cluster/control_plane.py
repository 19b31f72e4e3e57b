"""A Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler, and kwok for the nodes.

Tests get one for a whole run (`hanmaru_testing.cluster_fixtures`), people by `python -m hanmaru_cluster up`.
Everything it needs is in one temporary folder that goes with it. Kubelets are not here: `real` puts the same control
plane on other ground, a network namespace, and adds them.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a control plane runs that is not on loopback: with kubelets, and so without kwok."""

    layout: flags.Layout
    processes: Processes
    enter: Callable[[Sequence[str]], list[str]]
    """Makes of a program's command line the one that runs it there."""


class ControlPlane:
    """A running control plane; a context manager, to be entered once. Its methods may be called from any thread.

    With hundreds of nodes a longer `heartbeat_timeout_s` keeps their leases from filling the machine.
    """

    def __init__(self, *, heartbeat_timeout_s: int = flags.HEARTBEAT_TIMEOUT_S, ground: Ground | None = None) -> None:
        self._programs = find_programs()
        self.authority = CertificateAuthority()
        """Signs for everybody in this cluster."""
        self._ground = ground or _loopback(heartbeat_timeout_s)
        self._layout, self._processes = self._ground.layout, self._ground.processes
        self._has_kubelets = ground is not None
        self._layout.authority.write_bytes(self.authority.certificate)
        self.kubeconfig = self.kubeconfig_for("admin", [ADMIN_GROUP])
        """Of a user who may do everything."""
        self.write_pair("admin", self.authority.client("admin", [ADMIN_GROUP]))
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
            self.start()
        except BaseException:
            self._processes.close()
            raise
        return self

    def start(self) -> None:
        """Start everything, for who ends the processes otherwise than by leaving the context manager."""
        self._lay_out()
        self._start(_ETCD, [str(self._programs.etcd), *flags.etcd(self._layout)])
        self.start_apiserver()
        self._start_controllers()
        if not self._has_kubelets:
            self._start(_KWOK, [str(self._programs.kwok), *flags.kwok(self._layout)])
        self._await_service_account("default")  # which also tells that the controllers run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything. Raises RuntimeError when a program had ended by itself, with the end of its log."""
        ended = self._processes.ended()
        logs = "\n".join(f"{name} ended with {status}:\n{self.log_end(name)}" for name, status in ended.items())
        self._processes.stop(_KWOK, _CONTROLLERS, _SCHEDULER)
        self._processes.stop(_APISERVER)  # before etcd, without which it would not end
        self._processes.stop(_ETCD)
        self._processes.close()
        if ended and error is None:
            raise RuntimeError(logs)

    @property
    def kubectl_path(self) -> Path:
        """The program, for what `kubectl` is not enough."""
        return self._programs.kubectl

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of this user in these groups, who may do what RBAC allows; it goes with the control plane."""
        return self._write_kubeconfig(user, groups, self.url)

    def kubeconfig_inside(self, user: str, groups: Sequence[str] = ()) -> Path:
        """The same for a program of the cluster itself, which is where the API server is."""
        return self._write_kubeconfig(user, groups, self._layout.inner_url)

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
        self._start(_APISERVER, [str(self._programs.kube_apiserver), *flags.apiserver(self._layout)])
        self.wait_for(_APISERVER, self.api.is_ready)

    def restart_controllers(self) -> None:
        """Start controller manager and scheduler anew: by themselves they need up to a minute after an outage.

        Each of their watches has doubled its waiting with each try.
        """
        self._processes.stop(_CONTROLLERS, _SCHEDULER)
        self._start_controllers()

    def wait_for(self, program: str, reached: Callable[[], bool]) -> None:
        """Wait until something is reached that depends on a program. Raises RuntimeError with the program's log."""
        deadline_s = time.monotonic() + START_DEADLINE_S
        while not reached():
            if program in self._processes.ended() or time.monotonic() > deadline_s:
                raise RuntimeError(f"{program} does not start:\n{self.log_end(program)}")
            time.sleep(0.05)

    def log_end(self, program: str) -> str:
        """The last of what a program printed."""
        return self._processes.log_path(program).read_text(errors="replace")[-3000:]

    def write_pair(self, name: str, pair: KeyPair) -> None:
        """Put a certificate and its key where the layout has them."""
        # The folder is its owner's alone.
        self._layout.certificate(name).write_bytes(pair.certificate)
        self._layout.key(name).write_bytes(pair.key)

    def _start(self, name: str, argv: Sequence[str]) -> None:
        self._processes.start(name, self._ground.enter(argv))

    def _start_controllers(self) -> None:
        programs, layout, start = self._programs, self._layout, self._start
        start(_CONTROLLERS, [str(programs.kube_controller_manager), *flags.controller_manager(layout)])
        start(_SCHEDULER, [str(programs.kube_scheduler), *flags.scheduler(layout)])

    def _lay_out(self) -> None:
        """Write the certificates, keys and kubeconfigs that the programs are told of."""
        layout = self._layout
        reached_by = [flags.LOOPBACK, layout.address, "localhost", flags.FIRST_SERVICE, "kubernetes.default.svc"]
        self.write_pair("apiserver", self.authority.server("kube-apiserver", reached_by))
        layout.service_account_key.write_bytes(service_account_key())
        layout.scheduler_config.write_text(json.dumps(flags.scheduler_config(layout)))
        layout.kwok_config.write_text(kwok.config())
        self.kubeconfig_inside(flags.CONTROLLERS_USER)
        self.kubeconfig_inside(flags.SCHEDULER_USER)
        self.kubeconfig_inside(flags.KWOK_USER, [ADMIN_GROUP])

    def _await_service_account(self, namespace: str) -> None:
        """Wait until a new namespace has its `default` ServiceAccount, without which it takes no pods."""

        def is_there() -> bool:
            try:
                self.api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
            except ApiError:
                return False
            return True

        self.wait_for(_CONTROLLERS, is_there)

    def _write_kubeconfig(self, user: str, groups: Sequence[str], url: str) -> Path:
        return write_kubeconfig(
            self._layout.kubeconfig(user),
            url=url,
            authority=self.authority.certificate,
            client=self.authority.client(user, groups),
        )


def _loopback(heartbeat_timeout_s: int) -> Ground:
    folder = Path(tempfile.mkdtemp(prefix="hanmaru-cluster-"))
    layout = flags.Layout(folder, free_port(), free_port(), free_port(), heartbeat_timeout_s)
    return Ground(layout, Processes(folder), list)
