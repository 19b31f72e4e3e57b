"""One cluster as its administrator sees it: kubectl for what people type, JSON through `kubectl proxy` for the rest.

The proxy knows every way in that a kubeconfig may name, so the same suite runs on a cluster of somebody else.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

Manifest = dict[str, Any]
Found = TypeVar("Found")
KUBECTL_DEADLINE_S = 180.0
REQUEST_DEADLINE_S = 30.0
POLL_S = 0.5
_MERGE = "application/merge-patch+json"


class RefusedError(Exception):
    """The API server refused: its HTTP status and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Kube:
    """A context manager: it holds one `kubectl proxy`."""

    def __init__(self, kubectl: Path, kubeconfig: Path) -> None:
        self._program = kubectl
        self.kubeconfig = kubeconfig

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="hanmaru-e2e-")
        # A home of its own: kubectl remembers kinds by address, and another cluster may have had this one.
        self.environ: Mapping[str, str] = {
            **os.environ,
            "HOME": self._home.name,
            "KUBECONFIG": str(self.kubeconfig),
        }
        self._proxy = subprocess.Popen(
            [str(self._program), "proxy", "--port=0"], env=self.environ, stdout=subprocess.PIPE, text=True
        )
        assert self._proxy.stdout is not None
        found = re.search(r":(\d+)$", self._proxy.stdout.readline().strip())
        if found is None:
            raise RuntimeError(f"kubectl proxy does not start with {self.kubeconfig}")
        self._port = int(found[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proxy.terminate()
        self._proxy.communicate()
        self._home.cleanup()

    # --- as people do it ---------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = KUBECTL_DEADLINE_S) -> str:
        """What it prints. Raises RuntimeError with its words when it fails or takes too long."""
        try:
            done = subprocess.run(
                [str(self._program), *arguments],
                input=stdin,
                env=self.environ,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"kubectl {' '.join(arguments)[:200]}: takes longer than {timeout_s:g} s") from error
        if done.returncode != 0:
            raise RuntimeError(
                f"kubectl {' '.join(arguments)[:200]}: {done.stderr.strip()[-2000:]} {done.stdout[-500:]}"
            )
        return done.stdout

    def kubectl_argv(self, *arguments: str) -> list[str]:
        """For a kubectl that goes on while the test does something else; give it `environ`."""
        return [str(self._program), *arguments]

    def apply(self, *manifests: Manifest) -> None:
        """`kubectl apply` of all of them."""
        self.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        )

    def exec(self, namespace: str, pod: str, *command: str, stdin: str | None = None, container: str = "") -> str:
        """What a command in a pod prints."""
        where = ["-n", namespace, "exec", pod, *(["-c", container] if container else []), *(["-i"] if stdin else [])]
        return self.kubectl(*where, "--", *command, stdin=stdin)

    # --- JSON --------------------------------------------------------------------------------------------------------

    def get(self, path: str) -> Manifest:
        """An object or a list. Raises RefusedError."""
        return self.request("GET", path)

    def find(self, path: str) -> Manifest | None:
        """An object; None when there is none."""
        try:
            return self.get(path)
        except RefusedError as refused:
            if refused.status == http.client.NOT_FOUND:
                return None
            raise

    def items(self, path: str) -> list[Manifest]:
        """Members of a list."""
        found: list[Manifest] = self.get(path)["items"]
        return found

    def patch(self, path: str, body: Manifest) -> Manifest:
        """Merge into an object or a subresource."""
        return self.request("PATCH", path, body, content_type=_MERGE)

    def delete(self, path: str) -> None:
        """Ask for a deletion; what is gone already is no error."""
        try:
            self.request("DELETE", path)
        except RefusedError as refused:
            if refused.status != http.client.NOT_FOUND:
                raise

    def request(
        self, method: str, path: str, body: Manifest | None = None, *, content_type: str = "application/json"
    ) -> Manifest:
        """One exchange. Raises RefusedError, and OSError when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_DEADLINE_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        found: Manifest = json.loads(text) if text.startswith("{") else {"message": text}
        if answer.status >= http.client.BAD_REQUEST:
            raise RefusedError(answer.status, str(found.get("message")))
        return found

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, what: str, is_so: Callable[[], Found], *, within_s: float) -> Found:
        """Until `is_so` answers something true, which is returned. An object that is not there yet is not so."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                found = is_so()
            except (RefusedError, OSError, RuntimeError, KeyError, IndexError) as error:
                last = repr(error)
            else:
                if found:
                    return found
                last = repr(found)
            if time.monotonic() > deadline_s:
                raise AssertionError(f"not within {within_s:g} s: {what} (last: {last[:1500]})")
            time.sleep(POLL_S)

    def pods(self, namespace: str, selector: str = "") -> list[Manifest]:
        """Pods of a namespace; `selector` as `kubectl -l` takes it."""
        return self.items(f"/api/v1/namespaces/{namespace}/pods" + (f"?labelSelector={selector}" if selector else ""))


def condition(found: Manifest, kind: str) -> Manifest:
    """A condition of an object; empty when it is not there."""
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), {})


def is_ready(pod: Manifest) -> bool:
    """Whether it serves, and nobody has told it to end."""
    return condition(pod, "Ready").get("status") == "True" and "deletionTimestamp" not in pod["metadata"]


def uids(pods: list[Manifest]) -> dict[str, str]:
    """UID of each pod by its name."""
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def restarts(pod: Manifest) -> int:
    """How often its containers were started anew."""
    return sum(each["restartCount"] for each in pod["status"].get("containerStatuses", ()))
