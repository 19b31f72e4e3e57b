"""Which drafts are kept and what is drawn instead, against the rules written out for one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hanmaru_testing.distributions import chi_square_p_value
from hanmaru_worker.plugin import chains
from hypothesis import given, settings
from hypothesis import strategies as st

VOCABULARY = 6
DRAWS = 40_000
ALARM = 1e-6
"""Chance that a right verifier fails a test of distributions; the seeds are fixed, so it is spent once, at writing."""

Chain = st.lists(st.integers(0, 3), min_size=3, max_size=3)
Best = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@given(batch=st.lists(st.tuples(Chain, Best), min_size=1, max_size=6))
def test_greedy_keeps_the_drafts_up_to_the_first_wrong_one(batch: list[tuple[list[int], list[int]]]) -> None:
    drafts, best = (torch.tensor([pair[side] for pair in batch]) for side in (0, 1))
    verdict = chains.greedy(drafts, best)
    for row, (drafted, wanted) in enumerate(batch):
        kept: list[int] = []
        for token in drafted:
            if token != wanted[len(kept)]:
                break
            kept.append(token)
        accepted = int(verdict.accepted[row])
        assert accepted == len(kept)
        assert verdict.tokens[row, : accepted + 1].tolist() == wanted[: accepted + 1]


def target_rows() -> torch.Tensor:
    """What the target says after each token of a chain of two drafts: peaked, flat, and with a token it never says."""
    return torch.tensor(
        [[0.6, 0.1, 0.1, 0.1, 0.05, 0.05], [0.1, 0.2, 0.2, 0.2, 0.2, 0.1], [0.0, 0.5, 0.1, 0.1, 0.1, 0.2]]
    )


def draft_rows(kind: str) -> torch.Tensor:
    """What the draft model says in its place."""
    good, flat = target_rows()[:2], torch.full((2, VOCABULARY), 1 / VOCABULARY)
    never_said = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    return {"the target's own": good, "flat": flat, "one token": never_said, "turned round": good.flip(1)}[kind]


def p_value(tokens: torch.Tensor, expected: torch.Tensor) -> float:
    possible = expected > 0
    counts = torch.bincount(tokens, minlength=VOCABULARY)
    assert int(counts[~possible].sum()) == 0, "a token was drawn that the target never says"
    return chi_square_p_value(counts[possible], expected[possible])


@pytest.mark.parametrize("kind", ["the target's own", "flat", "one token", "turned round"])
def test_each_token_has_the_targets_distribution_whatever_the_draft_model_says(kind: str) -> None:
    torch.manual_seed(5)
    target, draft = target_rows(), draft_rows(kind)
    drafts = torch.multinomial(draft, DRAWS, replacement=True).T
    verdict = chains.sampled(
        drafts, target.expand(DRAWS, 3, VOCABULARY), draft.expand(DRAWS, 2, VOCABULARY), torch.rand(DRAWS, 2)
    )
    assert p_value(verdict.tokens[:, 0], target[0]) > ALARM
    for position in (1, 2):
        reached = verdict.accepted >= position
        assert p_value(verdict.tokens[reached, position], target[position]) > ALARM
    likely = float(torch.minimum(target[0], draft[0]).sum())
    assert abs(float((verdict.accepted >= 1).double().mean()) - likely) < 0.02, "as many are kept as can be"


def test_the_test_of_distributions_notices_a_draw_among_all_tokens_after_a_rejection() -> None:
    """Its control: the mistake that is easiest to make, and that no test of greedy text can see."""
    torch.manual_seed(5)
    target, draft = target_rows()[0], draft_rows("flat")[0]
    drafts = torch.multinomial(draft, DRAWS, replacement=True)
    is_kept = torch.rand(DRAWS) * draft[drafts] < target[drafts]
    tokens = torch.where(is_kept, drafts, torch.multinomial(target, DRAWS, replacement=True))
    assert p_value(tokens, target) < ALARM


def test_draws_follow_their_weights_and_never_take_a_token_without_any() -> None:
    torch.manual_seed(5)
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 6.0, 0.0])
    drawn = chains.draw(weights.expand(DRAWS, -1))
    assert p_value(drawn, weights) > ALARM
    assert chains.draw(torch.eye(VOCABULARY)).tolist() == list(range(VOCABULARY))


def test_a_draft_the_target_is_sure_of_is_always_kept_and_one_it_never_says_never() -> None:
    """A greedy request among sampled ones: its draft was not drawn, and its text must still be the target's."""
    sure = torch.zeros(2, 2, VOCABULARY)
    sure[:, :, 3] = 1
    flat = torch.full((2, 1, VOCABULARY), 1 / VOCABULARY)
    highest_coin = torch.tensor([[1 - 2**-24], [0.0]])
    verdict = chains.sampled(torch.tensor([[3], [2]]), sure, flat, highest_coin)
    assert verdict.accepted.tolist() == [1, 0]
    assert verdict.tokens[0].tolist() == [3, 3]
    assert verdict.tokens[1, 0] == 3


def test_rows_that_are_equal_but_for_rounding_can_be_drawn_from() -> None:
    row = torch.tensor([0.5, 0.5])
    verdict = chains.sampled(
        torch.tensor([[0]]), row.expand(1, 2, 2), row.expand(1, 1, 2) * 1.0000002, torch.ones(1, 1)
    )
    assert verdict.accepted.tolist() == [0]
    assert verdict.tokens[0, 0] in (0, 1)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([1, 2, 1 << 30]),
    top_p=st.sampled_from([0.3, 0.5, 0.95]),
    min_p=st.sampled_from([0.0, 0.2]),
)
def test_filters_keep_the_likeliest_tokens_in_proportion(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
    got = chains.distribution(
        logits,
        torch.tensor([temperature]),
        top_ks=torch.tensor([top_k]),
        top_ps=torch.tensor([top_p]),
        min_ps=torch.tensor([min_p]),
    )[0]
    plain = chains.distribution(logits, torch.tensor([temperature]))[0]
    kept: list[int] = []
    for rank, token in enumerate(plain.argsort(descending=True).tolist()):
        above = float(plain[kept].sum())
        if rank >= top_k or above > top_p or plain[token] < min_p * plain.max():
            break
        kept.append(token)
    expected = torch.zeros_like(plain)
    expected[kept] = plain[kept] / plain[kept].sum()
    assert torch.allclose(got, expected, atol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=1, max_size=5))
def test_slots_are_found_where_they_were_entered(spans: list[tuple[int, int]]) -> None:
    table = torch.zeros((8, 32), dtype=torch.int32)
    requests = torch.tensor([7, 2, 5, 0, 3][: len(spans)])
    starts = torch.tensor([start for start, _ in spans])
    ends = starts + torch.tensor([count for _, count in spans])
    total = int((ends - starts).sum())
    chains.assign_slots(table, requests, starts.int(), ends.int(), torch.arange(100, 100 + total))
    expected = torch.zeros_like(table)
    slot = 100
    for request, (start, count) in zip(requests.tolist(), spans, strict=True):
        for position in range(start, start + count):
            expected[request, position] = slot
            slot += 1
    assert torch.equal(table, expected)
    found = chains.window_slots(table, requests, starts, 5)
    for row, (start, _) in enumerate(spans):
        assert torch.equal(found[row], expected[requests[row], start : start + 5])
