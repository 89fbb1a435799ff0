"""Weighted particles: how much each candidate of a picture counts, and which ones go on.

Sequential Monte Carlo for the law `p(x0) * exp(lambda * r(x0)) / Z`: Singhal et al. 2025 (Feynman-Kac steering,
arXiv:2501.06848); twisted proposals: Wu et al. 2023 (arXiv:2306.17775); SVDD: Li et al. 2024 (arXiv:2408.08252).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Potential = Literal["difference", "max", "sum"]
Method = Literal["feynman-kac", "svdd"]
POTENTIALS: tuple[Potential, ...] = ("difference", "max", "sum")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steering:
    """How particles are weighed.

    inverse_temperature: lambda of the target `p * exp(lambda * r)`; 0 weighs all alike.
    potential: difference weighs a particle by how much its reward rose since the last look, max by the best it has
        had, sum by all it has had. All three end at the same law; difference does with the least resampling, max and
        sum favour early starters.
    curvature: kappa in `lambda_sigma = lambda / (1 + lambda * kappa * V)`, how curved the reward is in units of clean
        latents; 1 for a standardised reward. An early estimate is not the picture yet: weighed in full, it would leave
        a bias that more particles do not cure. 0 weighs in full.
    method: svdd replaces all particles of a picture, at every look, by copies of one that is drawn by a softmax of
        lambda * r. Greedier, and without an evidence estimate.
    threshold: particles are resampled when their effective number falls below this share.
    """

    inverse_temperature: float
    potential: Potential = "difference"
    curvature: float = 1.0
    method: Method = "feynman-kac"
    threshold: float = 0.5

    def temperature_at(self, variance: float) -> float:
        """lambda_sigma, for V, the variance of x0 given x."""
        return self.inverse_temperature / (1 + self.inverse_temperature * self.curvature * variance)


class Particles:
    """The weights of N particles for each of B pictures, all (N, B) float64 on the CPU.

    Attributes: log_weights since the last resampling; scores, the latest rewards; lineage, the start that each particle
    descends from; sizes, the effective numbers (B,) at each look; resampled, how often (B,).
    """

    def __init__(self, steering: Steering, count: int, pictures: int, generator: torch.Generator) -> None:
        self.steering, self._generator = steering, generator
        zeros = torch.zeros(count, pictures, dtype=torch.float64)
        self.log_weights, self.scores = zeros.clone(), zeros.clone()
        self._log_potential, self._sum, self._best = zeros.clone(), zeros.clone(), zeros - math.inf
        self._log_evidence = torch.zeros(pictures, dtype=torch.float64)
        self.lineage = torch.arange(count).unsqueeze(1).repeat(1, pictures)
        self.sizes: list[Tensor] = []
        self.resampled = torch.zeros(pictures, dtype=torch.long)

    def correct(self, log_ratio: Tensor) -> None:
        """Takes back, by weight, what the proposal did: log p - log q of the step that was drawn, (N, B)."""
        self.log_weights += log_ratio.to(self.log_weights)

    def weigh(self, scores: Tensor, variance: float) -> None:
        """Weighs by rewards (N, B) of clean estimates whose variance of x0 given x is `variance`."""
        self.scores = _finite(scores.to(self.log_weights))
        temperature = self.steering.temperature_at(variance)
        self._add(self._potential(temperature))
        self.sizes.append(effective_size(self.log_weights))

    def finish(self, scores: Tensor) -> None:
        """Weighs by the rewards (N, B) of the pictures themselves, so that all potentials multiply to exp(lambda r)."""
        self.scores = _finite(scores.to(self.log_weights))
        self._add(self.steering.inverse_temperature * self.scores - self._log_potential)
        self.sizes.append(effective_size(self.log_weights))

    def ancestors(self) -> Tensor | None:
        """(N, B): which particle each one goes on from; None when all go on as they are. Weights are even after it."""
        count = len(self.log_weights)
        if self.steering.method == "svdd":
            due = torch.ones(self.log_weights.shape[1], dtype=torch.bool)
            chosen = categorical(self.log_weights, self._generator).expand_as(self.lineage)
        else:
            due = effective_size(self.log_weights) < self.steering.threshold * count
            if not due.any():
                return None
            chosen = systematic(self.log_weights, self._generator)
        chosen = torch.where(due, chosen, torch.arange(count).unsqueeze(1))
        self._log_evidence += torch.where(due, _log_mean(self.log_weights), 0)
        self.log_weights = torch.where(due, 0, self.log_weights)
        self._follow(chosen)
        self.resampled += due
        return chosen

    def log_evidence(self) -> Tensor:
        """log of the estimate of E_p[exp(lambda r)], (B,); the estimate itself is unbiased, for Feynman-Kac."""
        return self._log_evidence + _log_mean(self.log_weights)

    def ranking(self) -> Tensor:
        """(N, B): the particles of each picture, the highest reward first; those of one reward in their order."""
        return self.scores.argsort(dim=0, descending=True, stable=True)

    def draw(self) -> Tensor:
        """(1, B): one particle of each picture, drawn by weight."""
        return categorical(self.log_weights, self._generator)

    def _potential(self, temperature: float) -> Tensor:
        """log G of this look."""
        if self.steering.method == "svdd":
            return temperature * self.scores
        self._best, self._sum = torch.maximum(self._best, self.scores), self._sum + self.scores
        if self.steering.potential == "difference":
            return temperature * self.scores - self._log_potential
        return temperature * (self._best if self.steering.potential == "max" else self._sum)

    def _add(self, log_potential: Tensor) -> None:
        self.log_weights = self.log_weights + log_potential
        if self.steering.method == "feynman-kac":
            self._log_potential = self._log_potential + log_potential

    def _follow(self, chosen: Tensor) -> None:
        self.lineage, self.scores = self.lineage.gather(0, chosen), self.scores.gather(0, chosen)
        self._log_potential = self._log_potential.gather(0, chosen)
        self._best, self._sum = self._best.gather(0, chosen), self._sum.gather(0, chosen)


def effective_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each picture, (N, B) -> (B,): N for even weights, 1 where one has it all."""
    weights = log_weights.softmax(dim=0)
    return 1 / weights.square().sum(dim=0)


