"""The training loop: fetch, loss, backward, clip, step, report. It knows nothing of the model behind the policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .adapters import MovingAverage
from .objectives import Batch, Objective, View


class Policy(Protocol):
    """The model as training sees it."""

    def denoise(self, x: Tensor, sigma: Tensor, cond: Sequence[object]) -> Tensor:
        """The clean estimate D of x, in the view that is on. x: (B, C, *spatial), sigma: (B,), cond: one a picture."""
        ...

    def view(self, name: View) -> AbstractContextManager[None]: ...

    def parameters(self) -> Sequence[nn.Parameter]:
        """Those of theta."""
        ...


class Source(Protocol):
    def batch_at(self, step: int) -> Batch: ...


class DivergedError(RuntimeError):
    """The loss is no longer a number; the moving average still holds the last good weights."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. lr falls to 0 over the steps, after a rise over the share `warmup` of them."""

    steps: int
    lr: float
    warmup: float = 0.05
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)

    def lr_at(self, step: int) -> float:
        rise = max(1, round(self.warmup * self.steps))
        return self.lr * min((step + 1) / rise, (self.steps - step) / max(1, self.steps - rise + 1))


@dataclass(frozen=True)
class Step:
    """What came of one step. done: steps finished so far; grad_norm: before clipping."""

    done: int
    loss: float
    grad_norm: float
    lr: float


def train(
    policy: Policy,
    source: Source,
    objective: Objective,
    plan: Plan,
    average: MovingAverage,
    on_step: Callable[[Step], None],
    start: int = 0,
) -> None:
    """Steps start..plan.steps-1 with AdamW without weight decay; what `on_step` raises ends it, between two steps.

    Out of memory: the batch is worked off in halves from then on, with the same gradient. Raises DivergedError.
    """
    parameters = list(policy.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=plan.lr, betas=plan.betas, weight_decay=0.0)
    parts = 1
    for step in range(start, plan.steps):
        batch = source.batch_at(step)
        loss, parts = gradients(policy, objective, batch, optimizer, parts)
        norm = float(nn.utils.clip_grad_norm_(parameters, plan.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"The loss is not a number at step {step + 1}: train again with a lower learning rate.")
        optimizer.param_groups[0]["lr"] = lr = plan.lr_at(step)
        optimizer.step()
        average.update()
        on_step(Step(step + 1, loss, norm, lr))


def gradients(
    policy: Policy, objective: Objective, batch: Batch, optimizer: torch.optim.Optimizer, parts: int = 1
) -> tuple[float, int]:
    """Leaves the gradient of the batch's mean loss in the parameters; returns (loss, parts it was worked off in)."""
    while True:
        optimizer.zero_grad(set_to_none=True)
        try:
            return _accumulate(policy, objective, batch, parts), parts
        except torch.OutOfMemoryError:
            if parts >= len(batch):
                raise
            parts = min(2 * parts, len(batch))


def _accumulate(policy: Policy, objective: Objective, batch: Batch, parts: int) -> float:
    size, total = -(-len(batch) // parts), 0.0
    for start in range(0, len(batch), size):
        part = batch.part(start, start + size)
        loss = objective.losses(estimates(policy, objective, part), part).sum() / len(batch)
        loss.backward()
        total += loss.item()
    return total


def estimates(policy: Policy, objective: Objective, batch: Batch) -> dict[View, Tensor]:
    """D of theta and, without gradient, of the views that the objective compares with."""
    denoised: dict[View, Tensor] = {}
    for name in objective.views:
        with torch.no_grad(), policy.view(name):
            denoised[name] = policy.denoise(batch.x, batch.sigma, batch.cond)
    denoised["theta"] = policy.denoise(batch.x, batch.sigma, batch.cond)
    return denoised
