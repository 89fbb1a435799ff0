"""Finite differences against which the gradients of rewards are held."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def slopes(reward: Callable[[Tensor], Tensor], x: Tensor, step: float, seed: int = 0) -> tuple[float, float]:
    """(<grad r(x), d>, (r(x + h d) - r(x - h d)) / 2h) along a random direction d; summed over the batch."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(leaf).sum(), leaf)
    with torch.no_grad():
        rise = reward(x + step * direction).sum() - reward(x - step * direction).sum()
    return float((gradient * direction).sum()), float(rise) / (2 * step)
