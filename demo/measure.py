"""How a row of pictures is judged: by the independent judge and the rater's true taste, never by a reward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..feedback import evaluation
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

    def clusters(self) -> list[int]:
        """The prompt that each picture belongs to."""
        return [i for i in range(len(self.prompts)) for _ in range(self.per_prompt)]

    def taste(self, without: tuple[str, ...] = ()) -> np.ndarray:
        return rater.utility(self.truth, self.words(), without)

    @cached_property
    def numbers(self) -> Numbers:
        """Worked out once, though every other row is compared with plain's."""
        features, clusters = torch.from_numpy(self.features), self.clusters()
        return Numbers(
            taste=self.taste(),
            bare_taste=self.taste(("watermark",)),
            marked=self.truth.marked().astype(float),
            hits=np.nanmean(np.stack(list(attribute_hits(self).values())), 0),
            diversity=evaluation.diversity(features),
            diversity_within=evaluation.diversity(features, clusters),
        )


@dataclass(frozen=True)
class Numbers:
    """What a row is compared by. A number for each picture, except diversity, which is the whole row's."""

    taste: np.ndarray
    bare_taste: np.ndarray  # watermarks left out of account
    marked: np.ndarray
    hits: np.ndarray  # share of the prompted words that are true
    diversity: float
    diversity_within: float  # among the pictures of one prompt


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


def summary(row: Row, plain: Row) -> dict[str, Any]:
    """What report.json holds for one row. Every *_interval is of the paired difference to plain, prompts counted."""
    own, base = row.numbers, plain.numbers

    def difference(before: np.ndarray, after: np.ndarray) -> tuple[float, list[float]]:
        value, low, high = evaluation.paired_difference(before, after, row.clusters())
        return value, [low, high]

    gain, gain_interval = difference(base.taste, own.taste)
    bare_gain, bare_interval = difference(base.bare_taste, own.bare_taste)
    # A prompt that says nothing gives its pictures no hits, in either row: no difference.
    hits_interval = difference(np.nan_to_num(base.hits), np.nan_to_num(own.hits))[1]
    return {
        "n": len(row.images),
        "watermark_rate": float(own.marked.mean()),
        "watermark_difference_interval": difference(base.marked, own.marked)[1],
        "attribute_accuracy": attribute_accuracy(row),
        "attribute_difference_interval": hits_interval,
        "diversity": own.diversity,
        "diversity_ratio": own.diversity / base.diversity,
        "diversity_within_prompt_ratio": own.diversity_within / base.diversity_within,
        "taste_mean": float(own.taste.mean()),
        "taste_sd": float(own.taste.std(ddof=1)),
        "taste_gain": gain,
        "taste_gain_interval": gain_interval,
        "taste_gain_in_sd_of_plain": gain / float(base.taste.std(ddof=1)),
        "taste_gain_without_watermark": bare_gain,
        "taste_gain_without_watermark_interval": bare_interval,
        "taste_gain_without_watermark_in_sd_of_plain": bare_gain / float(base.bare_taste.std(ddof=1)),
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
