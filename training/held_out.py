"""Looks at a taste from outside: fits without some prompts, and asks how their pairs are ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .judgements import Judgements
from .ordinal import Choices, Posterior, Stars, choice_log_likelihood, fit, level_shares, star_log_likelihood

Array = np.ndarray
FOLDS = 10


def folds(groups: Sequence[str], seed: int = 0) -> Array:
    """(n,) the fold of each picture: whole prompt groups; with fewer than 4 prompts single pictures."""
    units = list(dict.fromkeys(groups)) if len(set(groups)) >= 4 else list(range(len(groups)))
    names = groups if len(set(groups)) >= 4 else range(len(groups))
    order = np.random.default_rng(seed).permutation(len(units))
    fold = {units[unit]: i % min(FOLDS, len(units)) for i, unit in enumerate(order)}
    return np.array([fold[name] for name in names])


@dataclass(frozen=True)
class Pairs:
    """Held-out pairs: rows of the pictures, the probability that the left is preferred, what was said (1, 0, .5)."""

    left: Array
    right: Array
    probability: Array
    label: Array


def _star_pairs(stars: Stars, u: Array, variance: Array, posterior: Posterior) -> Pairs:
    """All pairs of held-out stars of one rater that differ, and P(left above | they differ)."""
    found = [np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0), np.zeros(0)]
    for rater, cuts in posterior.cuts.items():
        mine = np.flatnonzero(stars.rater == rater)
        a, b = np.triu_indices(len(mine), 1)
        differ = stars.level[mine[a]] != stars.level[mine[b]]
        a, b = a[differ], b[differ]
        image = stars.image[mine]
        shares = level_shares(u[image], variance[image], cuts)
        below = np.cumsum(shares, axis=1) - shares
        above, under = (shares[a] * below[b]).sum(axis=1), (shares[b] * below[a]).sum(axis=1)
        label = (stars.level[mine[a]] > stars.level[mine[b]]).astype(float)
        new = (image[a], image[b], above / (above + under), label)
        found = [np.concatenate(both) for both in zip(found, new, strict=True)]
    return Pairs(*found)


def _choice_pairs(choices: Choices, u: Array, variance: Array) -> Pairs:
    gap = u[choices.left] - u[choices.right]
    shrunk = gap / np.sqrt(1 + math.pi / 8 * (variance[choices.left] + variance[choices.right]))
    return Pairs(choices.left, choices.right, 1 / (1 + np.exp(-shrunk)), choices.label)


def _measured(stars: Stars) -> Array:
    """(m,) the stars that accuracy is measured on: what people said, not what was concluded, unless that is all."""
    given = stars.weights == 1
    return given if given.any() else np.ones(len(stars), dtype=bool)


@dataclass(frozen=True)
class Held:
    likelihood: float
    pairs: Pairs


def held_out(z: Array, data: Judgements, fold: Array, start: Array, share: float = 1.0, seed: int = 0) -> Held:
    """Fits without each fold in turn and looks at it. share: of the training pictures that are used, for the curve."""
    rng, likelihood, parts = np.random.default_rng(seed), 0.0, []
    for one in np.unique(fold):
        out = fold == one
        used = ~out & (rng.random(len(fold)) < share)
        star_in, star_out = used[data.stars.image], out[data.stars.image]
        choice_in = used[data.choices.left] & used[data.choices.right]
        choice_out = out[data.choices.left]
        posterior = fit(z, data.stars.only(star_in), data.choices.only(choice_in), start)
        u, variance = z @ posterior.mean, ((z @ posterior.covariance) * z).sum(axis=1)
        stars, choices = data.stars.only(star_out), data.choices.only(choice_out)
        likelihood += float(
            star_log_likelihood(u, stars, posterior.cuts).sum() + choice_log_likelihood(u, choices).sum()
        )
        said = data.stars.only(star_out & _measured(data.stars))
        parts += [_star_pairs(said, u, variance, posterior), _choice_pairs(choices, u, variance)]
    joined = Pairs(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("left", "right", "probability", "label")))
    return Held(likelihood, joined)


def correct_pairs(pairs: Pairs) -> tuple[Array, Pairs]:
    """1, 0 or .5 for each pair in which somebody preferred one side, and those pairs."""
    clear = pairs.label != 0.5
    kept = Pairs(pairs.left[clear], pairs.right[clear], pairs.probability[clear], pairs.label[clear])
    side = np.where(np.abs(kept.probability - 0.5) < 1e-9, 0.5, (kept.probability > 0.5).astype(float))
    return 1 - np.abs(side - kept.label), kept


def calibration(pairs: Pairs, correct: Array) -> tuple[list[tuple[float, float, int]], float]:
    """Five bins of the favoured side's probability, and their mean distance from what came true."""
    sure = np.maximum(pairs.probability, 1 - pairs.probability)
    bins = []
    for low in np.arange(0.5, 1.0, 0.1):
        inside = (sure >= low) & (sure < low + 0.1 + 1e-9 * (low > 0.85))
        if inside.any():
            bins.append((float(sure[inside].mean()), float(correct[inside].mean()), int(inside.sum())))
    total = sum(count for *_, count in bins)
    return bins, sum(abs(p - hit) * count for p, hit, count in bins) / max(total, 1)
