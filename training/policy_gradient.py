"""Objectives that follow a reward: PPO on the steps of a sampler, AWM on noised pictures, DRaFT through the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.process import at_least_float32, per_sample
from .objectives import Batch, Objective, View, pull, squared_error


@dataclass(frozen=True)
class StepBatch(Batch):
    """Steps that a stochastic sampler took, `after ~ N(keep * x + drift * D, spread^2)`: see diffusion.stochastic.

    after: like x, where the step led; keep, drift, spread: (B,); log_prob: (B,) of the step when it was taken, the mean
    over dimensions. label: the advantage. x0: the picture that came of it.
    """

    after: Tensor
    keep: Tensor
    drift: Tensor
    spread: Tensor
    log_prob: Tensor


def step_log_prob(denoised: Tensor, batch: StepBatch) -> Tensor:
    """log N(after; keep * x + drift * D, spread^2), the mean over dimensions so that one clip fits every size; (B,)."""
    spread = at_least_float32(batch.spread)
    off = (batch.after - _mean(denoised, batch)) / per_sample(spread, batch.x)
    return -off.square().flatten(1).mean(1) / 2 - spread.log() - math.log(2 * math.pi) / 2


def _mean(denoised: Tensor, batch: StepBatch) -> Tensor:
    denoised, x = at_least_float32(denoised), at_least_float32(batch.x)
    return per_sample(batch.keep, x) * x + per_sample(batch.drift, x) * denoised


def step_kl(a: Tensor, b: Tensor, batch: StepBatch) -> Tensor:
    """KL of two steps that differ in their clean estimates, |mean_a - mean_b|^2 / (2 spread^2), a dimension; (B,)."""
    shift = per_sample(batch.drift / batch.spread, a) * (at_least_float32(a) - at_least_float32(b))
    return shift.square().flatten(1).mean(1) / 2


def clipped(advantage: Tensor, ratio: Tensor, clip: float) -> Tensor:
    """PPO's surrogate max(-A * rho, -A * clip(rho, 1 - clip, 1 + clip)) (Schulman et al. 2017, arXiv:1707.06347)."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


@dataclass(frozen=True)
class Ppo(Objective):
    """Policy gradient on a sampler's own steps: DDPO (Black et al. 2023, arXiv:2305.13301), and its flow form
    Flow-GRPO (Liu et al. 2025, arXiv:2505.05470), on a window of the steps as MixGRPO takes (2507.21802).

    clip: how far the mean log-probability of a step may move before it stops counting. kl: pull to the base model, as
    KL of the steps. limit: advantages count no further than this.
    """

    clip: float = 1e-4
    kl: float = 0.01
    limit: float = 5.0

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref",) if self.kl else ()

    def labels(self, z: Tensor) -> Tensor:
        return z.clamp(-self.limit, self.limit)

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        if not isinstance(batch, StepBatch):
            raise TypeError("PPO needs the steps of a sampler, not noised pictures.")
        ratio = (step_log_prob(denoised["theta"], batch) - batch.log_prob).exp()
        loss = clipped(batch.label, ratio, self.clip)
        return loss + self.kl * step_kl(denoised["theta"], denoised["ref"], batch) if self.kl else loss


@dataclass(frozen=True)
class Awm(Objective):
    """Advantage weighted matching (2509.25050): PPO whose likelihood is that of the forward process.

    The ratio is exp(m_old - m) of the errors m of noised pictures, so pictures of any sampler will do. clip: how far
    it may move; kl_old: pull to the model that made the pictures, without which it runs away; kl: pull to the base.
    """

    clip: float = 0.05
    kl_old: float = 0.5
    kl: float = 3e-3
    limit: float = 5.0

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.kl_old <= 0:
            raise ValueError("AWM runs away without a clip and a pull to the old model: set both above 0.")

    @property
    def views(self) -> tuple[View, ...]:
        return ("old", "ref") if self.kl else ("old",)

    def labels(self, z: Tensor) -> Tensor:
        return z.clamp(-self.limit, self.limit)

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        theta, old = (squared_error(denoised[name], batch.x0, batch.weight) for name in ("theta", "old"))
        near = self.kl_old * squared_error(denoised["theta"], denoised["old"], batch.weight)
        return clipped(batch.label, (old - theta).exp(), self.clip) + near + pull(self.kl, denoised, batch)


Score = Callable[[Tensor, Batch], Tensor]
"""Clean estimates in model space, and the batch they belong to -> a reward each, (B,), differentiable."""


@dataclass(frozen=True)
class Draft(Objective):
    """DRaFT-1 (Clark et al. 2023, arXiv:2309.17400): up the reward's own gradient, through the last step alone.

    The fastest, and the first to find what is wrong with the reward. kl: pull to the base model at that step.
    """

    score: Score
    kl: float = 1e-3

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref",) if self.kl else ()

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        return pull(self.kl, denoised, batch) - self.score(denoised["theta"], batch)
