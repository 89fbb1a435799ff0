"""The held-out loss: pictures that are not trained on, always under the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .adapters import MovingAverage
from .loop import Policy, cuts, estimates, in_parts, measured
from .objectives import Batch, Objective, View, squared_error
from .sources import Example, ForwardSource, Group

FEWEST = 10
"""With fewer pictures or pairs than this nothing is held out: the loss of one or two says nothing."""


def split(
    examples: Sequence[Example | Group], share: float, seed: int
) -> tuple[list[Example | Group], list[Example | Group]]:
    """(to train on, held out): whole prompts where there are five or more, else single pictures or pairs."""
    if share <= 0 or len(examples) < FEWEST:
        return list(examples), []
    prompts = [(e[0] if isinstance(e, tuple) else e).prompt for e in examples]
    names: list[object] = list(dict.fromkeys(prompts)) if len(set(prompts)) >= 5 else list(range(len(examples)))
    units: list[object] = list(prompts) if len(set(prompts)) >= 5 else list(range(len(examples)))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {names[i] for i in order[: max(1, round(share * len(names)))]}
    kept = [e for e, unit in zip(examples, units, strict=True) if unit not in held]
    return kept, [e for e, unit in zip(examples, units, strict=True) if unit in held]


class Validation:
    """The objective's mean loss on held-out examples, of the moving average, at the same noise each time."""

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        source: ForwardSource,
        held_out: Sequence[Example | Group],
        average: MovingAverage,
    ) -> None:
        self.policy, self.objective, self.average = policy, objective, average
        self.source = replace(source, examples=held_out, dropout=0.0, seed=source.seed + 1)
        self.parts = 1

    def __call__(self) -> float:
        found = []
        with self.average.shown():
            # twice through the pictures: each is seen at two noise levels
            for step in range(2 * self.source.steps_in_epoch()):
                batch = self.source.batch_at(step)
                losses, self.parts = losses_in_parts(self.policy, self.objective, batch, self.parts)
                found.append(losses)
        return float(torch.cat(found).double().mean())


@torch.no_grad()
def losses_in_parts(policy: Policy, objective: Objective, batch: Batch, parts: int) -> tuple[Tensor, int]:
    """(losses of a batch, the parts it was looked at in): in twice as many while memory is short, as in training."""

    def work(parts: int) -> Tensor:
        cut, seen = cuts(batch, objective.pictures, parts), batch
        if len(cut) > 1 and batch.measured is None:
            seen = replace(batch, measured=measured(policy, objective, batch, parts))
        some = [seen.part(rows.start, rows.stop) for rows in cut]
        return torch.cat([objective.losses(estimates(policy, objective, part), part) for part in some])

    return in_parts(work, parts, len(batch) // objective.pictures)


@dataclass(frozen=True)
class _Gain(Objective):
    """How much better the model fits what was liked than the base model does: label * (error of the base - error)."""

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref",)

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        theta, ref = (squared_error(denoised[name], batch.x0, batch.weight) for name in ("theta", "ref"))
        return batch.label * (ref - theta)


class RatingFit:
    """How well the weights fit ratings that they are not trained on, a number for each picture; it starts at 0.

    source: examples whose labels are standardised ratings. A mean that falls says that the model moves away from what
    people liked.
    """

    least_error = 0.0

    def __init__(self, policy: Policy, source: ForwardSource) -> None:
        self.policy, self.source, self.parts = policy, replace(source, dropout=0.0), 1

    def __call__(self) -> list[float]:
        return self._looked(_Gain()).tolist()

    def _looked(self, objective: Objective) -> Tensor:
        found = []
        for step in range(self.source.steps_in_epoch()):
            losses, self.parts = losses_in_parts(self.policy, objective, self.source.batch_at(step), self.parts)
            found.append(losses)
        return torch.cat(found)


@dataclass(frozen=True)
class _BaseError(Objective):
    """The error of the base model."""

    @property
    def views(self) -> tuple[View, ...]:
        return ("ref",)

    def losses(self, denoised: dict[View, Tensor], batch: Batch) -> Tensor:
        return squared_error(denoised["ref"], batch.x0, batch.weight)


class LikedFit(RatingFit):
    """How well the model still draws what people liked, whatever becomes of the rest: 0 at the start, -.05 where its
    error on these pictures has grown by 5 % of the base model's.

    `RatingFit` compares liked with disliked pictures: their labels add up to nothing, so that a model which becomes
    worse at all pictures alike keeps its fit. source: examples, of which those with a label above 0 are looked at. The
    same noise is looked at in every epoch, so that also a change too small to matter is a sure one: the standard error
    is never taken to be less than `least_error`, which makes a lasting fall one of 5 % or more.
    """

    least_error = 0.0175

    def __init__(self, policy: Policy, source: ForwardSource) -> None:
        liked = [replace(one, label=1.0) for one in source.examples if isinstance(one, Example) and one.label > 0]
        super().__init__(policy, replace(source, examples=liked))
        self._scale: float | None = None

    def __call__(self) -> list[float]:
        if not self.source.examples:
            return [0.0]
        if self._scale is None:
            self._scale = max(float(self._looked(_BaseError()).double().mean()), 1e-12)
        return (self._looked(_Gain()).double() / self._scale).tolist()
