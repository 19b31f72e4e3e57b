"""A schema's references: each must lead to something that begins, or the answer can hold nothing at all.

The engine compiles a schema that only refers to itself (`{"$ref": "#"}`) into a grammar that allows no token; every
token's probability is then not a number, and sampling from that ends the engine, and everybody's requests with it
(seen: SGLang 0.5.23 on a CPU, November 2026). JSON Schema itself leaves such schemas without a meaning.
Pure; called by `schemas` for what the engine compiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hanmaru_gateway.admission.bounds import refuse, shown

Schema = dict[str, object]

# Where else a reference could point depends on what the engine wraps around a tool's schema.
_LOCAL = re.compile(r"#(?:/(\$defs|definitions)/([^/~%]+))?")
_CHOICES = ("allOf", "anyOf", "oneOf")


def check_references(schema: Schema, nodes: list[Schema], where: str) -> None:
    """Refuse references that lead nowhere, or around in a circle. `nodes`: all objects in `schema`, itself included."""
    targets = {id(node): _target(schema, node, where) for node in nodes}
    done: set[int] = set()
    for start in nodes:
        open_ids: set[int] = set()
        path: list[tuple[Schema, Iterator[Schema]]] = []
        step: Schema | None = start
        while step is not None:
            if id(step) in open_ids:
                refuse(where, "a `$ref` leads back to itself without describing anything; say what stands there")
            if id(step) not in done:
                open_ids.add(id(step))
                path.append((step, _same_place(step, targets)))
            step = None
            while path and step is None:
                step = next(path[-1][1], None)
                if step is None:
                    finished, _ = path.pop()
                    open_ids.discard(id(finished))
                    done.add(id(finished))


def _target(schema: Schema, node: Schema, where: str) -> Schema | None:
    """What the node refers to; None when it refers to nothing."""
    reference = node.get("$ref")
    if not isinstance(reference, str):
        return None
    match = _LOCAL.fullmatch(reference)
    if match is None:
        refuse(where, f"$ref is {shown(reference)}; expected `#`, `#/$defs/name` or `#/definitions/name`")
    if match[1] is None:
        return schema
    folder = schema.get(match[1])
    target = folder.get(match[2]) if isinstance(folder, dict) else None
    if not isinstance(target, dict):
        refuse(where, f"$ref is {shown(reference)}, but no schema stands there")
    return target


def _same_place(node: Schema, targets: dict[int, Schema | None]) -> Iterator[Schema]:
    """The schemas that describe the very value that `node` describes, not a part of it."""
    target = targets[id(node)]
    if target is not None:
        yield target
    for key in _CHOICES:
        members = node.get(key)
        if isinstance(members, list):
            yield from (member for member in members if isinstance(member, dict))
