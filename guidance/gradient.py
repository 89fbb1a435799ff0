"""Reward guidance in x0 space: moves the denoiser's clean estimate along a reward's gradient, by a measured step.

The aim is the tilted law `p(x0) * exp(lambda * r(x0))`. Its denoiser is `D + s^2/a * grad_x log E[exp(lambda r) | x]`;
here the gradient is taken at the clean estimate D itself. What carries it from there to x0 is the covariance of x0
given x, `s^2/a * dD/dx`. By default its variance V stands for it (exact for a Gaussian prior), so that the denoiser is
never differentiated; a `Transport` may multiply by the covariance itself. Posterior guidance: Chung et al. 2023
(arXiv:2209.14687); gradients at the clean estimate: He et al. 2024 (MPGD, arXiv:2311.16424); the part of a step that is
orthogonal to the estimate: Sadat et al. 2024 (APG, arXiv:2410.02416).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.process import Process, at_least_float32, per_sample

RewardOfLatent = Callable[[Tensor], Tensor]
"""Clean latents in model space (B, C, *spatial) -> (B,), with a gradient; one sample never sees another."""

Transport = Callable[[Tensor], Tensor]
"""A slope at the clean estimate (B, C, *spatial) -> the covariance of x0 given x times it, of the same shape."""

log = logging.getLogger(__name__)


class GuidanceError(ValueError):
    """A reward that cannot guide; the message says what to do."""


@dataclass(frozen=True)
class TrustRegion:
    """Where guidance acts and how far it goes at strength 1.

    tau: root mean square of the step, in standard deviations of x0 given x.
    cleanest, noisiest: the interval of noise-to-signal (sigma of an eps model) in which steps are made. Above it the
        clean estimate holds nothing yet that a reward could read; below it the picture is decided.
    """

    tau: float
    cleanest: float = 0.1
    noisiest: float = 15.0

    def holds(self, process: Process, sigma: Tensor) -> bool:
        """Whether every sample of sigma (B,) lies inside the interval."""
        noise = process.noise_to_signal(sigma)
        return bool(((noise >= self.cleanest) & (noise <= self.noisiest)).all())


LATENT = TrustRegion(tau=0.6, noisiest=15.0)
"""Measured on a latent SD-shaped v-prediction model (8x8x4): watermarks from 30 % to 2 % at tau .6, 13 % at tau .3."""

PIXEL = TrustRegion(tau=0.3, noisiest=4.0)
"""Measured on a 16x16 pixel-space model: a plateau from tau .2 to .5; tau 2 fails."""


@dataclass(frozen=True)
class Guide:
    """One reward that pulls. strength multiplies tau; mask, (B or 1, 1, *spatial) in 0..1, says where it may.

    negligible: where one standard deviation of x0 given x would change the reward by less than this, the step shrinks
        in proportion. A detector that sees nothing is at such a place, and a full step there only does harm. Small for
        what has no such end: the brightness of a whole picture of 1024 pixels can change by an estimated .002.
    transport: what carries the slope to x0; without one, the variance V.
    orthogonal: keeps only the part of the step that is orthogonal to the estimate, which saturates less.
    at_once: how many samples' graphs are kept at a time.
    on_step: told (B,), how much one standard deviation of x0 given x could change the reward, in units of `negligible`.
    """

    reward: RewardOfLatent
    strength: float = 1.0
    mask: Tensor | None = None
    negligible: float = 1e-3
    transport: Transport | None = None
    orthogonal: bool = False
    at_once: int | None = None
    on_step: Callable[[Tensor], None] | None = None


def guided(denoised: Tensor, sigma: Tensor, guides: Sequence[Guide], process: Process, tau: float) -> Tensor:
    """The clean estimate after one step up the guides' rewards, which share one trust region.

    denoised: (B, C, *spatial) in model space, any float type, which the result keeps; sigma: (B,) or scalar.
    Every sample moves by at most `tau * max(strength) * sqrt(V)`, root mean square over the guides' masks; a guide
    alone moves it by `tau * strength * sqrt(V)` unless the reward is nearly flat there (`Guide.negligible`). A sample
    whose gradient is not finite stays.
    """
    guides = [guide for guide in guides if guide.strength > 0]
    if not guides or tau <= 0:
        return denoised
    deviation = _posterior_deviation(process, sigma, denoised)
    step = torch.stack([_step(denoised, guide, deviation, tau) for guide in guides]).sum(0)
    radius = tau * max(guide.strength for guide in guides) * deviation
    step = capped(step, radius, _union([guide.mask for guide in guides]))
    return (at_least_float32(denoised) + step).to(denoised.dtype)


def tilted(
    denoised: Tensor,
    sigma: Tensor,
    reward: RewardOfLatent,
    process: Process,
    inverse_temperature: float,
    tau: float = math.inf,
    transport: Transport | None = None,
    at_once: int | None = None,
    on_slope: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The clean estimate under the law tilted by `exp(inverse_temperature * r)`; exact for a Gaussian prior and a
    linear or quadratic reward.

    Shapes as in `guided`. The reward's curvature along the step, found with a second gradient, shortens it: without
    that, a quadratic reward steeper than the prior overshoots and diverges. on_slope: told the reward's own slope and
    the standard deviation of x0 given x, what `room` takes.
    """
    if inverse_temperature == 0:
        return denoised
    start = at_least_float32(denoised)
    deviation = _posterior_deviation(process, sigma, denoised)
    own = gradient(reward, start, at_once)
    if on_slope is not None:
        on_slope(own, deviation)
    slope = inverse_temperature * own
    carried = deviation**2 * slope if transport is None else transport(slope).to(slope)
    carried = _finite(carried)
    step = capped(carried, tau * deviation)
    change = slope - inverse_temperature * gradient(reward, start + step, at_once)
    curvature = (_dot(change, step) / _dot(slope, step).clamp(min=torch.finfo(start.dtype).tiny)).clamp(min=0)
    return (start + step / (1 + per_sample(curvature, start))).to(denoised.dtype)


