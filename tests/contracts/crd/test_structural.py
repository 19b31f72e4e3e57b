"""The walk from pydantic's JSON schema to the API server's: each turn it takes, and what it refuses."""

from __future__ import annotations

import importlib.util
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hanmaru_contracts.crd.kinds import KINDS
from hanmaru_contracts.crd.schema import PodTemplate, Rule, Schema, rules
from hanmaru_testing.crds import shipped
from pydantic import ConfigDict, Field

_SOURCE = Path(__file__).parents[3] / "tools/generate_crds.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("generate_crds", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate_crds = _load()


class Colour(StrEnum):
    """Of a thing."""

    RED = "Red"


class Inner(Schema):
    """Inside."""

    model_config = ConfigDict(json_schema_extra=rules(Rule("a", "of the model")))

    size: int = 1
    """How large."""
    note: str | None = None
    """Absent: none."""


OBJECT = {
    "description": "Inside.",
    "type": "object",
    "x-kubernetes-validations": [{"rule": "a", "message": "of the model"}],
}
INNER = OBJECT | {
    "properties": {
        "size": {"description": "How large.", "type": "integer", "default": 1},
        "note": {"description": "Absent: none.", "type": "string"},
    }
}
BOTH_RULES = [{"rule": "a", "message": "of the model"}, {"rule": "b", "message": "of the field"}]


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        (int, ..., {"type": "integer"}),
        (int | None, None, {"type": "integer"}),
        (bool, False, {"type": "boolean", "default": False}),
        (
            Annotated[int, Field(gt=0, lt=9)],
            ...,
            {"minimum": 0, "exclusiveMinimum": True} | {"maximum": 9, "exclusiveMaximum": True, "type": "integer"},
        ),
        (Annotated[float, Field(ge=0.5)] | None, None, {"minimum": 0.5, "type": "number"}),
        (Literal["a"], "a", {"enum": ["a"], "type": "string", "default": "a"}),
        (Colour, Colour.RED, {"description": "Of a thing.", "enum": ["Red"], "type": "string", "default": "Red"}),
        (tuple[int, ...], (), {"type": "array", "items": {"type": "integer"}, "default": []}),
        (dict[str, int], ..., {"type": "object", "additionalProperties": {"type": "integer"}}),
        (PodTemplate, ..., {"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        (Inner, ..., INNER),
        (Inner | None, None, INNER),
        (Inner, Inner(), INNER | {"default": {"size": 1}}),
        (tuple[Inner, ...], ..., {"type": "array", "items": INNER}),
        (
            Annotated[Inner, Field(json_schema_extra=rules(Rule("b", "of the field")))],
            ...,
            INNER | {"x-kubernetes-validations": BOTH_RULES},
        ),
    ],
    ids=str,
)
def test_a_field_becomes_what_the_api_server_takes(annotation: Any, default: Any, expected: dict[str, Any]) -> None:
    model = type(
        "M",
        (Schema,),
        {"__annotations__": {"from_": Annotated[annotation, Field(alias="from")]}}
        | ({} if default is ... else {"from_": default}),
    )
    schema = generate_crds.model_schema(model)
    assert schema.pop("properties") == {"from": expected}
    assert schema == {"type": "object"} | ({"required": ["from"]} if default is ... else {})


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (int | str, "no union"),
        (int | str | None, "no union"),
        (Inner | Colour, "no union"),
        (tuple[int, str], "prefixItems"),
        (Annotated[int, Field(multiple_of=2)], "multipleOf"),
        (dict[Annotated[str, Field(max_length=3)], int], "propertyNames"),
    ],
    ids=str,
)
def test_what_the_api_server_could_not_say_is_refused(annotation: Any, said: str) -> None:
    model = type("M", (Schema,), {"__annotations__": {"field": annotation}})
    with pytest.raises(ValueError, match=said):
        generate_crds.model_schema(model)


def test_a_description_keeps_paragraphs_and_loses_the_sources_line_breaks() -> None:
    given = {"type": "object", "description": "One `line`\n  that goes on.\n\nAnother {{ one }}."}
    assert generate_crds.structural(given, {})["description"] == "One `line` that goes on.\n\nAnother {{ one }}."


def test_a_template_says_braces_without_running_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_crds, "definition", lambda _kind: {"description": "a {{ b"})
    assert yaml.safe_load(generate_crds.template(None).replace('{{ "{{" }}', "<two>")) == {"description": "a <two> b"}


def test_the_chart_ships_exactly_the_kinds() -> None:
    assert shipped() == sorted((generate_crds.definition(k) for k in KINDS), key=lambda crd: crd["metadata"]["name"])


def test_an_uninstalled_chart_leaves_the_kinds_and_their_objects() -> None:
    assert {crd["metadata"]["annotations"]["helm.sh/resource-policy"] for crd in shipped()} == {"keep"}
