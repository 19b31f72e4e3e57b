from __future__ import annotations

import socket

import pytest
from hanmaru_cli.ports import SEARCHED_PORTS, choose, is_free, moved
from hanmaru_contracts.errors import HanmaruError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("wanted", "taken", "chosen"),
    [
        ({"a": 8000}, set(), {"a": 8000}),
        ({"a": 8000}, {8000, 8001}, {"a": 8002}),
        ({"a": 8000, "b": 8000}, set(), {"a": 8000, "b": 8001}),
        ({"a": 8000, "b": 8001}, {8000}, {"a": 8001, "b": 8002}),
        ({"a": 65535}, set(), {"a": 65535}),
    ],
)
def test_a_taken_port_means_the_next_free_one(wanted: dict[str, int], taken: set[int], chosen: dict[str, int]) -> None:
    assert choose(wanted, lambda port: port not in taken) == chosen


@given(
    wanted=st.dictionaries(st.text(min_size=1), st.integers(8000, 8020), max_size=12),
    taken=st.sets(st.integers(8000, 8060)),
)
def test_chosen_ports_are_free_distinct_and_near(wanted: dict[str, int], taken: set[int]) -> None:
    chosen = choose(wanted, lambda port: port not in taken)
    assert chosen.keys() == wanted.keys()
    assert len(set(chosen.values())) == len(chosen)
    assert not taken.intersection(chosen.values())
    assert all(wanted[name] <= port < wanted[name] + SEARCHED_PORTS for name, port in chosen.items())


def test_no_free_port_is_an_error_that_names_what_wanted_it() -> None:
    with pytest.raises(HanmaruError, match="no free port for Redis from 6379"):
        choose({"Redis": 6379}, lambda _: False)


def test_only_moved_ports_are_said() -> None:
    assert moved({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ["port 2 is taken: b uses 3"]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("shared", [False, True], ids=["", "SO_REUSEPORT"])
def test_a_listening_port_is_not_free(address: str, shared: bool) -> None:
    with socket.socket() as listener:
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
