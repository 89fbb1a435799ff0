"""Image networks as encoders: pictures in 0..1 are scaled and normalised with a gradient, then looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import RewardError

# PIL's numbers, which Hugging Face's preprocessors use; lanczos has no gradient in torch, and bicubic is next to it
_FILTERS = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
_LARGEST = 4096  # pixels of a side


@dataclass(frozen=True)
class Preprocess:
    """(B,3,H,W) in 0..1 -> (B,3,height,width), normalised. Pictures are scaled as a whole, never cropped: what was cut
    off could neither be judged nor guided."""

    height: int
    width: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    mode: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.height, self.width):
            smooth = {} if self.mode == "nearest" else {"antialias": True, "align_corners": False}
            images = F.interpolate(images, size=(self.height, self.width), mode=self.mode, **smooth)
            images = images + (images.clamp(0, 1) - images).detach()  # bicubic overshoots
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


def preprocess_of(settings: dict[str, Any], size: int | None, where: str) -> Preprocess:
    """From a preprocessor_config.json; size: the side that the network's own configuration names, if it does.

    Raises RewardError for what is no RGB preprocessing of that kind.
    """
    height, width = _size_of(settings, size, where)
    values = [settings.get(key, default) for key, default in (("image_mean", [0.5] * 3), ("image_std", [0.5] * 3))]
    if settings.get("do_normalize") is False:
        values = [[0.0] * 3, [1.0] * 3]
    mean, std = (_three_numbers(value, where) for value in values)
    if min(std) <= 0:
        raise RewardError(f"The preprocessor_config.json of '{where}' divides by nothing; take that of its source.")
    return Preprocess(height, width, mean, std, _FILTERS.get(settings.get("resample", 2), "bicubic"))


def _size_of(settings: dict[str, Any], size: int | None, where: str) -> tuple[int, int]:
    """What goes into the network: the crop where there is one, else the resized picture, else what the network says."""
    cropped = settings.get("crop_size") if settings.get("do_center_crop", "crop_size" in settings) else None
    for named in (cropped, settings.get("size"), size):
        sides = _sides(named)
        if sides and all(1 < side <= _LARGEST for side in sides):
            return sides
    raise RewardError(
        f"Neither config.json nor preprocessor_config.json of '{where}' says how large a picture it takes. Copy both "
        "from the model's source."
    )


def _sides(named: Any) -> tuple[int, int] | None:
    if isinstance(named, dict):
        if "shortest_edge" in named:
            named = named["shortest_edge"]
        else:
            named = [named.get("height"), named.get("width")]
    if isinstance(named, int) and not isinstance(named, bool):
        named = [named, named]
    if isinstance(named, list) and len(named) == 2 and all(type(side) is int for side in named):
        return named[0], named[1]
    return None


def _three_numbers(value: Any, where: str) -> tuple[float, ...]:
    good = isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value)
    if not good or not all(math.isfinite(v) for v in value):
        raise RewardError(f"The preprocessor_config.json of '{where}' has no three numbers for mean and deviation.")
    return tuple(float(v) for v in value)


Read = Callable[[nn.Module, Tensor], Tensor]
"""A network and preprocessed pictures -> features (B,F)."""


class NetworkEncoder:
    """A frozen network as an Encoder. nodes/encoder.py puts it under ComfyUI's memory management."""

    def __init__(self, id: str, network: nn.Module, preprocess: Preprocess, read: Read) -> None:
        self.id, self.network, self.preprocess, self._read = id, network, preprocess, read

    def __call__(self, images: Tensor) -> Tensor:
        return self.features(self.network, images)

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """What `network`, this one or a copy of it, makes of pictures in 0..1."""
        return self._read(network, self.preprocess(images))

    def networks(self) -> list[nn.Module]:
        return [self.network]


def whole_and_nearer(images: Tensor) -> Sequence[Tensor]:
    """A picture, and its middle nine tenths: a score that only one framing gives is not believed."""
    height, width = images.shape[-2:]
    y, x = height // 20, width // 20
    return (images, images[..., y : height - y, x : width - x]) if min(y, x) > 0 else (images,)


def unit(features: Tensor) -> Tensor:
    """(B,F) of length one each."""
    return F.normalize(features.float(), dim=-1)


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False).to(torch.float32)
