"""Which of SGLang's names our plugin uses, read from its sources and from its page: the contract test compares them.

A use is an import of a name, or a whole string that spells one (a hook's target). What is built from pieces of strings
is not seen here; for hooks the contract test also asks SGLang's registry.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

_NAME = re.compile(r"sglang(?:\.\w+)+")
_SECTION = re.compile(r"^### (.+)$", re.MULTILINE)
_PARTS = ("**Target", "**Why**", "**Drop it when**")


def names_used(folder: Path) -> dict[str, str]:
    """Each of SGLang's dotted names and one of the files below `folder` that uses it."""
    return _collect(folder, lambda node: [*_imported(node), *_spelt(node)])


def names_spelt(folder: Path) -> dict[str, str]:
    """Those that are written as strings, as the targets of hooks are."""
    return _collect(folder, _spelt)


def _collect(folder: Path, names_of: Callable[[ast.AST], list[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            found |= dict.fromkeys(names_of(node), str(file.relative_to(folder)))
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == "sglang"]
    return []


def _spelt(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
        return [node.value]
    return []


def names_on(page: str) -> set[str]:
    """SGLang's dotted names in back quotes; entry point groups and the like are not attributes and are left out."""
    return {name for name in re.findall(r"`([\w.]+)`", page) if _NAME.fullmatch(name)}


def is_covered(name: str, contract: Collection[str]) -> bool:
    """Whether the contract has the name itself or parts of it."""
    return any(target == name or target.startswith(f"{name}.") for target in contract)


def incomplete_sections(page: str) -> list[str]:
    """Headings of entries that have one or two of target, reason, and what would let us drop it."""
    pieces = _SECTION.split(page)[1:]
    entries = [(heading, body.split("\n## ")[0]) for heading, body in zip(pieces[::2], pieces[1::2], strict=True)]
    return [heading for heading, body in entries if 0 < sum(part in body for part in _PARTS) < len(_PARTS)]


def refused_call(theirs: Callable[..., Any], ours: Callable[..., Any], *leading: object) -> str | None:
    """Why `ours` cannot stand where `theirs` is called with all its parameters; None when it can.

    `leading` are what is put before them. `self` goes by position; the rest is tried by name and by position.
    """
    parameters = [each for each in inspect.signature(theirs).parameters.values() if each.kind not in _VARIADIC]
    ordered = [each.name for each in parameters if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    named = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    bound = ordered[:1] if ordered[:1] in (["self"], ["cls"]) else []
    own = inspect.signature(ours)
    for positional, by_name in ((bound, ordered[len(bound) :] + named), (ordered, named)):
        try:
            own.bind(*leading, *positional, **dict.fromkeys(by_name))
        except TypeError as error:
            return f"{error}; SGLang's has ({', '.join(ordered + named)}) and ours {_shown(own)}"
    return None


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _shown(signature: inspect.Signature) -> str:
    return f"({', '.join(str(each).partition(':')[0] for each in signature.parameters.values())})"


def subclasses_of_upstream(modules: Iterable[Any]) -> list[type]:
    """Our own classes that extend one of SGLang's."""
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    extending = (each for each in classes if any(base.__module__.startswith("sglang.") for base in each.__mro__[1:]))
    return sorted(extending, key=lambda each: each.__qualname__)
