"""Finite differences against which the gradients of rewards are held."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def slopes(reward: Callable[[Tensor], Tensor], x: Tensor, step: float, seed: int = 0) -> tuple[float, float]:
    """(<grad r(x), d>, (r(x + h d) - r(x - h d)) / 2h), summed over the batch.

    d: half random, half along the gradient, so that the slope is well above the rounding of single precision.
    """
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(leaf).sum(), leaf)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    direction = direction + gradient * (direction.norm() / gradient.norm())
    with torch.no_grad():
        rise = reward(x + step * direction).sum() - reward(x - step * direction).sum()
    return float((gradient * direction).sum()), float(rise) / (2 * step)
