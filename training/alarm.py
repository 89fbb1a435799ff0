"""The alarm for a reward that is being hacked: it rises while what else is known of the pictures falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WINDOW = 3
"""Epochs that are taken together: one alone is too noisy to be compared with another."""

SURE = 3.0
"""Standard errors that a fall has to be larger than. A run is asked in every epoch and compared with its best, so that
pure noise has many chances: with 3, one run of 20 epochs in 13 rings for nothing; with 2, every second one would."""


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
    """Compares the last epochs with those in which the second score was best."""
    if len(values) < 2 * WINDOW:
        return ""
    windows = [together(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]
    best = max(range(len(windows) - WINDOW), key=lambda i: windows[i].mean)
    fall = windows[best].mean - windows[-1].mean
    error = math.hypot(windows[best].error, windows[-1].error)
    rise = together(rewards[-WINDOW:]).mean - together(rewards[best : best + WINDOW]).mean
    if rise <= 0 or fall <= SURE * error:
        return ""
    return (
        f"Over-optimisation: the reward rose by {rise:.3g} while {name} fell by {fall:.3g} "
        f"({SURE:g} times its standard error is {SURE * error:.3g})."
    )
