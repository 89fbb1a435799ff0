"""A reward on a part of the picture: what lies in a mask, with some of what is around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Embed, Encoder, Reward, RewardError, embed_once

PADDING = 1.25  # the crop's side over the mask's: a reward that sees no surroundings misreads what it is shown
SMALLEST = 8  # pixels of the crop's shorter side


def box_of(mask: Tensor, padding: float = PADDING) -> tuple[float, float, float, float]:
    """mask (H,W) or (B,H,W) in 0..1 -> (top, left, bottom, right) as shares of the picture.

    The smallest box around all that is above one half in any of the masks, grown by `padding` about its middle and cut
    at the picture's edge. Raises RewardError for an empty mask.
    """
    marked = (mask if mask.ndim == 2 else mask.flatten(0, -3).amax(dim=0)) > 0.5
    if not bool(marked.any()):
        raise RewardError("The mask is empty: paint white where the reward should look.")
    sides = []
    for along in (1, 0):
        places = marked.any(dim=along).nonzero().flatten()
        low, high = int(places[0]), int(places[-1]) + 1
        middle, half = (low + high) / 2, (high - low) / 2 * padding
        size = marked.shape[1 - along]
        sides.append((max(0.0, (middle - half) / size), min(1.0, (middle + half) / size)))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right


class MaskReward(Reward):
    """`reward` of the crop `box` of each picture; box: (top, left, bottom, right) as shares, so any size fits."""

    def __init__(self, reward: Reward, box: tuple[float, float, float, float]) -> None:
        self.parts, self.box = (reward,), box
        self.name = f"{reward.name} in a region"
        self.negligible, self.reach = reward.negligible, reward.reach
        self.differentiable, self.warning = reward.differentiable, reward.warning
        self.encoders: tuple[Encoder, ...] = reward.encoders

    def crop(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> the part in the box, at least 8 pixels wide and high."""
        rows, columns = (
            _pixels(low, high, size)
            for low, high, size in zip(self.box[:2], self.box[2:], images.shape[-2:], strict=True)
        )
        return images[..., rows, columns]

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        cropped = self.crop(images)
        # the crop is another picture: features of the whole are not its own
        return self.parts[0].score(cropped, prompts, embed_once(cropped))

    def at(self, percent: float) -> Reward | None:
        active = self.parts[0].at(percent)
        return self if active is self.parts[0] else None if active is None else MaskReward(active, self.box)

    def networks(self) -> list[nn.Module]:
        return self.parts[0].networks()

    def to(self, device: torch.device | str) -> None:
        self.parts[0].to(device)


def _pixels(low: float, high: float, size: int) -> slice:
    start, stop = int(low * size), -int(-high * size // 1)
    lacking = max(0, min(SMALLEST, size) - (stop - start))
    start = max(0, min(start - lacking // 2, size - min(SMALLEST, size)))
    return slice(start, max(stop, start + min(SMALLEST, size)))
