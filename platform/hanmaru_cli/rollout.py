"""`hanmaru rollout`: follow, pause, resume and restart a ModelDeployment's rollout, with the user's own kubeconfig.

Called by `main`. What a state means is `hanmaru_operator.rollout_view`'s to say; here is the waiting, the printing and
the change of one field. Exit status 0: done, or so already; 1: it failed, or time was up; 2: wrong words or kubeconfig.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec
from hanmaru_contracts.crd.kinds import GROUP, MODEL_DEPLOYMENT
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ANNOTATION_RESTARTED_AT
from hanmaru_operator.api_errors import NotFound, TooMany, Unreachable
from hanmaru_operator.rollout_view import Outcome, RolloutView, view_rollout
from hanmaru_operator.types import Manifest
from pydantic import ValidationError

from hanmaru_cli.api_server import ApiServer, DeploymentRef
from hanmaru_cli.duration import duration_words
from hanmaru_cli.kubeconfig import read_access

LOOK_INTERVAL_S = 1.0
ANSWER_S = 10.0
"""An operator that is well looks at a change within a second."""
_KINDS = frozenset(
    name
    for word in (*MODEL_DEPLOYMENT.short_names, MODEL_DEPLOYMENT.singular, MODEL_DEPLOYMENT.plural)
    for name in (word, f"{word}.{GROUP}")
)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NAMESPACE_MAX_CHARS = 63


Login = Mapping[str, str | None]
"""`kubeconfig`, `context` and `namespace` as given on the command line."""


class Server(Protocol):
    """`api_server.ApiServer`, or a test's own."""

    def get(self, ref: DeploymentRef) -> Manifest:
        """The object as it is. Raises ClusterError."""
        ...

    def merge(self, ref: DeploymentRef, changes: Mapping[str, Any]) -> Manifest:
        """Merge `changes` into the object. Raises ClusterError."""
        ...


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the waiting sees it."""

    now: Callable[[], float] = time.monotonic
    """Seconds that only go forward."""
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Voice:
    """Where lines go."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    """For people, beside the output."""
    is_json: bool = False

    def show(self, view: RolloutView) -> None:
        """One look."""
        self.say(msgspec.json.encode(view).decode() if self.is_json else view.line)


def on_deployment(
    environ: Mapping[str, str], given: str, login: Login, act: Callable[[ApiServer, DeploymentRef], int]
) -> int:
    """Log in, and act on the ModelDeployment that the command line names. The exit status."""
    name = read_name(given)
    access = read_access(environ, **login)
    if not _NAME.fullmatch(access.namespace) or len(access.namespace) > _NAMESPACE_MAX_CHARS:
        raise _wrong(f"{access.namespace!r} cannot be a namespace: lower-case letters, digits and - are allowed")
    with ApiServer(access) as server:
        return act(server, DeploymentRef(access.namespace, name))


def read_name(given: str) -> str:
    """The name in `NAME`, `md/NAME` or `modeldeployment/NAME`. Raises HanmaruError (CONFIGURATION)."""
    kind, slash, name = given.rpartition("/")
    if slash and kind.lower() not in _KINDS:
        raise _wrong(f"{given!r} is no ModelDeployment: write NAME, md/NAME or modeldeployment/NAME")
    if not _NAME.fullmatch(name) or len(name) > MODEL_DEPLOYMENT.name_max_chars:
        raise _wrong(f"{name!r} cannot be the name of a ModelDeployment: lower-case letters, digits and - are allowed")
    return name


def status(
    server: Server, ref: DeploymentRef, voice: Voice, *, watch: bool, timeout_s: float, clock: Clock | None = None
) -> int:
    """Say how the rollout stands; with `watch` until it ends or `timeout_s` (0: never) is up. The exit status."""
    if watch:
        return _Watch(server, ref, voice, clock or Clock()).run(timeout_s)
    view = _view(server.get(ref))
    voice.show(view)
    return 1 if view.outcome is Outcome.FAILED else 0


def set_paused(server: Server, ref: DeploymentRef, say: Callable[[str], None], *, paused: bool) -> int:
    """Pause the rollout or let it go on. The exit status."""
    if _is_paused(server.get(ref)) is paused:
        say(f"{ref} is paused already" if paused else f"{ref} is not paused")
        return 0
    server.merge(ref, {"spec": {"rollout": {"paused": paused}}})
    say(f"{ref} {'paused' if paused else 'resumed'}")
    return 0


def restart(server: Server, ref: DeploymentRef, say: Callable[[str], None], now: datetime) -> int:
    """Have every replica replaced, as the rollout's bounds allow. `now` in UTC. The exit status."""
    if _is_paused(server.get(ref)):
        resume = f"hanmaru rollout resume {ref.name} -n {ref.namespace}"
        raise HanmaruError(
            ErrorCode.INVALID_REQUEST, f"{ref} is paused, so nothing would be replaced; first run `{resume}`"
        )
    restarted_at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    server.merge(ref, {"metadata": {"annotations": {ANNOTATION_RESTARTED_AT: restarted_at}}})
    say(f"{ref} restarted")
    return 0


