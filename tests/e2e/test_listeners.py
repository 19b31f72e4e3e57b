"""What the tests of trust make of the kernel's tables and of policies."""

from __future__ import annotations

import pytest
from hanmaru_e2e.listeners import Listener, is_default_deny, listeners, open_to_all, policies_of, selects

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 10001        0 1 1
   1: 0501F40A:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000 10001        0 2 1
   2: 0501F40A:C350 0201F40A:18EB 01 00000000:00000000 00:00000000 00000000 10001        0 3 1
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:4E20 00000000000000000000000000000000:0000 0A 0 0
   1: 00000000000000000000000001000000:4E21 00000000000000000000000000000000:0000 0A 0 0
   2: 0000000000000000FFFF00000100007F:4E22 00000000000000000000000000000000:0000 0A 0 0
"""


def test_listeners_are_read_with_their_addresses() -> None:
    found = listeners(TABLE)
    assert found == {
        Listener("127.0.0.1", 8080),
        Listener("10.244.1.5", 30000),
        Listener("::", 20000),
        Listener("::1", 20001),
        Listener("::ffff:7f00:1", 20002),
    }
    assert {each.port for each in found if not each.is_loopback} == {30000, 20000}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_selectors_select_as_kubernetes_says(selector: dict[str, object], expected: bool) -> None:
    assert selects(selector, {"a": "1"}) is expected


def test_a_default_deny_is_no_policy_of_a_pods_own() -> None:
    pod = {"metadata": {"labels": {"a": "1"}}}
    deny = {"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    own = {"spec": {"podSelector": {"matchLabels": {"a": "1"}}, "policyTypes": ["Ingress"], "ingress": []}}
    other = {"spec": {"podSelector": {"matchLabels": {"a": "2"}}, "policyTypes": ["Ingress"]}}
    way_out = {"spec": {"podSelector": {}, "policyTypes": ["Egress"]}}
    assert policies_of(pod, [deny, own, other, way_out]) == [own]
    assert [is_default_deny(policy) for policy in (deny, own, other, way_out)] == [True, False, False, False]


def test_ports_open_to_all_are_those_of_rules_that_name_nobody() -> None:
    somebody = {"from": [{"podSelector": {}}], "ports": [{"port": 1}]}
    policy = {"spec": {"ingress": [somebody, {"ports": [{"port": "http"}, {"port": 10, "endPort": 12}]}]}}
    assert open_to_all(policy, {"http": 8000}) == {8000, 10, 11, 12}
    assert open_to_all({"spec": {"ingress": [{}]}}, {}) is None
