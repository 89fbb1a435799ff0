"""The judge: an independent classifier of the drawn world. It says what is truly in a picture.

It shares nothing with what it judges: other scenes, other seed and another architecture than the image encoder that a
taste is learned on, and it never sees a generated picture while it is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from . import models, world

HEADS = {"shape": 4, "colour": 5, "count": 3, "texture": 3, "watermark": 1, "measures": 4}


class Judge(nn.Module):
    """(B, 3, 64, 64) in 0..1 -> logits of shape, colour, count, texture and watermark, and four measures in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        widths = (5, 32, 48, 96, 128)
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(a, b, 3, 2, 1),
                nn.BatchNorm2d(b),
                nn.SiLU(),
                nn.Conv2d(b, b, 3, 1, 1),
                nn.BatchNorm2d(b),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.mix = nn.Sequential(nn.Linear(128 * 18, 256), nn.SiLU())
        self.heads = nn.ModuleDict({k: nn.Linear(256, n) for k, n in HEADS.items()})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        line = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        where = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(images), -1, -1, -1)
        x = self.body(torch.cat([images * 2 - 1, where], 1))
        x = torch.cat([F.adaptive_max_pool2d(x, 1).flatten(1), F.adaptive_avg_pool2d(x, 1).flatten(1), x.flatten(1)], 1)
        x = self.mix(x)
        return {k: head(x) for k, head in self.heads.items()}


@dataclass(frozen=True)
class Truth:
    """What is in each of B pictures, as the judge sees it. radius, x, y in pixels, light 0..1, watermark 0..1."""

    shape: np.ndarray
    colour: np.ndarray
    count: np.ndarray  # 1, 2 or 3
    plain: np.ndarray  # bool
    texture: np.ndarray  # index into world.TEXTURES
    watermark: np.ndarray  # probability
    radius: np.ndarray
    x: np.ndarray
    y: np.ndarray
    light: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    def marked(self) -> np.ndarray:
        return self.watermark > 0.5

    def holds(self, attribute: str, word: str) -> np.ndarray:
        """(B,) bool: is a prompted word true? A measured word holds on its side of the middle of the gap."""
        dx, dy, gap = self.x - world.SIZE / 2, self.y - world.SIZE / 2, (world.OFF_CENTRE + world.CENTRED) / 2
        light_gap = (world.DARK_BELOW + world.BRIGHT_ABOVE) / 2
        return {
            "shape": lambda: self.shape == world.SHAPES.index(word),
            "colour": lambda: self.colour == list(world.COLOURS).index(word),
            "count": lambda: self.count == world.COUNTS.index(word) + 1,
            "size": lambda: (self.radius < world.SIZE_MIDDLE) == (word == "small"),
            "place": lambda: {"left": dx < -gap, "right": dx > gap, "top": dy < -gap, "bottom": dy > gap}.get(
                word, np.maximum(abs(dx), abs(dy)) < gap
            ),
            "light": lambda: (self.light < light_gap) == (word == "dark"),
            "texture": lambda: self.plain == (word == "plain"),
        }[attribute]()


def truth_of_scenes(scenes: list[world.Scene]) -> Truth:
    """The same record, from the scenes themselves: what the judge should say."""
    texture = np.array([world.TEXTURES.index(s.texture) for s in scenes])
    return Truth(
        shape=np.array([world.SHAPES.index(s.shape) for s in scenes]),
        colour=np.array([list(world.COLOURS).index(s.colour) for s in scenes]),
        count=np.array([s.count for s in scenes]),
        plain=texture == 0,
        texture=texture,
        watermark=np.array([float(s.watermark != "none") for s in scenes]),
        radius=np.array([s.radius for s in scenes]),
        x=np.array([s.x for s in scenes]),
        y=np.array([s.y for s in scenes]),
        light=np.array([s.light for s in scenes]),
    )


@torch.no_grad()
def look(judge: Judge, images: torch.Tensor) -> Truth:
    """images (B, 3, 64, 64) in 0..1."""
    parts = [judge(block) for block in images.split(128)]
    out = {k: torch.cat([p[k] for p in parts]) for k in HEADS}
    radius, x, y, light = out["measures"].T.numpy()
    texture = out["texture"].argmax(1).numpy()
    return Truth(
        shape=out["shape"].argmax(1).numpy(),
        colour=out["colour"].argmax(1).numpy(),
        count=out["count"].argmax(1).numpy() + 1,
        plain=texture == 0,
        texture=texture,
        watermark=out["watermark"][:, 0].sigmoid().numpy(),
        radius=radius * 16,
        x=x * world.SIZE,
        y=y * world.SIZE,
        light=light,
    )


def loss(out: dict[str, torch.Tensor], truth: Truth) -> torch.Tensor:
    classes = {"shape": truth.shape, "colour": truth.colour, "count": truth.count - 1, "texture": truth.texture}
    total = sum(F.cross_entropy(out[k], torch.as_tensor(v)) for k, v in classes.items())
    total = total + 2 * F.binary_cross_entropy_with_logits(
        out["watermark"][:, 0], torch.as_tensor(truth.watermark).float()
    )
    measures = np.stack([truth.radius / 16, truth.x / world.SIZE, truth.y / world.SIZE, truth.light], 1)
    return total + 10 * (out["measures"] - torch.as_tensor(measures).float()).abs().mean()


def agreement(judged: Truth, true: Truth) -> dict[str, float]:
    """Share of right answers by class; mean absolute error of the measures."""
    classes = ("shape", "colour", "count", "texture")
    right = {k: (getattr(judged, k) == getattr(true, k)).mean() for k in classes}
    right["watermark"] = (judged.marked() == true.marked()).mean()
    return right | {k: np.abs(getattr(judged, k) - getattr(true, k)).mean() for k in ("radius", "x", "y", "light")}


def soften(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur (a standard deviation of 0 to about 1.8 pixels) and grain of random strength.

    An autoencoder's pictures are softer than drawn ones: a judge of sharp pictures alone takes a square with soft
    corners for a circle.
    """
    for _ in range(5):
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        images = images.lerp(blurred, torch.rand(len(images), 1, 1, 1, generator=generator))
    grain = torch.rand(len(images), 1, 1, 1, generator=generator) * 0.05
    return (images + grain * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def load(path: Path = models.WEIGHTS / "judge.safetensors") -> Judge:
    judge = Judge()
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return judge.eval()


def features(judge: Judge, images: torch.Tensor) -> np.ndarray:
    """(B, F) features of the judge's body, unit length: what diversity is measured on."""
    line = torch.linspace(-1, 1, images.shape[-1])
    where = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(images), -1, -1, -1)
    with torch.no_grad():
        x = judge.body(torch.cat([images * 2 - 1, where], 1)).flatten(1)
    return F.normalize(x, dim=1).numpy()
