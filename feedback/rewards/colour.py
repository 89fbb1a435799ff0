"""Rewards without a network: how bright, saturated, warm, colourful, contrasty or sharp a picture is, and its hues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Embed, Encoder, Reward, RewardError
from .hues import HUE_PROPERTIES

_EPS = 1e-6  # under square roots, whose slope is infinite at 0


def luma(images: Tensor) -> Tensor:
    """(B,3,H,W) -> (B,H,W): perceived lightness, Rec. 709 weights."""
    weights = images.new_tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1)


def _spread(values: Tensor) -> Tensor:
    """Standard deviation over all but the first dimension, differentiable where it is 0."""
    flat = values.flatten(1)
    return (flat.var(dim=1, correction=0) + _EPS).sqrt()


def brightness(images: Tensor) -> Tensor:
    """Mean luma, 0 black to 1 white."""
    return luma(images).mean(dim=(1, 2))


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of luma: 0 flat, .5 half black and half white."""
    return _spread(luma(images))


def saturation(images: Tensor) -> Tensor:
    """Mean chroma (largest channel less smallest): 0 grey, 1 pure colours. HSV's ratio jumps in the dark."""
    return (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))


def warmth(images: Tensor) -> Tensor:
    """Mean of red less blue: 1 all red or orange, -1 all blue."""
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))


def colourfulness(images: Tensor) -> Tensor:
    """Spread plus .3 of the mean of the opponent colours (Hasler and Suesstrunk 2003), for images in 0..1."""
    red, green, blue = images.unbind(dim=1)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = (_spread(red_green) ** 2 + _spread(yellow_blue) ** 2 + _EPS).sqrt()
    mean = (red_green.mean(dim=(1, 2)) ** 2 + yellow_blue.mean(dim=(1, 2)) ** 2 + _EPS).sqrt()
    return spread + 0.3 * mean


def sharpness(images: Tensor) -> Tensor:
    """Log10 of the root mean square of luma's Laplacian: about -2 blurred, -1 crisp. Log, for it spans decades."""
    kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    edges = F.conv2d(F.pad(luma(images)[:, None], (1, 1, 1, 1), mode="replicate"), kernel)
    return 0.5 * torch.log10(edges.square().mean(dim=(1, 2, 3)) + _EPS)


# property: (measure, what one standard deviation of ordinary pictures is about)
PROPERTIES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "brightness": (brightness, 0.18),
    "saturation": (saturation, 0.15),
    "contrast": (contrast, 0.07),
    "warmth": (warmth, 0.15),
    "colourfulness": (colourfulness, 0.12),
    "sharpness": (sharpness, 0.3),
    **HUE_PROPERTIES,
}


class ColourReward(Reward):
    """More of a property, less of it, or as near to a value as can be; in standard deviations of ordinary pictures.

    direction +1 or -1: `direction * measure / unit`. A target instead: `-|measure - target| / unit`, rounded at the
    bottom so that the gradient fades within a twentieth of a unit.
    """

    kind = "colour"

    def __init__(self, measure: str, direction: int = 1, target: float | None = None) -> None:
        if measure not in PROPERTIES:
            raise RewardError(f"There is no colour property '{measure}'; choose one of {', '.join(PROPERTIES)}.")
        if direction not in (1, -1):
            raise RewardError("The direction is +1 (more of it) or -1 (less of it).")
        self.measure, self.direction, self.target = measure, direction, target
        aim = f"near {target:g}" if target is not None else ("up" if direction > 0 else "down")
        self.name = f"{measure} {aim}"

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        measured, unit = PROPERTIES[self.measure]
        value = measured(images) / unit
        if self.target is None:
            return self.direction * value
        return 0.05 - ((value - self.target / unit) ** 2 + 0.05**2).sqrt()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"measure": self.measure, "direction": self.direction, "target": self.target}

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], encoders: Sequence[Encoder]
    ) -> ColourReward:
        return cls(settings["measure"], settings["direction"], settings["target"])
