"""What a request's fields may say once the model and the room for its answer are known. Pure; called by `flow`.

`fields` bounds each field by itself; here the bounds are the model's. The engine does not check them all: it writes
`stop_token_ids` into a tensor of the vocabulary's size (SGLang 0.5.23, `penaltylib/min_new_tokens.py`), so an id beyond
it ends the engine, and everybody's requests with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from hanmaru_gateway.admission.bounds import refuse
from hanmaru_gateway.request import ParsedRequest


def check_against_model(request: ParsedRequest, *, vocabulary_tokens: int, output_tokens: int) -> None:
    """Refuse token ids the model does not have, and a `min_tokens` above what each answer may have.

    Raises HanmaruError(INVALID_REQUEST) naming the field.
    """
    fields = request.fields
    _check_ids("stop_token_ids", cast("list[int]", fields.get("stop_token_ids", ())), vocabulary_tokens)
    biased = cast("dict[str, float]", fields.get("logit_bias", {}))
    _check_ids("logit_bias", map(int, biased), vocabulary_tokens)
    least = cast("int", fields.get("min_tokens", 0))
    if least > output_tokens:
        refuse(
            "min_tokens", f"is {least}, but the answer may have {output_tokens} tokens; ask for less, or set max_tokens"
        )


def _check_ids(name: str, ids: Iterable[int], vocabulary_tokens: int) -> None:
    for token in ids:
        if token >= vocabulary_tokens:
            refuse(name, f"has token id {token}; this model has ids 0 to {vocabulary_tokens - 1}")