def systematic(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """(N, B) indices, each i about N w_i times: one draw u a picture, and the comb (u + k) / N over the summed weights.

    A particle that is chosen keeps its own place, so that as few as possible are copied.
    """
    count, pictures = log_weights.shape
    start = torch.rand(1, pictures, dtype=torch.float64, generator=generator)
    comb = (start + torch.arange(count).unsqueeze(1)) / count
    summed = log_weights.softmax(dim=0).cumsum(dim=0).clamp(max=1)
    summed[-1] = 1
    chosen = torch.searchsorted(summed.T.contiguous(), comb.T.contiguous(), right=True).T.clamp(max=count - 1)
    return torch.stack([_in_place(column) for column in chosen.T], dim=1)


def _in_place(chosen: Tensor) -> Tensor:
    count = len(chosen)
    times = torch.bincount(chosen, minlength=count)
    order = torch.arange(count)
    spare = torch.repeat_interleave(order, (times - 1).clamp(min=0))
    order[times == 0] = spare
    return order


def categorical(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """(1, B): one index a picture, drawn by weight."""
    weights = log_weights.softmax(dim=0).T
    return torch.multinomial(weights, 1, generator=generator).T


def spread(latents: Tensor, count: int) -> Tensor:
    """Mean distance between two particles of a picture, root mean square over its dimensions; (N * B, ...) -> (B,)."""
    rows = latents.reshape(count, len(latents) // count, -1).transpose(0, 1).double()
    distances = torch.cdist(rows, rows) / rows.shape[-1] ** 0.5
    return distances.sum(dim=(1, 2)) / max(count * (count - 1), 1)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(dim=0) - math.log(len(log_weights))


def _finite(scores: Tensor) -> Tensor:
    """A particle without a number for a reward counts as the worst of its picture."""
    known = scores.isfinite()
    if known.all():
        return scores
    log.warning("A reward gave no number for %d estimates; they count as the worst of their picture.", (~known).sum())
    worst = torch.where(known, scores, math.inf).amin(dim=0)
    return torch.where(known, scores, torch.where(worst.isfinite(), worst, 0))
