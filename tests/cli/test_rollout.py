"""The words of `hanmaru rollout` and its waiting, without a cluster; with one: `tests/operator/test_rollout_cli.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner
from hanmaru_cli import rollout
from hanmaru_cli.api_server import DeploymentRef
from hanmaru_cli.main import cli
from hanmaru_cli.rollout import Clock, Voice
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_operator.api_errors import ClusterError, Forbidden, NotFound, TooMany, Unreachable

REF = DeploymentRef("ns", "m")
NOW = datetime(2026, 11, 22, 20, 30, 1, tzinfo=UTC)


def seen(reason: str, message: str = "", *, observed: int = 1, uid: str = "u", **metadata: Any) -> dict[str, Any]:
    """A deployment whose `Progressing` has that reason."""
    progressing = {"Paused": "Unknown", "DeadlineExceeded": "False"}.get(reason, "True")
    available = "True" if reason == "RolloutComplete" else "False"
    conditions = [
        {"type": kind, "status": status, "reason": word, "message": said, "lastTransitionTime": "2026-11-22T00:00:00Z"}
        for kind, status, word, said in (
            ("Progressing", progressing, reason, message),
            ("Available", available, "x", ""),
        )
    ]
    return {
        "metadata": {"name": "m", "namespace": "ns", "uid": uid, "generation": 1, **metadata},
        "spec": {"replicas": 1, "rollout": {"paused": reason == "Paused"}},
        "status": {"observedGeneration": observed, "conditions": conditions},
    }


COMPLETE = seen("RolloutComplete")
STARTING = seen("StartingReplicas", "0 of 1")
UNSEEN = seen("RolloutComplete", observed=0)
GONE = NotFound("there is none")
DEAF = Unreachable("no answer")


class ScriptedServer:
    """Shows one answer a look, the last one for ever."""

    def __init__(self, *answers: dict[str, Any] | ClusterError) -> None:
        self._answers = list(answers)
        self.merged: list[Mapping[str, Any]] = []

    def get(self, ref: DeploymentRef) -> dict[str, Any]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    def merge(self, ref: DeploymentRef, changes: Mapping[str, Any]) -> dict[str, Any]:
        self.merged.append(changes)
        return {}


class Ear:
    """Hears a command, and lets time pass for it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        assert len(self.slept_s) < 1000, "it would never end"
        self.slept_s.append(seconds)
        self.now_s += seconds

    def follow(self, *answers: dict[str, Any] | ClusterError, timeout_s: float = 0.0, watch: bool = True) -> int:
        voice = Voice(self.said.append, self.warned.append)
        clock = Clock(lambda: self.now_s, self.sleep)
        server = ScriptedServer(*answers)
        return rollout.status(server, REF, voice, watch=watch, timeout_s=timeout_s, clock=clock)


def test_each_change_is_said_once_until_the_rollout_is_complete() -> None:
    ear = Ear()
    assert ear.follow(STARTING, STARTING, seen("ReplacingReplicas", "1 of 1"), COMPLETE) == 0
    assert ear.said == ["0 of 1", "1 of 1", "rolled out, 0 of 1 replicas are ready"]
    assert ear.warned == []
    assert ear.slept_s == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("reason", ["DeadlineExceeded", "Refused"])
def test_a_failure_ends_with_status_1_and_says_where_to_look(reason: str) -> None:
    ear = Ear()
    assert ear.follow(STARTING, seen(reason, "no progress within 60 s")) == 1
    (warning,) = ear.warned
    assert f"does not roll out: {reason}: no progress within 60 s; see `kubectl describe md m -n ns`" in warning


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (STARTING, "not rolled out after 1m30s: 0 of 1; see `kubectl describe md m -n ns`"),
        (seen("Paused", "x"), "`hanmaru rollout resume m -n ns` lets it go on"),
        (UNSEEN, "does the operator run?"),
    ],
)
def test_time_that_is_up_is_status_1_with_what_it_waits_for(answer: dict[str, Any], advice: str) -> None:
    ear = Ear()
    assert ear.follow(answer, timeout_s=90.0) == 1
    assert advice in ear.warned[-1]
    assert ear.now_s == 90.0


