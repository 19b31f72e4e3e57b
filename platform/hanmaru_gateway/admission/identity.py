"""Who a key belongs to: a lookup among hashes that takes the same time whether a key is known or not.

`TenantStore` builds a new `Directory` whenever tenants change; the edges' flow asks it once a request. Pure: the time
is a parameter. Left out: which models the tenant may call (`Identity.may_call`) and how much (`quota`).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hanmaru_contracts.crd.v1alpha1.tenant import Credential, TenantSpec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.keys import MAX_API_KEY_CHARS, api_key_digest
from hanmaru_contracts.names import TenantId

from hanmaru_gateway.request import Identity

_SCHEME = "bearer"
_BUCKET_CHARS = 8
# Compared with when a bucket is empty, so that an unknown key costs one comparison like a known one. No key has it:
# a digest is hexadecimal.
_NOBODY = "-" * 64


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: str
    credential: Credential
    identity: Identity


class Directory:
    """The tenants of one moment. Immutable."""

    def __init__(self, tenants: Mapping[TenantId, TenantSpec]) -> None:
        owners: dict[str, list[_Entry]] = {}
        for tenant, spec in tenants.items():
            for credential in spec.credentials:
                entry = _Entry(credential.api_key.digest, credential, Identity(tenant, spec, credential.name))
                owners.setdefault(entry.digest, []).append(entry)
        self.shared_keys = tuple(
            sorted(
                f"{e.identity.tenant}/{e.credential.name}"
                for entries in owners.values()
                if len(entries) > 1
                for e in entries
            )
        )
        """Credentials (`tenant/name`) that share a key with another: nobody can say whose it is, so it is refused."""
        self._size = len(tenants)
        self._buckets: dict[str, list[_Entry]] = {}
        for digest, entries in owners.items():
            if len(entries) == 1:
                self._buckets.setdefault(digest[:_BUCKET_CHARS], []).append(entries[0])

    def __len__(self) -> int:
        return self._size

    def identify(self, authorization: str | None, now: datetime) -> Identity:
        """Whose key `authorization` (the header's value) shows. `now` has a zone.

        Raises HanmaruError(INVALID_API_KEY) with the same message whatever is wrong with the key.
        """
        key = _bearer(authorization)
        if key is None:
            raise _invalid()
        digest = api_key_digest(key)
        found: _Entry | None = None
        # By prefix of the hash: an attacker cannot choose it, so how long a bucket is says nothing about any key.
        for entry in self._buckets.get(digest[:_BUCKET_CHARS], ()):
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is None:
            hmac.compare_digest(_NOBODY, digest)
            raise _invalid()
        if not _is_usable(found.identity.spec, found.credential, now):
            raise _invalid()
        return found.identity


def _is_usable(spec: TenantSpec, credential: Credential, now: datetime) -> bool:
    return not spec.suspended and (credential.expires_at is None or now < credential.expires_at)


def _bearer(authorization: str | None) -> str | None:
    """The key of a well-formed header, cheaply None for anything else."""
    if (
        authorization is None
        or len(authorization) > len(_SCHEME) + 1 + MAX_API_KEY_CHARS
        or not authorization.isascii()
    ):
        return None
    scheme, _, key = authorization.partition(" ")
    key = key.strip(" ")
    return key if scheme.lower() == _SCHEME and key.isprintable() and key and " " not in key else None


def _invalid() -> HanmaruError:
    return HanmaruError(
        ErrorCode.INVALID_API_KEY,
        "the API key is missing, unknown, expired or revoked; send `Authorization: Bearer <key>`",
    )
