"""The forward process `x = a(sigma) * x0 + s(sigma) * n` of a diffusion or flow model, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["eps", "v", "edm", "flow"]


@dataclass(frozen=True)
class Process:
    """`x = a * x0 + s * n` with n ~ N(0, 1): a = 1, s = sigma (eps, v, edm) or a = 1 - sigma, s = noise_scale * sigma.

    sigma: the model's own noise level, (B,) or scalar; in 0..1 for flow, whatever its shift (a shift moves the steps
        of a schedule along sigma and leaves this law as it is).
    sigma_data: scale of the clean latents that a v or EDM model was parameterised with.
    latent_variance: variance v of clean latents in model space; close to 1 in ComfyUI's latent scaling.
    noise_scale: standard deviation of a flow model's noise.
    """

    kind: Kind
    sigma_data: float = 1.0
    latent_variance: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("eps", "v", "edm", "flow"):
            raise ValueError(f"Unknown kind of forward process: {self.kind!r}. Use eps, v, edm or flow.")

    def a(self, sigma: Tensor) -> Tensor:
        """Factor of the clean latent in x; shape of sigma."""
        sigma = at_least_float32(sigma)
        return 1 - sigma if self.kind == "flow" else torch.ones_like(sigma)

    def s(self, sigma: Tensor) -> Tensor:
        """Standard deviation of the noise in x; shape of sigma."""
        sigma = at_least_float32(sigma)
        return self.noise_scale * sigma if self.kind == "flow" else sigma

    def noise(self, x0: Tensor, n: Tensor, sigma: Tensor) -> Tensor:
        """x at sigma. x0, n: (B, C, *spatial); sigma: (B,) or scalar. The dtype is that of x0."""
        return (per_sample(self.a(sigma), x0) * x0 + per_sample(self.s(sigma), x0) * n).to(x0.dtype)

    def noise_to_signal(self, sigma: Tensor) -> Tensor:
        """s / a, the sigma that an eps model (a = 1) has at this noise; infinite where a flow is pure noise."""
        return self.s(sigma) / self.a(sigma)

    def posterior_variance(self, sigma: Tensor) -> Tensor:
        """V = v s^2 / (v a^2 + s^2): variance of x0 given x, for clean latents of variance v; shape of sigma."""
        v, a2, s2 = self.latent_variance, self.a(sigma) ** 2, self.s(sigma) ** 2
        return v * s2 / (v * a2 + s2)

    def kappa(self, sigma: Tensor) -> Tensor:
        """The weight that makes kappa * |D - x0|^2 the loss the model was trained with; shape of sigma, sigma > 0.

        eps, flow: 1 / sigma^2 (error of the predicted noise or velocity). v, edm: (sigma^2 + d^2) / (sigma^2 d^2),
        d = sigma_data (Karras et al. 2022, arXiv:2206.00364, table 1; with d = 1 the v-prediction of Salimans & Ho).
        """
        s2 = at_least_float32(sigma) ** 2
        if self.kind in ("eps", "flow"):
            return 1 / s2
        d2 = self.sigma_data**2
        return (s2 + d2) / (s2 * d2)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values of shape (B,) or () as (B, 1, ...) so that they broadcast over the dimensions of `like`."""
    if values.ndim == 0:
        return values.to(like.device)
    return values.to(like.device).reshape(-1, *(1,) * (like.ndim - 1))


def at_least_float32(tensor: Tensor) -> Tensor:
    """sigma^2 of a half-precision sigma overflows from 256 on, so the formulas run in float32 or wider."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
