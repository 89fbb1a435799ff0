"""Learns a taste from ratings and choices: a Bayesian linear head on encoder features (feedback.rewards.taste).

The prior: z-scored features in their principal directions, w_j ~ N(0, strength^2 * s_j^(-2 * whitening)), s_j the
spread along direction j. `whitening` 0 is a ridge on the z-scores; more of it listens to quieter directions. It is
chosen by the Laplace evidence, the strength (the L2 penalty) by the likelihood of prompts that were held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ..feedback.evaluation import Interval, pair_accuracy
from ..feedback.pairs import LABELS, Agreement, prompt_group
from ..feedback.records import ComparedImages, RatedImage
from ..feedback.rewards.base import Encoder
from ..feedback.rewards.taste import TasteReward
from .ordinal import (
    MAX_LEVELS,
    Choices,
    Posterior,
    Stars,
    choice_log_likelihood,
    fit,
    level_shares,
    star_log_likelihood,
)

Array = np.ndarray
WHITENING = (0.0, 0.2, 0.4, 0.6)
STRENGTH = (0.3, 0.6, 1.0, 1.7, 3.0, 5.0)  # prior sd of the utility over pictures, in units of the rater's noise
MAX_DIRECTIONS = 384  # more principal directions than this cost time and carry next to nothing
FOLDS = 10
FEWEST_STARS, FEWEST_CHOICES = 8, 8
WEAK = 0.6  # below this held-out accuracy whoever trains on a reward is warned


class TooFewJudgementsError(ValueError):
    """Too little was said to learn from; the message says how much more is needed."""


@dataclass(frozen=True)
class Judgements:
    """Pictures and what was said of them. features: (n,F); groups: the prompt group of each picture."""

    features: Array
    groups: Sequence[str]
    stars: Stars
    choices: Choices


@dataclass(frozen=True)
class TasteReport:
    """How good the taste is on prompts that it did not see. Accuracies are shares of pairs that were ranked right.

    bins: of the favoured side of held-out pairs: (mean predicted probability, share that was right, pairs).
    doubled: by how much the accuracy is expected to rise with twice the labels.
    """

    pictures: int
    stars: int
    choices: int
    prompts: int
    held_out: Interval
    held_out_pairs: int
    bins: list[tuple[float, float, int]]
    calibration_error: float
    curve: list[tuple[int, float]]
    doubled: float
    agreement: float | None
    repeats: int
    bound: float | None
    whitening: float
    strength: float
    caution: float
    notes: list[str] = field(default_factory=list)

    @property
    def beats_chance(self) -> bool:
        return self.held_out.low > 0.5

    def warning(self) -> str:
        """Empty for a taste worth optimising."""
        value = self.held_out.value
        if not self.beats_chance:
            return (
                "This taste has not beaten chance on held-out prompts: what it says may be noise. Rate more pictures."
            )
        if value < WEAK:
            return f"This taste ranks only {value:.0%} of held-out pairs right: it is weak. Rate more pictures."
        return ""

    def facts(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self) | {"held_out": list(self.held_out), "warning": self.warning()}


# --- judgements ------------------------------------------------------------------------------------------------------


def _levels(values: Array) -> Array:
    """Ratings on one scale as levels 0, 1, ...; finer scales are cut into MAX_LEVELS parts of equal size."""
    known = np.unique(values)
    if len(known) > MAX_LEVELS:
        known = np.unique(np.quantile(values, np.arange(MAX_LEVELS) / MAX_LEVELS))
        return np.searchsorted(known, values, side="right") - 1
    return np.searchsorted(known, values)


def _stars(rated: Sequence[RatedImage], place: Mapping[str, int], raters: dict[tuple[Any, ...], int]) -> Stars:
    """One group of cut-points for each rater and scale: people use stars differently."""
    image = np.array([place[r.image_id] for r in rated], dtype=int)
    rater = np.array([raters.setdefault((r.rater, r.scale), len(raters)) for r in rated], dtype=int)
    value, level = np.array([r.value for r in rated]), np.zeros(len(rated), dtype=int)
    for one in np.unique(rater):
        level[rater == one] = _levels(value[rater == one])
    return Stars(image, level, rater)


def _dislikes(
    compared: Sequence[ComparedImages], place: Mapping[str, int], raters: dict[tuple[Any, ...], int]
) -> Stars:
    """Both bad: each picture lies below a cut-point of its rater, of which nothing else is known."""
    bad = [(place[image], one.rater) for one in compared if one.winner == "both_bad" for image in (one.left, one.right)]
    rater = [raters.setdefault((name, "both bad"), len(raters)) for _, name in bad]
    return Stars(np.array([i for i, _ in bad], dtype=int), np.zeros(len(bad), dtype=int), np.array(rater, dtype=int))


def judgements(
    rated: Sequence[RatedImage], compared: Sequence[ComparedImages], features: Mapping[str, Array]
) -> Judgements:
    """What the store says, beside the features of every picture in it by image id. Raises TooFewJudgementsError."""
    chosen = [one for one in compared if one.winner in LABELS]
    if len(rated) < FEWEST_STARS and len(chosen) < FEWEST_CHOICES:
        raise TooFewJudgementsError(
            f"There are {len(rated)} ratings and {len(chosen)} comparisons, too few to learn a taste from: "
            f"give at least {FEWEST_STARS} ratings or {FEWEST_CHOICES} comparisons; 100 or more are better."
        )
    prompts = {r.image_id: r.prompt for r in rated}
    for one in compared:
        if one.winner in LABELS or one.winner == "both_bad":
            prompts |= {one.left: one.left_prompt, one.right: one.right_prompt}
    place = {image_id: i for i, image_id in enumerate(prompts)}
    raters: dict[tuple[Any, ...], int] = {}
    stars, bad = _stars(rated, place, raters), _dislikes(compared, place, raters)
    stars = Stars(*(np.concatenate([getattr(s, k) for s in (stars, bad)]) for k in ("image", "level", "rater")))
    choices = Choices(
        np.array([place[one.left] for one in chosen], dtype=int),
        np.array([place[one.right] for one in chosen], dtype=int),
        np.array([LABELS[one.winner] for one in chosen], dtype=float),
    )
    if not len(choices) and all(stars.level[stars.rater == r].max() == 0 for r in np.unique(stars.rater)):
        raise TooFewJudgementsError("All ratings are the same, so there is nothing to learn: use more of the scale.")
    groups = [prompt_group(prompt) or f"picture {image_id}" for image_id, prompt in prompts.items()]
    return Judgements(np.stack([features[image_id] for image_id in prompts]), groups, stars, choices)


# --- the prior -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Directions:
    """Principal directions of the z-scored features. basis: (F,k), spread: (k,) root mean squares along them."""

    centre: Array
    scale: Array
    basis: Array
    spread: Array

    def weights(self, whitening: float) -> Array:
        """(F,k): z-scores to coordinates whose prior is standard normal and that are of length 1 on average."""
        factor = self.spread**-whitening
        return self.basis * (factor / math.sqrt(float(((self.spread * factor) ** 2).sum())))


def _directions(features: Array) -> _Directions:
    """Raises ValueError for features that are no numbers."""
    if not np.isfinite(features).all():
        raise ValueError("The image encoder gave features that are no numbers: load it in another precision.")
    centre, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.maximum(scale, 1e-3 * max(float(scale.mean()), 1e-12))  # features that hardly move carry no taste
    _, singular, right = np.linalg.svd((features - centre) / scale, full_matrices=False)
    kept = min(MAX_DIRECTIONS, int((singular > 1e-5 * singular[0]).sum()))
    return _Directions(centre, scale, right[:kept].T, singular[:kept] / math.sqrt(len(features)))


# --- held-out prompts ------------------------------------------------------------------------------------------------


def _folds(groups: Sequence[str], seed: int = 0) -> Array:
    """(n,) the fold of each picture: whole prompt groups; with fewer than 4 prompts single pictures."""
    units = list(dict.fromkeys(groups)) if len(set(groups)) >= 4 else list(range(len(groups)))
    names = groups if len(set(groups)) >= 4 else range(len(groups))
    order = np.random.default_rng(seed).permutation(len(units))
    fold = {units[unit]: i % min(FOLDS, len(units)) for i, unit in enumerate(order)}
    return np.array([fold[name] for name in names])


@dataclass(frozen=True)
class _Pairs:
    """Held-out pairs: rows of the pictures, the probability that the left is preferred, what was said (1, 0, .5)."""

    left: Array
    right: Array
    probability: Array
    label: Array


def _star_pairs(stars: Stars, u: Array, variance: Array, posterior: Posterior) -> _Pairs:
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
    return _Pairs(*found)


def _choice_pairs(choices: Choices, u: Array, variance: Array) -> _Pairs:
    gap = u[choices.left] - u[choices.right]
    shrunk = gap / np.sqrt(1 + math.pi / 8 * (variance[choices.left] + variance[choices.right]))
    return _Pairs(choices.left, choices.right, 1 / (1 + np.exp(-shrunk)), choices.label)


@dataclass(frozen=True)
class _Held:
    likelihood: float
    pairs: _Pairs


def _held_out(z: Array, data: Judgements, fold: Array, start: Array, share: float = 1.0, seed: int = 0) -> _Held:
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
        parts += [_star_pairs(stars, u, variance, posterior), _choice_pairs(choices, u, variance)]
    joined = _Pairs(
        *(np.concatenate([getattr(p, k) for p in parts]) for k in ("left", "right", "probability", "label"))
    )
    return _Held(likelihood, joined)


def _correct(pairs: _Pairs) -> tuple[Array, _Pairs]:
    """1, 0 or .5 for each pair in which somebody preferred one side, and those pairs."""
    clear = pairs.label != 0.5
    kept = _Pairs(pairs.left[clear], pairs.right[clear], pairs.probability[clear], pairs.label[clear])
    side = np.where(np.abs(kept.probability - 0.5) < 1e-9, 0.5, (kept.probability > 0.5).astype(float))
    return 1 - np.abs(side - kept.label), kept


def _calibration(pairs: _Pairs, correct: Array) -> tuple[list[tuple[float, float, int]], float]:
    """Five bins of the favoured side's probability, and their mean distance from what came true."""
    sure = np.maximum(pairs.probability, 1 - pairs.probability)
    bins = []
    for low in np.arange(0.5, 1.0, 0.1):
        inside = (sure >= low) & (sure < low + 0.1 + 1e-9 * (low > 0.85))
        if inside.any():
            bins.append((float(sure[inside].mean()), float(correct[inside].mean()), int(inside.sum())))
    total = sum(count for *_, count in bins)
    return bins, sum(abs(p - hit) * count for p, hit, count in bins) / max(total, 1)


