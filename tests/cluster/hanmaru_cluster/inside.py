"""Ways into a cluster's namespaces, from without and between them: command lines, and running them."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

COMMAND_DEADLINE_S = 120.0


def in_network(namespace: str, argv: Sequence[str]) -> list[str]:
    """For a process that is inside: the command in one of the cluster's network namespaces.

    Not `ip netns exec`, which would mount a fresh `/sys` and so hide the cgroups.
    """
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *argv]


class Inside:
    """The namespaces of one cluster, entered through its first process."""

    def __init__(self, init: int) -> None:
        self._init = init

    def argv(self, command: Sequence[str], *, network: str | None = None) -> list[str]:
        """For a process of the machine: the command inside, in one of the cluster's network namespaces if named."""
        entered = in_network(network, command) if network else command
        return ["nsenter", f"--target={self._init}", "--mount", "--pid", "--", *entered]

    def run(self, command: Sequence[str], *, network: str | None = None, timeout_s: float = COMMAND_DEADLINE_S) -> str:
        """What the command prints. Raises RuntimeError with its words when it fails or takes too long."""
        argv = self.argv(command, network=network)
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{shlex.join(command)[:200]} takes longer than {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)[:200]}: {done.stderr.strip()[-2000:] or done.returncode}")
        return done.stdout
