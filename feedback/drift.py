"""How far pictures have moved in what needs no judge: brightness, saturation, contrast, sharpness, power spectrum.

A model that is trained on a reward often buys it with one of these; a reward that only wants bright pictures is seen
here at once. Numbers are of single pictures; the drift of B against A is in standard deviations of A's pictures.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .evaluation import Interval, paired_difference

LUMA = (0.2126, 0.7152, 0.0722)
"""Rec. 709: how bright red, green and blue are seen."""

FLAT = 1e-9
"""A spread or a power that counts as none."""


def statistics(images: Tensor) -> dict[str, Tensor]:
    """(N, 3, H, W) in 0..1 -> each (N,): brightness (mean luma), saturation (mean of the largest less the smallest
    colour), contrast (standard deviation of luma), sharpness (that of its Laplacian), spectrum (`spectral_slope`)."""
    images = images.detach().float().cpu()
    luma = torch.einsum("nchw,c->nhw", images, torch.tensor(LUMA))
    edges = F.conv2d(luma[:, None], torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None])
    return {
        "brightness": luma.mean(dim=(1, 2)),
        "saturation": (images.amax(1) - images.amin(1)).mean(dim=(1, 2)),
        "contrast": luma.std(dim=(1, 2), correction=0),
        "sharpness": edges.std(dim=(1, 2, 3), correction=0),
        "spectrum": spectral_slope(luma),
    }


def spectral_slope(luma: Tensor) -> Tensor:
    """(N, H, W) -> (N,): slope of log power over log frequency, rings of one cycle a picture each, 0 where it is flat.

    About -2 for photographs, higher for noise and texture, lower for blur.
    """
    high, wide = luma.shape[1:]
    power = torch.fft.fft2(luma.double()).abs().square().flatten(1) / (high * wide)
    fy, fx = torch.fft.fftfreq(high, dtype=torch.float64), torch.fft.fftfreq(wide, dtype=torch.float64)
    ring = (torch.hypot(fy[:, None], fx[None]) * min(high, wide)).round().long().flatten()
    rings = min(high, wide) // 2
    kept = (ring >= 1) & (ring <= rings)
    count = torch.bincount(ring[kept], minlength=rings + 1)[1:]
    total = torch.zeros(len(luma), rings + 1, dtype=torch.float64).index_add_(1, ring[kept], power[:, kept])[:, 1:]
    level = (total / count + FLAT).log()
    place = torch.arange(1, rings + 1, dtype=torch.float64).log()
    place = place - place.mean()
    return ((level * place).sum(1) / place.square().sum().clamp_min(FLAT)).float()


def drift(a: Tensor, b: Tensor, clusters: Sequence[Hashable] | None = None) -> dict[str, Interval]:
    """Mean of B less A over pairs, in standard deviations of A; (N, 3, H, W) each, of the same prompts and seeds.

    Nan where A's pictures do not differ in it.
    """
    first, second = statistics(a), statistics(b)
    found = {}
    for name, values in first.items():
        change = paired_difference(values, second[name], clusters)
        spread = float(values.double().std()) if len(values) > 1 else math.nan
        known = math.isfinite(spread) and spread > FLAT
        found[name] = Interval(*(part / spread for part in change)) if known else Interval(*(math.nan,) * 3)
    return found