# --- fitting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    whitening: float
    strength: float
    z: Array
    posterior: Posterior
    held: _Held


def _choose(data: Judgements, axes: _Directions, fold: Array, on_progress: Callable[[float], None]) -> _Choice:
    phi = (data.features - axes.centre) / axes.scale
    tried: dict[tuple[float, float], tuple[Array, Posterior]] = {}
    for i, whitening in enumerate(WHITENING):
        z = phi @ axes.weights(whitening)
        for strength in STRENGTH:
            tried[whitening, strength] = (strength * z, fit(strength * z, data.stars, data.choices))
        on_progress(0.4 * (i + 1) / len(WHITENING))
    whitening, guess = max(tried, key=lambda key: tried[key][1].log_evidence)
    at = STRENGTH.index(guess)
    held = {}
    for strength in STRENGTH[max(0, at - 1) : at + 2]:
        z, posterior = tried[whitening, strength]
        held[strength] = _held_out(z, data, fold, posterior.mean)
        on_progress(0.4 + 0.1 * len(held))
    strength = max(held, key=lambda key: held[key].likelihood)
    return _Choice(whitening, strength, *tried[whitening, strength], held[strength])


def _curve(data: Judgements, chosen: _Choice, fold: Array) -> list[tuple[int, float]]:
    """Held-out accuracy with a quarter, half and all of the labels."""
    labels, points = len(data.stars) + len(data.choices), []
    for share in (0.25, 0.5):
        runs = [_held_out(chosen.z, data, fold, chosen.posterior.mean, share, seed).pairs for seed in (1, 2)]
        points.append((round(share * labels), float(np.mean([_correct(run)[0].mean() for run in runs]))))
    return [*points, (labels, float(_correct(chosen.held.pairs)[0].mean()))]


