"""The ancestral step: some noise is taken out, less is put back, and the step has a density.

`x' = keep * x + pull * D + noise * n` with n ~ N(0, 1). Steering weighs particles by these densities, and policy
gradients differentiate them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from .process import Process, at_least_float32


class AncestralStep(NamedTuple):
    """One step between two noise levels: `x' ~ N(keep * x + pull * D, noise^2)` for the clean estimate D."""

    keep: float
    pull: float
    noise: float

    def mean(self, x: Tensor, denoised: Tensor) -> Tensor:
        """Both (B, C, *spatial); the dtype is that of x."""
        return self.keep * x + self.pull * denoised

    def take(self, x: Tensor, denoised: Tensor, n: Tensor) -> Tensor:
        """x at the next level, for noise n of variance 1."""
        return self.mean(x, denoised) + self.noise * n

    def log_probability(self, x: Tensor, denoised: Tensor, after: Tensor) -> Tensor:
        """log N(after; mean, noise^2) summed over all dimensions, (B,) float32 or wider; differentiable in D.

        Raises ValueError for a step without noise, which has no density.
        """
        self._require_noise()
        off = at_least_float32(after) - self.mean(at_least_float32(x), at_least_float32(denoised))
        squares = (off / self.noise).square().flatten(1).sum(1)
        return -squares / 2 - off[0].numel() * (math.log(self.noise) + math.log(2 * math.pi) / 2)

    def log_ratio(self, push: Tensor, n: Tensor) -> Tensor:
        """log p(x') - log q(x'), (B,), where p steps from D, q from D + push, and q drew x' with the noise n.

        The weight that makes draws of a guided run count as draws of the plain one (Wu et al. 2023, arXiv:2306.17775,
        eq. 11, without its potentials). Raises ValueError for a step without noise.
        """
        self._require_noise()
        shift = self.pull / self.noise * at_least_float32(push)
        return -((shift * at_least_float32(n)).flatten(1).sum(1) + shift.square().flatten(1).sum(1) / 2)

    def _require_noise(self) -> None:
        if self.noise <= 0:
            raise ValueError("A step without noise has no density: use eta above 0 and a next sigma above 0.")


def ancestral_step(
    process: Process, sigma: Tensor | float, following: Tensor | float, eta: float = 1.0, s_noise: float = 1.0
) -> AncestralStep:
    """The step of the Euler ancestral sampler from `sigma` down to `following`, both scalars.

    eta: share of the noise that is made anew; 0 is the ODE's Euler step. s_noise: multiplies the new noise.
    eps, v, EDM: Karras' form, where eta 1 draws from the exact q(x' | x, x0 = D) (Song et al. 2020, arXiv:2010.02502,
    eq. 12 with sigma = eta * sigma_ddpm). flow: the rectified-flow form, which goes down to `following` times
    `1 + (following / sigma - 1) * eta`, then scales down and adds noise until level and variance are those of
    `following`.
    """
    now, after = float(sigma), float(following)
    if not 0 <= after < now:
        raise ValueError(f"An ancestral step goes down from a sigma above 0, but this one goes from {now} to {after}.")
    if process.kind == "flow":
        return _flow_step(now, after, eta, s_noise * process.noise_scale)
    up = min(after, eta * math.sqrt(after**2 * (now**2 - after**2) / now**2))
    keep = math.sqrt(after**2 - up**2) / now
    return AncestralStep(keep, 1 - keep, s_noise * up)


def _flow_step(now: float, after: float, eta: float, scale: float) -> AncestralStep:
    down = after * (1 + (after / now - 1) * eta)
    shrink = (1 - after) / (1 - down)
    keep = down / now
    new = math.sqrt(max(after**2 - (down * shrink) ** 2, 0.0))
    return AncestralStep(shrink * keep, shrink * (1 - keep), scale * new)
