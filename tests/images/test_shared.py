"""The scripts that run inside builds, loaded from where they lie: they belong to no package."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "images/shared"
LOCKED = """\
aiohttp==3.1 \\
    --hash=sha256:aa
async-timeout==5.0 ; python_full_version < '3.11.3' \\
    --hash=sha256:bb \\
    --hash=sha256:cc
ray[serve]==2.6 \\
    --hash=sha256:dd
"""


@pytest.mark.parametrize(
    ("installed", "kept"),
    [
        (set(), {"aiohttp", "async-timeout", "ray"}),
        ({"aiohttp"}, {"async-timeout", "ray"}),
        ({"ray", "async-timeout", "aiohttp"}, set()),
    ],
)
def test_only_what_the_base_lacks_is_asked_for_with_its_hashes(installed: set[str], kept: set[str]) -> None:
    missing = runpy.run_path(str(SHARED / "missing.py"))["missing"]
    found = missing(LOCKED, installed)
    assert {line.split("==")[0].split("[")[0] for line in found.splitlines() if not line.startswith(" ")} == kept
    assert found.count("--hash") == sum({"aiohttp": 1, "async-timeout": 2, "ray": 1}[name] for name in kept)


def test_names_are_compared_as_indexes_do() -> None:
    normalised = runpy.run_path(str(SHARED / "missing.py"))["normalised"]
    assert normalised("Async_Timeout") == normalised("async.timeout") == "async-timeout"


def test_a_list_of_parts_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    main = runpy.run_path(str(SHARED / "sbom.py"))["main"]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    for name in ("one.json", "two.json"):
        main("hanmaru/test", "1", str(tmp_path / name), packages)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    document = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    purls = [component["purl"] for component in document["components"]]
    assert any(purl.startswith("pkg:pypi/msgspec@") for purl in purls)
    assert len(purls) == len(set(purls))
