"""The pure steps of a request's life: how much output fits, which tools are shown, what is told of a bug."""

from __future__ import annotations

import pytest
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_gateway.flow import Context, fit_output, offered_tools
from hanmaru_gateway.request import Kind, ParsedRequest
from hypothesis import given
from hypothesis import strategies as st


def asked(tokens: int | None, n: int = 1) -> ParsedRequest:
    return ParsedRequest(Kind.CHAT, "m", stream=False, include_usage=False, max_output_tokens=tokens, n=n, fields={})


@given(
    st.none() | st.integers(1, 10_000),
    st.integers(1, 8),
    st.integers(1, 9000),
    st.integers(2, 8192),
    st.integers(0, 9000),
)
def test_output_always_fits_behind_the_prompt(
    tokens: int | None, n: int, prompt: int, context: int, unasked: int
) -> None:
    if prompt + (tokens or 1) > context:
        with pytest.raises(HanmaruError, match=f"{context} tokens, .*{prompt} tokens") as raised:
            fit_output(asked(tokens, n), prompt_tokens=prompt, context=Context(context), unasked_tokens=unasked)
        assert raised.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        return
    output = fit_output(asked(tokens, n), prompt_tokens=prompt, context=Context(context), unasked_tokens=unasked)
    assert output >= 1
    assert prompt + output <= context
    assert tokens is None or output == tokens
    assert tokens is not None or output * n <= max(unasked, n)


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]


@pytest.mark.parametrize(
    ("tools", "choice", "shown"),
    [
        (None, None, None),
        (TOOLS, None, TOOLS),
        (TOOLS, "auto", TOOLS),
        (TOOLS, "required", TOOLS),
        (TOOLS, "none", None),
        (TOOLS, {"type": "function", "function": {"name": "b"}}, TOOLS[1:]),
    ],
)
def test_the_template_sees_the_tools_that_may_be_called(tools: object, choice: object, shown: object) -> None:
    assert offered_tools(tools, choice) == shown
