"""What a Feedback query picks: dates, kinds, tags, splits, rankings as pairs, interactions by their weight."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from feedback_loop.feedback.marks import Interaction, Ranking, Tag
from feedback_loop.feedback.pairs import split_of
from feedback_loop.feedback.records import Comparison, Feedback, Generation, InvalidRecord, Rating
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture


@pytest.fixture
def images(store: FeedbackStore) -> list[str]:
    return store.add_images([(picture(n), Generation(prompt=f"p{n}")) for n in range(4)], "c")


def values(store: FeedbackStore, **query: object) -> dict[str, float]:
    return {one.image_id: one.value for one in store.rated(store.feedback(**query))}  # type: ignore[arg-type]


def test_a_ranking_gives_all_its_pairs(store: FeedbackStore, images: list[str]):
    """Four pictures in order have 4 * 3 / 2 = 6 pairs; the first and the last differ most, 3 of 3 places."""
    ranking = store.add_ranking(Ranking(tuple(images), "me"))
    pairs = store.compared(store.feedback("c"))
    better = {(one.left, one.right) if one.winner == "left" else (one.right, one.left) for one in pairs}
    assert better == {(images[a], images[b]) for a in range(4) for b in range(a + 1, 4)}
    assert {one.winner for one in pairs} == {"left", "right"}, "sides change, so that none is always the better"
    assert {one.kind for one in pairs} == {"ranking"}
    assert len({one.comparison_id for one in pairs}) == 6
    strengths = {frozenset((one.left, one.right)): one.strength for one in pairs}
    assert strengths[frozenset((images[0], images[3]))] == 1.0
    assert strengths[frozenset((images[1], images[2]))] == pytest.approx(1 / 3)
    store.undo(ranking)
    assert store.compared(store.feedback("c")) == []


def test_a_ranking_over_two_collections_counts_by_its_part_in_each(store: FeedbackStore, images: list[str]):
    other = store.add_image(picture(9), Generation(), "d")
    store.add_ranking(Ranking((images[0], other, images[1]), "me"))
    (pair,) = store.compared(store.feedback("c"))
    assert {pair.left, pair.right} == set(images[:2])
    assert len(store.compared(store.feedback())) == 3
    assert store.compared(store.feedback("d")) == []


def test_kinds_that_are_not_asked_for_are_left_out(store: FeedbackStore, images: list[str]):
    store.add_rating(Rating(images[0], 5, "me"))
    store.add_comparison(Comparison(images[0], images[1], "left", "me"))
    store.add_ranking(Ranking(tuple(images[:2]), "me"))
    assert values(store, kinds=("comparison",)) == {}
    assert [one.kind for one in store.compared(store.feedback(kinds=("comparison",)))] == ["comparison"]
    assert [one.kind for one in store.compared(store.feedback(kinds=("ranking",)))] == ["ranking"]
    assert store.compared(store.feedback(kinds=("rating",))) == []


def test_interactions_are_never_mixed_in_unless_asked_for(store: FeedbackStore, images: list[str]):
    store.add_interaction(Interaction("saved", images[0], "me"))
    assert values(store) == {}
    (one,) = store.rated(store.feedback(kinds=("rating", "interaction"), interaction_weight=0.3))
    assert (one.image_id, one.value, one.weight, one.kind) == (images[0], 1.0, 0.3, "interaction")
    assert values(store, kinds=("interaction",), interaction_weight=0.0) == {}
    assert values(store, kinds=("interaction",), axis="colour") == {}


def test_interactions_say_yes_or_no_and_their_mean_counts(store: FeedbackStore, images: list[str]):
    """Saved is 1, deleted 0, both together 0.5; inpainting says yes and no."""
    for kind, image in (("saved", 0), ("deleted", 1), ("saved", 2), ("deleted", 2), ("inpainted", 3)):
        store.add_interaction(Interaction(kind, images[image], "me"))  # type: ignore[arg-type]
    expected = dict(zip(images, (1.0, 0.0, 0.5, 0.5), strict=True))
    assert values(store, kinds=("interaction",)) == expected


def test_a_rating_is_worth_more_than_what_its_rater_did(store: FeedbackStore, images: list[str]):
    """Also where ratings were not asked for: what somebody said outright replaces what was concluded of them."""
    store.add_interaction(Interaction("saved", images[0], "me"))
    store.add_interaction(Interaction("saved", images[0], "you"))
    rating = store.add_rating(Rating(images[0], 1, "me"))
    both = store.rated(store.feedback(kinds=("rating", "interaction")))
    assert [(one.rater, one.kind, one.value) for one in both] == [("you", "interaction", 1.0), ("me", "rating", 0.0)]
    assert [one.rater for one in store.rated(store.feedback(kinds=("interaction",)))] == ["you"]
    store.undo(rating)
    assert len(store.rated(store.feedback(kinds=("interaction",)))) == 2


def test_a_tag_is_learned_from_who_has_it_and_from_what_its_users_passed_over(store: FeedbackStore, images: list[str]):
    """a has the tag, b another one, c a rating, d nothing; somebody who never used the tag says nothing about it."""
    a, b, c, _ = images
    store.add_tag(Tag(a, "sharp", "me"))
    store.add_tag(Tag(a, "red", "me"))
    store.add_tag(Tag(b, "red", "me"))
    store.add_rating(Rating(c, 5, "me"))
    store.add_rating(Rating(c, 5, "you"))
    assert values(store, tag="sharp") == {a: 1.0, b: 0.0, c: 0.0}
    assert {one.rater for one in store.rated(store.feedback(tag="sharp"))} == {"me"}
    assert values(store, tag="sharp", kinds=("tag",)) == {a: 1.0, b: 0.0}
    assert values(store, tag="unheard of") == {}
    assert store.compared(store.feedback(tag="sharp")) == []


def test_a_tag_that_was_taken_back_counts_until_then(store: FeedbackStore, images: list[str]):
    tag = store.add_tag(Tag(images[0], "sharp", "me"))
    then = store.feedback(tag="sharp")
    store.undo(tag)
    assert len(store.rated(then)) == 1
    assert values(store, tag="sharp") == {}


def test_dates_are_compared_with_when_it_was_said(store: FeedbackStore, images: list[str]):
    for image in images[:3]:
        store.add_rating(Rating(image, 5, "me"))
    store.add_comparison(Comparison(images[0], images[1], "left", "me"))
    times = [one.created_at for one in store.rated(store.feedback())]
    assert list(values(store, since=times[1])) == images[1:3]
    assert list(values(store, until=times[1])) == images[:1], "the end is not part of it"
    assert list(values(store, since=times[1], until=times[2])) == images[1:2]
    later = times[2] + timedelta(days=1)
    assert store.compared(store.feedback(since=later)) == []
    assert len(store.compared(store.feedback(until=later))) == 1


def test_the_parts_of_a_split_are_fixed_by_the_words_of_the_prompt(store: FeedbackStore):
    prompts = [f"word{n}" for n in range(40)]
    ids = store.add_images([(picture(n), Generation(prompt=prompt)) for n, prompt in enumerate(prompts)], "c")
    store.add_ratings([Rating(id_, 3, "me") for id_ in ids])
    expected = {id_ for id_, prompt in zip(ids, prompts, strict=True) if split_of(prompt) == "test"}
    assert 0 < len(expected) < 20
    assert set(values(store, split="held_out")) == expected
    assert set(values(store, split="train")) == set(ids) - expected


def test_a_pair_across_a_split_belongs_to_neither_part(store: FeedbackStore):
    prompts = [f"word{n}" for n in range(40)]
    inside = [prompt for prompt in prompts if split_of(prompt) == "test"][0]
    outside = [prompt for prompt in prompts if split_of(prompt) != "test"][0]
    a, b = store.add_images([(picture(n), Generation(prompt=p)) for n, p in enumerate((inside, outside))], "c")
    store.add_comparison(Comparison(a, b, "left", "me"))
    assert len(store.compared(store.feedback())) == 1
    assert store.compared(store.feedback(split="train")) == store.compared(store.feedback(split="held_out")) == []


def test_a_query_of_the_past_gives_what_counted_then(store: FeedbackStore, images: list[str]):
    """Also when more was said since, which the quick way of answering knows nothing of."""
    first = store.add_rating(Rating(images[0], 1, "me"))
    then = store.feedback()
    before = store.rated(then)
    store.add_rating(Rating(images[0], 5, "me"))
    store.add_rating(Rating(images[1], 5, "me"))
    store.undo(first)
    assert store.rated(then) == before
    assert [one.value for one in before] == [0.0]
    assert list(values(store).values()) == [1.0, 1.0]


@pytest.mark.parametrize(
    "changes", [{"kinds": ("stars",)}, {"split": "validation"}, {"interaction_weight": 1.5}, {"tag": ""}]
)
def test_a_query_that_means_nothing_is_refused(changes: dict[str, object]):
    with pytest.raises(InvalidRecord):
        replace(Feedback(0), **changes)  # type: ignore[arg-type]
