"""A URL says one thing, or is refused without quoting what could be a password."""

from __future__ import annotations

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_redis.address import Address, Host, Kind, read_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://r:1/2", Address(Kind.SINGLE, (Host("r", 1),), False, database=2)),
        ("redis://r", Address(Kind.SINGLE, (Host("r", 6379),), False)),
        ("rediss://r.example.com/", Address(Kind.SINGLE, (Host("r.example.com", 6379),), True)),
        ("redis://[::1]:7/0", Address(Kind.SINGLE, (Host("::1", 7),), False)),
        (
            "redis+sentinel://a,b:2/mymaster",
            Address(Kind.SENTINEL, (Host("a", 26379), Host("b", 2)), False, "mymaster"),
        ),
        ("rediss+sentinel://a/x/3", Address(Kind.SENTINEL, (Host("a", 26379),), True, "x", 3)),
        ("redis+cluster://a,b:2", Address(Kind.CLUSTER, (Host("a", 6379), Host("b", 2)), False)),
        ("rediss+cluster://a:1/0", Address(Kind.CLUSTER, (Host("a", 1),), True)),
    ],
)
def test_a_url_says_where_redis_is(url: str, address: Address) -> None:
    assert read_address(url) == address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "begins with one of redis://"),
        ("http://r", "begins with one of"),
        ("r:6379", "begins with one of"),
        ("unix:///redis.sock", "begins with one of"),
        ("redis://user:hunter2@r", "holds no user and no password"),
        ("redis://:hunter2@r", "holds no user and no password"),
        ("redis://r?password=hunter2", "has no options"),
        ("redis://", "is no host"),
        ("redis://r:99999", "is no host"),
        ("redis://r:x", "is no host"),
        ("redis://r/one", "no number of a database"),
        ("redis://a,b", "redis+sentinel:// or redis+cluster://"),
        ("redis+sentinel://a,b", "does not name the primary"),
        ("redis+sentinel://a,,b/m", "is no host"),
        ("redis+cluster://a/1", "database 0 alone"),
    ],
)
def test_what_is_no_url_of_ours_is_refused_with_what_to_write(url: str, said: str) -> None:
    with pytest.raises(HanmaruError) as caught:
        read_address(url)
    assert caught.value.code is ErrorCode.CONFIGURATION
    assert said in caught.value.message
    assert "hunter2" not in caught.value.message
