"""Which images there are. `tools/images.py` offers them by name; `tests/cluster` builds two of them."""

from __future__ import annotations

from dataclasses import dataclass

PYTHON_BASE = "docker.io/library/python:3.11-slim-bookworm"
"""The default of the Dockerfiles of gateway and operator, and the base of the worker without CUDA."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image: a Dockerfile, and the extra of our distribution that is installed in it."""

    name: str
    """What `make images IMAGE=…` calls it."""
    repository: str
    """Last part of the image's own name, and the folder of its Dockerfile in `images/`."""
    extra: str
    """Of pyproject.toml: which locked packages it gets."""
    title: str
    base: str | None = None
    """Instead of the Dockerfile's default."""
    tag_suffix: str = ""


IMAGES = {
    image.name: image
    for image in (
        Image("gateway", "gateway", "gateway", "The gateway: OpenAI's API and gRPC in front of workers"),
        Image("operator", "operator", "operator", "The operator, and the reader of models' facts"),
        Image("worker", "worker", "worker", "A worker with SGLang for CPUs", base=PYTHON_BASE, tag_suffix="-cpu"),
        # The base has SGLang and torch, so only the supervisor's packages are added.
        Image("worker-cuda", "worker", "supervisor", "A worker with SGLang for NVIDIA GPUs"),
    )
}
DEFAULT_IMAGES = ("gateway", "operator")
"""Built when none is named: the workers' bases and environments are 10 GB and more."""
