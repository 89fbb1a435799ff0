"""Judgements -> preference pairs, and how well a rater agrees with themselves.

A pair says with which probability `label` its left picture is preferred: 1, 0, or 0.5 for a tie.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from .records import ComparedImages, RatedImage

Split = Literal["train", "validation", "test"]

LABELS = {"left": 1.0, "right": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Pair:
    """Two pictures of which one rater prefers one. `gap` 0..1 says how clearly; 0 for a tie."""

    left: str
    right: str
    label: float
    gap: float
    rater: str
    left_prompt: str | None
    right_prompt: str | None

    @property
    def chosen(self) -> str:
        """The preferred picture; the left one of a tie."""
        return self.left if self.label >= 0.5 else self.right

    @property
    def rejected(self) -> str:
        """The other picture."""
        return self.right if self.label >= 0.5 else self.left

    @property
    def same_prompt(self) -> bool:
        """Whether both pictures were made from the same, known words."""
        return self.left_prompt is not None and prompt_group(self.left_prompt) == prompt_group(self.right_prompt)

    def swapped(self) -> Pair:
        """The same preference with left and right exchanged."""
        sides = {"left": self.right, "right": self.left, "label": 1 - self.label}
        return replace(self, left_prompt=self.right_prompt, right_prompt=self.left_prompt, **sides)


def rated_pairs(
    rated: Iterable[RatedImage],
    across_prompts: bool = True,
    ties: bool = False,
    min_gap: float = 0.0,
    limit: int | None = None,
    seed: int = 0,
) -> list[Pair]:
    """Pairs of pictures that the same rater gave different scores on the same axis; scores of two raters never mix.

    across_prompts: also pairs of pictures with different prompts, which a taste can be fitted on but DPO cannot.
    ties: also pairs with equal scores. min_gap: the least difference of scores, as a fraction of the scale.
    limit: at most so many pairs, drawn at random with `seed`.
    """
    groups: dict[tuple[str, ...], list[RatedImage]] = defaultdict(list)
    for one in rated:
        group = (one.rater, one.axis) if across_prompts else (one.rater, one.axis, prompt_group(one.prompt) or "")
        if across_prompts or one.prompt is not None:
            groups[group].append(one)
    pairs = [
        _rated_pair(left, right)
        for members in groups.values()
        for left, right in _drawn(members, limit, seed)
        if _differs(left, right, ties, min_gap)
    ]
    return _at_most(pairs, limit, seed)


def _differs(left: RatedImage, right: RatedImage, ties: bool, min_gap: float) -> bool:
    gap = abs(left.value - right.value)
    return left.image_id != right.image_id and (ties if gap == 0 else gap >= min_gap)


def _drawn(members: Sequence[RatedImage], limit: int | None, seed: int) -> Iterable[tuple[RatedImage, RatedImage]]:
    """All pairs, or, where they are far more than asked for, enough random ones to choose from."""
    count = math.comb(len(members), 2)
    if limit is None or count <= max(100_000, 8 * limit):
        return combinations(members, 2)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(members), (max(100_000, 8 * limit), 2))
    drawn = np.unique(np.sort(drawn, axis=1), axis=0)
    return ((members[a], members[b]) for a, b in drawn.tolist() if a != b)


def _at_most(pairs: list[Pair], limit: int | None, seed: int) -> list[Pair]:
    if limit is None or len(pairs) <= limit:
        return pairs
    kept = np.random.default_rng(seed).choice(len(pairs), limit, replace=False)
    return [pairs[index] for index in np.sort(kept).tolist()]


def _rated_pair(left: RatedImage, right: RatedImage) -> Pair:
    difference = left.value - right.value
    label = 0.5 if difference == 0 else float(difference > 0)
    return Pair(left.image_id, right.image_id, label, abs(difference), left.rater, left.prompt, right.prompt)


def compared_pairs(compared: Iterable[ComparedImages], ties: bool = True) -> list[Pair]:
    """Pairs from side-by-side choices. "Both bad" says nothing of the pair, "skip" nothing at all: see `both_bad`."""
    return [
        Pair(
            left=one.left,
            right=one.right,
            label=LABELS[one.winner],
            gap=0.0 if one.winner == "tie" else 1.0 if one.strength is None else one.strength,
            rater=one.rater,
            left_prompt=one.left_prompt,
            right_prompt=one.right_prompt,
        )
        for one in compared
        if one.winner in LABELS and (ties or one.winner != "tie")
    ]


def both_bad(compared: Iterable[ComparedImages]) -> list[str]:
    """Pictures that were called bad side by side, each once: dislikes without a preference."""
    bad = [one for one in compared if one.winner == "both_bad"]
    return list(dict.fromkeys(image for one in bad for image in (one.left, one.right)))


def prompt_group(prompt: str | None) -> str | None:
    """The prompt without differences of case and spacing: pictures of one group are never split over train and test."""
    return None if prompt is None else " ".join(prompt.casefold().split())


def prompt_key(prompt: str | None) -> str:
    """A hash of the prompt's group, 32 hex digits; that of no words for None."""
    from blake3 import blake3

    return blake3((prompt_group(prompt) or "").encode("utf-8", "surrogatepass")).hexdigest()[:32]


def split_of(prompt: str | None, validation: float = 0.1, test: float = 0.1) -> Split:
    """Where pictures of this prompt belong, fixed by a hash of the words. Fractions of all prompts, 0..1."""
    place = int(prompt_key(prompt)[:16], 16) / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


@dataclass(frozen=True)
class Agreement:
    """How often a rater chose the same when a pair came again: `same` of `repeats`."""

    same: int
    repeats: int

    @property
    def rate(self) -> float | None:
        """The share of repeats that came out the same, None without repeats."""
        return self.same / self.repeats if self.repeats else None

    @property
    def bound(self) -> float | None:
        """The accuracy against single labels that no model can beat, see `accuracy_bound`."""
        return None if self.rate is None else accuracy_bound(self.rate)


def accuracy_bound(agreement: float) -> float:
    """(1 + sqrt(2a - 1)) / 2 for a rater who repeats a fraction a of choices; 0.5 where a is at most chance.

    If both answers are drawn with probability p of the true preference, they agree with a = p^2 + (1 - p)^2, and a
    model that always knows the preference is right with p.
    """
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def self_agreement(compared: Iterable[ComparedImages]) -> Agreement:
    """Consecutive answers of the same rater to the same pair on the same axis, in either order; ties left out."""
    answers: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for one in compared:
        if one.winner in ("left", "right"):
            low, high = sorted((one.left, one.right))
            answers[one.rater, one.axis, low, high].append(one.left if one.winner == "left" else one.right)
    found = [agreement(given) for given in answers.values()]
    return Agreement(sum(one.same for one in found), sum(one.repeats for one in found))


def agreement(answers: Sequence[str]) -> Agreement:
    """Of the answers to one pair, in order: how many are the same as the one before."""
    same = sum(a == b for a, b in zip(answers, answers[1:], strict=False))
    return Agreement(same, max(0, len(answers) - 1))
