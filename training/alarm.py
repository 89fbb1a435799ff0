"""The alarm for a reward that is being hacked: it rises while what else is known of the pictures falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 3
"""Epochs that are taken together: one alone is too noisy to be compared with another."""

SURE = 3.5
"""Standard errors that a fall has to be larger than. A run is asked in every epoch and compared with its best, so that
pure noise has many chances: of runs of 20 epochs without any change 1 in 60 rings for nothing where the errors are
known, 1 in 30 where they are estimated from eight prompts of four pictures, 1 in 15 from four prompts, should the
reward rise all the time (tests/training/test_alarm.py); with 3 it would be 1 in 15, 1 in 10 and 1 in 7."""

CLEAR = 3.0
"""Standard errors by which each of two epochs in a row has to lie below the best before them: such a fall is clear
after so few, and adds next to nothing to the alarms for nothing."""

NOISE = 2.0
"""Standard errors by which an epoch may lie below the first in a second score and still be handed out."""


@dataclass(frozen=True)
class Measured:
    """The mean of a score over an epoch's pictures, and its standard error."""

    mean: float
    error: float

    @staticmethod
    def of(values: Sequence[float], prompts: Sequence[str] = ()) -> Measured:
        """prompts: one for each value, where values of one prompt are alike: the error is then that of so many prompts
        (the cluster-robust one, Liang and Zeger 1986), and never less than that of so many single pictures."""
        mean, count = sum(values) / len(values), len(values)
        if count < 2:
            return Measured(mean, 0.0)
        alone = sum((v - mean) ** 2 for v in values) / (count - 1) / count
        sums: dict[str, float] = {}
        for prompt, value in zip(prompts, values, strict=True) if prompts else ():
            sums[prompt] = sums.get(prompt, 0.0) + value - mean
        if len(sums) < 2:
            return Measured(mean, math.sqrt(alone))
        together = sum(s**2 for s in sums.values()) * len(sums) / (len(sums) - 1) / count**2
        return Measured(mean, math.sqrt(max(alone, together)))


def together(measured: Sequence[Measured]) -> Measured:
    """Several epochs as one."""
    count = len(measured)
    return Measured(sum(m.mean for m in measured) / count, math.sqrt(sum(m.error**2 for m in measured)) / count)


def over_optimised(rewards: Sequence[Measured], watched: Mapping[str, Sequence[Measured]]) -> str:
    """Whether the reward rises at the cost of a second score: what is wrong, in words, or "".

    rewards: each epoch's; watched: other scores of the same epochs, of another reward or the fit to held-out ratings.
    """
    found = (_fallen(rewards, name, values) for name, values in watched.items())
    return next((text for text in found if text), "")


def _fallen(rewards: Sequence[Measured], name: str, values: Sequence[Measured]) -> str:
    found = fall_of(values)
    if found is None:
        return ""
    before, after = rewards[found.best : found.best + found.width], rewards[-found.last :]
    rise = together(after).mean - together(before).mean
    if rise <= 0:
        return ""
    return (
        f"Over-optimisation: the reward rose by {rise:.3g} while {name} fell by {found.fall:.3g} "
        f"({found.sure:g} times its standard error is {found.sure * found.error:.3g})."
    )


@dataclass(frozen=True)
class Fall:
    """By how much the last epochs lie below the best, of `width` from `best` on; error: standard error of that, of
    which it is more than `sure` times as large."""

    best: int
    width: int
    last: int
    fall: float
    error: float
    sure: float


def fall_of(values: Sequence[Measured]) -> Fall | None:
    """Compares the last epochs with those in which the score was best; None where it did not surely fall."""
    return _slow_fall(values) or _clear_fall(values)


def _slow_fall(values: Sequence[Measured]) -> Fall | None:
    """The last three epochs together."""
    if len(values) < 2 * WINDOW:
        return None
    windows = [together(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]
    best = max(range(len(windows) - WINDOW), key=lambda i: windows[i].mean)
    return _if_sure(best, WINDOW, WINDOW, windows[best], windows[-1], SURE)


def _clear_fall(values: Sequence[Measured]) -> Fall | None:
    """Each of the last two by itself: from the third epoch on."""
    if len(values) < 3:
        return None
    width = min(WINDOW, len(values) - 2)
    windows = [together(values[i : i + width]) for i in range(len(values) - 1 - width)]
    best = max(range(len(windows)), key=lambda i: windows[i].mean)
    each = [_if_sure(best, width, 2, windows[best], one, CLEAR) for one in values[-2:]]
    return min((one for one in each if one), key=lambda one: one.fall) if all(each) else None


def _if_sure(best: int, width: int, last: int, before: Measured, after: Measured, sure: float) -> Fall | None:
    fall, error = before.mean - after.mean, math.hypot(before.error, after.error)
    return Fall(best, width, last, fall, error, sure) if fall > sure * error else None


def best_epoch(rewards: Sequence[Measured], watched: Mapping[str, Sequence[Measured]]) -> int:
    """The epoch whose weights are worth handing out: of those that no watched score speaks against, the one with the
    highest reward.

    The highest reward of all would be that of the weights which fool it best. So where a score surely fell, the epochs
    after its top are out; and so is any epoch in which a score lay surely below that of the first, the model as it was
    before. The first itself is never out: where only it is left, nothing better than that model was found.
    """
    last = min((top(values) for values in watched.values() if fall_of(values)), default=len(rewards) - 1)
    sound = [i for i in range(last + 1) if not any(below_first(values, i) for values in watched.values())]
    return max(sound, key=lambda i: rewards[i].mean)


def below_first(values: Sequence[Measured], epoch: int) -> bool:
    """Whether a score lies surely below what it was before the first step."""
    first, now = values[0], values[epoch]
    return now.mean < first.mean - NOISE * math.hypot(first.error, now.error)


def top(values: Sequence[Measured]) -> int:
    """The epoch from which a score that fell was falling: where two straight lines meet that fit it best by least
    squares, the first level or rising, the second falling. Single epochs are too noisy to be asked for the highest."""
    means = np.array([m.mean for m in values])
    return min(range(len(means) - 1), key=lambda i: _misfit(means, i))


def _misfit(means: np.ndarray, corner: int) -> float:
    """The squared error of the best two lines that meet at an epoch."""
    steps = np.arange(len(means)) - corner
    before, after, level = np.minimum(steps, 0), np.maximum(steps, 0), np.ones(len(means))
    lines = np.stack([level, before, after], axis=1)
    found = np.linalg.lstsq(lines, means, rcond=None)[0]
    if found[1] < 0:  # it would fall before the corner as well: then level, or the corner lies further to the left
        lines = lines[:, [0, 2]]
        found = np.linalg.lstsq(lines, means, rcond=None)[0]
    return float(((lines @ found - means) ** 2).sum())
