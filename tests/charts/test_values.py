"""values.yaml and its schema say what the models say, and every example is made of known values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hanmaru_chart.documents import reference, values_schema, values_yaml
from hanmaru_chart.values import Values
from hanmaru_testing.chart_values import CASES
from hanmaru_testing.helm import CHART, EXAMPLES


def test_values_yaml_holds_the_models_defaults() -> None:
    written = yaml.safe_load((CHART / "values.yaml").read_text())
    assert Values.model_validate(written) == Values()
    defaults = Values().model_dump(mode="json", by_alias=True)
    assert _without_absent(defaults) == written


def _without_absent(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    return value


def test_every_value_is_told_where_people_look() -> None:
    text, table = values_yaml(Values), reference(Values)
    assert text.count("\n#") > len(Values.model_fields)
    assert "`redis.external.sentinel.passwordKey`" in table
    assert "# passwordKey:" in text, "a value without a default stands there as a comment"


def test_the_schema_refuses_unknown_values_everywhere() -> None:
    open_ones: list[str] = []

    def look(schema: object, path: str) -> None:
        if isinstance(schema, dict):
            if "properties" in schema and schema.get("additionalProperties") is not False:
                open_ones.append(path)
            for key, child in schema.items():
                look(child, f"{path}/{key}")

    look(values_schema(Values), "")
    assert open_ones == []
    assert json.loads((CHART / "values.schema.json").read_text())["additionalProperties"] is False


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_an_example_opens_with_what_it_is_for(file: Path) -> None:
    assert file.read_text().startswith("# ")
    assert file.stem in CASES
