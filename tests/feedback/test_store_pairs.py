"""Which two pictures come next: what each policy prefers, by how much, and pairs that come back."""

from __future__ import annotations

from collections import Counter
from math import log, pi, sqrt

import numpy as np
import pytest

from feedback_loop.feedback.picking import Candidate, clearness, information, worth
from feedback_loop.feedback.records import Comparison, Generation, Rating
from feedback_loop.feedback.results import Pair
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture


@pytest.fixture
def images(store: FeedbackStore) -> list[str]:
    """Six pictures, two of each of three prompts, written differently."""
    prompts = ["a cat", "A  cat", "a dog", "a dog", "a tree", "a tree"]
    return store.add_images([(picture(n), Generation(prompt=prompt)) for n, prompt in enumerate(prompts)], "c")


def candidate(mean: float, variance: float, group: str | None = None) -> Candidate:
    return Candidate("id", group, mean, variance)


def picks(store: FeedbackStore, policy: str, count: int, **query: object) -> list[Pair]:
    found = [store.next_pair(policy, seed=seed, **query) for seed in range(count)]  # type: ignore[arg-type]
    assert None not in found
    return found  # type: ignore[return-value]


def test_what_a_picture_is_worth_is_the_mean_of_what_was_said_and_of_what_was_expected():
    """Precisions 16 before anything was said, 25 a rating, 6.25 a choice.

    One rating of 1: (16 * 0.5 + 25) / 41; one comparison won: (16 * 0.5 + 6.25 * 0.75) / 22.25.
    """
    assert worth([], []) == (0.5, 0.0625)
    assert worth([1.0], []) == pytest.approx((33 / 41, 1 / 41))
    assert worth([], [0.75]) == pytest.approx((12.6875 / 22.25, 1 / 22.25))


def test_an_even_pair_of_unknown_pictures_tells_most_and_a_clear_or_known_one_little():
    """With equal means the answer is a coin, 1 bit; knowing both worths would leave C / sqrt(v + C^2) of it.

    C^2 = pi ln 2 / 2 and v is the variances' sum over that of the rater's noise, here 2 * 0.04: v = 0.125 / 0.08.
    """
    square = pi * log(2) / 2
    even = information(candidate(0.5, 0.0625), candidate(0.5, 0.0625))
    assert even == pytest.approx(1 - sqrt(square / (0.125 / 0.08 + square)))
    assert even > information(candidate(0.2, 0.0625), candidate(0.8, 0.0625))
    assert even > information(candidate(0.5, 0.01), candidate(0.5, 0.01)) > 0
    assert information(candidate(0.5, 0.0), candidate(0.5, 0.0)) == pytest.approx(0, abs=1e-12)


def test_a_clear_pair_is_one_with_a_large_difference_that_is_well_known():
    """Equal means are even odds, 0. A gap of 0.5 with variances of 0.01 is 0.5 / sqrt(0.1) = 1.58 sd: 2 * .943 - 1."""
    assert clearness(candidate(0.5, 0.01), candidate(0.5, 0.01)) == 0
    assert clearness(candidate(0.25, 0.01), candidate(0.75, 0.01)) == pytest.approx(0.8862, abs=1e-3)
    assert clearness(candidate(0.25, 0.06), candidate(0.75, 0.06)) < clearness(
        candidate(0.25, 0.01), candidate(0.75, 0.01)
    )


def test_learning_asks_about_what_little_is_known_of(store: FeedbackStore, images: list[str]):
    """Four pictures have many ratings, two have none; the two are asked about far more often than 1 pair in 15."""
    for image, stars in zip(images[:4], (1, 5, 1, 5), strict=True):
        store.add_ratings([Rating(image, stars, f"rater {n}") for n in range(6)])
    unknown = Counter(frozenset((one.left, one.right)) for one in picks(store, "learn", 200))
    (most, times), *_ = unknown.most_common()
    assert most == frozenset(images[4:])
    assert times > 100


def test_training_takes_one_prompt_and_a_large_difference(store: FeedbackStore, images: list[str]):
    """Cats differ by four stars, dogs by one, trees were never rated; prompts are compared by their words.

    After six ratings the means differ by 0.904 and 0.226, that is 2.98 and 0.745 sd (0.303): clearness 0.997 and 0.544.
    Squared, the cats' share is 0.994 / (0.994 + 0.296) = 0.77, of 200 picks 154, and 4 standard errors are 24.
    """
    for image, stars in zip(images[:4], (1, 5, 3, 4), strict=True):
        store.add_ratings([Rating(image, stars, f"rater {n}") for n in range(6)])
    pairs = Counter(frozenset((one.left, one.right)) for one in picks(store, "train", 200))
    allowed = [frozenset(images[n : n + 2]) for n in (0, 2, 4)]
    assert set(pairs) <= set(allowed)
    assert 130 <= pairs[allowed[0]] <= 178
    assert pairs[allowed[1]] > 20 * pairs[allowed[2]]


