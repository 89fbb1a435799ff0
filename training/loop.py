"""The training loop: fetch, loss, backward, clip, step, report. It knows nothing of the model behind the policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from .objectives import Batch, Objective, View
from .progress import Progress, Tensors

T = TypeVar("T")


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
    def batch_at(self, step: int) -> Batch | None:
        """The batch of that step, None where there is nothing to learn in it: the step then changes nothing."""
        ...


Gradients = Callable[[Policy, Objective, Batch, torch.optim.Optimizer, int], "tuple[float, int]"]
"""Leaves the gradient of a batch's mean loss in the parameters, as `gradients` does for a single process."""


class EndOfRun(Exception):  # noqa: N818  # it is no error
    """A source has nothing more to give; the message says why."""


class DivergedError(RuntimeError):
    """Loss or weights are no longer numbers, also after going back twice; the average holds the last good ones."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. lr falls to 0 over the steps, after a rise over the share `warmup` of them.

    setbacks: how often a loss or weight that is no number sends the run back to where it was last saved, at half the
    rate.
    """

    steps: int
    lr: float
    warmup: float = 0.05
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    setbacks: int = 2

    def lr_at(self, step: int) -> float:
        rise = max(1, round(self.warmup * self.steps))
        return self.lr * min((step + 1) / rise, (self.steps - step) / max(1, self.steps - rise + 1))


@dataclass(frozen=True)
class Step:
    """What came of one step. done: steps finished so far; grad_norm: before clipping; parts: see Progress."""

    done: int
    loss: float
    grad_norm: float
    lr: float
    parts: int = 1


class SavePoint:
    """Where a run that diverges goes back to: its state in memory, taken now and then by whoever follows the run."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.take()

    def take(self, tensors: Tensors | None = None) -> None:
        """tensors: what `Progress.tensors` gives now, from who has it at hand."""
        self._tensors, self._numbers = tensors or self.progress.tensors(), self.progress.numbers()

    def go_back(self) -> None:
        """Everything as it was but the learning rate, which is half of what it is now."""
        scale, setbacks = self.progress.lr_scale / 2, self.progress.setbacks + 1
        self.progress.restore(self._tensors, self._numbers)
        self.progress.lr_scale, self.progress.setbacks = scale, setbacks


def train(
    policy: Policy,
    source: Source,
    objective: Objective,
    plan: Plan,
    progress: Progress,
    on_step: Callable[[Step], bool | None],
    back: SavePoint | None = None,
    compute: Gradients | None = None,
) -> None:
    """The steps that are left, with AdamW without weight decay, until the plan's end or until `on_step` says True.

    What `on_step` raises ends it between two steps. Out of memory: the batch is worked off in halves from then on, with
    the same gradient. A loss or a weight that is no number: back to `back`, by default the start. Raises
    DivergedError.
    compute: `gradients`, unless several processes share a batch.
    """
    back, compute = back or SavePoint(progress), compute or gradients
    while progress.step < plan.steps:
        try:
            batch = source.batch_at(progress.step)
        except EndOfRun:
            return
        loss = norm = 0.0
        if batch is not None:
            loss, progress.parts = compute(policy, objective, batch, progress.optimizer, progress.parts)
            norm = float(nn.utils.clip_grad_norm_(progress.parameters, plan.clip))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                _set_back(back, plan)
                continue
        lr = plan.lr_at(progress.step) * progress.lr_scale
        if batch is not None:
            progress.optimizer.param_groups[0] |= {"lr": lr, "betas": plan.betas}
            progress.optimizer.step()
            progress.average.update()
            if not progress.is_finite():  # before anybody takes these weights for those to go back to
                _set_back(back, plan)
                continue
        progress.step += 1
        if on_step(Step(progress.step, loss, norm, lr, progress.parts)):
            return


def _set_back(back: SavePoint, plan: Plan) -> None:
    step, exhausted = back.progress.step + 1, back.progress.setbacks >= plan.setbacks
    back.go_back()
    if exhausted:
        raise DivergedError(
            f"The loss or a weight is not a number at step {step}, also at lower rates: train again with a lower "
            "learning rate."
        )


def gradients(
    policy: Policy,
    objective: Objective,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    parts: int = 1,
    of: float | None = None,
) -> tuple[float, int]:
    """Leaves the gradient of the batch's mean loss in the parameters; returns (loss, parts it was worked off in).

    of: how many losses the mean is over, where the batch is a part of a larger one.
    """

    def work(parts: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        return _accumulate(policy, objective, batch, parts, of)

    return in_parts(work, parts, len(batch) // objective.pictures)


def in_parts(work: Callable[[int], T], parts: int, most: int) -> tuple[T, int]:
    """What `work` gives in `parts` parts, or in twice as many, up to `most`, while memory is short; and in how many."""
    parts = min(parts, most)
    while True:
        try:
            return work(parts), parts
        except torch.OutOfMemoryError:
            if parts >= most:
                raise
            parts = min(2 * parts, most)


def _accumulate(policy: Policy, objective: Objective, batch: Batch, parts: int, of: float | None) -> float:
    losses, total = of or len(batch) // objective.pictures, 0.0
    cut = cuts(batch, objective.pictures, parts)
    if len(cut) > 1 and batch.measured is None:
        batch = replace(batch, measured=measured(policy, objective, batch, parts))
    for rows in cut:
        part = batch.part(rows.start, rows.stop)
        loss = objective.losses(estimates(policy, objective, part), part).sum() / losses
        loss.backward()
        total += loss.item()
    return total


def cuts(batch: Batch, pictures: int, parts: int) -> list[range]:
    """The batch in `parts` of about equal size, none of which parts the pictures of one loss."""
    size = -(-len(batch) // pictures // parts) * pictures
    return [range(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]


@torch.no_grad()
def measured(policy: Policy, objective: Objective, batch: Batch, parts: int) -> Tensor | None:
    """`Objective.measure` over the whole batch, part by part; nothing is computed for an objective that needs none."""
    if type(objective).measure is Objective.measure:
        return None
    found = []
    for rows in cuts(batch, objective.pictures, parts):
        part = batch.part(rows.start, rows.stop)
        numbers = objective.measure(estimates(policy, objective, part), part)
        if numbers is None:
            return None
        found.append(numbers)
    return torch.cat(found)


def estimates(policy: Policy, objective: Objective, batch: Batch) -> dict[View, Tensor]:
    """D of theta and, without gradient, of the views that the objective compares with."""
    denoised: dict[View, Tensor] = {}
    for name in objective.views:
        with torch.no_grad(), policy.view(name):
            denoised[name] = policy.denoise(batch.x, batch.sigma, batch.cond)
    denoised["theta"] = policy.denoise(batch.x, batch.sigma, batch.cond)
    return denoised
