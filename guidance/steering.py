"""Steering a run by particles: looks at the clean estimates on the way, and lets the promising ones go on.

Needs no gradient. Works around any sampler that draws noise on the way and whose state is x and its last estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..diffusion.process import Process
from .particles import Particles, Steering

Score = Callable[[Tensor], Tensor]
"""Clean latents in model space (M, C, *spatial) -> (M,), one reward each; no gradient is asked for."""

NOISIEST = 4.0
"""Noise-to-signal above which a clean estimate is too blurred to be judged."""


class Steered:
    """One run of N particles for each of B pictures; row `p * B + b` is particle p of picture b.

    every: looks at each `every`-th step below `noisiest`. particles: the weights.
    """

    def __init__(
        self,
        steering: Steering,
        process: Process,
        score: Score,
        count: int,
        pictures: int,
        generator: torch.Generator,
        every: int = 1,
        noisiest: float = NOISIEST,
    ) -> None:
        self.particles = Particles(steering, count, pictures, generator)
        self._process, self._score, self._count, self._pictures = process, score, count, pictures
        self._every, self._noisiest, self._seen = every, noisiest, 0
        self.looks = 0

    def due(self, sigma: Tensor) -> bool:
        """Whether estimates at this level are looked at; counts the steps, so call it once a step."""
        if float(self._process.noise_to_signal(sigma)) >= self._noisiest:
            return False
        self._seen += 1
        return (self._seen - 1) % self._every == 0

    def look(self, sigma: Tensor, x: Tensor, denoised: Tensor, others: Iterable[Tensor] = ()) -> bool:
        """Weighs the estimates and, when weights are too uneven, resamples x, denoised and all others in place.

        All are (N * B, C, *spatial). True if something was moved.
        """
        variance = float(self._process.posterior_variance(sigma))
        self.particles.weigh(self._scores(denoised), variance)
        chosen = self.particles.ancestors()
        if chosen is None:
            return False
        rows = self.rows(chosen).to(x.device)
        for tensor in (x, denoised, *others):
            tensor.copy_(tensor[rows])
        return True

    def finish(self, clean: Tensor) -> None:
        """Weighs the finished pictures."""
        self.particles.finish(self._scores(clean))

    def rows(self, chosen: Tensor) -> Tensor:
        """Indices (K, B) of particles as rows of the batch, (K * B,)."""
        return (chosen * self._pictures + torch.arange(self._pictures)).flatten()

    def of(self, values: Tensor) -> Tensor:
        """One number a row -> (N, B)."""
        return values.reshape(self._count, self._pictures)

    def _scores(self, clean: Tensor) -> Tensor:
        self.looks += 1
        return self.of(self._score(clean).detach().cpu())
