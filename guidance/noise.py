"""Optimising the starting noise of a few-step model: it is moved up the reward, and stays noise that a model knows.

ReNO: Eyring et al. 2024 (arXiv:2406.04312); DNO: Tang et al. 2024 (arXiv:2405.18881).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..diffusion.process import at_least_float32
from .search import Best

Likely = Literal["norm", "white"]

RENO_DIMENSIONS = 4 * 64 * 64
"""The size of the noise that ReNO's clip of .1 was chosen at; longer noise takes longer steps in proportion."""

BANDS = 8
SPREAD = 2.0
"""How many standard deviations of white noise a statistic of the noise may be off before it is pulled back."""

log = logging.getLogger(__name__)


class Look(NamedTuple):
    """What a starting noise leads to: rewards (B,), what the picture is kept by (B,), clean latents, and the slope of
    the rewards in the noise; None where none was asked for."""

    scores: Tensor
    kept_by: Tensor
    latents: Tensor
    slope: Tensor | None


Looking = Callable[[Tensor, bool], Look]
"""(noise (B, C, *spatial), whether a slope is wanted) -> Look; no picture sees another."""


@dataclass(frozen=True)
class NoiseSteps:
    """SGD with Nesterov's momentum. learning_rate, clip, momentum, weight: as ReNO's, where weight is that of the
    likelihood of the noise's length.

    likely: what keeps the noise likely. norm: its length alone, by that likelihood. white: after every step the noise
    is moved back to where its variance, its mean and the power in bands of its spectrum are those of white noise, which
    also ends patterns of likely length.
    """

    iterations: int = 50
    learning_rate: float = 5.0
    clip: float = 0.1
    momentum: float = 0.9
    weight: float = 0.01
    likely: Likely = "norm"


def optimised(
    noise: Tensor, look: Looking, steps: NoiseSteps, on_step: Callable[[int, Look], None] = lambda i, seen: None
) -> Best:
    """The best noise that was seen on the way from the given one, which is seen first. noise: (B, C, *spatial)."""
    z, velocity = noise, torch.zeros_like(noise)
    best: Best | None = None
    for i in range(steps.iterations + 1):
        seen = look(z, i < steps.iterations)
        best = _better(best, z, seen)
        on_step(i, seen)
        if seen.slope is None:
            break
        slope = _clipped(_finite(seen.slope) + steps.weight * length_slope(z), steps.clip)
        velocity = steps.momentum * velocity + slope
        z = z + steps.learning_rate * (slope + steps.momentum * velocity).to(z.dtype)
        if steps.likely == "white":
            z = whitened(z)
    assert best is not None  # tells types, guards nothing # nosec B101
    return best


def _better(best: Best | None, noise: Tensor, seen: Look) -> Best:
    if best is None:
        return Best(noise, seen.latents, seen.kept_by)
    return best.improved(noise, seen.latents, seen.kept_by)


def length_slope(noise: Tensor) -> Tensor:
    """Gradient of log p(|z|) = (d - 1) log |z| - |z|^2 / 2: zero at |z|^2 = d - 1, outwards below it, inwards above."""
    z = at_least_float32(noise)
    squares = z.square().flatten(1).sum(1).clamp(min=torch.finfo(z.dtype).tiny)
    pull = (z[0].numel() - 1) / squares - 1
    return pull.reshape(-1, *(1,) * (z.ndim - 1)) * z


def whitened(noise: Tensor) -> Tensor:
    """The noise (B, C, *spatial) with each channel's spectrum put back into what white noise has.

    The power in each of BANDS rings of frequencies, over n independent coefficients, is 1 +- 1/sqrt(n) in white noise;
    what is more than SPREAD of these off is scaled to there. So are the mean and the variance of the whole. White noise
    passes almost unchanged.
    """
    z = at_least_float32(noise)
    spectrum = torch.fft.fft2(z, norm="ortho")
    rings = _rings(z.shape[-2:], z.device)
    power = spectrum.abs() ** 2
    scale = torch.ones_like(power)
    for ring in range(BANDS + 1):
        inside = rings == ring
        if inside.any():
            found = power[..., inside].mean(dim=-1, keepdim=True)
            # a real picture's coefficients come in pairs of the same power
            scale[..., inside] = _back(found, int(inside.sum()) / 2).expand_as(scale[..., inside])
    flat = torch.fft.ifft2(spectrum * scale, norm="ortho").real
    variance = flat.square().flatten(1).mean(1).reshape(-1, *(1,) * (z.ndim - 1))
    return (flat * _back(variance, flat[0].numel() / 2)).to(noise.dtype)


def _back(power: Tensor, independent: float) -> Tensor:
    """The factor that brings a mean power of so many independent coefficients to within SPREAD deviations of 1."""
    slack = SPREAD / math.sqrt(independent)
    return (power.clamp(max(1 - slack, 0.0), 1 + slack) / power.clamp(min=torch.finfo(power.dtype).tiny)).sqrt()


def _rings(size: tuple[int, ...], device: torch.device) -> Tensor:
    """The ring of each coefficient of a picture of this size: 0 for its mean alone, then outwards."""
    height, width = (torch.fft.fftfreq(n, device=device).abs() * 2 for n in size)
    radius = torch.maximum(height.unsqueeze(1), width.unsqueeze(0))
    return (radius * BANDS).ceil().clamp(max=BANDS).long()


def zero_order(
    scores: Callable[[Tensor], Tensor], noise: Tensor, pairs: int, radius: float, generator: torch.Generator
) -> Tensor:
    """An estimate of the scores' slope in the noise, from `2 * pairs` looks and no gradient: for random directions e,
    the mean of `(r(cos t z + sin t e) - r(cos t z - sin t e)) / (2 sin t) * e`, sin t = radius.

    Exact on average for a linear score. Both ends are as white as z.
    """
    cosine = math.sqrt(1 - radius**2)
    slope = torch.zeros_like(at_least_float32(noise))
    for _ in range(pairs):
        direction = torch.randn(noise.shape, generator=generator).to(noise)
        up = scores(cosine * noise + radius * direction)
        down = scores(cosine * noise - radius * direction)
        rise = ((up - down) / (2 * radius)).to(slope).reshape(-1, *(1,) * (noise.ndim - 1))
        slope += rise * direction / pairs
    return slope


def _clipped(slope: Tensor, clip: float) -> Tensor:
    """Each sample shortened to at most `clip` times what its size has over ReNO's."""
    longest = clip * math.sqrt(slope[0].numel() / RENO_DIMENSIONS)
    length = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
    return slope * (longest / length).clamp(max=1).reshape(-1, *(1,) * (slope.ndim - 1))


def _finite(slope: Tensor) -> Tensor:
    fine = slope.flatten(1).isfinite().all(dim=1)
    if not fine.all():
        log.warning("The noise of a picture whose gradient was not finite is not moved by its reward.")
    return torch.where(fine.reshape(-1, *(1,) * (slope.ndim - 1)), slope, 0)