def test_a_propensity_is_how_often_a_pair_is_picked(store: FeedbackStore, images: list[str]):
    """400 picks: each pair's share is within 4 standard errors of what was told, and what was told sums up to 1."""
    store.add_rating(Rating(images[0], 5, "me"))
    pairs = picks(store, "learn", 400)
    told = {frozenset((one.left, one.right)): one.propensity for one in pairs}
    seen = Counter(frozenset((one.left, one.right)) for one in pairs)
    assert sum(told.values()) == pytest.approx(1.0)
    for pair, propensity in told.items():
        assert abs(seen[pair] / 400 - propensity) < 4 * sqrt(propensity * (1 - propensity) / 400) + 1e-9


def test_sides_are_drawn_by_lot(store: FeedbackStore, images: list[str]):
    """Of 200 fair lots, within 4 standard errors of a half: 72 to 128."""
    first = sum(one.left < one.right for one in picks(store, "learn", 200))
    assert 72 <= first <= 128


def test_a_pair_is_not_asked_again_but_for_pairs_that_come_back(store: FeedbackStore, images: list[str]):
    """Five comparisons are too few for any to come back; another rater may get the same pairs."""
    for other in images[1:]:
        store.add_comparison(Comparison(images[0], other, "left", "me"))
    mine = picks(store, "learn", 60, rater="me")
    assert all(images[0] not in (one.left, one.right) and one.repeat_of is None for one in mine)
    assert any(images[0] in (one.left, one.right) for one in picks(store, "learn", 60, rater="you"))


def test_five_to_ten_percent_of_pairs_come_back_with_their_sides_exchanged(store: FeedbackStore):
    """400 picks, 7.5 % expected: 4 standard errors are 5.3 %, so 2.2 to 12.8 %; at least one must come."""
    images = store.add_images([(picture(n), Generation(prompt="p")) for n in range(12)], "c")
    given = {}
    for n in range(10):
        left, right = images[n], images[n + 1]
        given[store.add_comparison(Comparison(left, right, "left" if n % 2 else "right", "me"))] = (left, right)
    tie = store.add_comparison(Comparison(images[0], images[5], "tie", "me"))
    pairs = picks(store, "learn", 400, rater="me")
    back = [one for one in pairs if one.repeat_of is not None]
    assert 0.022 * 400 <= len(back) <= 0.128 * 400
    assert all(given[one.repeat_of] == (one.right, one.left) for one in back)  # type: ignore[index]
    assert tie not in {one.repeat_of for one in back}
    latest = list(given)[-4:]
    assert not {one.repeat_of for one in back} & set(latest), "what was just answered is not asked again"
    assert all(0 < one.propensity < 0.1 for one in back)
    assert all(one.repeat_of is None for one in picks(store, "learn", 60, rater="you"))


def test_an_answer_to_a_pair_that_came_back_is_a_repeat(store: FeedbackStore):
    images = store.add_images([(picture(n), Generation(prompt="p")) for n in range(12)], "c")
    for n in range(10):
        store.add_comparison(Comparison(images[n], images[n + 1], "left", "me"))
    back = next(one for one in picks(store, "learn", 200, rater="me") if one.repeat_of is not None)
    store.add_comparison(Comparison(back.left, back.right, "right", "me", policy="learn", propensity=back.propensity))
    (me,) = store.reliability()
    assert (me.self_agreement, me.repeats) == (1.0, 1)


def test_pairs_are_of_the_collection_asked_for(store: FeedbackStore, images: list[str]):
    others = store.add_images([(picture(20 + n), Generation(prompt="a cat")) for n in range(2)], "d")
    for policy in ("learn", "train"):
        for one in picks(store, policy, 20, collection="d"):
            assert {one.left, one.right} == set(others)


def test_where_there_are_no_two_pictures_there_is_no_pair(store: FeedbackStore):
    assert store.next_pair() is None
    one = store.add_image(picture(), Generation(prompt="p"), "c")
    assert store.next_pair() is None
    other = store.add_image(picture(1), Generation(prompt="q"), "c")
    assert store.next_pair("train") is None, "different prompts say little of which is better"
    assert store.next_pair("learn", "nowhere") is None
    store.add_comparison(Comparison(one, other, "left", "me"))
    assert store.next_pair("learn", rater="me") is None, "all was asked"


def test_many_pictures_are_sampled_from_everywhere(store: FeedbackStore):
    """Of 120 pictures, 16 are looked at each time; 150 picks show most of them, old ones as well as new."""
    ids = store.add_images([(picture(n, size=2), Generation(prompt=f"p{n}")) for n in range(120)], "c")
    seen = {side for one in picks(store, "learn", 150) for side in (one.left, one.right)}
    thirds = [len(seen & set(ids[start : start + 40])) for start in (0, 40, 80)]
    assert min(thirds) > 20
    assert np.sum(thirds) == len(seen)
