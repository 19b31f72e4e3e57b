"""What a build's folder is filled with, and when an image counts as changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hanmaru_images.catalog import IMAGES
from hanmaru_images.context import digest, extra_requirements, project, sources_digest


def _names(extra: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+)==", extra_requirements(extra), re.MULTILINE))


@pytest.mark.parametrize(
    ("extra", "has", "lacks"),
    [
        ("gateway", {"ray", "tokenizers", "grpcio"}, {"torch", "sglang", "kopf", "lightkube", "pytest", "mypy"}),
        ("operator", {"kopf", "lightkube"}, {"torch", "sglang", "ray", "pytest", "mypy"}),
        ("supervisor", {"aiohttp", "redis", "pyzmq"}, {"torch", "sglang", "ray", "kopf", "pytest"}),
        ("worker", {"sglang", "torch", "aiohttp"}, {"ray", "kopf", "pytest", "mypy"}),
    ],
)
def test_an_image_gets_its_extra_and_nothing_of_development(extra: str, has: set[str], lacks: set[str]) -> None:
    names = _names(extra)
    assert has <= names
    assert lacks.isdisjoint(names)


@pytest.mark.parametrize("extra", sorted({image.extra for image in IMAGES.values()}))
def test_every_requirement_is_pinned_with_a_hash(extra: str) -> None:
    blocks = re.split(r"^(?=[a-z0-9])", extra_requirements(extra), flags=re.MULTILINE)
    # Of some packages for macOS the index has no file at all.
    ours = [block for block in blocks if block.strip() and "sys_platform == 'darwin'" not in block]
    assert ours
    assert all("==" in block and "--hash=sha256:" in block for block in ours)


def test_the_engine_of_the_base_is_the_locked_one() -> None:
    """The CUDA image brings SGLang; the plugin is written for the version that the lock has."""
    dockerfile = Path(__file__).parents[2] / "images/worker/Dockerfile"
    found = re.search(r"^ARG BASE_IMAGE=docker\.io/lmsysorg/sglang:v(\S+)$", dockerfile.read_text(), re.MULTILINE)
    assert found is not None
    assert f"sglang=={found[1]} " in extra_requirements("worker").replace("\n", " ").replace("[tracing]", "")


def test_the_wheel_holds_every_package_of_ours() -> None:
    _, packages = project()
    root = Path(__file__).parents[2]
    there = {
        f"{source}/{folder.name}"
        for source in ("platform", "operator", "serving")
        for folder in (root / source).iterdir()
        if (folder / "__init__.py").exists()
    }
    assert there == set(packages)


def test_a_digest_changes_with_names_and_contents_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.py").write_text("1", encoding="utf-8")
    first = sources_digest([tmp_path / "a"])
    (tmp_path / "a/__pycache__").mkdir()
    (tmp_path / "a/__pycache__/one.pyc").write_bytes(b"x")
    assert sources_digest([tmp_path / "a"]) == first
    (tmp_path / "a/one.py").rename(tmp_path / "a/two.py")
    second = sources_digest([tmp_path / "a"])
    (tmp_path / "a/two.py").write_text("2", encoding="utf-8")
    assert len({first, second, sources_digest([tmp_path / "a"])}) == 3


def test_parts_do_not_run_into_each_other() -> None:
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"])
