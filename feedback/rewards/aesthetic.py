"""Aesthetic heads: linear layers over CLIP's image embedding, such as LAION's improved aesthetic predictor.

Its published layers have nothing between them but dropout, so the whole head is one direction in CLIP's space: it is
folded into that when it is loaded. One direction is easily overdone; see the help page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Embed, Encoder, Reward, RewardError, matching_encoder
from .folders import shapes_in
from .networks import unit

LAYER = re.compile(r"(?:model\.)?(?:(?P<index>layers\.\d+|linear)\.)?(?P<part>weight|bias)")
LARGEST_HEAD = 256 * 2**20
MOST_LAYERS = 16


class AestheticReward(Reward):
    """`weight . e / |e| + bias`, e the image encoder's first F features; in the head's own points, mostly 1 to 10."""

    kind = "aesthetic"
    negligible = 0.02
    warning = (
        "An aesthetic head is one direction in CLIP's space: past a point a higher score is no better picture. Keep "
        "the strength low, and watch a second reward."
    )

    def __init__(self, encoder: Encoder, weight: Tensor, bias: float, name: str) -> None:
        self.encoders, self.name, self.bias = (encoder,), name, bias
        self._weight = weight.float()

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        features, width = embed(self.encoders[0]), len(self._weight)
        if features.shape[1] < width:
            raise RewardError(
                f"This head reads {width} numbers, but the image encoder gives {features.shape[1]}. Connect the "
                "CLIP_VISION that it was made for: CLIP ViT-L/14 for LAION's."
            )
        return unit(features[:, :width]) @ self._weight.to(features.device) + self.bias

    def to(self, device: torch.device | str) -> None:
        super().to(device)
        self._weight = self._weight.to(device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"weight": self._weight}, {"encoder": self.encoders[0].id, "bias": self.bias, "name": self.name}

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], encoders: Sequence[Encoder]
    ) -> AestheticReward:
        weight = tensors.get("weight")
        if weight is None or weight.ndim != 1:
            raise RewardError("The file's aesthetic head has no weights: it is damaged; make it again.")
        encoder = matching_encoder(encoders, str(settings["encoder"]))
        return cls(encoder, weight, float(settings["bias"]), str(settings["name"]))


def load_head(path: Path) -> tuple[Tensor, float]:
    """(F,) and a bias: all linear layers of the file in one.

    Reads `layers.0.weight, layers.0.bias, layers.2.weight, ...` and `linear.weight, linear.bias`, also behind `model.`,
    and `weight, bias`. Raises RewardError for another layout.
    """
    from safetensors.torch import load_file

    if path.stat().st_size > LARGEST_HEAD:
        raise RewardError(f"{path.name} is larger than an aesthetic head: it holds something else.")
    shapes = shapes_in(path)
    order = _layers(shapes, path.name)
    tensors = {name: value.double() for name, value in load_file(path).items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise RewardError(f"{path.name} has weights that are no numbers: it is damaged; copy it again.")
    first = tensors[order[0][0]]
    weight = torch.eye(first.shape[1], dtype=torch.float64)
    bias = torch.zeros(first.shape[1], dtype=torch.float64)
    for weight_name, bias_name in order:
        weight = tensors[weight_name] @ weight
        bias = tensors[weight_name] @ bias + (tensors[bias_name] if bias_name in tensors else 0)
    return weight[0].float(), float(bias)


def _layers(shapes: dict[str, tuple[int, ...]], where: str) -> list[tuple[str, str]]:
    """(weight, bias) names in the order in which they follow one another."""
    found = {name: match for name in shapes if (match := LAYER.fullmatch(name))}
    weights = [name for name, match in found.items() if match["part"] == "weight"]
    weights.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    chained = all(
        len(shapes[name]) == 2 and (after is None or shapes[after][1:] == shapes[name][:1])
        for name, after in zip(weights, [*weights[1:], None], strict=False)
    )
    biases = {name: name.removesuffix("weight") + "bias" for name in weights}
    fitting = all(shapes.get(biases[name], shapes[name][:1]) == shapes[name][:1] for name in weights)
    if len(found) < len(shapes) or not 0 < len(weights) <= MOST_LAYERS or not chained or not fitting:
        raise RewardError(
            f"{where} is no aesthetic head that this pack knows: linear layers one behind the other, named "
            "layers.0.weight, layers.0.bias and so on. Choose another file."
        )
    if shapes[weights[-1]][0] != 1:
        raise RewardError(
            f"{where} ends in {shapes[weights[-1]][0]} numbers instead of one score: choose another file."
        )
    return [(name, biases[name]) for name in weights]
