"""Settings come from the environment and the command line, and say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.settings import read_secret, read_settings

SECRET = {names.ENV_PLATFORM_SECRET_FILE: "/secret"}


def test_the_command_line_wins_over_defaults_and_none_means_not_given() -> None:
    settings = read_settings({**SECRET, names.ENV_REDIS_URL: "redis://r:1/0"}, {"http_port": 1234, "host": None})
    assert (settings.http_port, settings.host, settings.redis_url) == (1234, "127.0.0.1", "redis://r:1/0")
    assert settings.body_bytes == 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("environment", "given", "named"),
    [
        ({}, {}, names.ENV_PLATFORM_SECRET_FILE),
        (SECRET, {"http_port": 70_000}, "http_port"),
        ({**SECRET, names.ENV_TLS_CERT_FILE: "/cert"}, {}, "tlsKeyFile"),
    ],
)
def test_what_is_wrong_is_named(environment: dict[str, str], given: dict[str, object], named: str) -> None:
    with pytest.raises(HanmaruError, match=named) as raised:
        read_settings(environment, given)
    assert raised.value.code is ErrorCode.CONFIGURATION


def test_a_secret_is_read_stripped_and_its_absence_is_said(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(HanmaruError, match="platform secret"):
        read_secret(file, "platform secret")
    file.write_text("\n")
    with pytest.raises(HanmaruError, match="empty"):
        read_secret(file, "platform secret")
    file.write_text("abc\n")
    assert read_secret(file, "platform secret") == "abc"
