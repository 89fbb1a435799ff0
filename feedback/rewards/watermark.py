"""A penalty on visible watermarks: the log-odds of a small detector, flat where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .auditor import AUDITOR_WEIGHTS, Auditor
from .base import Embed, Encoder, Reward, RewardError

WEIGHTS = Path(__file__).parent / "weights" / "watermark.safetensors"
VIEW = 128  # pixels: pictures whose short side is at least this are looked at through crops of this size
SMALLEST = 64


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.SiLU()
    )


class _Residual(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        before = [_conv(channels, channels) for _ in range(depth - 1)]
        last = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.body = nn.Sequential(*before, last, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


class Detector(nn.Module):
    """Convolutions of 133k parameters; one logit a picture, and one for each cell of 8x8 pixels.

    Pixels are first folded into channels two by two: nothing of a thin stroke is lost, at half the cost of a layer at
    full resolution. The picture's logit reads the features where the cells see a mark most, beside their mean, so that
    a mark in one corner is not averaged away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.PixelUnshuffle(2), _conv(12, 32), _Residual(32, 1), _conv(32, 48, 2), _Residual(48, 2), _conv(48, 64, 2),
            _conv(64, 64),
        )  # fmt: skip
        self.cell = nn.Conv2d(64, 1, 1)
        self.head = nn.Linear(128, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) in 0..1, H and W at least 64 -> logits (B,) and cell logits (B,H/8,W/8)."""
        even = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2]
        features = self.features((even - 0.5) / 0.25)
        cells = self.cell(features)[:, 0]
        attention = cells.flatten(1).softmax(dim=1)
        flat = features.flatten(2)
        seen = torch.einsum("bcn,bn->bc", flat, attention)
        return self.head(torch.cat([seen, flat.mean(dim=2)], dim=1))[:, 0], cells


Network: TypeAlias = Detector | Auditor
N = TypeVar("N", bound=nn.Module)


def load_detector(path: Path = WEIGHTS) -> Detector:
    """The detector with the weights that training/watermark.py made. Raises FileNotFoundError when they are missing."""
    return _loaded(Detector(), path)


def load_auditor(path: Path = AUDITOR_WEIGHTS) -> Auditor:
    """The second detector, for audits. Raises FileNotFoundError when its weights are missing."""
    return _loaded(Auditor(), path)


def _loaded(network: N, path: Path) -> N:
    from safetensors.torch import load_file

    network.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=False)
    return network.eval().requires_grad_(False)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def views(images: Tensor) -> list[Tensor]:
    """What the detector looks at: a small picture itself; of a larger one the whole and the four corners, shrunk.

    A mark in a corner vanishes when a large picture is shrunk as a whole; a corner crop keeps twice the detail.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    if short < SMALLEST:
        scale = SMALLEST / short
        return [_resized(images, round(height * scale), round(width * scale))]
    if short < VIEW:
        return [images]
    scale, half = VIEW / short, short // 2
    whole = _resized(images, round(height * scale), round(width * scale))
    corners = [
        images[..., rows, columns]
        for rows in (slice(None, half), slice(height - half, None))
        for columns in (slice(None, half), slice(width - half, None))
    ]
    return [whole, *(_resized(corner, VIEW, VIEW) for corner in corners)]


def log_odds(detector: Network, images: Tensor) -> Tensor:
    """Log-odds (B,) that a visible watermark is in the picture: the largest over its views."""
    return torch.stack([detector(view)[0] for view in views(images)]).amax(dim=0)


def location(detector: Network, images: Tensor) -> Tensor:
    """Where marks are seen, (B,H,W) in 0..1, one number for each cell of 8 pixels of a view, spread smoothly.

    Of a large picture the corners are read from their own views, where these see more.
    """
    height, width = images.shape[-2:]
    whole, *corners = (_cells(detector, view) for view in views(images))
    found = _resized(whole, height, width)
    half = min(height, width) // 2
    places = [(y, x) for y in (0, height - half) for x in (0, width - half)]
    for seen, (y, x) in zip(corners, places, strict=False):
        part = found[..., y : y + half, x : x + half]
        found[..., y : y + half, x : x + half] = torch.maximum(part, _resized(seen, half, half))
    return found[:, 0].clamp(0, 1)


def _cells(detector: Network, view: Tensor) -> Tensor:
    return detector(view)[1].sigmoid()[:, None]


class WatermarkPenalty(Reward):
    """`-scale * softplus(log_odds + margin)`: linear in the log-odds while a mark is seen, flat once it is gone.

    margin: how far below even odds the detector must be before the pull fades: at 3, where p(watermark) is 5 %.
    """

    kind = "watermark"
    # On a half-trained demo model, full steps also where no mark was seen cost 19 points of attributes, these 4.
    negligible = 0.5
    # bench/guidance.py: no picture of the demo model's keeps its mark, at half of this 1.6 %, with as many attributes.
    reach = 1.5

    def __init__(self, margin: float = 3.0, detector: Network | None = None, made: str = "shipped") -> None:
        """made: where the detector's weights are from: "shipped" and "auditor" come with the pack, "own" do not."""
        self.name = "no watermark" + ("" if made == "shipped" else f" ({made})")
        self.margin, self.made = margin, made
        self.detector: Network = detector or (load_auditor() if made == "auditor" else load_detector())

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        return -F.softplus(log_odds(self.detector, images) + self.margin)

    def probability(self, images: Tensor) -> Tensor:
        """p(watermark), (B,)."""
        return torch.sigmoid(log_odds(self.detector, images.float()))

    def networks(self) -> list[nn.Module]:
        return [self.detector]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        own = self.detector.state_dict() if self.made == "own" else {}
        tensors = {key: value.detach() for key, value in own.items() if value.is_floating_point()}
        return tensors, {"margin": self.margin, "made": self.made}

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any], encoders: Sequence[Encoder]
    ) -> WatermarkPenalty:
        margin, made = settings.get("margin"), settings.get("made", "shipped")
        if not isinstance(margin, int | float) or made not in MADE:
            raise RewardError("The file's watermark penalty has no margin: it is damaged; save the reward again.")
        return cls(float(margin), _own_detector(tensors) if made == "own" else None, made)


MADE = ("shipped", "auditor", "own")


def _own_detector(tensors: dict[str, Tensor]) -> Detector:
    detector = Detector()
    wanted = {key: value.shape for key, value in detector.state_dict().items() if value.is_floating_point()}
    if {key: value.shape for key, value in tensors.items()} != wanted:
        raise RewardError("The file's watermark detector has other weights than it needs: train it again.")
    detector.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)
    return detector.eval().requires_grad_(False)
