"""What a machine must have for a real cluster, and which of it is missing here.

`real` asks before it starts, tests ask to skip with a reason where there is no root. The packages are installed by
`tools/install-system-packages`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from hanmaru_cluster import cgroups

INSTALL = "`tools/install-system-packages` installs what Debian has, as root"
_COMMANDS = ("conntrack", "ip", "iptables", "mount", "nft", "nsenter", "runc")
_PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/usr/libexec/cni"), Path("/opt/cni/bin"))
"""Of Debian, of Fedora, and of who installs them by hand."""
_PLUGINS = ("bridge", "host-local", "loopback")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_CAP_SYS_RESOURCE = 24


def cannot() -> str | None:
    """Why this machine or user can have no real cluster, whatever is installed; None when they can."""
    if sys.platform != "linux":
        return "a cluster with real nodes needs Linux; use `make e2e KUBECONFIG=…` with a cluster made elsewhere"
    if os.geteuid() != 0:
        return "a cluster with real nodes needs root: it makes namespaces, mounts and cgroups"
    if absent := [name for name, bit in _CAPABILITIES.items() if not _is_capable(bit)]:
        return f"a cluster with real nodes needs {' and '.join(absent)}, which this root does not have"
    if not Path("/sys/fs/cgroup").is_mount():
        return "a cluster with real nodes needs cgroups, and none are mounted at /sys/fs/cgroup"
    if root := cgroups.closed():
        return f"a cluster with real nodes needs the cgroup {root} without processes; in docker: --cgroupns=host"
    return None


def missing() -> list[str]:
    """The programs that are not installed here."""
    absent = [name for name in _COMMANDS if shutil.which(name) is None]
    folder = network_plugins()
    return absent + [str(folder / name) for name in _PLUGINS if not (folder / name).exists()]


def network_plugins() -> Path:
    """The folder with the container network plugins, or where they are expected."""
    return next((folder for folder in _PLUGIN_FOLDERS if folder.is_dir()), _PLUGIN_FOLDERS[0])


def check() -> None:
    """Raises RuntimeError with what is missing and what to do, where a real cluster cannot be started."""
    if reason := cannot():
        raise RuntimeError(reason)
    if absent := missing():
        raise RuntimeError(f"a cluster with real nodes needs {', '.join(absent)}: {INSTALL}")


def may_lower_oom_scores() -> bool:
    """Whether programs started from here may protect themselves from being killed for memory."""
    return _is_capable(_CAP_SYS_RESOURCE)


def _is_capable(bit: int) -> bool:
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert effective is not None
    return bool(int(effective[1], 16) >> bit & 1)
