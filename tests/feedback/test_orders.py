"""Which comparisons and rankings a picture is in, as its marks list them."""

from __future__ import annotations

import pytest

from feedback_loop.feedback.marks import Ranking
from feedback_loop.feedback.records import Comparison, Generation
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture


@pytest.fixture
def images(store: FeedbackStore) -> list[str]:
    return store.add_images([(picture(n), Generation(prompt="a red circle")) for n in range(3)], "c")


def test_a_comparison_is_listed_with_both_of_its_pictures_until_it_is_taken_back(
    store: FeedbackStore, images: list[str]
) -> None:
    one, other, third = images
    id_ = store.add_comparison(Comparison(one, other, "right", "me", policy="pick_best"))
    (said,) = store.marks([one])[one].comparisons
    assert (said.id, said.left, said.right, said.winner, said.rater) == (id_, one, other, "right", "me")
    assert (said.axis, said.policy) == ("overall", "pick_best")
    # Asked together, both have the same one; the third picture has none.
    marks = store.marks(images)
    assert marks[one].comparisons == marks[other].comparisons == (said,)
    assert marks[third].comparisons == ()
    store.undo(id_)
    assert store.marks([other])[other].comparisons == ()


def test_a_ranking_is_listed_whole_and_in_order_with_each_of_its_pictures(
    store: FeedbackStore, images: list[str]
) -> None:
    one, other, third = images
    first = store.add_ranking(Ranking((third, one), "me"))
    second = store.add_ranking(Ranking((other, third, one), "you", "light"))
    rankings = store.marks([one])[one].rankings
    said = [(ranking.id, ranking.image_ids, ranking.rater, ranking.axis) for ranking in rankings]
    assert said == [(first, (third, one), "me", "overall"), (second, (other, third, one), "you", "light")]
    assert [ranking.id for ranking in store.marks([other])[other].rankings] == [second]
    store.undo(second)
    assert store.marks([other])[other].rankings == ()