def test_a_timeout_under_a_second_is_kept() -> None:
    ear = Ear()
    assert ear.follow(STARTING, timeout_s=0.25) == 1
    assert ear.now_s == 0.25


def test_an_operator_that_does_not_answer_is_said_once_after_ten_seconds() -> None:
    ear = Ear()
    assert ear.follow(*[UNSEEN] * 30, COMPLETE) == 0
    (warning,) = ear.warned
    assert "the operator has seen generation 0 of 1 for 10 s; does the operator run?" in warning


def test_an_operator_that_answers_late_is_not_complained_of() -> None:
    ear = Ear()
    assert ear.follow(*[UNSEEN] * 9, STARTING, *[UNSEEN] * 9, COMPLETE) == 0
    assert ear.warned == []


def test_a_look_without_watching_ends_at_once() -> None:
    for answer, status in ((COMPLETE, 0), (STARTING, 0), (UNSEEN, 0), (seen("DeadlineExceeded"), 1)):
        ear = Ear()
        assert ear.follow(answer, watch=False) == status
        assert len(ear.said) == 1
        assert ear.slept_s == []


def test_a_server_that_is_away_for_a_while_is_waited_for_and_said_once() -> None:
    ear = Ear()
    assert ear.follow(STARTING, DEAF, DEAF, STARTING, DEAF, COMPLETE) == 0
    assert ear.warned == ["no answer; trying again"] * 2
    assert len(ear.said) == 2


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks() -> None:
    ear = Ear()
    assert ear.follow(STARTING, TooMany("busy", retry_after_s=7.0), COMPLETE) == 0
    assert ear.slept_s == [1.0, 7.0]


def test_a_server_that_stays_away_uses_up_the_time() -> None:
    ear = Ear()
    assert ear.follow(STARTING, DEAF, timeout_s=5.0) == 1
    assert "not rolled out after 5s: 0 of 1" in ear.warned[-1]


@pytest.mark.parametrize("error", [GONE, DEAF, Forbidden("no")])
def test_what_fails_at_the_first_look_ends_it(error: ClusterError) -> None:
    with pytest.raises(type(error)):
        Ear().follow(error)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (GONE, "was deleted meanwhile"),
        (seen("StartingReplicas", uid="other"), "deleted and made anew"),
        (seen("StartingReplicas", deletionTimestamp="2026-11-22T00:00:00Z"), "is being deleted"),
    ],
)
def test_an_object_that_goes_ends_the_wait(later: dict[str, Any] | ClusterError, said: str) -> None:
    with pytest.raises(NotFound, match=said):
        Ear().follow(STARTING, later)


def test_a_status_of_a_newer_api_is_said_and_not_guessed_at() -> None:
    with pytest.raises(HanmaruError, match=r"cannot read the object's conditions\.0\.status: is it older"):
        Ear().follow({**STARTING, "status": {"conditions": [{**STARTING["status"]["conditions"][0], "status": "Odd"}]}})


def test_json_is_one_object_a_line() -> None:
    said: list[str] = []
    voice = Voice(said.append, said.append, is_json=True)
    rollout.status(ScriptedServer(STARTING), REF, voice, watch=False, timeout_s=0)
    shown = json.loads(said[0])
    assert shown["outcome"] == "Progressing"
    assert {"name", "namespace", "reason", "message", "revision", "desired", "ready", "pools"} <= shown.keys()
    assert shown["observedGeneration"] == 1


