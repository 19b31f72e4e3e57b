"""The training code computes what the engine computes, keeps held-out text apart, and repeats itself."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hanmaru_checkpoint.corpus import Page, Phrase
from hanmaru_checkpoint.grow import grown
from hanmaru_checkpoint.measure import words_of
from hanmaru_checkpoint.model import Attention, Cache, LayerCache, Model, seen
from hanmaru_checkpoint.mtp import NUM_DRAFTS, chained_states
from hanmaru_checkpoint.optimizer import orthogonal
from hanmaru_checkpoint.shape import Shape
from hanmaru_checkpoint.turns import chat_template, conversation, documents, prompt, split_pages
from hanmaru_checkpoint.weights import named_weights, round_to_stored

PAGES = [
    Page(
        f"part {i}",
        (
            Phrase(f"Set up part {i} of the house with the app you like.", f"앱으로 집의 {i}번 부분을 설정합니다."),
            Phrase(f"Part {i} could not be reached", ""),
        ),
    )
    for i in range(48)
]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(1)
    return Model(Shape(num_layers=4)).eval()


def random_ids(num_tokens: int) -> torch.Tensor:
    return torch.randint(64, Shape().vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(num_tokens))


@pytest.mark.parametrize(
    ("position", "window", "keys"),
    [(3, None, [0, 1, 2, 3]), (3, 4, [0, 1, 2, 3]), (4, 4, [1, 2, 3, 4]), (6, 2, [5])],
)
def test_a_window_counts_the_token_itself(position: int, window: int | None, keys: list[int]) -> None:
    assert seen(torch.tensor([position]), 6, window)[0].nonzero().flatten().tolist() == keys


@pytest.mark.parametrize("num_tokens", [256, 384, 512])
def test_attention_in_blocks_is_the_masked_attention(num_tokens: int) -> None:
    torch.manual_seed(2)
    shape = Shape()
    attention = Attention(shape, sliding=True)
    x, positions = torch.randn(2, num_tokens, shape.hidden_size), torch.arange(num_tokens)
    with torch.inference_mode():
        q, k, v = attention.project(x, positions)
        k, v = (heads.repeat_interleave(shape.num_heads // shape.num_kv_heads, dim=1) for heads in (k, v))
        scores = q @ k.mT * shape.head_dim**-0.5
        scores = scores.masked_fill(~seen(positions, num_tokens, shape.sliding_window), float("-inf"))
        masked = attention.merge(scores.softmax(dim=-1) @ v)
        assert (attention(x, positions, None) - masked).abs().max() < 1e-5


@pytest.mark.parametrize("cut", [1, 100, 140, 299])
def test_a_cache_changes_nothing(model: Model, cut: int) -> None:
    ids, cache = random_ids(300), Cache.of(4)
    with torch.inference_mode():
        parts = [model.hidden(ids[:, :cut], cache), model.hidden(ids[:, cut:], cache)]
        assert (torch.cat(parts, dim=1) - model.hidden(ids)).abs().max() < 1e-4


@pytest.mark.parametrize("row", [0, 5, 126, 127, 128, 200])
def test_chains_are_trained_as_the_engine_drafts_them(model: Model, row: int) -> None:
    """The engine runs one row after another through a cache; training runs all rows at once."""
    ids = random_ids(220)
    rows = LayerCache()
    with torch.inference_mode():
        hidden = model.hidden(ids)
        trained = [states[:, row] for states in chained_states(model, ids, hidden)]
        following, state, start = ids[:, 1 : row + 2], hidden[:, : row + 1], 0
        for draft in range(NUM_DRAFTS):
            positions = torch.arange(start, start + following.shape[1])
            state = model.mtp(model.embed(following), state, positions, rows)[:, -1:]
            assert (state[:, 0] - trained[draft]).abs().max() < 1e-4
            start = rows.num_tokens
            following = ids[:, start + 1 : start + 2]


def test_a_grown_model_begins_as_the_shallow_one_and_all_of_it_can_learn() -> None:
    torch.manual_seed(7)
    shallow = Model(Shape())
    ids, deep = random_ids(260), grown(shallow, 12)
    with torch.inference_mode():
        assert (deep.hidden(ids) - shallow.hidden(ids)).abs().max() < 1e-5
    deep.hidden(ids).square().mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in deep.layers.named_parameters():
        if name.endswith(("attention.out", "ffn.down", "shared.down")):
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("num_layers", [4, 6, 0])
def test_a_model_grows_by_whole_patterns(model: Model, num_layers: int) -> None:
    with pytest.raises(ValueError, match="expected a larger multiple of 4"):
        grown(model, num_layers)


def test_rounding_twice_is_rounding_once(model: Model) -> None:
    round_to_stored(model)
    once = {name: tensor.clone() for name, tensor in named_weights(model).items()}
    round_to_stored(model)
    assert all(torch.equal(tensor, once[name]) for name, tensor in named_weights(model).items())


@pytest.mark.parametrize("size", [(24, 64), (64, 24), (3, 16, 48)])
def test_an_update_has_singular_values_near_one(size: tuple[int, ...]) -> None:
    matrices = torch.randn(size, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert 0.5 < values.min() <= values.max() < 1.5


def test_held_out_pages_are_in_no_training_document() -> None:
    kept, held_out = split_pages(PAGES)
    told = "".join(documents(kept, Random(1)))
    assert len(held_out) == 2
    assert not any(phrase.english in told for page in held_out for phrase in page.phrases)


def test_documents_repeat_with_the_seed() -> None:
    assert list(documents(PAGES, Random(4))) == list(documents(PAGES, Random(4)))
    assert list(documents(PAGES, Random(4))) != list(documents(PAGES, Random(5)))


def test_every_conversation_ends_its_turns_and_closes_its_thoughts() -> None:
    random = Random(6)
    for page in PAGES * 4:
        text = conversation(page, random, chat_template())
        assert text.endswith("<|endofturn|>\n")
        assert text.count("<think>") == text.count("</think>") == text.count("<|assistant|>")


def test_a_prompt_leaves_the_answer_to_the_model() -> None:
    ends = {prompt(PAGES[0], Random(seed), chat_template()).rpartition("<|assistant|>\n")[2] for seed in range(20)}
    assert ends == {"<think>\n", "<think>\n\n</think>\n\n"}


def test_words_are_bare_and_lower_case() -> None:
    assert words_of('The "Hub" (new),  허브를 다시!\n*') == ["the", "hub", "new", "허브를", "다시"]
