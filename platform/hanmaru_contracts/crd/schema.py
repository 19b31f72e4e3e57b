"""Base of every model that people write: camelCase on the outside, frozen, docstrings as descriptions."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Schema(BaseModel):
    """Unknown fields are ignored, because an older operator must survive a newer object."""

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
