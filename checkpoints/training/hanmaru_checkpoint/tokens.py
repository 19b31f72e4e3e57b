"""The tokenizer: byte-level BPE trained on the corpus, its marks at the ids of the real model where those are known.

Any text can be written, because all 256 bytes are tokens. `make.py` trains and saves it; the chat turns that use the
marks are rendered in `turns.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from hanmaru_checkpoint.shape import BOS_ID, END_OF_TURN_ID, PAD_ID, Shape

TEMPLATE = Path(__file__).with_name("chat_template.jinja")

NUM_MARKS = 64
"""Ids below this are marks; unused ones are reserved, so that ids never move."""

THINK_ID = 8
MARKS = {
    PAD_ID: "[PAD]",
    BOS_ID: "[BOS]",
    2: "[EOS]",
    3: "[UNK]",
    4: "<|system|>",
    5: "<|user|>",
    6: "<|assistant|>",
    7: "<|tool|>",
    THINK_ID: "<think>",
    9: "</think>",
    10: "<tool_call>",
    11: "</tool_call>",
    12: "<tool>",
    13: "</tool>",
    14: "<tool_result>",
    15: "</tool_result>",
    END_OF_TURN_ID: "<|endofturn|>",
}

KEPT_IN_TEXT = frozenset(range(8, 16))
"""Marks the engine's reasoning and tool parsers look for in the answer's text: decoding must not drop them."""


def train_tokenizer(texts: Iterable[str], shape: Shape) -> Tokenizer:
    """A tokenizer with exactly `shape.vocab_size` ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = [MARKS.get(i, f"<|reserved_{i}|>") for i in range(NUM_MARKS)]
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call,unused-ignore]
        vocab_size=shape.vocab_size,
        special_tokens=[
            AddedToken(mark, special=i not in KEPT_IN_TEXT, normalized=False) for i, mark in enumerate(marks)
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != shape.vocab_size or tokenizer.id_to_token(END_OF_TURN_ID) != MARKS[END_OF_TURN_ID]:
        raise ValueError(f"the text gave {tokenizer.get_vocab_size()} ids, not {shape.vocab_size}; use more text")
    return _with_kept_marks(tokenizer)


def save_tokenizer(tokenizer: Tokenizer, shape: Shape, folder: Path) -> None:
    """`tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` in `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_positions,
        "clean_up_tokenization_spaces": False,
        "bos_token": MARKS[BOS_ID],
        "eos_token": MARKS[END_OF_TURN_ID],
        "pad_token": MARKS[PAD_ID],
        "unk_token": MARKS[3],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")


def _with_kept_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer calls every mark special; those in `KEPT_IN_TEXT` must not be."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["id"] not in KEPT_IN_TEXT
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
