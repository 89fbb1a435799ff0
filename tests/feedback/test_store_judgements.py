"""What the store promises about what people say of pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from feedback_loop.feedback.records import (
    Comment,
    Comparison,
    Conflict,
    Feedback,
    Generation,
    ModelRun,
    NotFound,
    NotYours,
    Rating,
    RequestKey,
)
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture


@pytest.fixture
def image(store: FeedbackStore) -> str:
    return store.add_image(picture(), Generation(prompt="a red circle"), "c")


def values(store: FeedbackStore, feedback: Feedback | None = None) -> list[float]:
    return [one.value for one in store.rated(feedback or store.feedback())]


def test_stars_become_fractions_and_keep_their_scale(store: FeedbackStore, image: str):
    """4 of 1..5 is (4 - 1) / (5 - 1) = .75."""
    store.add_rating(Rating(image, 4, "me"))
    (one,) = store.rated(store.feedback("c"))
    assert (one.image_id, one.prompt, one.value, one.raw, one.scale) == (image, "a red circle", 0.75, 4, (1, 5))


def test_the_latest_rating_of_a_rater_counts(store: FeedbackStore, image: str):
    for raw in (1, 5, 3):
        store.add_rating(Rating(image, raw, "me"))
    store.add_rating(Rating(image, 5, "you"))
    store.add_rating(Rating(image, 2, "me", axis="sharpness"))
    assert values(store) == [0.5, 1.0]
    assert len(store.image(image).ratings) == 3


def test_undo_is_a_new_row_and_brings_the_rating_before_back(store: FeedbackStore, image: str):
    store.add_rating(Rating(image, 2, "me"))
    second = store.add_rating(Rating(image, 5, "me"))
    before = store.feedback()
    undo = store.undo(second, "me")
    assert undo != second
    assert values(store) == [0.25]
    assert values(store, before) == [1.0], "the past stays as it was"
    assert store.undo(second, "me") == undo, "undoing twice is undoing once"


def test_clearing_takes_all_of_a_raters_stars_on_that_axis_away(store: FeedbackStore, image: str):
    for raw in (2, 4):
        latest = store.add_rating(Rating(image, raw, "me"))
    store.add_rating(Rating(image, 3, "you"))
    store.add_rating(Rating(image, 3, "me", axis="sharpness"))
    store.undo(latest, clear=True)
    assert [(one.rater, one.axis) for one in store.image(image).ratings] == [("you", "overall"), ("me", "sharpness")]


def test_only_ones_own_judgements_can_be_undone(store: FeedbackStore, image: str):
    rating = store.add_rating(Rating(image, 2, "me"))
    with pytest.raises(NotYours):
        store.undo(rating, "you")
    assert values(store) == [0.25]


def test_an_undo_can_not_be_undone(store: FeedbackStore, image: str):
    undo = store.undo(store.add_rating(Rating(image, 2, "me")))
    with pytest.raises(Conflict):
        store.undo(undo)


def test_the_comment_goes_with_the_rating_that_it_was_given_with(store: FeedbackStore, image: str):
    rating = store.add_rating(Rating(image, 2, "me", comment="too dark"))
    store.add_comment(Comment(image, "nice shape", "me"))
    assert store.stats().comments == 2
    store.undo(rating)
    assert (store.stats().comments, store.stats().ratings) == (1, 0)


def test_judging_an_unknown_picture_is_an_error_and_leaves_no_trace(store: FeedbackStore, image: str):
    revision = store.revision()
    with pytest.raises(NotFound):
        store.add_rating(Rating("nope", 2, "me"))
    with pytest.raises(NotFound):
        store.add_comparison(Comparison(image, "nope", "left", "me"))
    with pytest.raises(NotFound):
        store.undo("nope")
    assert store.revision() == revision
    assert store.stats().raters == 0


def test_feedback_picks_by_collection_rater_axis_and_number_of_raters(store: FeedbackStore):
    a, b = (store.add_image(picture(n), Generation(prompt=f"p{n}"), f"c{n}") for n in range(2))
    for id_, rater in ((a, "me"), (a, "you"), (b, "me")):
        store.add_rating(Rating(id_, 5, rater))
    now = store.revision()
    assert len(store.rated(Feedback(now))) == 3
    assert [one.image_id for one in store.rated(Feedback(now, collection="c1"))] == [b]
    assert [one.image_id for one in store.rated(Feedback(now, raters=("you",)))] == [a]
    assert [one.image_id for one in store.rated(Feedback(now, min_ratings=2))] == [a, a]
    assert store.rated(Feedback(now, axis="other")) == []


def test_new_pictures_do_not_change_the_feedback_but_judgements_do(store: FeedbackStore, image: str):
    before = store.feedback()
    store.add_image(picture(1), Generation(), "c")
    store.add_embedding(image, "e", np.ones(2))
    assert store.feedback() == before
    rating = store.add_rating(Rating(image, 5, "me"))
    rated = store.feedback()
    store.undo(rating)
    assert before.revision < rated.revision < store.feedback().revision


def test_every_write_raises_the_revision(store: FeedbackStore, image: str):
    revisions = [store.revision()]
    for raw in (1, 2, 3):
        store.add_rating(Rating(image, raw, "me"))
        revisions.append(store.revision())
    assert revisions == sorted(set(revisions))


def test_comparisons_come_back_with_both_prompts(store: FeedbackStore):
    a, b = (store.add_image(picture(n), Generation(prompt=f"p{n}"), "c") for n in range(2))
    kept = store.add_comparison(Comparison(a, b, "tie", "me", strength=0.5, policy="random", propensity=0.1))
    gone = store.add_comparison(Comparison(b, a, "left", "me"))
    store.undo(gone)
    (one,) = store.compared(store.feedback("c"))
    assert (one.comparison_id, one.left, one.right, one.winner) == (kept, a, b, "tie")
    assert (one.left_prompt, one.right_prompt, one.strength) == ("p0", "p1", 0.5)
    assert store.compared(store.feedback("another")) == []


def test_the_same_request_sent_twice_writes_once(store: FeedbackStore, image: str):
    key = RequestKey("k", "hash")
    first = store.add_rating(Rating(image, 2, "me"), key)
    assert store.add_rating(Rating(image, 2, "me"), key) == first
    assert store.stats().ratings == 1
    with pytest.raises(Conflict, match="Idempotency-Key"):
        store.add_rating(Rating(image, 3, "me"), RequestKey("k", "another hash"))


def test_a_request_that_failed_does_not_use_its_key_up(store: FeedbackStore, image: str):
    key = RequestKey("k", "hash")
    with pytest.raises(NotFound):
        store.add_rating(Rating("nope", 2, "me"), key)
    assert store.add_rating(Rating(image, 2, "me"), key)


def test_what_was_written_is_there_after_opening_again(open_store: Callable[[], FeedbackStore]):
    first = open_store()
    id_ = first.add_image(picture(), Generation(), "c")
    first.add_rating(Rating(id_, 5, "me"))
    run = first.add_model_run(ModelRun("taste", "t", first.revision(), "blake3:0", {"l2": 1.0}, {"accuracy": 0.7}))
    first.close()
    again = open_store()
    assert run
    assert values(again) == [1.0]
    assert again.revision() == 3
