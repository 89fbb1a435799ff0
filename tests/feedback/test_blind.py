"""Blind trials: what is asked, that nothing tells which picture is whose, and how the votes are counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from feedback_loop.feedback import blind
from feedback_loop.feedback.blind import BlindPair, Tally
from feedback_loop.feedback.records import Comparison, Generation, InvalidRecord, NotFound
from feedback_loop.feedback.results import Pair
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture

PROMPTS = ["a cat", "a dog", "a tree", "a hill"]


def shade(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


def put(store: FeedbackStore, name: str = "trial", first: int = 0, prompts: list[str] = PROMPTS) -> None:
    """A's pictures are dark (below 100), B's light, so that a test knows what the rater must not."""
    pairs = [BlindPair(text, shade(first + i), shade(100 + first + i), 7 + i) for i, text in enumerate(prompts)]
    blind.put(store, name, "blind", pairs)


def is_b(store: FeedbackStore, image_id: str) -> bool:
    return int(store.image_pixels(image_id)[0, 0, 0]) >= 100


def ask(store: FeedbackStore, rater: str = "ann", seed: int = 0, collection: str | None = "blind") -> Pair | None:
    return store.next_pair("learn", collection, rater=rater, seed=seed)


def answer(store: FeedbackStore, pair: Pair, for_b: bool | None, rater: str = "ann") -> str:
    """For B's picture, for A's, or for neither, on whichever side it is."""
    winner = "tie" if for_b is None else "left" if is_b(store, pair.left) == for_b else "right"
    return store.add_comparison(Comparison(pair.left, pair.right, winner, rater, policy=pair.policy))


def tally(store: FeedbackStore, name: str = "trial") -> Tally:
    return store.ask(lambda c: blind.tally(c, name))


def answer_all(store: FeedbackStore, values: list[bool | None], rater: str = "ann") -> None:
    for seed, value in enumerate(values):
        pair = ask(store, rater, seed)
        assert pair is not None
        answer(store, pair, value, rater)


def test_only_the_pairs_of_the_trial_are_asked_in_its_collection_and_each_rater_once(store):
    put(store)
    asked = []
    for seed in range(4):
        pair = ask(store, seed=seed)
        assert pair is not None and pair.policy == "blind"
        assert store.image(pair.left).generation.seed == store.image(pair.right).generation.seed
        assert is_b(store, pair.left) != is_b(store, pair.right)
        asked.append(frozenset((pair.left, pair.right)))
        answer(store, pair, True)
    assert len(set(asked)) == 4
    assert ask(store) is None
    assert ask(store, "bob") is not None


def test_pairs_of_a_trial_come_before_others_where_all_collections_are_compared(store):
    store.add_images([(picture(n), Generation(prompt="a cat")) for n in range(6)], "mine")
    put(store)
    assert {ask(store, seed=seed, collection=None).policy for seed in range(8)} == {"blind"}
    assert ask(store, collection="mine").policy == "learn"


def test_sides_are_drawn_by_lot(store):
    """In 60 draws B is on the left 30 times, give or take three times sqrt(60) / 2 = 3.9."""
    put(store)
    left = sum(is_b(store, ask(store, seed=seed).left) for seed in range(60))
    assert 18 <= left <= 42


def test_the_order_in_which_pictures_are_kept_and_what_is_known_of_them_do_not_tell_whose_they_are(store):
    """40 pairs: were A always first, all 40 would be; by lot 20 are, give or take three times 3.2."""
    put(store, prompts=[f"picture {i}" for i in range(40)])
    page = store.images("blind", limit=100).items
    place = {(is_b(store, one.id), one.generation.seed): i for i, one in enumerate(page)}
    first = sum(place[False, str(7 + i)] < place[True, str(7 + i)] for i in range(40))
    assert 10 <= first <= 30
    for one in page:
        made = {name: value for name, value in vars(one.generation).items() if value not in (None, 0, (), {}, "")}
        assert set(made) <= {"prompt", "seed", "versions"}


def test_votes_are_counted_for_b_whichever_side_it_was_on(store):
    """3 for B, 1 for A: .75; Wilson's interval of 3 in 4 is .3006 to .9544."""
    put(store)
    answer_all(store, [True, True, False, True])
    found = tally(store)
    assert (found.wins, found.losses, found.ties) == (3, 1, 0)
    assert (found.pairs, found.answered, found.votes, found.raters) == (4, 4, 4, 1)
    assert tuple(found.win_rate) == pytest.approx((0.75, 0.3006, 0.9544), abs=1e-4)


