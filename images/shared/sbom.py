"""Writes a CycloneDX 1.6 list of what an image holds: Debian packages and Python distributions, with licences.

Run by the Dockerfiles, inside the image, with the interpreter whose environment is described; standard library only.
It lists what is installed, not what was asked for, so a base image's packages are in it. The same content gives the
same bytes: no serial number and no time. Files that no package manager knows (CUDA's, say) are left out.

    python sbom.py NAME VERSION OUT [SITE-PACKAGES...]
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

DPKG_STATUS = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")


def main(name: str, version: str, out: str, *site_packages: str) -> None:
    """Write the list for the image `name` to `out`."""
    found = distributions(path=list(site_packages)) if site_packages else distributions()
    release = _fields(OS_RELEASE.read_text(encoding="utf-8"), "=") if OS_RELEASE.exists() else {}
    debian = DPKG_STATUS.read_text(encoding="utf-8") if DPKG_STATUS.exists() else ""
    components = [_python(one) for one in found] + _debian(debian, release.get("ID", "debian").strip('"'))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        # A distribution that is on the path twice is listed once.
        "components": [value for _, value in sorted({one["bom-ref"]: one for one in components}.items())],
    }
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _python(found: Distribution) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    purl = f"pkg:pypi/{name}@{found.version}"
    told = _first(found, "License-Expression")
    said = _first(found, "License").strip()
    licenses: list[dict[str, Any]] = []
    if told:
        licenses = [{"expression": told}]
    elif said and "\n" not in said and said != "UNKNOWN":  # some put the whole text there
        licenses = [{"license": {"name": said}}]
    return _component(found.metadata["Name"], found.version, purl, licenses)


def _first(found: Distribution, header: str) -> str:
    return next(iter(found.metadata.get_all(header) or []), "")


def _debian(status: str, vendor: str) -> list[dict[str, Any]]:
    packages = [_fields(block, ": ") for block in status.split("\n\n")]
    return [
        _component(
            one["Package"],
            one["Version"],
            f"pkg:deb/{vendor}/{one['Package']}@{one['Version']}?arch={one['Architecture']}",
        )
        for one in packages
        if one.get("Status") == "install ok installed"
    ]


def _component(name: str, version: str, purl: str, licenses: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    found = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return found | ({"licenses": licenses} if licenses else {})


def _fields(text: str, separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in text.splitlines() if line and not line[0].isspace())
    return {key: value for key, _, value in pairs}


if __name__ == "__main__":
    main(*sys.argv[1:])
