"""Objectives that compare with the base model: DPO on pairs, KTO on likes and dislikes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.process import at_least_float32
from .objectives import Batch, Objective, View, squared_error


def dpo(m_w: Tensor, m_l: Tensor, r_w: Tensor, r_l: Tensor, beta: float | Tensor = 2000.0) -> Tensor:
    """Diffusion-DPO loss (Wallace et al. 2023, arXiv:2311.12908, eq. 14) in the form with beta / 2.

    m: errors of the model for the chosen (w) and the rejected (l), r: of the base model; all (B,) -> (B,).
    """
    margin = (m_w - r_w) - (m_l - r_l)
    return -F.logsigmoid(-beta / 2 * margin)


def safe_share(g_w: Tensor, g_l: Tensor) -> Tensor:
    """How much of the rejected's gradient may be followed so that the chosen's error does not rise (2511.03317).

    g_w, g_l: gradients of the two errors in their clean estimates, (B, ...) -> (B,) in 0..1. Where both estimates move
    alike, a step along -(g_w - s * g_l) changes the chosen's error by -(|g_w|^2 - s * g_w . g_l).
    """
    g_w, g_l = g_w.flatten(1), g_l.flatten(1)
    inner, length = (g_w * g_l).sum(1), g_w.square().sum(1)
    return torch.where(inner > length, length / inner.clamp_min(1e-30), torch.ones_like(inner))


def auto_beta(margin: Tensor, logit: float = 2.0, low: float = 200.0, high: float = 5000.0) -> Tensor:
    """The beta, at most `high`, at which a batch's margins (N,) have logits beta / 2 * margin of `logit` (rms).

    At the start margins are 0 and beta is `high`; as they grow it falls, so that the loss goes on seeing all pairs.
    """
    return (2 * logit / margin.square().mean().sqrt().clamp_min(1e-12)).clamp(low, high)


def kto(gain: Tensor, sign: Tensor, z: Tensor, beta: float = 1000.0) -> Tensor:
    """Diffusion-KTO loss (Li et al. 2024, arXiv:2404.04465, eq. 9), 1 - sigmoid(sign * beta * (gain - z)).

    gain: how much less than the base model the error is, (B,); sign: 1 liked, -1 disliked; z: the point that gains and
    losses count from, see `reference_gain`.
    """
    return 1 - torch.sigmoid(sign * beta * (gain - z))


def reference_gain(gain: Tensor) -> Tensor:
    """The mean gain of a batch (N,), not below 0, without gradient: KTO's estimate of the distance to the base."""
    return gain.detach().mean().clamp_min(0)


@dataclass(frozen=True)
class Dpo(Objective):
    """Pairs: the chosen's error falls and the rejected's rises, both relative to the base model.

    label: +gap for the chosen and -gap for the rejected, where gap says how clear the choice was, 1 on average.
    beta: how hard it is held to the base model, usual 2000 to 5000; 0 takes `auto_beta`. safe: the chosen's error never
    rises to make the rejected's rise faster.
    """

    beta: float = 2000.0
    safe: bool = True
    pictures = 2

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref",)

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        m = self._errors(denoised["theta"], batch)
        r = self._errors(denoised["ref"], batch)
        m_w, m_l = m[::2], m[1::2]
        if self.safe:
            share = self._share(denoised["theta"].detach(), batch)
            m_l = share * m_l + (1 - share) * m_l.detach()
        return batch.label[::2].abs() * dpo(m_w, m_l, r[::2], r[1::2], self._beta(denoised, batch))

    def measure(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor | None:
        if self.beta:
            return None
        with torch.no_grad():
            gain = self._errors(denoised["theta"], batch) - self._errors(denoised["ref"], batch)
        return gain[::2] - gain[1::2]

    def _beta(self, denoised: dict[View, Tensor], batch: Batch) -> float | Tensor:
        margin = self.measure(denoised, batch) if batch.measured is None else batch.measured
        return self.beta if margin is None else auto_beta(margin)

    def _errors(self, denoised: Tensor, batch: Batch) -> Tensor:
        return squared_error(denoised, batch.x0, batch.weight)

    def _share(self, denoised: Tensor, batch: Batch) -> Tensor:
        weight = batch.weight.reshape(-1, *(1,) * (denoised.ndim - 1))
        gradient = weight * (at_least_float32(denoised) - batch.x0)
        return safe_share(gradient[::2], gradient[1::2])


@dataclass(frozen=True)
class Kto(Objective):
    """Likes and dislikes, of any pictures: the error of what was liked falls below the base model's.

    label: its sign says liked or disliked, its size how much it counts; `labels` gives both sides the same weight.
    beta: how hard it is held to the base model; usual 500 to 5000.
    """

    beta: float = 1000.0

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref",)

    def labels(self, z: Tensor) -> Tensor:
        sign = z.sign()
        liked, disliked = (sign > 0).sum().clamp_min(1), (sign < 0).sum().clamp_min(1)
        half = sign.abs().sum() / 2
        return torch.where(sign > 0, half / liked, torch.where(sign < 0, -half / disliked, torch.zeros_like(z)))

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        gain = self._gain(denoised, batch)
        z = reference_gain(gain if batch.measured is None else batch.measured)
        return batch.label.abs() * kto(gain, batch.label.sign(), z, self.beta)

    def measure(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor | None:
        with torch.no_grad():
            return self._gain(denoised, batch)

    def _gain(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        theta, ref = (squared_error(denoised[name], batch.x0, batch.weight) for name in ("theta", "ref"))
        return ref - theta
