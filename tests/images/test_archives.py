"""The images as nodes get them: who they run as, what is in them and what is not."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from hanmaru_cluster import images
from hanmaru_images.archive import image_config, image_sbom, layer_digests, layers, references
from hanmaru_images.context import ROOT, extra_requirements, project

Run = Callable[..., "subprocess.CompletedProcess[str]"]
STARTS = {
    "gateway": "import ray.serve, hanmaru_gateway.deployment, hanmaru_gateway.launch",
    "operator": "import hanmaru_operator.main, lightkube, kopf",
}
ALSO = {
    "gateway": ("ray", "--version"),
    "operator": ("hanmaru", "model-facts", "--checkpoint=/mnt", "--out=/tmp/facts"),
}
BANNED = {
    "gateway": ("torch", "sglang", "transformers", "kopf", "lightkube", "kubernetes", "triton"),
    "operator": ("torch", "sglang", "transformers", "ray", "triton"),
}


def test_an_image_runs_as_10001_and_starts_with_hanmaru(image: str, archive: Path) -> None:
    config = image_config(archive)["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["hanmaru"]
    assert config["Cmd"] == [image]
    assert references(archive) == [images.reference(image)]


def test_an_image_says_what_it_is(image: str, archive: Path) -> None:
    labels = image_config(archive)["config"]["Labels"]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"hanmaru/{image}"
    assert labels[f"{prefix}version"] == project()[0]
    assert labels[f"{prefix}licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}(-changed)?|unknown", labels[f"{prefix}revision"])


def test_the_command_works_with_a_read_only_root(run_in: Run) -> None:
    done = run_in("hanmaru", "--help")
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
    assert run_in("id", "-u").stdout.strip() == "10001"
    refused = run_in("touch", "/opt/hanmaru/x")
    assert "Read-only file system" in refused.stderr


def test_the_program_imports_all_it_needs(image: str, run_in: Run) -> None:
    done = run_in("python", "-I", "-c", STARTS[image])
    assert done.returncode == 0, done.stderr


def test_the_other_commands_of_its_pods_work(image: str, run_in: Run) -> None:
    done = run_in(*ALSO[image], mounted=ROOT / "checkpoints/tiny-k-exaone")
    assert done.returncode == 0, done.stderr


def test_what_another_image_is_for_is_not_in_it(image: str, archive: Path) -> None:
    names = {component["name"].lower() for component in _components(archive, "pypi")}
    assert names.isdisjoint(BANNED[image])


def test_the_list_of_parts_names_each_package_that_is_there(image: str, archive: Path) -> None:
    found = {
        match[1]
        for layer in layers(archive)
        for member in layer
        if (match := re.search(r"site-packages/([^/]+)-[^-/]+\.dist-info/METADATA$", member.name))
    }
    listed = {re.sub(r"[-_.]+", "_", component["name"]).lower() for component in _components(archive, "pypi")}
    assert {re.sub(r"[-_.]+", "_", name).lower() for name in found} == listed
    assert "hanmaru" in listed
    assert {"libc6", "python3.11"} <= {component["name"] for component in _components(archive, "deb")}


def test_every_version_is_the_locked_one(image: str, archive: Path) -> None:
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", extra_requirements(image), re.MULTILINE))
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in locked.items()}
    installed = {
        re.sub(r"[-_.]+", "-", component["name"]).lower(): component["version"]
        for component in _components(archive, "pypi")
    }
    del installed["hanmaru"]
    assert installed.items() <= locked.items()


def test_nothing_of_the_building_machine_is_in_a_layer(archive: Path) -> None:
    """Neither its paths nor its name nor its certificate authorities; files that a builder mounts are left empty."""
    banned = [text.encode() for text in (str(ROOT), "hanmaru-image-")]
    bundle = os.environ.get("SSL_CERT_FILE")
    authorities = Path(bundle).read_bytes() if bundle else None
    base = 1  # the first layer is the base, made of Debian's packages alone
    for number, layer in enumerate(layers(archive)):
        for member in layer:
            name = member.name.removeprefix("./")
            file = layer.extractfile(member) if member.isfile() else None
            if name in {"etc/hostname", "etc/resolv.conf", "etc/machine-id"}:
                assert member.size == 0, f"{name} tells of {platform.node()}"
            if file is None or number < base:
                continue
            content = file.read()
            assert content != authorities, name
            assert not [text for text in banned if text in content], name
            assert b"-----BEGIN PRIVATE KEY-----\nM" not in content, name


def test_no_build_option_stays_in_the_history(archive: Path) -> None:
    history = json.dumps(image_config(archive)["history"])
    assert "SSL_CERT_FILE" not in history
    assert "PIP_" not in history
    assert str(ROOT) not in history


def test_every_file_has_one_time(archive: Path) -> None:
    """What makes two builds of a commit the same, layer by layer; `make images ARGS=--twice` builds both."""
    times = [{member.mtime for member in layer} for layer in layers(archive)]
    assert len(times) == len(layer_digests(archive))
    assert all(len(seen) == 1 for seen in times), times


def _components(archive: Path, kind: str) -> list[dict[str, str]]:
    document = json.loads(image_sbom(archive))
    assert document["bomFormat"] == "CycloneDX"
    return [component for component in document["components"] if component["purl"].startswith(f"pkg:{kind}/")]
