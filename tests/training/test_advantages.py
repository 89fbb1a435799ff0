"""Advantages: worked out by hand for groups of every size, and nothing from rewards that say nothing."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.training.advantages import advantages


def test_a_group_of_four_is_centred_by_itself_and_divided_by_the_spread_of_all() -> None:
    """Groups 0, 0, 2, 2 and 10, 10, 10, 14 have the means 1 and 11: -1, -1, 1, 1 and -1, -1, -1, 3, whose root mean
    square is sqrt(16 / 8) = sqrt 2."""
    rewards = torch.tensor([0.0, 0, 2, 2, 10, 10, 10, 14])
    found = advantages(rewards, ["a"] * 4 + ["b"] * 4)
    assert found.tolist() == pytest.approx([x / 2**0.5 for x in (-1, -1, 1, 1, -1, -1, -1, 3)], rel=1e-6)


def test_a_group_of_sixteen_is_divided_by_its_own_spread() -> None:
    """Sixteen of 0 and 2 in turn have spread 1; four of 0 and 20 in turn are divided by that of all:
    sqrt((16 * 1 + 4 * 100) / 20)."""
    rewards = torch.tensor([0.0, 2.0] * 8 + [0.0, 20.0] * 2)
    found = advantages(rewards, ["a"] * 16 + ["b"] * 4)
    assert found[:2].tolist() == pytest.approx([-1.0, 1.0])
    assert found[16:18].tolist() == pytest.approx([-10 / 20.8**0.5, 10 / 20.8**0.5])


def test_two_pictures_of_a_prompt_are_compared_with_each_other() -> None:
    """Leave-one-out: 1 - 3 = -2 and 3 - 1 = 2, spread 2."""
    assert advantages(torch.tensor([1.0, 3.0]), ["a", "a"]).tolist() == pytest.approx([-1.0, 1.0])


def test_a_picture_alone_is_compared_with_what_was_expected_or_with_the_others() -> None:
    """Expected 1 for each: 1, -1, spread 1. Without: 2 - 0 and 0 - 2, spread 2."""
    rewards, prompts = torch.tensor([2.0, 0.0]), ["a", "b"]
    assert advantages(rewards, prompts, expected=torch.ones(2)).tolist() == pytest.approx([1.0, -1.0])
    assert advantages(rewards, prompts).tolist() == pytest.approx([1.0, -1.0])


def test_a_win_rate_is_blind_to_how_much_better_the_best_is() -> None:
    """Ranks of 4: shares 0, 1/3, 2/3, 1 about 1/2."""
    usual = advantages(torch.tensor([1.0, 2.0, 3.0, 4.0]), ["a"] * 4, win_rate=True)
    outlier = advantages(torch.tensor([1.0, 2.0, 3.0, 1e6]), ["a"] * 4, win_rate=True)
    assert torch.equal(usual, outlier)
    spread = (((1 / 2) ** 2 + (1 / 6) ** 2) / 2) ** 0.5
    assert usual.tolist() == pytest.approx([x / spread for x in (-1 / 2, -1 / 6, 1 / 6, 1 / 2)])


def test_ties_share_their_win() -> None:
    """0, 0, 1, 1: shares 1/6, 1/6, 5/6, 5/6, which are 1/3 from 1/2, and so is their spread."""
    found = advantages(torch.tensor([0.0, 0.0, 1.0, 1.0]), ["a"] * 4, win_rate=True)
    assert found.tolist() == pytest.approx([-1.0, -1.0, 1.0, 1.0])


@pytest.mark.parametrize("win_rate", [True, False])
@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_a_constant_reward_teaches_nothing_exactly(win_rate: bool, noise: float) -> None:
    """Rounding of a reward that is the same for all pictures is no preference."""
    rewards = 3.0 + noise * torch.arange(24, dtype=torch.float64)
    assert advantages(rewards, ["a"] * 16 + ["b"] * 5 + ["c", "c", "d"], win_rate).tolist() == [0.0] * 24


def test_a_group_without_spread_gives_nothing_while_others_do() -> None:
    found = advantages(torch.tensor([5.0] * 4 + [1.0, 2.0, 3.0, 4.0]), ["a"] * 4 + ["b"] * 4)
    assert found[:4].tolist() == [0.0] * 4
    assert found[4:].abs().min() > 0


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        advantages(torch.tensor([1.0, float("nan")]), ["a", "a"])