def forward_difference(
    denoise: Callable[[Tensor], Tensor],
    x: Tensor,
    denoised: Tensor,
    sigma: Tensor,
    process: Process,
    share: float = 0.01,
) -> Transport:
    """The covariance of x0 given x times a slope, for one more evaluation of the denoiser and no graph through it.

    x: the noisy latent (B, C, *spatial); denoised: `denoise(x)`. The covariance is symmetric, so the derivative of D in
    the slope's direction is the slope through D's Jacobian: `s^2/a * (D(x + d g) - D(x)) / d`, d = share |x| / |g|.
    It errs in the order of share, and by rounding in that of 1 / share: .01 is as little as a denoiser that computes in
    half precision allows.
    """
    scale = per_sample(process.s(sigma) ** 2 / process.a(sigma), x)

    def transport(slope: Tensor) -> Tensor:
        distance = share * rms(x.to(slope)) / rms(slope).clamp(min=torch.finfo(slope.dtype).tiny)
        moved = denoise((x.to(slope) + distance * slope).to(x.dtype))
        carried = scale.to(slope) * (moved - denoised).to(slope) / distance
        return torch.where(rms(slope) > 0, carried, 0)

    return transport


def orthogonal_part(step: Tensor, denoised: Tensor) -> Tensor:
    """Each sample's step without its component along the sample's clean estimate."""
    estimate = denoised.to(step)
    along = _dot(step, estimate) / _dot(estimate, estimate).clamp(min=torch.finfo(step.dtype).tiny)
    return step - per_sample(along, step) * estimate


def gradient(reward: RewardOfLatent, latent: Tensor, at_once: int | None = None) -> Tensor:
    """Gradient of each sample's reward at its own latent, float32 or wider; zero for a sample where it is not finite.

    at_once: how many samples share a graph; all of them without it. Raises GuidanceError when the reward has no
    gradient or gives another number of scores than there are samples.
    """
    return _finite(torch.cat([_gradient(reward, part) for part in latent.split(at_once or max(len(latent), 1))]))


