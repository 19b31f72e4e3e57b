"""What keeps the contract complete, on sources, pages and calls made up to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hanmaru_testing.upstream import incomplete_sections, is_covered, names_on, names_spelt, names_used, refused_call


def test_imports_and_spelt_targets_are_uses_and_mere_words_are_not(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "hooks.py").write_text(
        '"""Changes sglang.srt.words for us."""\n'
        "from sglang.srt.pools import Pool\n"
        "import sglang.srt.utils\n"
        "import json\n"
        'TARGET = "sglang.srt.model.Layer.__init__"\n'
        "def late():\n    from sglang.srt.late import thing\n"
    )
    assert set(names_used(tmp_path)) == {
        "sglang.srt.pools.Pool",
        "sglang.srt.utils",
        "sglang.srt.model.Layer.__init__",
        "sglang.srt.late.thing",
    }
    assert names_spelt(tmp_path) == {"sglang.srt.model.Layer.__init__": "deep/hooks.py"}


@pytest.mark.parametrize(
    ("name", "covered"),
    [("sglang.a.B", True), ("sglang.a.B.c", True), ("sglang.a", True), ("sglang.a.Bold", False), ("sglang.z", False)],
)
def test_a_name_is_covered_by_itself_or_by_its_parts(name: str, covered: bool) -> None:
    assert is_covered(name, {"sglang.a.B.c", "sglang.a.B"}) is covered


def test_a_page_is_read_for_full_names_and_for_entries_that_lack_a_part() -> None:
    page = (
        "`sglang.srt.a.b` and `a.b` and sglang.srt.c\n"
        "### whole\n- **Target**: x\n- **Why**: y\n- **Drop it when** z.\n"
        "### no end\n- **Target**: x\n- **Why**: y\n"
        "### no reason either\n- **Targets**: x\n"
        "### no entry\nwords\n"
        "## Else\n**Why** not\n"
    )
    assert names_on(page) == {"sglang.srt.a.b"}
    assert incomplete_sections(page) == ["no end", "no reason either"]


class Upstream:
    def forward(self, q: Any, k: Any, *, save: bool = True) -> None: ...


class Same:
    def forward(self, q: Any, k: Any, *, save: bool = True) -> None: ...


class Open:
    def forward(self, q: Any, *rest: Any, **more: Any) -> None: ...


class Renamed:
    def forward(self, q: Any, keys: Any, *, save: bool = True) -> None: ...


class Short:
    def forward(self, q: Any, k: Any) -> None: ...


class Long:
    def forward(self, q: Any, k: Any, window: int, *, save: bool = True) -> None: ...


@pytest.mark.parametrize(("ours", "said"), [(Renamed, "keys"), (Short, "save"), (Long, "window")])
def test_a_call_that_ours_cannot_take_is_told_with_both_signatures(ours: type[Any], said: str) -> None:
    refused = refused_call(Upstream.forward, ours.forward)
    assert refused is not None
    assert said in refused
    assert "(self, q, k, save)" in refused


@pytest.mark.parametrize("ours", [Same, Open])
def test_a_call_that_ours_takes_is_not_refused(ours: type[Any]) -> None:
    assert refused_call(Upstream.forward, ours.forward) is None


def test_a_hook_is_given_the_result_before_the_call() -> None:
    def after(_result: None, layer: Any, q: Any, *_args: Any, **_kwargs: Any) -> None: ...

    def blind(layer: Any, q: Any, k: Any, *, save: bool = True) -> None: ...

    assert refused_call(Upstream.forward, after, "result") is None
    assert refused_call(Upstream.forward, blind, "result") is not None
