"""A certificate authority in memory, and what it signs: servers' and clients' certificates, a service account key.

`control_plane` lays them out. Keys are P-256: made in a millisecond, where RSA takes a third of a second each.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=30)
_BACKDATED = datetime.timedelta(hours=1)
"""Clocks of a machine may be set back between issue and use."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class CertificateAuthority:
    """Signs for one cluster; made anew with each."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("hanmaru-test-cluster", ())
        basic = x509.BasicConstraints(ca=True, path_length=None)
        builder = _builder(self._name, self._name, self._key.public_key()).add_extension(basic, critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def client(self, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """Authenticates as a Kubernetes user in these groups."""
        return self._signed(user, groups, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def server(self, name: str, reached_by: Sequence[str]) -> KeyPair:
        """Serves under these DNS names and addresses."""
        return self._signed(name, (), ExtendedKeyUsageOID.SERVER_AUTH, [_general_name(host) for host in reached_by])

    def _signed(
        self,
        name: str,
        groups: Sequence[str],
        usage: x509.ObjectIdentifier,
        reached_by: Sequence[x509.GeneralName],
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name, groups), self._name, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if reached_by:
            builder = builder.add_extension(x509.SubjectAlternativeName(reached_by), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))


def service_account_key() -> bytes:
    """A private key (PEM) that signs service accounts' tokens; the API server verifies with the same file."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + LIFETIME)
    )


def _name(common: str, organizations: Sequence[str]) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common), *groups])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # "EC PRIVATE KEY", not PKCS8: the API server takes the public half of a service account key only from that.
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