def _doubled(curve: Sequence[tuple[int, float]]) -> float:
    """What twice the labels would add, if the accuracy goes on as a - b / sqrt(labels); at least 0."""
    (few, low), (many, high) = curve[0], curve[-1]
    slope = (high - low) / (few**-0.5 - many**-0.5)
    return max(0.0, slope * (many**-0.5 - (2 * many) ** -0.5))


def _tensors(axes: _Directions, chosen: _Choice, most: float) -> tuple[dict[str, torch.Tensor], float]:
    """The head in standard deviations of the utility, and the caution: lower than `most` where std would drown mean.

    Guidance follows the gradient of mean - caution * std. The std's is bounded so that it is at most half of the
    mean's over the rated pictures (root mean square): caution is to slow, not to steer.
    """
    z, posterior = chosen.z, chosen.posterior
    variance = ((z @ posterior.covariance) * z).sum(axis=1)
    unit = math.sqrt(float((z @ posterior.mean).var() + variance.mean()))
    scaled = axes.weights(chosen.whitening) * chosen.strength
    root = scaled @ np.linalg.cholesky(posterior.covariance) / unit
    weight = scaled @ posterior.mean / unit
    pull = z @ posterior.covariance @ scaled.T / np.sqrt(variance + 1e-12)[:, None] / unit
    steepness = math.sqrt(float((pull**2).sum(axis=1).mean()))
    caution = min(most, 0.5 * float(np.linalg.norm(weight)) / max(steepness, 1e-12))
    arrays = {"centre": axes.centre, "scale": axes.scale, "weight": weight, "root": root}
    return {key: torch.from_numpy(np.ascontiguousarray(a)).float() for key, a in arrays.items()}, caution


