"""Who listens in a pod, and which NetworkPolicies say who may reach it. Pure; the tests of trust read the pods.

`/proc/net/tcp` writes an IPv4 address as one little-endian word and an IPv6 address as four.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_LISTEN = "0A"


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """One listening socket."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Reached from inside the pod alone."""
        found = ipaddress.ip_address(self.address)
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback


def listeners(text: str) -> set[Listener]:
    """Of `/proc/net/tcp` and `/proc/net/tcp6`, one after the other or one alone."""
    found = set()
    for line in text.splitlines():
        columns = line.split()
        if len(columns) > 3 and columns[3] == _LISTEN:
            address, _, port = columns[1].partition(":")
            found.add(Listener(_address(address), int(port, 16)))
    return found


def _address(digits: str) -> str:
    words = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects what has these labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(each, labels) for each in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case operator:
            raise ValueError(f"a selector's operator {operator!r} is not known here")


def policies_of(pod: Mapping[str, Any], policies: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The pod's policies for ways in, a namespace's default deny aside: it selects every pod and opens nothing."""
    labels = pod["metadata"].get("labels") or {}
    return [
        policy
        for policy in policies
        if "Ingress" in policy["spec"].get("policyTypes", ["Ingress"])
        and selects(policy["spec"].get("podSelector") or {}, labels)
        and not is_default_deny(policy)
    ]


def is_default_deny(policy: Mapping[str, Any]) -> bool:
    """Whether it closes every way in of its namespace."""
    spec = policy["spec"]
    closes = "Ingress" in spec.get("policyTypes", ["Ingress"])
    return closes and not spec.get("podSelector") and not spec.get("ingress")


def open_to_all(policy: Mapping[str, Any], ports: Mapping[str, int]) -> set[int] | None:
    """Ports that it opens to everybody; None: every port. `ports`: the numbers of the pod's named ports."""
    opened: set[int] = set()
    for rule in policy["spec"].get("ingress") or ():
        if rule.get("from"):
            continue
        if not rule.get("ports"):
            return None
        for each in rule["ports"]:
            first = ports[each["port"]] if isinstance(each["port"], str) else each["port"]
            opened |= set(range(first, each.get("endPort", first) + 1))
    return opened
