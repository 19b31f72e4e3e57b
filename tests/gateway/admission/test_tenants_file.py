"""A mistake in a tenants file is told with its line and field, and never with a value that could be a key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanmaru_contracts.crd.v1alpha1.tenant import TenantsFile
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.keys import api_key_digest
from hanmaru_gateway.admission.tenants_file import load_tenants_file

HASH = api_key_digest("x")
GOOD = f"""
tenants:
  - name: acme
    credentials:
      - name: laptop
        apiKey: {{sha256: {HASH}}}
        expiresAt: 2027-01-01T00:00:00Z
    models: [{{namespace: default, name: k-exaone}}]
    limits:
      - requestsPerMinute: 60
"""


def _load(folder: Path, text: str | bytes) -> TenantsFile:
    path = folder / "tenants.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_tenants_file(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    file = _load(tmp_path, GOOD)
    [tenant] = file.tenants
    assert tenant.name == "acme"
    assert tenant.limits[0].requests_per_minute == 60
    assert tenant.models[0].id == "default/k-exaone"


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "tenants: []\n", "{}"])
def test_a_file_without_tenants_is_a_file(tmp_path: Path, text: str) -> None:
    assert _load(tmp_path, text).tenants == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace(HASH, "hmk_secret"), ["line 6", "tenants[0].credentials[0].apiKey", "10 characters"]),
        (GOOD.replace("60", "0"), ["line 10", "tenants[0].limits[0].requestsPerMinute", "greater than 0"]),
        (GOOD.replace("60", "many"), ["line 10", "requestsPerMinute"]),
        (GOOD.replace("requestsPerMinute", "requestPerMinute"), ["line 10", "tenants[0].limits[0].requestPerMinute"]),
        (GOOD.replace("name: acme", "name: Acme!"), ["line 3", "tenants[0].name"]),
        (GOOD.replace("2027-01-01T00:00:00Z", "2027-01-01T00:00:00"), ["line 7", "expiresAt", "timezone"]),
        (GOOD.replace("name: acme\n", "suspended: true\n"), ["line 3", "tenants[0].name", "required"]),
        (GOOD + "      - requestsPerMinute: 5\n", ["two limits have the same name"]),
        (GOOD + GOOD.removeprefix("\ntenants:\n"), ["the same tenant name stands twice"]),
        ("tenants: 3\n", ["line 1", "tenants"]),
        ("- tenants\n", ["the file"]),
        ("tenants:\n  - name: a\n  name: b\n", ["line 3"]),
        ("tenants: []\ntenants: []\n", ["line 2", "'tenants' stands twice"]),
        ("a: &x []\nb: *x\n", ["alias"]),
        ("a: &x [*x]\n", ["alias"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["line 1"]),
        ("? [a]\n: b\n", ["tenants file"]),
        (b"tenants: \xff\n", ["not valid YAML"]),
        (b"\x00", ["not valid YAML"]),
        ("[" * 5000, ["not valid YAML"]),
        (b"#" * (16 * 1024 * 1024 + 1), ["larger than"]),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str | bytes, said: list[str]) -> None:
    with pytest.raises(HanmaruError) as caught:
        _load(tmp_path, text)
    assert caught.value.code is ErrorCode.CONFIGURATION
    assert [word for word in ["tenants.yaml", *said] if word not in caught.value.message] == [], caught.value.message
    assert "hmk_secret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(HanmaruError, match="No such file"):
        load_tenants_file(tmp_path / "none.yaml")


def test_many_mistakes_are_told_in_part(tmp_path: Path) -> None:
    text = "tenants:\n" + "  - name: A\n" * 20
    with pytest.raises(HanmaruError, match="and 15 more"):
        _load(tmp_path, text)