def fit_taste(
    data: Judgements,
    encoder: Encoder,
    repeats: Agreement | None = None,
    caution: float = 1.0,
    on_progress: Callable[[float], None] = lambda done: None,
) -> tuple[TasteReward, TasteReport]:
    """Fits, measures on held-out prompts and says how good it is. on_progress: share done, 0..1. Deterministic."""
    axes, fold = _directions(data.features), _folds(data.groups)
    chosen = _choose(data, axes, fold, on_progress)
    correct, pairs = _correct(chosen.held.pairs)
    clusters = list(data.groups) if len(set(data.groups)) >= 4 else [str(i) for i in range(len(data.groups))]
    held_out = pair_accuracy(correct, [clusters[i] for i in pairs.left], [clusters[i] for i in pairs.right])
    bins, error = _calibration(pairs, correct)
    curve = _curve(data, chosen, fold) if len(correct) else []
    tensors, used = _tensors(axes, chosen, caution)
    notes = [] if len(set(data.groups)) >= 4 else ["Fewer than 4 prompts: pictures were held out, not prompts."]
    report = TasteReport(
        pictures=len(data.features), stars=len(data.stars), choices=len(data.choices), prompts=len(set(data.groups)),
        held_out=held_out, held_out_pairs=len(correct), bins=bins, calibration_error=error, curve=curve,
        doubled=_doubled(curve) if curve else 0.0, agreement=repeats.rate if repeats else None,
        repeats=repeats.repeats if repeats else 0, bound=repeats.bound if repeats else None,
        whitening=chosen.whitening, strength=chosen.strength, caution=used, notes=notes,
    )  # fmt: skip
    on_progress(1.0)
    return TasteReward(encoder, tensors, used, report.facts()), report


def describe(report: TasteReport) -> str:
    """The report in plain words."""
    held, lines = report.held_out, []
    said = [f"{report.stars} ratings"] * bool(report.stars) + [f"{report.choices} comparisons"] * bool(report.choices)
    lines.append(f"Learned from {' and '.join(said)} of {report.pictures} pictures, {report.prompts} prompts.")
    if report.held_out_pairs:
        lines.append(
            f"On prompts it had not seen it ranked {held.value:.1%} of {report.held_out_pairs} pairs as the rater did "
            f"(95 % interval {held.low:.1%} to {held.high:.1%}; guessing gives 50 %)."
        )
    if report.warning():
        lines.append(report.warning())
    if report.agreement is not None and report.bound is not None:
        lines.append(
            f"The rater gave the same answer to {report.agreement:.0%} of {report.repeats} repeated pairs, so no reward "
            f"can agree with more than {report.bound:.0%} of single answers."
        )
    lines.append(f"Its probabilities are off by {report.calibration_error:.1%} on average.")
    if report.doubled >= 0.01:
        lines.append(f"Twice as many judgements would likely add about {report.doubled:.1%}.")
    else:
        lines.append("More judgements of the same kind will likely add less than one per cent.")
    return "\n".join([*lines, *report.notes])
