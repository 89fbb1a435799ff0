"""Stars, likes and comparisons become numbers or pairs, whichever the objective wants."""

from __future__ import annotations

import math

import pytest
import torch

from feedback_loop.training.labels import Preference, pairs_to_train_on, utilities
from feedback_loop.training.sources import NoPreferenceError


def test_without_comparisons_utilities_are_the_ratings() -> None:
    z = torch.tensor([0.3, -1.0, 2.0])
    assert torch.equal(utilities(z, []), z)


def test_a_comparison_moves_both_pictures_by_the_same_amount() -> None:
    """u = (d, -d) with trust * d = sigmoid(-2 d)."""
    u = utilities(torch.zeros(2), [Preference(0, 1)], trust=0.5)
    d = u[0].item()
    assert u[1].item() == pytest.approx(-d)
    assert 0.5 * d == pytest.approx(1 / (1 + math.exp(2 * d)), rel=1e-6)


def test_comparisons_order_pictures_without_stars() -> None:
    """0 beats 1, 1 beats 2: in this order, and symmetric about 0; picture 3, of which nobody spoke, stays there."""
    u = utilities(torch.zeros(4), [Preference(0, 1), Preference(1, 2)])
    assert u[0] > u[1] > u[2]
    assert u[1].item() == pytest.approx(0, abs=1e-9) and u[3].item() == 0


def test_comparisons_can_overrule_stars() -> None:
    u = utilities(torch.tensor([-0.5, 0.5]), [Preference(0, 1)] * 20)
    assert u[0] > u[1]


def test_clear_pairs_of_one_prompt_are_taken_and_weighed_by_their_gap() -> None:
    """Prompt a: gaps 2.5, cut at 2, and 2 and .5, of mean 1.5; b has one picture alone and c two that are alike."""
    u = torch.tensor([2.5, 0.0, 0.5, 1.0, 0.1, 0.0])
    pairs = pairs_to_train_on(u, ["a", "a", "a", "b", "c", "c"])
    assert [(p.chosen, p.rejected) for p in pairs] == [(0, 1), (0, 2), (2, 1)]
    assert [p.gap for p in pairs] == pytest.approx([2 / 1.5, 2 / 1.5, 0.5 / 1.5])


def test_no_picture_stands_in_more_pairs_than_allowed() -> None:
    pairs = pairs_to_train_on(torch.arange(8.0), ["a"] * 8, each=2)
    used = [index for pair in pairs for index in (pair.chosen, pair.rejected)]
    assert max(used.count(index) for index in range(8)) == 2


def test_a_comparison_outranks_the_stars() -> None:
    """Stars prefer 0, an explicit comparison prefers 1: the comparison alone is trained on."""
    pairs = pairs_to_train_on(torch.tensor([1.0, 0.0]), ["a", "a"], [Preference(1, 0, 0.5)])
    assert [(p.chosen, p.rejected, p.gap) for p in pairs] == [(1, 0, 1.0)]


def test_comparisons_across_prompts_or_sizes_are_left_out() -> None:
    kinds = [("a", (8, 8)), ("b", (8, 8)), ("a", (8, 9))]
    with pytest.raises(NoPreferenceError, match="no two pictures of one prompt and size"):
        pairs_to_train_on(torch.tensor([3.0, 0.0, 0.0]), kinds, [Preference(0, 1), Preference(0, 2)])
