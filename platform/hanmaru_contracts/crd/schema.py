"""Base of every model that people write, and what a CRD says beyond JSON Schema.

camelCase on the outside, frozen, docstrings as descriptions. `tools/generate_crds.py` turns the kinds in `kinds` into
CRDs; a rule in CEL stands beside the field or model it speaks of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict


class Schema(BaseModel):
    """Unknown fields are ignored, because an older operator must survive a newer object.

    A file's loader refuses them instead (`model_validate(…, extra="forbid")`): there they are typing errors.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )


class StrictSchema(Schema):
    """For settings and files, where an unknown field is a typing error and is refused."""

    model_config = ConfigDict(extra="forbid")


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A Kubernetes object name (RFC 1123 label)."""
Text = Annotated[str, StringConstraints(max_length=1024)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=316)]
Natural = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Field(gt=0, le=2**31 - 1)]
PodTemplate = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""Part of a pod template: `metadata` and `spec` as Kubernetes knows them, merged over ours, checked by nobody here."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule with what is said when it does not hold."""

    cel: str
    message: str


def rules(*given: Rule) -> JsonDict:
    """For `json_schema_extra` of a model's config or of a field."""
    return {"x-kubernetes-validations": [{"rule": rule.cel, "message": rule.message} for rule in given]}


def one_block(choices: dict[str, str], *, field: str = "type") -> Rule:
    """`type` and one block a type: the block of the chosen type is there, and no other.

    `choices` maps a type's value to its block's name in JSON; a type without a block maps to "".
    """
    blocks = [block for block in choices.values() if block]
    parts = [f"has(self.{block}) == (self.{field} == '{value}')" for value, block in choices.items() if block]
    return Rule(" && ".join(parts), f"give the block that belongs to `{field}`, and no other of: {', '.join(blocks)}")


def immutable(what: str) -> JsonDict:
    """A field that keeps its first value."""
    return rules(Rule("self == oldSelf", f"{what} cannot be changed; delete and create the object instead"))


def list_map(*keys: str) -> JsonDict:
    """A list of named things: each key once, and server-side apply merges by it."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


SELECTOR_GOES_WITH_FROM = Rule(
    "has(self.selector) == (self.from == 'Selector')", "give `selector` exactly when `from` is Selector"
)
"""Of an object that says `from` where, and may select there by labels."""

SET: JsonDict = {"x-kubernetes-list-type": "set"}
"""A list in which nothing stands twice."""


class LabelSelector(Schema):
    """Objects by their labels; everything given must hold. Empty: all."""

    # Atomic: half of one writer's selector and half of another's would select what neither meant.
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-map-type": "atomic",
            **rules(
                Rule(
                    "self.matchExpressions.all(e, e.operator != 'Gt' && e.operator != 'Lt')",
                    "Gt and Lt compare labels of nodes only; use In, NotIn, Exists or DoesNotExist",
                )
            ),
        }
    )

    match_labels: dict[str, Annotated[str, StringConstraints(max_length=63)]] = Field(
        max_length=32, default_factory=dict
    )
    """Labels and the values they must have."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=32)] = ()
    """Requirements on single labels."""


class LabelRequirement(Schema):
    """One requirement on one label."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "(self.operator == 'In' || self.operator == 'NotIn') ? size(self.values) > 0 : "
                "(self.operator == 'Gt' || self.operator == 'Lt') ? size(self.values) == 1 : size(self.values) == 0",
                "In and NotIn need values, Gt and Lt one value, Exists and DoesNotExist none",
            )
        )
    )

    key: LabelKey
    """The label."""
    operator: Annotated[str, StringConstraints(pattern="^(In|NotIn|Exists|DoesNotExist|Gt|Lt)$", max_length=16)]
    """`In`, `NotIn`, `Exists`, `DoesNotExist`; for nodes also `Gt` and `Lt`."""
    values: Annotated[tuple[Annotated[str, StringConstraints(max_length=63)], ...], Field(max_length=64)] = ()
    """For `In` and `NotIn`: the values; for `Gt` and `Lt`: one whole number."""


class Condition(Schema):
    """What is so at present, as Kubernetes objects say it."""

    type: Annotated[str, StringConstraints(max_length=316)]
    """Which statement."""
    status: Annotated[str, StringConstraints(pattern="^(True|False|Unknown)$", max_length=7)]
    """`True`, `False` or `Unknown`."""
    reason: Annotated[str, StringConstraints(max_length=1024)]
    """One word for programs."""
    message: Annotated[str, StringConstraints(max_length=32768)] = ""
    """A sentence for people: what was seen, what is missing, what to do."""
    observed_generation: Natural = 0
    """The generation of the object it speaks of."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=list_map("type"))]


def is_unique(names: Sequence[str]) -> bool:
    """Whether no name stands twice."""
    return len(set(names)) == len(names)
