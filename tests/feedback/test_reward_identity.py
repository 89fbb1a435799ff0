"""A reward is told from another of the same name by what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feedback_loop.feedback.rewards.base import Embed, Reward
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.feedback.rewards.combine import CombinedReward, Scale
from feedback_loop.feedback.rewards.identity import identity
from feedback_loop.feedback.rewards.mask import MaskReward
from feedback_loop.feedback.rewards.taste import TasteReward

WHOLE = (0.0, 0.0, 1.0, 1.0)


class Means:
    """Features: the mean of each colour channel."""

    def __init__(self, name: str = "means") -> None:
        self.id = name

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def networks(self) -> list[nn.Module]:
        return []


def taste(weight: float = 1.0, caution: float = 1.0, encoder: str = "means") -> TasteReward:
    tensors = {"centre": torch.zeros(3), "scale": torch.ones(3), "weight": torch.full((3,), weight)}
    return TasteReward(Means(encoder), tensors | {"root": torch.eye(3)}, caution, name="mine")


def combined(part: Reward, std: float = 1.0, weight: float = 1.0) -> CombinedReward:
    return CombinedReward([part, ColourReward("brightness")], [weight, 1.0], scales=[Scale(0.0, std), Scale()])


@pytest.mark.parametrize(
    ("made", "others"),
    [
        (taste, [taste(weight=1.0001), taste(caution=2.0), taste(encoder="others")]),
        (
            lambda: combined(taste()),
            [combined(taste(weight=2.0)), combined(taste(), std=2.0), combined(taste(), 1.0, 2)],
        ),
        (
            lambda: MaskReward(taste(), WHOLE),
            [MaskReward(taste(2.0), WHOLE), MaskReward(taste(), (0.5, 0.0, 1.0, 1.0))],
        ),
    ],
    ids=["taste", "combined", "in a region"],
)
def test_the_same_reward_is_the_same_and_any_change_makes_another(made: Any, others: Sequence[Reward]) -> None:
    assert identity(made()) == identity(made())
    assert len({identity(one) for one in (made(), *others)}) == 1 + len(others)
    assert identity(made()).startswith(made().name)


def test_using_a_reward_does_not_make_it_another() -> None:
    class Counts(Reward):
        name = "counts"

        def __init__(self) -> None:
            self.asked: list[int] = []

        def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
            self.asked.append(len(images))
            return images.mean((1, 2, 3))

    for reward in (Counts(), taste(), ColourReward("brightness")):
        before = identity(reward)
        reward(torch.rand(2, 3, 8, 8))
        assert identity(reward) == before
