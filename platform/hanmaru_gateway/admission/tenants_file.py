"""Reads a tenants file: YAML, strict, every mistake with its line and field. Called by `tenants` and `hanmaru up`."""

from __future__ import annotations

from pathlib import Path

import yaml
from hanmaru_contracts.crd.v1alpha1.tenant import TenantsFile
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from pydantic import ValidationError

MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_FAULTS = 5


def load_tenants_file(path: Path) -> TenantsFile:
    """The tenants in the file. Raises HanmaruError(CONFIGURATION) naming file, line and field, never a value."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _broken(path, None, f"cannot be read: {error.strerror or type(error).__name__}") from error
    if len(content) > MAX_FILE_BYTES:
        raise _broken(path, None, f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(content)
        root = loader.get_single_node()
        _check_nodes(root)
        document = loader.construct_document(root) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise _broken(path, line, error.problem or "is not valid YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _broken(path, None, f"is not valid YAML ({type(error).__name__})") from None
    try:
        return TenantsFile.model_validate(document if document is not None else {}, extra="forbid")
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = [f"line {_line(root, fault['loc'])}: {_path(fault['loc'])}: {fault['msg']}" for fault in faults]
        more = f"; and {len(told) - _MAX_FAULTS} more" if len(told) > _MAX_FAULTS else ""
        raise _broken(path, None, "; ".join(told[:_MAX_FAULTS]) + more) from None


def _check_nodes(root: yaml.Node | None) -> None:
    """Refuse keys that stand twice (YAML keeps the last) and aliases (they can stand for far more than was written)."""
    seen: set[int] = set()
    stack = [root] if root is not None else []
    while stack:
        node = stack.pop()
        if id(node) in seen:
            raise yaml.MarkedYAMLError(problem="is used again by an alias; write it out", problem_mark=node.start_mark)
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                keys.add(str(key.value))
                stack.append(value)


def _broken(path: Path, line: int | None, problem: str) -> HanmaruError:
    where = f"{path}, line {line}" if line else str(path)
    return HanmaruError(ErrorCode.CONFIGURATION, f"tenants file {where}: {problem}")


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "the file"


def _line(root: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line of the deepest part of `location` that stands in the file."""
    node, line = root, root.start_mark.line if root is not None else 0
    for part in location:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == part), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1