class _Watch:
    """One wait for a rollout's end."""

    def __init__(self, server: Server, ref: DeploymentRef, voice: Voice, clock: Clock) -> None:
        self._server = server
        self._ref = ref
        self._voice = voice
        self._clock = clock
        self._uid = ""
        self._shown: RolloutView | None = None
        self._is_silent = False
        """The API server, as far as was said."""
        self._unobserved_since: float | None = None
        self._has_warned = False

    def run(self, timeout_s: float) -> int:
        """Until the rollout ends or time is up. The exit status."""
        deadline = self._clock.now() + timeout_s if timeout_s else float("inf")
        while True:
            wait_s = self._look()
            match self._shown:
                case RolloutView(outcome=Outcome.COMPLETE):
                    return 0
                case RolloutView(outcome=Outcome.FAILED) as view:
                    self._voice.warn(f"{self._ref} does not roll out: {view.message}{_advice(view)}")
                    return 1
            left_s = deadline - self._clock.now()
            if left_s <= 0:
                self._give_up(timeout_s)
                return 1
            self._clock.sleep(min(wait_s, left_s))

    def _look(self) -> float:
        """Look once and show what is new; seconds until the next look."""
        try:
            manifest = self._server.get(self._ref)
        except (Unreachable, TooMany) as error:
            if self._shown is None:
                raise
            if not self._is_silent:
                self._voice.warn(f"{error.message}; trying again")
            self._is_silent = True
            return max(LOOK_INTERVAL_S, error.retry_after_s or 0.0)
        except NotFound as error:
            if self._shown is None:
                raise
            raise NotFound(f"{self._ref} was deleted meanwhile") from error
        self._is_silent = False
        self._check_same(manifest)
        view = _view(manifest)
        if view != self._shown:
            self._voice.show(view)
        self._shown = view
        self._warn_of_silence(view)
        return LOOK_INTERVAL_S

    def _check_same(self, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        if metadata.get("deletionTimestamp"):
            raise NotFound(f"{self._ref} is being deleted")
        if self._uid and metadata["uid"] != self._uid:
            raise NotFound(f"{self._ref} was deleted and made anew meanwhile; ask again")
        self._uid = metadata["uid"]

    def _warn_of_silence(self, view: RolloutView) -> None:
        """Say it once when the operator does not answer."""
        now = self._clock.now()
        if view.outcome is not Outcome.NOT_OBSERVED:
            self._unobserved_since, self._has_warned = None, False
            return
        if self._unobserved_since is None:
            self._unobserved_since = now
        if now - self._unobserved_since >= ANSWER_S and not self._has_warned:
            self._voice.warn(f"{view.message} for {ANSWER_S:g} s{_advice(view)}")
            self._has_warned = True

    def _give_up(self, timeout_s: float) -> None:
        assert self._shown is not None, "or the first look had raised"
        view = self._shown
        self._voice.warn(f"{self._ref} is not rolled out after {duration_words(timeout_s)}: {view.line}{_advice(view)}")


def _view(manifest: Manifest) -> RolloutView:
    try:
        return view_rollout(manifest)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise HanmaruError(
            ErrorCode.INVALID_REQUEST, f"this hanmaru cannot read the object's {place}: is it older than the operator?"
        ) from error


def _advice(view: RolloutView) -> str:
    """What to do about it, beyond what the conditions say."""
    match view.outcome:
        case Outcome.NOT_OBSERVED:
            return "; does the operator run? See `kubectl get pods -A | grep hanmaru` and its log"
        case Outcome.PAUSED:
            return f"; `hanmaru rollout resume {view.name} -n {view.namespace}` lets it go on"
        case _:
            return f"; see `kubectl describe md {view.name} -n {view.namespace}`"


def _is_paused(manifest: Manifest) -> bool:
    return bool(((manifest.get("spec") or {}).get("rollout") or {}).get("paused"))


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
