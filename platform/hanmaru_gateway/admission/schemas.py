"""Bounds on JSON schemas: what the engine turns into a grammar must stay cheap to compile and to keep.

The engine compiles a schema on its scheduler's machine and keeps the result for good; a short schema can stand for a
large one (counted repeats, nested ones) or point elsewhere (`$ref`). Measured with xgrammar and 153,000 random tokens
on one core (November 2026): an object of one string 0.3 s; a string of bounded length 5-9 s, whatever the bound; 16
strings of different lengths about 100: 6 s and 150 MB. So lengths, counts and patterns share one budget.

Pure; called through `allowlist`, `messages` and `fields`. Whether a schema is a valid schema is the engine's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from hanmaru_gateway.admission.bounds import Bounds, refuse, shown
from hanmaru_gateway.admission.references import check_references

_COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_BEYOND = 1 << 40
"""Sizes stop growing here: enough to be over every bound, small enough to stay cheap."""


def check_depth(value: object, where: str, bounds: Bounds) -> None:
    """Refuse what nests deeper than `bounds.depth`."""
    for depth, _ in _nodes(value):
        if depth > bounds.depth:
            refuse(where, f"nests deeper than {bounds.depth} levels; flatten it")


def check_schema(schema: dict[str, object], where: str, bounds: Bounds) -> None:
    """Refuse a schema that is too large, too deep, or refers outside itself."""
    size = len(msgspec.json.encode(schema))
    if size > bounds.schema_bytes:
        refuse(where, f"takes {size} bytes; at most {bounds.schema_bytes} are accepted")
    check_depth(schema, where, bounds)
    for _, node in _nodes(schema):
        for key in _REFERENCES:
            value = node.get(key)
            if isinstance(value, str) and not value.startswith("#"):
                refuse(where, f"{key} is {shown(value)}; only references into the same schema (`#…`) are followed")


def check_compiled(schemas: Iterable[dict[str, object]], where: str, bounds: Bounds) -> None:
    """Refuse schemas that an answer is held to when they repeat too much, all of them together, or lead nowhere."""
    total = 0
    for schema in schemas:
        nodes = [node for _, node in _nodes(schema)]
        check_references(schema, nodes, where)
        total += sum(_repeats(node, where, bounds) for node in nodes)
    if total > bounds.schema_repeats:
        refuse(
            where,
            f"lengths, counts and patterns (their repeats written out) add up to {min(total, _BEYOND)}; "
            f"at most {bounds.schema_repeats} are accepted: use smaller ones or leave them out",
        )


def _repeats(node: dict[str, object], where: str, bounds: Bounds) -> int:
    total = 0
    for key, value in node.items():
        if key in _COUNTS and isinstance(value, (int, float)):
            total += int(min(max(value, 0), _BEYOND)) * _positions(key, node)
        elif key == "pattern" and isinstance(value, str):
            total += _measured(value, where, bounds)
        elif key == "patternProperties" and isinstance(value, dict):
            total += sum(_measured(pattern, where, bounds) for pattern in value)
    return total


def _positions(key: str, node: dict[str, object]) -> int:
    # Counting properties, the grammar tells apart how many there were at each of them.
    properties = node.get("properties")
    return max(1, len(properties)) if key.endswith("Properties") and isinstance(properties, dict) else 1


def _measured(pattern: str, where: str, bounds: Bounds) -> int:
    if len(pattern) > bounds.pattern_chars:
        refuse(where, f"a pattern has {len(pattern)} characters; at most {bounds.pattern_chars} are accepted")
    return pattern_states(pattern)


def _nodes(value: object) -> Iterator[tuple[int, dict[str, object]]]:
    # Iterative, because the depth is what is being checked. Lists count as levels and are reported as empty nodes.
    stack: list[tuple[int, object]] = [(1, value)]
    while stack:
        depth, item = stack.pop()
        if isinstance(item, dict):
            yield depth, item
            stack.extend((depth + 1, child) for child in item.values())
        elif isinstance(item, list):
            yield depth, {}
            stack.extend((depth + 1, child) for child in item)


def pattern_states(pattern: str) -> int:
    """How many characters a regular expression has once `{m,n}` is written out (an automaton's size grows with it).

    An estimate from the syntax alone: escapes and character classes count as one, groups as their content.
    """
    groups = [0]  # size of each open group, the whole expression first
    last = 0  # size of what a repeat would repeat
    i = 0
    while i < len(pattern):
        char = pattern[i]
        repeat = _REPEAT.match(pattern, i) if char == "{" else None
        if repeat:
            times = max((int(digits) for digits in repeat.groups() if digits), default=1)
            groups[-1] = min(_BEYOND, groups[-1] + last * (max(times, 1) - 1))
            last = min(_BEYOND, last * max(times, 1))
            i = repeat.end()
            continue
        if char == "(":
            groups.append(0)
            last = 0
        elif char == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] = min(_BEYOND, groups[-1] + last)
        else:
            if char == "\\":
                i += 1
            elif char == "[":
                i = _end_of_class(pattern, i)
            groups[-1] += 1
            last = last if char in "*+?" else 1
        i += 1
    return min(_BEYOND, sum(groups))


def _end_of_class(pattern: str, start: int) -> int:
    i = start + 1
    while i < len(pattern) and pattern[i] != "]":
        i += 2 if pattern[i] == "\\" else 1
    return i
