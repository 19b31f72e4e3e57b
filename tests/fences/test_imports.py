"""Each image's package imports in a fresh process in which the packages its image lacks cannot be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

_IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in banned:
            raise ImportError(f"{name} is not in this image")

banned = set(sys.argv[2].split(","))
skipped = tuple(filter(None, sys.argv[3].split(",")))
sys.meta_path.insert(0, Blocked())
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.startswith(skipped or ("-",)) and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""

_STACK = "sglang,torch,transformers,ray,redis,aiohttp,grpc,jinja2,kopf,kubernetes,lightkube,tokenizers,uvicorn"


@pytest.mark.parametrize(
    ("package", "banned", "skipped"),
    [
        ("hanmaru_contracts", _STACK + ",hanmaru_gateway,hanmaru_operator,hanmaru_worker,hanmaru_cli", ""),
        (
            "hanmaru_redis",
            _STACK.replace("redis,", "") + ",hanmaru_gateway,hanmaru_operator,hanmaru_worker,hanmaru_cli",
            "",
        ),
        ("hanmaru_gateway", "torch,sglang,transformers,kubernetes,kopf,lightkube,hanmaru_operator,hanmaru_worker", ""),
        (
            "hanmaru_operator",
            "torch,sglang,transformers,ray,jinja2,tokenizers,uvicorn,hanmaru_gateway,hanmaru_worker",
            "",
        ),
        (
            "hanmaru_worker",
            "ray,kubernetes,kopf,lightkube,torch,sglang,hanmaru_gateway,hanmaru_operator",
            "hanmaru_worker.plugin",
        ),
        # What speaks to an API server comes with `hanmaru[operator]`, and is imported when it is asked for.
        (
            "hanmaru_cli",
            _STACK + ",hanmaru_gateway,hanmaru_worker",
            "hanmaru_cli.rollout,hanmaru_cli.api_server,hanmaru_cli.kubeconfig,hanmaru_cli.exec_login",
        ),
    ],
)
def test_package_imports_without_what_its_image_lacks(package: str, banned: str, skipped: str) -> None:
    command = [sys.executable, "-c", _IMPORT_ALL, package, banned, skipped]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
