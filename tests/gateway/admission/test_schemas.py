"""A schema that would make a huge grammar is refused before any engine sees it."""

from __future__ import annotations

import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_gateway.admission.bounds import DEFAULT_BOUNDS
from hanmaru_gateway.admission.schemas import check_compiled, check_schema, pattern_states
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "http://169.254.169.254/"}, "$ref"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "$ref"),
        ({"$dynamicRef": "other.json"}, "$dynamicRef"),
        ({"enum": ["x" * 70_000]}, "bytes"),
    ],
)
def test_a_schema_that_is_large_or_looks_elsewhere_is_refused(schema: dict[str, object], said: str) -> None:
    with pytest.raises(HanmaruError) as caught:
        check_schema(schema, "schema", DEFAULT_BOUNDS)
    assert said in caught.value.message
    assert caught.value.param == "schema"


@pytest.mark.parametrize(
    "schemas",
    [
        [{"minLength": 2049}],
        [{"maxItems": 10**300}],
        [{"maxItems": 1e300}],
        [{"properties": {"a": {"maxLength": 1e9}}}],
        [{"allOf": [{"minItems": 5000}]}],
        [{"properties": {f"p{i}": {"maxLength": 100 + i} for i in range(20)}}],
        [{"maxLength": 1100}, {"maxLength": 1100}],
        [{"pattern": "a{3000}"}],
        [{"pattern": "((a{20}){20}){20}"}],
        [{"pattern": "x" * 513}],
        [{"patternProperties": {"(ab){3000}": {}}}],
        [{"properties": {f"p{i}": {} for i in range(100)}, "minProperties": 30}],
    ],
)
def test_schemas_that_repeat_too_much_are_refused(schemas: list[dict[str, object]]) -> None:
    with pytest.raises(HanmaruError) as caught:
        check_compiled(schemas, "tools", DEFAULT_BOUNDS)
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"pattern": {"type": "string"}, "maxLength": {"type": "integer"}}},
        {"type": "string", "maxLength": 1000, "pattern": r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"},
        {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"maxLength": True, "minItems": -5},
    ],
)
def test_everyday_schemas_pass(schema: dict[str, object]) -> None:
    check_schema(schema, "schema", DEFAULT_BOUNDS)
    check_compiled([schema], "schema", DEFAULT_BOUNDS)


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{2,5}", 5),
        ("a{3,}", 3),
        ("(ab){3}", 6),
        ("((ab){3}c){2}", 14),
        ("x(a|b){4}y", 14),
        (r"\{3}", 3),
        (r"[a{9}]{2}", 2),
        ("a{3}{4}", 12),
        ("(a{9}){9}" * 2, 162),
    ],
)
def test_repeats_are_written_out(pattern: str, states: int) -> None:
    assert pattern_states(pattern) == states


@given(st.text(alphabet="ab(){}[]\\,019|*+?^$", max_size=200))
def test_any_pattern_is_measured(pattern: str) -> None:
    assert pattern_states(pattern) >= 0
