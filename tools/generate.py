"""Writes every generated file anew (`make generate`), or says which are stale (`make verify`)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each generator, and the folder or file it writes.
GENERATORS = {
    "tools/generate_proto.py": "platform/hanmaru_gateway/grpc/generated",
    "tools/generate_api_reference.py": "docs/api.md",
    "tools/generate_crds.py": "charts/hanmaru-crds/templates",
    "tools/generate_kinds_reference.py": "docs/kinds.md",
    "tools/generate_rbac.py": "charts/hanmaru/files",
    "tools/generate_ray.py": "charts/hanmaru/files/ray.yaml",
    "tools/generate_redis_acl.py": "charts/hanmaru/files/redis/generated",
    "tools/generate_chart_values.py": "charts/hanmaru/values.yaml",
    "tools/generate_chart_schema.py": "charts/hanmaru/values.schema.json",
    "tools/generate_chart_reference.py": "charts/hanmaru/README.md",
    "tools/generate_dashboards.py": "charts/hanmaru/dashboards",
}


def _contents(output: str) -> dict[Path, bytes]:
    path = ROOT / output
    files = path.rglob("*") if path.is_dir() else [path]
    return {file: file.read_bytes() for file in files if file.is_file() and "__pycache__" not in file.parts}


def main() -> int:
    """Run the generators; exit code 1 when `--check` found a stale file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a committed file was stale")
    check = parser.parse_args().check
    stale: list[Path] = []
    for script, output in GENERATORS.items():
        before = _contents(output)
        subprocess.run([sys.executable, script], cwd=ROOT, check=True)
        after = _contents(output)
        stale += sorted(file for file in before.keys() | after.keys() if before.get(file) != after.get(file))
    for file in stale:
        print(f"{'stale' if check else 'written'}: {file.relative_to(ROOT)}")
    if stale and check:
        print("Generated files did not match their sources; they have been written anew: commit them.")
    return int(bool(stale) and check)


if __name__ == "__main__":
    raise SystemExit(main())
