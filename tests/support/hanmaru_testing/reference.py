"""What transformers says of the same checkpoint in float32: the reference an engine is compared with.

Texts agree by luck even with a wrong window, so the comparison is of log-probabilities, teacher-forced: the
reference reads the prompt and the tokens the engine chose, once, and is asked at every position.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TIE_LOGITS = 1e-4
"""Two best logits closer than this may be chosen in either order."""

_FEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one answer of the engine is from the reference."""

    prompt_error: float
    """Largest difference of a prompt token's log-probability; 0 where the engine returned none."""
    output_error: float
    """Largest difference of a chosen token's log-probability."""
    divergences: int
    """Steps at which the engine did not choose the reference's best token."""
    ties: int
    """How many of the divergences fell on two logits within `TIE_LOGITS`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One greedy step of the reference."""

    token: int
    log_probability: float
    margin_logits: float
    """By how much it beat the second best."""


class Reference:
    """One checkpoint in transformers, on one thread."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForCausalLM

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self._model.eval()
        self._continued: dict[tuple[tuple[int, ...], int], torch.Tensor] = {}

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return int(self._model.config.vocab_size)

    def logits(self, tokens: Sequence[int], *, sliding_window: int | None = None, last: int = 0) -> torch.Tensor:
        """float32 [tokens, vocabulary], with the model's own window or, as a counter-example, another.

        `last` asks for those of the last tokens alone; 0 for all.
        """
        own = self._model.config.sliding_window
        self._model.config.sliding_window = sliding_window or own
        row = torch.tensor([list(tokens)])
        try:
            with torch.inference_mode():
                found: torch.Tensor = self._model(row, use_cache=False, logits_to_keep=last).logits[0]
        finally:
            self._model.config.sliding_window = own
        return found.float()

    def greedy(self, prompt: Sequence[int], count: int) -> list[Step]:
        """The next `count` tokens; each step reads everything anew, so no cache can be wrong."""
        tokens = list(prompt)
        steps = []
        for _ in range(count):
            last = self.logits(tokens)[-1]
            best = last.topk(2)
            token = int(best.indices[0])
            own = float(torch.log_softmax(last, -1)[token])
            steps.append(Step(token, own, float(best.values[0] - best.values[1])))
            tokens.append(token)
        return steps

    def agreement(self, prompt: Sequence[int], answer: Mapping[str, Any]) -> Agreement:
        """Compare an answer of `/generate` made greedily with `return_logprob`."""
        chosen = list(answer["output_ids"])
        tokens = [*prompt, *chosen]
        meta = answer["meta_info"]
        # The engine has nothing to say of the first token it was asked about.
        told = [entry[0] for entry in meta.get("input_token_logprobs") or []][1:]
        start = len(prompt) - len(told)
        logits = self._deciding(tokens, len(tokens) - start)
        own = torch.log_softmax(logits, -1)
        prompt_errors = [abs(value - float(own[row, tokens[start + row]])) for row, value in enumerate(told)]
        output_errors = [
            abs(entry[0] - float(own[row, tokens[start + row]]))
            for row, entry in enumerate(meta["output_token_logprobs"], len(told))
        ]
        best = logits[len(told) :].topk(2, dim=-1)
        is_other = best.indices[:, 0] != torch.tensor(chosen)
        is_tie = (best.values[:, 0] - best.values[:, 1]) < TIE_LOGITS
        return Agreement(
            prompt_error=max(prompt_errors, default=0.0),
            output_error=max(output_errors),
            divergences=int(is_other.sum()),
            ties=int((is_other & is_tie).sum()),
        )

    def _deciding(self, tokens: Sequence[int], count: int) -> torch.Tensor:
        """Logits that decided the last `count` tokens; those of an answer alone are kept for its next time."""
        key = (tuple(tokens), count)
        found = self._continued.get(key)
        if found is None:
            found = self.logits(tokens, last=count + 1)[:-1]
            if count <= _FEW_TOKENS:
                self._continued[key] = found
        return found
