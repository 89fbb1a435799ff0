"""How a row of pictures is judged: by the independent judge and the rater's true taste, never by a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from . import judge as judging
from . import rater


@dataclass(frozen=True)
class Prompt:
    text: str
    words: dict[str, str]  # attribute -> word, what the judge checks
    seed: int


@dataclass(frozen=True)
class Row:
    """Judged pictures, `per_prompt` in a row for each prompt; the same prompts, seeds and order in every row."""

    images: torch.Tensor
    truth: judging.Truth
    prompts: list[Prompt]
    features: np.ndarray

    @property
    def per_prompt(self) -> int:
        return len(self.images) // len(self.prompts)

    def words(self) -> list[dict[str, str]]:
        return [p.words for p in self.prompts for _ in range(self.per_prompt)]

    def taste(self, without: tuple[str, ...] = ()) -> np.ndarray:
        return rater.utility(self.truth, self.words(), without)


def judged(images: torch.Tensor, prompts: list[Prompt], judge: judging.Judge) -> Row:
    return Row(images, judging.look(judge, images), prompts, judging.features(judge, images))


def attribute_hits(row: Row) -> dict[str, np.ndarray]:
    """By attribute: for each picture whether the prompted word is true, nan where the prompt left it open."""
    said = row.words()
    hits: dict[str, np.ndarray] = {}
    for attribute in ("shape", "colour", "count", "size", "place", "light", "texture"):
        column = np.full(len(row.images), np.nan)
        for word in {w[attribute] for w in said if attribute in w}:
            asked = np.array([w.get(attribute) == word for w in said])
            column[asked] = row.truth.holds(attribute, word)[asked]
        hits[attribute] = column
    return hits


def attribute_accuracy(row: Row) -> float:
    """Mean over the attributes of the share of pictures in which the prompted word is true."""
    return float(np.mean([np.nanmean(column) for column in attribute_hits(row).values() if not np.isnan(column).all()]))


def diversity(features: np.ndarray) -> float:
    """Mean pairwise Euclidean distance of unit features (N, F)."""
    gram = np.clip(features @ features.T, -1, 1)
    upper = np.triu_indices(len(features), 1)
    return float(np.sqrt(2 - 2 * gram[upper]).mean())


def diversity_within(row: Row) -> float:
    """The same among the pictures of one prompt, averaged over prompts."""
    groups = row.features.reshape(len(row.prompts), row.per_prompt, -1)
    return float(np.mean([diversity(group) for group in groups]))


def paired_interval(difference: np.ndarray, per_prompt: int) -> tuple[float, list[float]]:
    """Mean and 95 % t interval of paired differences; pictures of one prompt count as one cluster."""
    cluster = difference.reshape(-1, per_prompt).mean(1)
    half = stats.t.ppf(0.975, len(cluster) - 1) * cluster.std(ddof=1) / np.sqrt(len(cluster))
    return float(cluster.mean()), [float(cluster.mean() - half), float(cluster.mean() + half)]


def summary(row: Row, plain: Row) -> dict[str, Any]:
    """What report.json holds for one row. Every *_interval is of the paired difference to plain."""
    taste, base = row.taste(), plain.taste()
    bare, bare_base = row.taste(("watermark",)), plain.taste(("watermark",))
    k = row.per_prompt
    gain, gain_interval = paired_interval(taste - base, k)
    bare_gain, bare_interval = paired_interval(bare - bare_base, k)
    hits = np.nanmean(np.stack(list(attribute_hits(row).values())), 0)
    hits_plain = np.nanmean(np.stack(list(attribute_hits(plain).values())), 0)
    return {
        "n": len(row.images),
        "watermark_rate": float(row.truth.marked().mean()),
        "watermark_difference_interval": paired_interval(row.truth.marked().astype(float) - plain.truth.marked(), k)[1],
        "attribute_accuracy": attribute_accuracy(row),
        "attribute_difference_interval": paired_interval(np.nan_to_num(hits - hits_plain), k)[1],
        "diversity": diversity(row.features),
        "diversity_ratio": diversity(row.features) / diversity(plain.features),
        "diversity_within_prompt_ratio": diversity_within(row) / diversity_within(plain),
        "taste_mean": float(taste.mean()),
        "taste_sd": float(taste.std(ddof=1)),
        "taste_gain": gain,
        "taste_gain_interval": gain_interval,
        "taste_gain_in_sd_of_plain": gain / float(base.std(ddof=1)),
        "taste_gain_without_watermark": bare_gain,
        "taste_gain_without_watermark_interval": bare_interval,
        "taste_gain_without_watermark_in_sd_of_plain": bare_gain / float(bare_base.std(ddof=1)),
    }


def pair_accuracy(
    scores: np.ndarray, utility: np.ndarray, per_prompt: int, pairs: int, rng: np.random.Generator
) -> tuple[float, list[float]]:
    """How often the learned score ranks a fresh pair as one noisy answer of the rater does, with a 95 % interval.

    The pairs share pictures, so the interval is a bootstrap over prompts, not over pairs.
    """
    n = len(scores)
    left, right = np.triu_indices(n, 1)
    chosen = rng.choice(len(left), size=min(pairs, len(left)), replace=False)
    left, right = left[chosen], right[chosen]
    answer = rater.prefers_left(utility[left], utility[right], rng)
    hit = ((scores[left] > scores[right]) == answer).astype(float)
    groups = n // per_prompt
    boot = []
    for _ in range(1000):
        weight = np.bincount(rng.integers(groups, size=groups), minlength=groups)
        w = weight[left // per_prompt] * weight[right // per_prompt]
        boot.append((hit * w).sum() / max(w.sum(), 1))
    return float(hit.mean()), [float(np.quantile(boot, q)) for q in (0.025, 0.975)]


def bound(agreement: float) -> float:
    """No model agrees more often with one answer of a rater whose repeats agree this often: (1 + sqrt(2a - 1)) / 2."""
    return (1 + np.sqrt(max(2 * agreement - 1, 0))) / 2
