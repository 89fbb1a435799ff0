"""Which colours a picture has: amounts of a hue, and nearness to a palette, in Ottosson's Oklab (2020)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Embed, Encoder, Reward, RewardError

# name: (hue in degrees of Oklab, half its width)
HUES = {
    "red": (29.0, 17.0),
    "orange": (58.0, 17.0),
    "yellow": (105.0, 22.0),
    "green": (145.0, 25.0),
    "cyan": (200.0, 28.0),
    "blue": (260.0, 30.0),
    "purple": (315.0, 26.0),
    "pink": (357.0, 18.0),
}
PURE = 0.3  # chroma of about the purest colours of sRGB
_SOFT = 0.04  # chroma over which a hue begins to count, so that a grey pixel has a slope too
_EPS = 1e-6
_DARKEST = 1e-4  # under the cube root, whose slope is infinite at 0
HEX = re.compile(r"#?([0-9a-fA-F]{6}|[0-9a-fA-F]{3})")
MOST_COLOURS = 16
_LOOKED_AT = 64  # pixels a side: a palette is no matter of detail
_NEAREST = 0.03  # distance over which two colours of a palette share a pixel
_SHARE = 0.05  # of the picture that each colour of a palette should have
PALETTE_UNIT = 0.05
"""About what the distances of ordinary pictures to a palette differ by."""


def oklab(images: Tensor) -> Tensor:
    """(B,3,H,W) sRGB in 0..1 -> (B,3,H,W): lightness 0..1, and the two opponent axes, about -.3..3."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    to_lms = images.new_tensor(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    to_lab = images.new_tensor(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    lms = torch.einsum("ij,bjhw->bihw", to_lms, linear).clamp(min=0)
    return torch.einsum("ij,bjhw->bihw", to_lab, (lms + _DARKEST) ** (1 / 3))


def hue_amount(images: Tensor, hue: str) -> Tensor:
    """(B,): mean over the pixels of how much chroma lies within the hue's sector; 0 grey, about 1 all pure.

    A pixel counts by how far it is inside the sector: its chroma along the hue less its distance from the hue's axis,
    so a colour between two hues counts little for both. Opposite hues give a little less than 0.
    """
    angle, width = (math.radians(degrees) for degrees in HUES[hue])
    _, a, b = oklab(images).unbind(dim=1)
    along = a * math.cos(angle) + b * math.sin(angle)
    beside = ((b * math.cos(angle) - a * math.sin(angle)) ** 2 + _EPS).sqrt()
    inside = F.softplus((along - beside / math.tan(width)) / _SOFT) - math.log(2)
    return (inside * _SOFT / PURE).mean(dim=(1, 2))


# property of the colour reward: (measure, what one standard deviation of ordinary pictures is about)
HUE_PROPERTIES = {f"amount of {hue}": (partial(hue_amount, hue=hue), 0.04) for hue in HUES}


def parse_colours(text: str) -> list[tuple[float, float, float]]:
    """ "#1f6f8b, f2c" -> RGB in 0..1. Raises RewardError for what is no colour, for none and for too many."""
    words = re.split(r"[,;\s]+", text.strip())
    matches = [HEX.fullmatch(word) for word in words]
    if not text.strip() or not all(matches) or len(words) > MOST_COLOURS:
        raise RewardError(
            f"palette is '{text[:60]}'; write 1 to {MOST_COLOURS} colours as web pages do, separated by commas, such "
            "as #1f6f8b, #f2c14e."
        )
    return [_rgb(match[1]) for match in matches if match]


def _rgb(digits: str) -> tuple[float, float, float]:
    whole = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    red, green, blue = (int(whole[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


class PaletteReward(Reward):
    """`-direction * distance / .05`: how near the picture's colours are to a palette, in Oklab.

    distance: the mean over the pixels to their nearest colour; with several colours the mean of that and, over the
    colours, of the distance to the twentieth of the picture that is nearest to each, so that none is left out.
    """

    kind = "palette"

    def __init__(self, colours: Sequence[Sequence[float]], direction: int = 1) -> None:
        if not 1 <= len(colours) <= MOST_COLOURS or any(len(colour) != 3 for colour in colours):
            raise RewardError(f"A palette has 1 to {MOST_COLOURS} colours of three numbers each.")
        if direction not in (1, -1):
            raise RewardError("The direction is +1 (towards the palette) or -1 (away from it).")
        self.colours, self.direction = [[float(part) for part in colour] for colour in colours], direction
        shown = ", ".join("#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in self.colours)
        self.name = f"{'near' if direction > 0 else 'far from'} {shown}"

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        return -self.direction * self.distance(images) / PALETTE_UNIT

    def distance(self, images: Tensor) -> Tensor:
        """(B,) in Oklab units: 0 where every pixel has a colour of the palette."""
        height, width = (min(_LOOKED_AT, side) for side in images.shape[-2:])
        pixels = oklab(F.adaptive_avg_pool2d(images, (height, width))).flatten(2)
        palette = oklab(images.new_tensor(self.colours)[:, :, None, None])[..., 0]
        apart = ((pixels[:, None] - palette[None]).square().sum(dim=2) + _EPS).sqrt()
        weights = (-apart / _NEAREST).softmax(dim=1)
        fit = (weights * apart).sum(dim=1).mean(dim=1)
        if len(palette) == 1:
            return fit
        some = max(1, round(_SHARE * apart.shape[-1]))
        return (fit + apart.topk(some, dim=-1, largest=False).values.mean(dim=(1, 2))) / 2

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"colours": self.colours, "direction": self.direction}

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], encoders: Sequence[Encoder]
    ) -> PaletteReward:
        return cls([tuple(map(float, colour)) for colour in settings["colours"]], int(settings["direction"]))
