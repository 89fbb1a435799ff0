"""Rewards added with weights: one picture batch, each encoder run once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Embed, Encoder, Reward, RewardError


class CombinedReward(Reward):
    """`sum_i weights[i] * parts[i]`; a negative weight turns a reward into a penalty."""

    def __init__(self, parts: Sequence[Reward], weights: Sequence[float]) -> None:
        if not parts:
            raise RewardError("A combination needs at least one reward: connect one.")
        if len(parts) != len(weights):
            raise RewardError(f"There are {len(parts)} rewards but {len(weights)} weights; give one weight for each.")
        self.parts, self.weights = tuple(parts), tuple(float(w) for w in weights)
        self.name = " + ".join(f"{w:g} x {part.name}" for part, w in zip(self.parts, self.weights, strict=True))
        used = [abs(w) * part.negligible for part, w in zip(self.parts, self.weights, strict=True) if w]
        self.negligible = min(used, default=Reward.negligible)
        self.differentiable = all(part.differentiable for part in self.parts)
        self.warning = "\n".join(dict.fromkeys(part.warning for part in parts if part.warning))
        by_id = {encoder.id: encoder for part in self.parts for encoder in part.encoders}
        self.encoders: tuple[Encoder, ...] = tuple(by_id.values())

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        scores = [w * part.score(images, prompts, embed) for part, w in zip(self.parts, self.weights, strict=True)]
        return torch.stack(scores).sum(dim=0)

    def networks(self) -> list[nn.Module]:
        return list(dict.fromkeys(network for part in self.parts for network in part.networks()))

    def to(self, device: torch.device | str) -> None:
        for part in self.parts:
            part.to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        raise RewardError("A combination is not saved as one: save its rewards, and combine them again after loading.")
