from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hanmaru_cli.api_server import Look
from hanmaru_cli.doctor import fetch
from hanmaru_cli.doctor.program import judge
from hanmaru_operator.api_errors import Forbidden, NotFound, Unreachable

VERSION = json.dumps({"gitVersion": "v1.36.3"})
DATE = "Sun, 22 Nov 2026 23:00:00 GMT"


class Recorded:
    """Answers by path, and remembers what was asked for in which form."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self._answer = answer
        self.asked: list[tuple[str, str]] = []

    def look(self, path: str, accept: str = "application/json") -> Look:
        self.asked.append((path, accept))
        return Look((VERSION if path == "/version" else self._answer(path)).encode(), DATE)


def items(*found: Any, after: str = "") -> str:
    return json.dumps({"metadata": {"continue": after}, "items": list(found)})


def test_long_lists_are_read_page_by_page() -> None:
    def answer(path: str) -> str:
        if "/nodes?" not in path:
            return items()
        if path.endswith("continue="):
            return items({"metadata": {"name": "a"}}, after="x&y")
        return items({"metadata": {"name": "b"}}) if path.endswith("continue=x%26y") else items()

    world = fetch.look(Recorded(answer), "https://api", "default")
    assert [node.metadata.name for node in world.nodes] == ["a", "b"]
    assert world.version == "v1.36.3"
    assert world.server_time == 1795388400.0


def test_of_secrets_nothing_but_names_is_asked_for_and_only_where_tenants_name_some() -> None:
    credential = {"name": "x", "apiKey": {"secretRef": {"name": "key", "key": "k"}}}
    tenant = {"metadata": {"name": "t", "namespace": "hanmaru"}, "spec": {"credentials": [credential]}}
    server = Recorded(lambda path: items(tenant) if "/tenants?" in path else items())
    fetch.look(server, "https://api", "default")
    asked = [(path.partition("?")[0], accept) for path, accept in server.asked if "secrets" in path]
    assert asked == [("/api/v1/namespaces/hanmaru/secrets", fetch._HEADS)]
    assert "PartialObjectMetadata" in asked[0][1]


@pytest.mark.parametrize("answer", ["", "<html>", "[]", '{"items": 3}', '{"items": [3]}', '{"items": null}'])
def test_an_answer_in_another_form_is_no_crash(answer: str) -> None:
    judge(fetch.look(Recorded(lambda path: answer), "https://api", "default"))


@pytest.mark.parametrize("error", [Forbidden("pods is forbidden"), NotFound("gone"), Unreachable("no answer")])
def test_whatever_the_server_refuses_is_no_crash(error: Exception) -> None:
    def refuse(path: str) -> str:
        raise error

    judge(fetch.look(Recorded(refuse), "https://api", "default"))