def _finite(slope: Tensor) -> Tensor:
    """slope (B, C, *spatial), zero for each sample in which a number is not finite: one NaN blackens all later steps.

    Half precision overflows in a reward as well as in the denoiser that a slope is carried through.
    """
    finite = per_sample(slope.flatten(1).isfinite().all(dim=1), slope)
    if not finite.all():
        log.warning("Reward guidance made no step for a picture whose gradient was not finite.")
    return torch.where(finite, slope, 0)


def _gradient(reward: RewardOfLatent, latent: Tensor) -> Tensor:
    with torch.enable_grad():
        # a clone is a normal tensor even of one made in inference mode
        leaf = at_least_float32(latent.clone()).detach().requires_grad_()
        scores = reward(leaf)
        _check(scores, len(latent))
        return torch.autograd.grad(scores.sum(), leaf)[0]


def capped(step: Tensor, radius: Tensor, mask: Tensor | None = None) -> Tensor:
    """step (B, C, *spatial), each sample shortened until its root mean square, over the mask, is at most its radius."""
    tiny = torch.finfo(step.dtype).tiny
    return step * (radius / rms(step, mask).clamp(min=tiny)).clamp(max=1)


def rms(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square of each sample, (B, 1, ...), over all its dimensions or weighted by a mask in 0..1."""
    dims = tuple(range(1, values.ndim))
    # in units of the largest value: squares of the gradients of real models underflow in float32
    largest = values.abs().amax(dim=dims, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    squares = (values / largest) ** 2
    if mask is None:
        return largest * squares.mean(dim=dims, keepdim=True).sqrt()
    weight = mask.to(values).expand_as(values)
    total = weight.sum(dim=dims, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return largest * ((weight * squares).sum(dim=dims, keepdim=True) / total).sqrt()


def room(slope: Tensor, deviation: Tensor, negligible: float, mask: Tensor | None = None) -> Tensor:
    """How much one standard deviation of x0 given x could change each sample's reward, in units of `negligible`.

    slope: the reward's gradient (B, C, *spatial); deviation: (B, 1, ...). Gives (B, 1, ...).
    """
    dimensions = _weight(slope, mask).sum(dim=tuple(range(1, slope.ndim)), keepdim=True)
    return deviation * rms(slope, mask) * dimensions.sqrt() / negligible


def _weight(slope: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones_like(slope) if mask is None else mask.to(slope).expand_as(slope)


def _step(denoised: Tensor, guide: Guide, deviation: Tensor, tau: float) -> Tensor:
    slope = gradient(guide.reward, denoised, guide.at_once)
    weight = _weight(slope, guide.mask)
    possible = room(slope, deviation, guide.negligible, guide.mask)
    if guide.on_step is not None:
        guide.on_step(possible.flatten())
    length = tau * guide.strength * deviation * possible.clamp(max=1)
    direction = slope if guide.transport is None else _finite(guide.transport(slope).to(slope))
    step = length * direction / rms(direction, guide.mask).clamp(min=torch.finfo(slope.dtype).tiny)
    return weight * (orthogonal_part(step, denoised) if guide.orthogonal else step)


def _posterior_deviation(process: Process, sigma: Tensor, like: Tensor) -> Tensor:
    return per_sample(process.posterior_variance(sigma).sqrt(), like)


def _union(masks: Sequence[Tensor | None]) -> Tensor | None:
    known = [mask for mask in masks if mask is not None]
    if len(known) < len(masks):
        return None
    union = known[0]
    for mask in known[1:]:
        union = torch.maximum(union, mask)
    return union


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(dim=1)


def _check(scores: Tensor, samples: int) -> None:
    if scores.shape != (samples,):
        raise GuidanceError(
            f"A reward gives one number for each picture, but this one gave {tuple(scores.shape)} for {samples}."
        )
    if not scores.requires_grad:
        raise GuidanceError(
            "This reward has no gradient, so it cannot guide a run. Use it to score pictures, or choose another reward."
        )