@pytest.mark.parametrize(
    ("is_paused", "wanted", "merged", "said"),
    [
        (False, True, [{"spec": {"rollout": {"paused": True}}}], "modeldeployment.serving.hanmaru.dev/m paused"),
        (True, False, [{"spec": {"rollout": {"paused": False}}}], "modeldeployment.serving.hanmaru.dev/m resumed"),
        (True, True, [], "modeldeployment.serving.hanmaru.dev/m is paused already"),
        (False, False, [], "modeldeployment.serving.hanmaru.dev/m is not paused"),
    ],
)
def test_pausing_changes_one_field_and_only_when_it_must(
    is_paused: bool, wanted: bool, merged: list[dict[str, Any]], said: str
) -> None:
    server, ear = ScriptedServer(seen("Paused" if is_paused else "RolloutComplete")), Ear()
    assert rollout.set_paused(server, REF, ear.said.append, paused=wanted) == 0
    assert server.merged == merged
    assert ear.said == [said]


def test_a_restart_sets_the_annotation_to_the_time() -> None:
    server, ear = ScriptedServer(COMPLETE), Ear()
    assert rollout.restart(server, REF, ear.said.append, NOW) == 0
    annotations = {"serving.hanmaru.dev/restarted-at": "2026-11-22T20:30:01Z"}
    assert server.merged == [{"metadata": {"annotations": annotations}}]


def test_what_is_paused_is_not_restarted() -> None:
    server = ScriptedServer(seen("Paused"))
    with pytest.raises(HanmaruError, match="first run `hanmaru rollout resume m -n ns`"):
        rollout.restart(server, REF, print, NOW)
    assert server.merged == []


@pytest.mark.parametrize(
    "given",
    [
        "m",
        "md/m",
        "modeldeployment/m",
        "modeldeployments/m",
        "ModelDeployment/m",
        "md.serving.hanmaru.dev/m",
        "modeldeployment.serving.hanmaru.dev/m",
    ],
)
def test_a_name_may_have_its_kind_before_it(given: str) -> None:
    assert rollout.read_name(given) == "m"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("deployment/m", "write NAME, md/NAME or modeldeployment/NAME"),
        ("../../secrets/x", "write NAME"),
        ("/m", "write NAME"),
        ("md/", "cannot be the name"),
        ("K-EXAONE", "cannot be the name"),
        ("..", "cannot be the name"),
        ("m" * 45, "cannot be the name"),
    ],
)
def test_other_names_are_refused_before_anything_is_asked(given: str, said: str) -> None:
    with pytest.raises(HanmaruError, match=said) as raised:
        rollout.read_name(given)
    assert raised.value.code is ErrorCode.CONFIGURATION


@pytest.mark.parametrize("command", [[], ["status"], ["pause"], ["resume"], ["restart"]])
def test_help_has_examples_and_imports_nothing_heavy(command: list[str]) -> None:
    arguments = ["rollout", *command, "--help"]
    look = f"import sys; from hanmaru_cli.main import cli\ntry: cli({arguments})\nexcept SystemExit: pass\n"
    look += "print([m for m in ('pydantic', 'lightkube', 'httpx2', 'yaml', 'kopf') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "Example" in run.stdout
    assert "hanmaru rollout" in run.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("hanmaru rollout re", {"restart", "resume"}), ("hanmaru rollout status --con", {"--context"})],
)
def test_commands_and_options_complete(typed: str, completed: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_HANMARU_COMPLETE": "bash_complete"}
    command = [sys.executable, "-m", "hanmaru_cli"]
    run = subprocess.run(command, env=words, capture_output=True, text=True, timeout=30, check=False)
    assert {line.partition(",")[2] for line in run.stdout.split()} == completed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "Missing argument 'NAME'"),
        (["status", "m", "--timeout", "soon"], "write it as 90s, 5m or 1h30m"),
        (["status", "m", "-o", "yaml"], "'yaml' is not one of 'text', 'json'"),
        (["status", "deployment/m"], "write NAME, md/NAME or modeldeployment/NAME"),
        (["pause", "m", "--kubeconfig", "/nowhere"], "there is no kubeconfig /nowhere"),
    ],
)
def test_wrong_words_are_said_with_status_2(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["rollout", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
