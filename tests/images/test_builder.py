"""What buildah and docker are asked to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanmaru_images.builder import (
    LAYER_EPOCH_S,
    Build,
    Builder,
    build_command,
    find_builder,
    find_secrets,
    save_command,
)

BUILD = Build(
    Path("/context"), "hanmaru/gateway:1", {"BASE_IMAGE": "base:1"}, {"title": "t"}, {"ca_bundle": Path("/ca.pem")}
)


@pytest.mark.parametrize(
    ("builder", "begins", "time"),
    [
        (Builder("buildah"), ["buildah", "bud"], f"--timestamp={LAYER_EPOCH_S}"),
        (
            Builder("buildah", Path("/s")),
            ["buildah", "--root=/s/images", "--runroot=/s/run", "bud"],
            f"--timestamp={LAYER_EPOCH_S}",
        ),
        (Builder("docker"), ["docker", "build"], f"--build-arg=SOURCE_DATE_EPOCH={LAYER_EPOCH_S}"),
    ],
)
def test_a_build_has_its_time_base_labels_and_secrets(builder: Builder, begins: list[str], time: str) -> None:
    command = build_command(builder, BUILD)
    assert command[: len(begins)] == begins
    assert time in command
    assert "--build-arg=BASE_IMAGE=base:1" in command
    assert "--label=title=t" in command
    assert "--secret=id=ca_bundle,src=/ca.pem" in command
    assert command[-2:] == ["--tag=hanmaru/gateway:1", "/context"]
    assert "--no-cache" not in command


@pytest.mark.parametrize("program", ["buildah", "docker"])
def test_a_fresh_build_takes_nothing_from_the_cache(program: str) -> None:
    fresh = Build(Path("/context"), "a:1", use_cache=False)
    assert "--no-cache" in build_command(Builder("docker" if program == "docker" else "buildah"), fresh)


def test_an_archive_names_its_image() -> None:
    archive = Path("/out/a.tar")
    assert save_command(Builder("buildah"), "a:1", archive)[-1] == "docker-archive:/out/a.tar:a:1"
    assert save_command(Builder("docker"), "a:1", archive) == ["docker", "save", "--output=/out/a.tar", "a:1"]


def test_certificates_of_the_environment_become_a_secret(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x", encoding="utf-8")
    assert find_secrets({"PIP_CERT": str(bundle)}, tmp_path) == {"ca_bundle": bundle}
    assert find_secrets({"SSL_CERT_FILE": str(bundle), "PIP_CERT": "/other"}, tmp_path) == {"ca_bundle": bundle}
    assert find_secrets({}, tmp_path) == {}


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"/not/there\.pem as certificate authorities"):
        find_secrets({"SSL_CERT_FILE": "/not/there.pem"}, tmp_path)


def test_an_index_with_its_password_is_no_argument(tmp_path: Path) -> None:
    address = "https://user:password@index.example/simple"
    secrets = find_secrets({"PIP_INDEX_URL": address}, tmp_path)
    assert secrets["index_url"].read_text(encoding="utf-8") == address
    assert secrets["index_url"].stat().st_mode & 0o077 == 0
    command = build_command(Builder("docker"), Build(tmp_path, "a:1", secrets=secrets))
    assert "password" not in " ".join(command)


def test_an_unknown_builder_is_refused() -> None:
    with pytest.raises(RuntimeError, match="neither buildah nor docker"):
        find_builder({"HANMARU_IMAGE_BUILDER": "podman"})


def test_a_machine_without_either_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match="apt install buildah"):
        find_builder({})
