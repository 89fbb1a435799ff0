"""A second watermark detector that nothing is optimised against: it audits what the first one was used for.

Guidance towards a detector finds that detector's blind spots too. This one has another architecture, was trained from
another seed on other pictures, and other families of marks were held out of its training (training/audit.py), so that
a run which fools both is far less likely than one that fools the first.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

AUDITOR_WEIGHTS = Path(__file__).parent / "weights" / "watermark_audit.safetensors"


def _layer(channels_in: int, channels_out: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, size, stride, dilation * (size // 2), dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, channels_out), nn.ReLU())


class Auditor(nn.Module):
    """Plain convolutions of 205k parameters, group norms, dilations; logits as `Detector` gives them.

    The picture's logit is a soft maximum of its cells' logits, so every accusation has a place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _layer(3, 32, 5, 2), _layer(32, 32), _layer(32, 64, 3, 2), _layer(64, 64, dilation=2),
            _layer(64, 96, 3, 2), _layer(96, 96, dilation=2),
        )  # fmt: skip
        self.cell = nn.Conv2d(96, 1, 1)
        self.evidence = nn.Conv2d(96, 1, 1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) in 0..1, H and W at least 64 -> logits (B,) and cell logits (B,H/8,W/8)."""
        even = images[..., : images.shape[-2] // 8 * 8, : images.shape[-1] // 8 * 8]
        features = self.features((even - 0.5) / 0.25)
        evidence = self.evidence(features).flatten(1)
        # the logarithm of the mean of exponentials, sharpened: between the mean and the maximum
        logit = (4 * evidence).logsumexp(dim=1).sub(math.log(evidence.shape[1])) / 4
        return logit + self.bias, self.cell(features)[:, 0]
