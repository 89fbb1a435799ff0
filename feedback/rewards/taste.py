"""A taste: a Bayesian linear head on the features of a frozen image encoder. training/taste.py fits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Embed, Encoder, Reward, RewardError, matching_encoder

_EPS = 1e-6  # under the square root, whose slope is infinite at 0
TENSORS = ("centre", "scale", "weight", "root")


class TasteReward(Reward):
    """`mean - caution * std` of the utility's posterior, in standard deviations of the taste over the rated pictures.

    phi = (features - centre) / scale; mean = weight . phi; std^2 = |root^T phi|^2. Shapes: (F,), (F,), (F,), (F, k).
    facts: what the fit says of itself, JSON.
    """

    kind = "taste"
    # bench/guidance.py: costs 7 points of the prompted attributes, half of it 3 for six tenths of the gain.
    reach = 0.5

    def __init__(
        self,
        encoder: Encoder,
        tensors: dict[str, Tensor],
        caution: float = 1.0,
        facts: dict[str, Any] | None = None,
        name: str = "taste",
    ) -> None:
        self.name, self.caution, self.facts = name, caution, facts or {}
        self.encoders = (encoder,)
        self._tensors = {key: tensors[key].float() for key in TENSORS}
        self.warning = str(self.facts.get("warning", ""))

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        mean, std = self.posterior(embed(self.encoders[0]))
        return mean - self.caution * std

    def posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B,F) -> mean and standard deviation of the utility, (B,) each."""
        width = len(self._tensors["weight"])
        if features.shape[-1] != width:
            raise RewardError(f"This taste reads {width} features, but the image encoder gives {features.shape[-1]}.")
        centre, scale, weight, root = (self._tensors[key].to(features.device) for key in TENSORS)
        phi = (features.float() - centre) / scale
        return phi @ weight, ((phi @ root).square().sum(dim=-1) + _EPS).sqrt()

    def to(self, device: torch.device | str) -> None:
        super().to(device)
        self._tensors = {key: value.to(device) for key, value in self._tensors.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        encoder = self.encoders[0].id
        return dict(self._tensors), {
            "encoder": encoder,
            "caution": self.caution,
            "facts": self.facts,
            "name": self.name,
        }

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], encoders: Sequence[Encoder]
    ) -> TasteReward:
        width = tensors["weight"].shape[0] if set(TENSORS) <= set(tensors) else 0
        shapes = {key: tuple(tensors[key].shape[:1]) for key in TENSORS if key in tensors}
        if not width or any(shape != (width,) for shape in shapes.values()) or tensors["root"].ndim != 2:
            raise RewardError("The file's taste has missing or misshapen weights: it is damaged; fit the taste again.")
        encoder = matching_encoder(encoders, str(settings["encoder"]))
        return cls(encoder, tensors, float(settings["caution"]), dict(settings["facts"]), str(settings["name"]))
