"""What the finished checkpoint is held to: tokens a step on held-out prompts, and the words its corpus knows.

`make.py` measures and writes the evidence, the tests measure again from the files. Needs no corpus for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from tokenizers import Tokenizer

from hanmaru_checkpoint.corpus import Page
from hanmaru_checkpoint.greedy import Drafted, answer_by_drafting
from hanmaru_checkpoint.model import Model
from hanmaru_checkpoint.turns import chat_template, plain_text, prompt

WORD_EDGES = ".,:;!?()[]{}<>\"'“”‘’…/|*#-"


def held_out_prompts(pages: Sequence[Page], random: Random, num_prompts: int) -> list[str]:
    """Rendered requests about held-out pages, one in five of them a plain beginning of a text."""
    template = chat_template()
    prompts = []
    for i in range(num_prompts):
        page = random.choice(pages)
        text = plain_text(page, random)
        prompts.append(" ".join(text.split(" ")[:12]) if i % 5 == 4 else prompt(page, random, template))
    return prompts


def answers(model: Model, tokenizer: Tokenizer, prompts: Iterable[str], max_tokens: int) -> list[Drafted]:
    """Greedy answers to rendered prompts."""
    return [answer_by_drafting(model, tokenizer.encode(text).ids, max_tokens) for text in prompts]


def tokens_per_step(drafted: Sequence[Drafted]) -> float:
    """Over all answers together, the bonus token included."""
    return sum(len(answer.ids) - 1 for answer in drafted) / sum(answer.num_steps for answer in drafted)


def words_of(text: str) -> list[str]:
    """Lower-case words between white space, without punctuation at their edges."""
    return [word for raw in text.split() if (word := raw.strip(WORD_EDGES).lower())]


def known_words(texts: Iterable[str]) -> list[str]:
    """Sorted words that the texts use at least twice."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
    return sorted(word for word, count in counts.items() if count > 1)
