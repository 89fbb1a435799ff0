"""Judgements become preference pairs."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone

import numpy as np
import pytest

from feedback_loop.feedback.pairs import (
    Pair,
    accuracy_bound,
    both_bad,
    compared_pairs,
    prompt_group,
    rated_pairs,
    self_agreement,
    split_of,
)
from feedback_loop.feedback.records import ComparedImages, Generation, RatedImage, Winner

NOW = datetime.now(timezone.utc)


def rated(image: str, value: float, prompt: str | None = "p", rater: str = "me", axis: str = "overall") -> RatedImage:
    return RatedImage(f"r {image}", image, prompt, value, 1 + 4 * value, (1, 5), rater, axis, NOW, Generation())


def compared(left: str, right: str, winner: Winner, strength: float | None = None, rater: str = "me") -> ComparedImages:
    return ComparedImages("c", left, right, winner, strength, rater, "overall", NOW, "p", "q")


def preferences(pairs: list[Pair]) -> list[tuple[str, str]]:
    return sorted((pair.chosen, pair.rejected) for pair in pairs)


def test_stars_make_all_pairs_of_different_scores():
    """Scores 0, .5, .5, 1: of the six pairs one is a tie."""
    pairs = rated_pairs([rated("a", 0), rated("b", 0.5), rated("c", 0.5), rated("d", 1)])
    assert preferences(pairs) == [("b", "a"), ("c", "a"), ("d", "a"), ("d", "b"), ("d", "c")]
    assert {pair.gap for pair in pairs if pair.same_prompt} == {0.5, 1.0}


def test_ties_are_pairs_only_if_asked_for():
    pairs = rated_pairs([rated("a", 0.5), rated("b", 0.5)], ties=True)
    assert [(pair.label, pair.gap) for pair in pairs] == [(0.5, 0.0)]
    assert rated_pairs([rated("a", 0.5), rated("b", 0.5)]) == []


def test_scores_of_two_raters_or_two_axes_never_make_a_pair():
    assert rated_pairs([rated("a", 0), rated("b", 1, rater="you"), rated("c", 1, axis="sharpness")]) == []


def test_pairs_within_prompts_leave_out_what_has_no_prompt():
    """Letters' case and spaces are no difference of prompts."""
    ratings = [rated("a", 0, "a Cat"), rated("b", 1, "a  cat "), rated("c", 1, "dog"), rated("d", 0, None)]
    ratings.append(rated("e", 1, None))
    assert preferences(rated_pairs(ratings, across_prompts=False)) == [("b", "a")]
    assert len(rated_pairs(ratings)) == 6


def test_small_differences_can_be_left_out():
    pairs = rated_pairs([rated("a", 0), rated("b", 0.25), rated("c", 1)], min_gap=0.5)
    assert preferences(pairs) == [("c", "a"), ("c", "b")]


def test_a_limit_draws_without_repeats_and_by_seed():
    ratings = [rated(str(n), n / 20) for n in range(20)]
    first, same, other = (rated_pairs(ratings, limit=50, seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    assert len(set(preferences(first))) == 50


def test_a_limit_on_very_many_ratings_still_gives_that_many_distinct_pairs():
    """2,000 ratings make 1,999,000 pairs, which are not all made to choose 500."""
    generator = np.random.default_rng(0)
    ratings = [rated(str(n), float(value)) for n, value in enumerate(generator.random(2000))]
    pairs = rated_pairs(ratings, limit=500)
    assert len(set(preferences(pairs))) == 500
    values = {one.image_id: one.value for one in ratings}
    assert all(values[pair.chosen] > values[pair.rejected] for pair in pairs)


def test_swapping_the_sides_keeps_the_preference():
    (pair,) = rated_pairs([rated("a", 0, "p"), rated("b", 1, "q")])
    swapped = pair.swapped()
    assert (swapped.left, swapped.label, swapped.left_prompt) == ("b", 1 - pair.label, "q")
    assert (swapped.chosen, swapped.rejected) == (pair.chosen, pair.rejected)
    assert swapped.swapped() == pair


def test_choices_become_pairs_and_only_choices():
    judged = [
        compared("a", "b", "left", 0.25),
        compared("a", "c", "right"),
        compared("a", "d", "tie"),
        compared("a", "e", "both_bad"),
        compared("e", "f", "both_bad"),
        compared("a", "g", "skip"),
    ]
    pairs = compared_pairs(judged)
    assert [(pair.right, pair.label, pair.gap) for pair in pairs] == [("b", 1, 0.25), ("c", 0, 1), ("d", 0.5, 0)]
    assert not any(pair.same_prompt for pair in pairs)
    assert [pair.right for pair in compared_pairs(judged, ties=False)] == ["b", "c"]
    assert both_bad(judged) == ["a", "e", "f"]


def test_a_prompt_is_always_in_the_same_part_of_the_data():
    parts = Counter(split_of(f"prompt {n}") for n in range(4000))
    assert split_of("A  prompt ") == split_of("a prompt")
    assert split_of(None) in parts
    # 400 of 4,000 expected in each small part; three standard deviations are 3 * sqrt(4000 * .1 * .9) = 57
    assert all(abs(parts[name] - 400) < 57 for name in ("test", "validation"))
    assert {split_of(f"prompt {n}", 0, 0) for n in range(100)} == {"train"}


def test_prompt_groups_keep_unknown_apart_from_empty():
    assert prompt_group(None) is None
    assert prompt_group("  ") == ""


def test_self_agreement_compares_each_answer_with_the_one_before_it():
    """a-b: left, then the other way round the same picture, then the other one: 1 of 2; c-d: 1 of 1; e-f: once."""
    judged = [
        compared("a", "b", "left"),
        compared("b", "a", "right"),
        compared("a", "b", "right"),
        compared("c", "d", "left"),
        compared("c", "d", "tie"),
        compared("d", "c", "right"),
        compared("e", "f", "left"),
        compared("a", "b", "left", rater="you"),
    ]
    agreement = self_agreement(judged)
    assert (agreement.same, agreement.repeats) == (2, 3)
    assert agreement.bound == pytest.approx((1 + np.sqrt(2 * 2 / 3 - 1)) / 2)
    assert self_agreement([]).rate is None


@pytest.mark.parametrize(("agreement", "bound"), [(1.0, 1.0), (0.75, 0.8535534), (0.5, 0.5), (0.3, 0.5)])
def test_the_bound_that_self_agreement_sets(agreement: float, bound: float):
    assert accuracy_bound(agreement) == pytest.approx(bound)
