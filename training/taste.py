"""Learns a taste from ratings and choices: a Bayesian linear head on encoder features (feedback.rewards.taste).

Judgements of one prompt's pictures also share what that prompt makes good or bad by itself, a random effect (Laird and
Ware 1982): left out, it would be read into what these pictures happen to have in common. It is no part of the taste.

The prior: z-scored features in their principal directions, w_j ~ N(0, strength^2 * s_j^(-2 * whitening)), s_j the
spread along direction j. `whitening` 0 is a ridge on the z-scores; more of it listens to quieter directions. It is
chosen by the Laplace evidence, the strength (the L2 penalty) by the likelihood of prompts that were held out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..feedback.evaluation import pair_accuracy
from ..feedback.pairs import Agreement
from ..feedback.rewards.base import Encoder
from ..feedback.rewards.taste import TasteReward
from .held_out import Held, calibration, correct_pairs, folds, held_out
from .judgements import Judgements
from .ordinal import Posterior, fit
from .taste_report import TasteReport, doubled

Array = np.ndarray
WHITENING = (0.0, 0.2, 0.4, 0.6)
STRENGTH = (0.3, 0.6, 1.0, 1.7, 3.0, 5.0)  # prior sd of the utility over pictures, in units of the rater's noise
MAX_DIRECTIONS = 384  # more principal directions than this cost time and carry next to nothing


PROMPT_SD = 0.7  # prior sd of what a prompt adds to the utility, in units of the rater's noise
MOST_PROMPTS = 128  # that get such an effect, those with the most pictures first: each costs as a direction does


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


def _prompt_effects(groups: Sequence[str]) -> Array:
    """(n, prompts): which prompt a picture is of, as columns beside its coordinates; none for single pictures.

    With fewer than 4 prompts pictures are held out, not prompts (`folds`), and an effect would tell their prompt's.
    """
    counts = Counter(groups)
    chosen = [name for name, count in counts.most_common(MOST_PROMPTS) if count > 1] if len(counts) >= 4 else []
    return PROMPT_SD * (np.array(groups)[:, None] == np.array(chosen, dtype=str)[None]).astype(float)


# --- fitting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """z: (n, directions + prompts), what the posterior is about; the taste is in its first columns."""

    whitening: float
    strength: float
    z: Array
    posterior: Posterior
    held: Held


def _choose(data: Judgements, axes: _Directions, fold: Array, on_progress: Callable[[float], None]) -> _Choice:
    phi, prompts = (data.features - axes.centre) / axes.scale, _prompt_effects(data.groups)
    tried: dict[tuple[float, float], tuple[Array, Posterior]] = {}
    for i, whitening in enumerate(WHITENING):
        z = phi @ axes.weights(whitening)
        for strength in STRENGTH:
            both = np.hstack([strength * z, prompts])
            tried[whitening, strength] = (both, fit(both, data.stars, data.choices))
        on_progress(0.4 * (i + 1) / len(WHITENING))
    whitening, guess = max(tried, key=lambda key: tried[key][1].log_evidence)
    at = STRENGTH.index(guess)
    held = {}
    for strength in STRENGTH[max(0, at - 1) : at + 2]:
        z, posterior = tried[whitening, strength]
        held[strength] = held_out(z, data, fold, posterior.mean)
        on_progress(0.4 + 0.1 * len(held))
    strength = max(held, key=lambda key: held[key].likelihood)
    return _Choice(whitening, strength, *tried[whitening, strength], held[strength])


def _curve(data: Judgements, chosen: _Choice, fold: Array) -> list[tuple[int, float]]:
    """Held-out accuracy with a quarter, half and all of the labels."""
    labels, points = len(data.stars) + len(data.choices), []
    for share in (0.25, 0.5):
        runs = [held_out(chosen.z, data, fold, chosen.posterior.mean, share, seed).pairs for seed in (1, 2)]
        points.append((round(share * labels), float(np.mean([correct_pairs(run)[0].mean() for run in runs]))))
    return [*points, (labels, float(correct_pairs(chosen.held.pairs)[0].mean()))]


def _tensors(axes: _Directions, chosen: _Choice, most: float) -> tuple[dict[str, torch.Tensor], float]:
    """The head in standard deviations of the utility, and the caution: lower than `most` where std would drown mean.

    Guidance follows the gradient of mean - caution * std. The std's is bounded so that it is at most half of the
    mean's over the rated pictures (root mean square): caution is to slow, not to steer.
    """
    scaled = axes.weights(chosen.whitening) * chosen.strength
    k = scaled.shape[1]
    z, mean, covariance = chosen.z[:, :k], chosen.posterior.mean[:k], chosen.posterior.covariance[:k, :k]
    variance = ((z @ covariance) * z).sum(axis=1)
    unit = math.sqrt(float((z @ mean).var() + variance.mean()))
    root = scaled @ np.linalg.cholesky(covariance) / unit
    weight = scaled @ mean / unit
    pull = z @ covariance @ scaled.T / np.sqrt(variance + 1e-12)[:, None] / unit
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
    axes, fold = _directions(data.features), folds(data.groups)
    chosen = _choose(data, axes, fold, on_progress)
    correct, pairs = correct_pairs(chosen.held.pairs)
    clusters = list(data.groups) if len(set(data.groups)) >= 4 else [str(i) for i in range(len(data.groups))]
    accuracy = pair_accuracy(correct, [clusters[i] for i in pairs.left], [clusters[i] for i in pairs.right])
    bins, error = calibration(pairs, correct)
    curve = _curve(data, chosen, fold) if len(correct) else []
    tensors, used = _tensors(axes, chosen, caution)
    notes = [] if len(set(data.groups)) >= 4 else ["Fewer than 4 prompts: pictures were held out, not prompts."]
    report = TasteReport(
        pictures=len(data.features), stars=len(data.stars), choices=len(data.choices), prompts=len(set(data.groups)),
        held_out=accuracy, held_out_pairs=len(correct), bins=bins, calibration_error=error, curve=curve,
        doubled=doubled(curve) if curve else 0.0, agreement=repeats.rate if repeats else None,
        repeats=repeats.repeats if repeats else 0, bound=repeats.bound if repeats else None,
        whitening=chosen.whitening, strength=chosen.strength, caution=used, notes=notes,
    )  # fmt: skip
    on_progress(1.0)
    return TasteReward(encoder, tensors, used, report.facts()), report
