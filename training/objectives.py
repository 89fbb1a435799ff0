"""What training lowers: pure functions of the clean estimates D of a model's views, and of a label for each picture.

The views are theta (adapter on), old (a moving average of the adapter) and ref (adapter off); D is in model space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..diffusion.process import at_least_float32

View = Literal["theta", "old", "ref"]
B = TypeVar("B", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """Noised pictures and what is known of them.

    x0, x: (B, C, *spatial) clean and noised latents in model space; sigma: (B,); weight: (B,), the factor that turns
    |D - x0|^2 into the loss the model was trained with; label: (B,), what `Objective.labels` made of the ratings;
    cond: one entry a picture, as the policy's denoise takes it. measured: see `Objective.measure`.
    """

    x0: Tensor
    x: Tensor
    sigma: Tensor
    weight: Tensor
    label: Tensor
    cond: Sequence[Any]
    measured: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.x0)

    def part(self: B, start: int, stop: int) -> B:
        """The pictures start..stop-1 of the batch."""
        each = (f.name for f in fields(self) if f.name != "measured")
        return replace(self, **{name: getattr(self, name)[start:stop] for name in each})


class Objective:
    """A loss, and the views beside theta that it compares with.

    pictures: how many pictures one loss is about; 2 for pairs, which lie side by side in a batch, the chosen first.
    """

    pictures: int = 1

    @property
    def views(self) -> tuple[View, ...]:
        return ()

    def labels(self, z: Tensor) -> Tensor:
        """Standardised ratings (N,) -> labels (N,)."""
        return z

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        """Clean estimates of each view, like batch.x0 -> losses (B / pictures,), differentiable in theta."""
        raise NotImplementedError

    def measure(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor | None:
        """Numbers without gradient, one a loss, of which a loss needs those of the whole batch; None where it doesn't.

        A batch that is worked off in parts is measured first, and `Batch.measured` then holds the numbers of all.
        """
        return None


def squared_error(denoised: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """m = weight * mean over non-batch dimensions of (D - target)^2; (B, ...) and (B,) -> (B,)."""
    return weight * (at_least_float32(denoised) - target).square().flatten(1).mean(1)


def rating_weights(z: Tensor, tau: float = 1.0, limit: float = 5.0) -> Tensor:
    """Reward-weighted regression's w = clip(exp(z / tau), 0, limit) (Peters & Schaal 2007). z: (N,) standardised."""
    return (z / tau).exp().clamp(0, limit)


def rating_probabilities(z: Tensor, limit: float = 2.0) -> Tensor:
    """DiffusionNFT's r = 1/2 + 1/2 clip(z / limit, -1, 1): how surely a picture is a good one. z: (N,) standardised."""
    return 0.5 + 0.5 * (z / limit).clamp(-1, 1)


def self_normalised_error(estimate: Tensor, x0: Tensor) -> Tensor:
    """mean (v - x0)^2 over mean |v - x0| without gradient: every noise level pulls alike. (B, ...) twice -> (B,)."""
    difference = (at_least_float32(estimate) - x0).flatten(1)
    scale = difference.detach().abs().mean(1).clamp_min(1e-5)
    return difference.square().mean(1) / scale


def nft(
    theta: Tensor,
    old: Tensor,
    x0: Tensor,
    r: Tensor,
    beta: float = 1.0,
    error: Callable[[Tensor, Tensor], Tensor] = self_normalised_error,
) -> Tensor:
    """DiffusionNFT loss (Zheng et al. 2025, arXiv:2509.16117, eq. 5).

    theta, old, x0: (B, C, *spatial), old without gradient; r: (B,) in 0..1 -> (B,). With the plain squared error its
    optimum is E[x0 | x] + 2 / beta * cov(r, x0 | x), if old = E[x0 | x]: as far from the bad as towards the good.
    """
    positive = beta * theta + (1 - beta) * old
    negative = (1 + beta) * old - beta * theta
    return r * error(positive, x0) + (1 - r) * error(negative, x0)


@dataclass(frozen=True)
class Sft(Objective):
    """Reward-weighted fine-tuning: `w * m`, the pictures in proportion to how much they were liked.

    tau: how many standard deviations of rating make a picture count e times as much; usual .5 to 2, lower is greedier.
    limit: no picture counts more than this. kl: pull to the base model; 0 is usual.
    """

    tau: float = 1.0
    limit: float = 5.0
    kl: float = 0.0

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref",) if self.kl else ()

    def labels(self, z: Tensor) -> Tensor:
        return rating_weights(z, self.tau, self.limit)

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        loss = batch.label * squared_error(denoised["theta"], batch.x0, batch.weight)
        return loss + pull(self.kl, denoised, batch)


@dataclass(frozen=True)
class Nft(Objective):
    """Negative-aware fine-tuning on pictures of the base model: towards the liked ones and away from the disliked.

    beta: size of the step that the loss asks for, 2 / beta times the covariance of rating and picture; usual .1 to 1,
    lower moves further. kl: pull to the base model. limit: advantages count no further than this. old: the view that
    made the pictures; "ref" for pictures of the base model, "old" online.
    """

    beta: float = 1.0
    kl: float = 1e-3
    limit: float = 2.0
    old: View = "ref"

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref", "old") if self.old == "old" and self.kl else (self.old,)

    def labels(self, z: Tensor) -> Tensor:
        return rating_probabilities(z, self.limit)

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        loss = nft(denoised["theta"], denoised[self.old], batch.x0, batch.label, self.beta)
        return loss + pull(self.kl, denoised, batch)


def pull(kl: float, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
    """KL to the base model up to a factor: kl * kappa * |D - D_ref|^2."""
    if not kl:
        return torch.zeros_like(batch.weight)
    return kl * squared_error(denoised["theta"], denoised["ref"], batch.weight)