def test_neither_counts_half_and_a_skipped_pair_nothing(store):
    put(store)
    answer_all(store, [True, None])
    pair = ask(store)
    store.add_comparison(Comparison(pair.left, pair.right, "skip", "ann"))
    found = tally(store)
    assert (found.votes, found.ties, found.win_rate.value) == (2, 1, 0.75)


def test_what_was_taken_back_is_not_counted_and_asked_again(store):
    put(store, prompts=["a cat"])
    said = answer(store, ask(store), True)
    assert ask(store) is None
    store.undo(said)
    assert tally(store).votes == 0 and math.isnan(tally(store).win_rate.value)
    assert ask(store) is not None


def test_the_last_answer_of_a_rater_counts(store):
    put(store, prompts=["a cat"])
    pair = ask(store)
    answer(store, pair, True)
    answer(store, Pair(pair.right, pair.left, "blind", 1.0), False)
    assert (tally(store).votes, tally(store).losses) == (1, 1)


def test_ten_raters_of_one_pair_are_no_ten_pairs(store):
    """All ten for B: one pair's worth, Wilson of 1 in 1: above 1 / (1 + 1.96^2) = .2065."""
    put(store, prompts=["a cat"])
    for number in range(10):
        answer(store, ask(store, f"rater {number}"), True, f"rater {number}")
    found = tally(store)
    assert (found.votes, found.raters, found.answered) == (10, 10, 1)
    assert found.win_rate.value == 1 and found.win_rate.low == pytest.approx(0.2065, abs=1e-3)


def test_pairs_with_the_fewest_votes_are_asked_first(store):
    put(store)
    answer_all(store, [True] * 3)
    (least,) = {frozenset((pair.left, pair.right)) for pair in (ask(store, seed=s) for s in range(3))}
    for seed in range(5):
        pair = ask(store, "bob", seed)
        assert frozenset((pair.left, pair.right)) == least


def test_putting_a_trial_again_asks_nothing_anew(store):
    put(store)
    answer_all(store, [True])
    put(store)
    assert (tally(store).pairs, tally(store).votes) == (4, 1)


def test_pictures_that_are_alike_are_no_question(store):
    blind.put(store, "same", "blind", [BlindPair("a cat", shade(3), shade(3), 1)])
    assert (tally(store, "same").pairs, tally(store, "same").alike) == (0, 1)
    assert ask(store) is None


def test_a_closed_trial_asks_nobody_and_keeps_its_votes(store):
    put(store)
    answer_all(store, [True])
    store.note(lambda c: blind.close(c, "trial"))
    assert ask(store, "bob") is None
    assert tally(store).votes == 1


def test_a_deleted_picture_leaves_its_trial_and_pruning_leaves_what_waits_for_an_answer(store):
    put(store)
    answer_all(store, [True])
    pair = ask(store)
    store.delete_image(pair.left)
    assert tally(store).pairs == 3
    store.prune()
    assert tally(store).pairs == 3 and ask(store, "bob") is not None


def test_an_unknown_trial_and_one_without_pairs_are_refused(store):
    with pytest.raises(NotFound, match="no blind trial 'other'"):
        tally(store, "other")
    with pytest.raises(NotFound):
        store.note(lambda c: blind.close(c, "other"))
    with pytest.raises(InvalidRecord, match="no pair"):
        blind.put(store, "empty", "blind", [])
