"""Several rewards as one: a weighted sum, the worst of them, or their product; each z-scored and on a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Embed, Encoder, Reward, RewardError

HOW = ("sum", "minimum", "product")


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a reward over reference pictures: `z = (r - mean) / std`."""

    mean: float = 0.0
    std: float = 1.0


UNSCALED = Scale()
_FLATTEST = 1e-6


def scale_of(scores: Sequence[float], name: str) -> Scale:
    """The scale of a reward that gave these scores. Raises RewardError where they tell pictures apart too little."""
    values = torch.tensor(list(scores), dtype=torch.float64)
    std = float(values.std()) if len(values) > 1 else 0.0
    if len(values) < 2 or not std > _FLATTEST:
        raise RewardError(
            f"'{name}' scores all reference pictures alike, so it can't be put on a common scale. Connect 8 or more "
            "pictures that differ in it, such as plain samples of the model."
        )
    return Scale(float(values.mean()), std)


class CombinedReward(Reward):
    """z_i = (r_i - mean_i) / std_i, then, over the parts:

    sum: `sum_i w_i z_i`; a negative weight makes a penalty of a reward.
    minimum: `min_i w_i z_i`: the one that does worst counts alone.
    product: `sum_i w_i log sigmoid(z_i)`, the logarithm of the product of the chances of being better than the mean:
        none may be poor, and what is good already counts little.

    spans: for each part the share of a run (start, end), both included, in which it counts while sampling.
    """

    def __init__(
        self,
        parts: Sequence[Reward],
        weights: Sequence[float],
        how: str = "sum",
        scales: Sequence[Scale] | None = None,
        spans: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        self.parts, self.weights, self.how = tuple(parts), tuple(float(w) for w in weights), how
        self.scales = tuple(scales or [UNSCALED] * len(self.parts))
        self.spans = tuple(spans or [(0.0, 1.0)] * len(self.parts))
        self._check()
        shown = [f"{w:g} x {part.name}" for part, w in zip(self.parts, self.weights, strict=True)]
        self.name = " + ".join(shown) if how == "sum" else f"{how} of {', '.join(shown)}"
        slopes = [abs(w) / scale.std for w, scale in zip(self.weights, self.scales, strict=True)]
        used = [slope * part.negligible for part, slope in zip(self.parts, slopes, strict=True) if slope]
        self.negligible = min(used, default=Reward.negligible)
        self.reach = min(
            (part.reach for part, slope in zip(self.parts, slopes, strict=True) if slope), default=Reward.reach
        )
        self.differentiable = all(part.differentiable for part in self.parts)
        self.warning = "\n".join(dict.fromkeys(part.warning for part in parts if part.warning))
        by_id = {encoder.id: encoder for part in self.parts for encoder in part.encoders}
        self.encoders: tuple[Encoder, ...] = tuple(by_id.values())

    def _check(self) -> None:
        count = len(self.parts)
        if not count:
            raise RewardError("A combination needs at least one reward: connect one.")
        if count != len(self.weights):
            raise RewardError(f"There are {count} rewards but {len(self.weights)} weights; give one weight for each.")
        if self.how not in HOW:
            raise RewardError(f"There is no combination '{self.how}'; choose one of {', '.join(HOW)}.")
        if count != len(self.scales) or count != len(self.spans):
            raise RewardError(f"There are {count} rewards; give one scale and one part of the run for each.")
        if self.how != "sum" and min(self.weights) <= 0:
            raise RewardError(
                f"A {self.how} takes positive weights only: which of a reward and a penalty is the worse can't be "
                "said. Use sum, or turn the reward round where it is made."
            )

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        z = [
            (part.score(images, prompts, embed) - scale.mean) / scale.std
            for part, scale in zip(self.parts, self.scales, strict=True)
        ]
        if self.how == "product":
            z = [F.logsigmoid(value) for value in z]
        weighted = torch.stack([w * value for w, value in zip(self.weights, z, strict=True)])
        return weighted.amin(dim=0) if self.how == "minimum" else weighted.sum(dim=0)

    def at(self, percent: float) -> Reward | None:
        now = [
            part.at(percent) if start <= percent <= end else None
            for part, (start, end) in zip(self.parts, self.spans, strict=True)
        ]
        if all(part is whole for part, whole in zip(now, self.parts, strict=True)):
            return self
        kept = [i for i, part in enumerate(now) if part is not None]
        if not kept:
            return None
        parts = [part for part in now if part is not None]
        weights, scales = [self.weights[i] for i in kept], [self.scales[i] for i in kept]
        return CombinedReward(parts, weights, self.how, scales)

    def networks(self) -> list[nn.Module]:
        return list(dict.fromkeys(network for part in self.parts for network in part.networks()))

    def to(self, device: torch.device | str) -> None:
        for part in self.parts:
            part.to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        raise RewardError("A combination is not saved as one: save its rewards, and combine them again after loading.")
