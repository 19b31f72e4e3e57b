"""What one rank's tier is told: sizes and identities by SGLang's extra configuration, ways and secrets by environment.

`argv` writes the first from the engine's spec; the pod, or whoever starts a worker, sets the second. Nothing secret
stands in a flag. `storage` reads both once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hanmaru_contracts import names, redis_keys
from hanmaru_contracts.crd.schema import StrictSchema
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.names import ModelId
from hanmaru_redis.settings import REDIS_FROM_ENVIRONMENT, Access, read_access
from pydantic import ConfigDict, Field, ValidationError

from hanmaru_worker.plugin.tier.store import Limits
from hanmaru_worker.secret_files import read_key, read_secret

_FILES = (
    names.ENV_TIER_KEY_FILE,
    *(names.tier_variable(variable) for name, variable in REDIS_FROM_ENVIRONMENT.items() if name.endswith("_file")),
)


class Told(StrictSchema):
    """Our part of SGLang's extra configuration."""

    model_config = ConfigDict(extra="ignore")  # SGLang's own entries stand in the same object

    model: str = Field(min_length=1)
    checkpoint: Path
    variant: str
    """Digest of the flags that change what a page holds."""
    max_bytes: int = Field(gt=0)
    """Of all pages of the model."""
    life_s: float = Field(gt=0)
    max_prefix_tokens: int = Field(gt=0)
    """Pages beyond this place in a sequence are neither stored nor looked for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it."""

    told: Told
    access: Access | None
    """None: files that the environment names are gone."""
    tier_key: bytes = field(repr=False)
    missing: tuple[str, ...] = ()
    """`VARIABLE=path` of these files."""

    @property
    def model(self) -> ModelId:
        """Whose pages they are."""
        return ModelId(self.told.model)

    @property
    def limits(self) -> Limits:
        """For the store."""
        return Limits(self.told.max_bytes // redis_keys.TIER_SHARDS, int(1000 * self.told.life_s))


def read_settings(extra_config: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Raises HanmaruError (CONFIGURATION) that quotes no secret; a file that is gone is no fault (`_missing`)."""
    try:
        told = Told.model_validate(dict(extra_config))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise _wrong(f"the shared cache's configuration is wrong: {faults}") from None
    given = {
        variable: environ[names.tier_variable(variable)]
        for variable in REDIS_FROM_ENVIRONMENT.values()
        if environ.get(names.tier_variable(variable))
    }
    if names.ENV_REDIS_URL not in given:
        raise _wrong(f"{names.tier_variable(names.ENV_REDIS_URL)} is not set: the shared cache has no Redis")
    key_file = environ.get(names.ENV_TIER_KEY_FILE)
    if not key_file:
        raise _wrong(f"{names.ENV_TIER_KEY_FILE} is not set: the shared cache's pages cannot be sealed")
    missing = _missing(environ)
    if missing:
        return Settings(told, None, b"", missing)
    return Settings(
        told, read_access(given, lambda path, _what: read_secret(path)), read_key(Path(key_file), "tier key")
    )


def _missing(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A revision keeps its spec and its environment, but a replica's Secret follows the installation: once that has no
    Redis for shared caches, its login is not there. That must stop no engine, and change no flag: files of a group's
    pods may go at different moments, and ranks of one engine have the same flags or wait for each other for ever.
    """
    named = {name: environ[name] for name in _FILES if environ.get(name)}
    return tuple(f"{name}={path}" for name, path in named.items() if not Path(path).exists())


def _wrong(message: str) -> HanmaruError:
    return HanmaruError(ErrorCode.CONFIGURATION, message)
