"""values.yaml, values.schema.json and the README's table, as texts made of the models.

`tools/generate_chart_*.py` write them; nothing here knows a component.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from hanmaru_contracts.crd.schema import Schema, StrictSchema
from pydantic import BaseModel
from pydantic.fields import FieldInfo

WIDTH = 120
_NOT_FOR_PEOPLE = ("title", "discriminator")


def values_yaml(model: type[StrictSchema]) -> str:
    """Every value with its default and its documentation; a value without a default stands there as a comment."""
    return "\n".join(_block(model(), indent=0)) + "\n"


def values_schema(model: type[StrictSchema]) -> dict[str, Any]:
    """JSON Schema for helm. Here the kinds refuse unknown fields as well: in a file they are typing errors."""
    schema = _strict(model.model_json_schema(by_alias=True))
    assert isinstance(schema, dict)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def reference(model: type[StrictSchema]) -> str:
    """A table with one row a value."""
    rows = [f"| `{path}` | {_default(default)} | {_cell(text)} |" for path, default, text in _rows(model(), "")]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _fields(values: BaseModel) -> Iterator[tuple[str, FieldInfo, Any]]:
    for name, field in type(values).model_fields.items():
        assert field.description, f"{type(values).__name__}.{name} is not documented"
        yield field.alias or name, field, getattr(values, name)


def _block(values: BaseModel, *, indent: int) -> Iterator[str]:
    pad = " " * indent
    for name, field, value in _fields(values):
        if indent == 0:
            yield ""
        for line in textwrap.wrap(_one_line(field.description), WIDTH - indent - 2):
            yield f"{pad}# {line}"
        if isinstance(value, StrictSchema):
            yield f"{pad}{name}:"
            yield from _block(value, indent=indent + 2)
        elif value is None:
            yield f"{pad}# {name}:"
        else:
            yield f"{pad}{name}: {_flow(value)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Schema):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return value


def _flow(value: Any) -> str:
    text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _rows(values: BaseModel, path: str) -> Iterator[tuple[str, Any, str]]:
    for name, field, value in _fields(values):
        yield f"{path}{name}", value, _one_line(field.description)
        if isinstance(value, StrictSchema):
            yield from _rows(value, f"{path}{name}.")


def _default(value: Any) -> str:
    if value is None:
        return "—"
    return "" if isinstance(value, StrictSchema) else f"`{json.dumps(_plain(value), ensure_ascii=False)}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return re.sub(r"\|", r"\\|", text)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs"):
            made[key] = {name: _strict(child) for name, child in value.items()}
        elif key in ("default", "enum", "const"):
            made[key] = value
        elif key not in _NOT_FOR_PEOPLE and not key.startswith("x-kubernetes-"):
            made[key] = _one_line(value) if key == "description" else _strict(value)
    if made.keys() & {"properties", "patternProperties"}:
        made.setdefault("additionalProperties", False)
    return made
