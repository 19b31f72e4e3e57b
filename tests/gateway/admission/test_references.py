"""A reference leads to something that begins; a schema that only refers to itself would end the engine."""

from __future__ import annotations

import json

import pytest
from hanmaru_contracts.errors import HanmaruError
from hanmaru_gateway.admission.bounds import DEFAULT_BOUNDS
from hanmaru_gateway.admission.fields import parse_request
from hanmaru_gateway.admission.schemas import check_compiled
from hanmaru_gateway.request import Kind
from hypothesis import given
from hypothesis import strategies as st

SELF = {"$ref": "#"}
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        SELF,
        {"allOf": [SELF]},
        {"anyOf": [TEXT, SELF]},
        {"oneOf": [{"anyOf": [{"allOf": [SELF]}]}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "object", "$defs": {"a": {"$ref": "#/$defs/a"}}, "properties": {"x": {"$ref": "#/$defs/a"}}},
        {
            "type": "array",
            "items": {"$ref": "#/definitions/a"},
            "definitions": {"a": {"anyOf": [{"$ref": "#/definitions/a"}]}},
        },
    ],
)
def test_a_schema_that_goes_round_in_a_circle_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(HanmaruError, match="leads back to itself"):
        check_compiled([schema], "schema", DEFAULT_BOUNDS)


@pytest.mark.parametrize(
    "reference",
    ["#/nope", "#nope", "#/$defs/b", "#/$defs", "#/", "##", "#/properties/a", "#/$defs/a/", "#/$defs/a~1b",
     "#/$defs/%61", "#/items/anyOf/0/properties/parameters", "other.json", ""],
)  # fmt: skip
def test_a_reference_that_leads_nowhere_known_is_refused(reference: str) -> None:
    schema = {"$defs": {"a": TEXT, "a~1b": TEXT, "%61": TEXT}, "properties": {"a": {"$ref": reference}}}
    with pytest.raises(HanmaruError, match="ref is"):
        check_compiled([schema], "schema", DEFAULT_BOUNDS)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": SELF},
        {"type": "object", "properties": {"next": SELF, "$ref": TEXT}},
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": TEXT}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": TEXT}},
    ],
)
def test_recursion_that_describes_something_passes(schema: dict[str, object]) -> None:
    check_compiled([schema], "schema", DEFAULT_BOUNDS)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SELF}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": SELF, "strict": True}}]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": SELF}}], "tool_choice": "required"},
            "tools",
        ),
    ],
)
def test_no_request_brings_such_a_schema_to_an_engine(fields: dict[str, object], param: str) -> None:
    body = {"model": "k", "messages": [{"role": "user", "content": "x"}]} | fields
    with pytest.raises(HanmaruError) as caught:
        parse_request(Kind.CHAT, json.dumps(body).encode())
    assert caught.value.param == param


names = st.sampled_from(["a", "b", "c", "d"])
links = st.one_of(
    names.map(lambda name: {"$ref": f"#/$defs/{name}"}),
    st.lists(names, min_size=1, max_size=3).map(lambda some: {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in some]}),
    names.map(lambda name: {"type": "array", "items": {"$ref": f"#/$defs/{name}"}}),
    st.just(TEXT),
)


@given(st.fixed_dictionaries(dict.fromkeys("abcd", links)))
def test_circles_are_found_exactly(definitions: dict[str, dict[str, object]]) -> None:
    def steps(name: str) -> set[str]:
        at = definitions[name]
        refs = [at, *at.get("anyOf", [])]
        return {ref["$ref"][-1] for ref in refs if "$ref" in ref}

    def reachable(name: str) -> set[str]:
        seen, queue = set[str](), [name]
        while queue:
            for following in steps(queue.pop()) - seen:
                seen.add(following)
                queue.append(following)
        return seen

    has_circle = any(name in reachable(name) for name in definitions)
    try:
        check_compiled([{"$defs": definitions}], "schema", DEFAULT_BOUNDS)
        refused = False
    except HanmaruError:
        refused = True
    assert refused == has_circle
