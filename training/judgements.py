"""What people said, as numbers: stars as levels of a rater's scale, choices as pairs, both bad as dislikes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..feedback.pairs import LABELS, prompt_group
from ..feedback.records import ComparedImages, RatedImage
from .ordinal import MAX_LEVELS, Choices, Stars

Array = np.ndarray
FEWEST_STARS, FEWEST_CHOICES, FEWEST_TAGGED = 8, 8, 4


class TooFewJudgementsError(ValueError):
    """Too little was said to learn from; the message says how much more is needed."""


@dataclass(frozen=True)
class Judgements:
    """Pictures and what was said of them. features: (n,F); groups: the prompt group of each picture."""

    features: Array
    groups: Sequence[str]
    stars: Stars
    choices: Choices


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
    return Stars(image, level, rater, np.array([r.weight for r in rated], dtype=float))


def _dislikes(
    compared: Sequence[ComparedImages], place: Mapping[str, int], raters: dict[tuple[Any, ...], int]
) -> Stars:
    """Both bad: each picture lies below a cut-point of its rater, of which nothing else is known."""
    bad = [(place[image], one.rater) for one in compared if one.winner == "both_bad" for image in (one.left, one.right)]
    rater = [raters.setdefault((name, "both bad"), len(raters)) for _, name in bad]
    place_of, level = np.array([i for i, _ in bad], dtype=int), np.zeros(len(bad), dtype=int)
    return Stars(place_of, level, np.array(rater, dtype=int), np.ones(len(bad)))


def check_tagged(rated: Sequence[RatedImage], tag: str) -> tuple[int, int]:
    """(pictures with the tag, pictures seen without it), as ratings of 1 and 0. Raises TooFewJudgementsError."""
    having = {r.image_id for r in rated if r.value > 0.5}
    without = {r.image_id for r in rated if r.value <= 0.5} - having
    if not having:
        raise TooFewJudgementsError(
            f"No picture of this feedback has the tag “{tag}”; put it on some, or write another."
        )
    if min(len(having), len(without)) < FEWEST_TAGGED:
        raise TooFewJudgementsError(
            f"{len(having)} pictures have the tag “{tag}” and {len(without)} were tagged or rated without it, too few "
            f"to learn the difference from: {FEWEST_TAGGED} of each are the least; 50 are better."
        )
    return len(having), len(without)


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
    columns = ("image", "level", "rater", "weight")
    stars = Stars(*(np.concatenate([getattr(s, name) for s in (stars, bad)]) for name in columns))
    choices = Choices(
        np.array([place[one.left] for one in chosen], dtype=int),
        np.array([place[one.right] for one in chosen], dtype=int),
        np.array([LABELS[one.winner] for one in chosen], dtype=float),
    )
    if not len(choices) and all(stars.level[stars.rater == r].max() == 0 for r in np.unique(stars.rater)):
        raise TooFewJudgementsError("All ratings are the same, so there is nothing to learn: use more of the scale.")
    groups = [prompt_group(prompt) or f"picture {image_id}" for image_id, prompt in prompts.items()]
    return Judgements(np.stack([features[image_id] for image_id in prompts]), groups, stars, choices)
