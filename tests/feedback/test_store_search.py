"""Lists of pictures: what each filter lets through, the orders, and pages that neither repeat nor miss a picture."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import get_args

import numpy as np
import pytest
from sqlalchemy import Connection, text

from feedback_loop.feedback import listing, prompt_words
from feedback_loop.feedback.prompt_words import words
from feedback_loop.feedback.records import Generation, InvalidRecord, Rating
from feedback_loop.feedback.results import ImageFilter, Sort, StoredImage
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture


@pytest.fixture
def images(store: FeedbackStore) -> list[str]:
    """Six pictures in turn in the collections c and d: a red circle, a blue square, and so on."""
    prompts = ["a red circle", "a BLUE square", "red-hot cat", "Ünder the sea", "赤い猫", None]
    return [store.add_image(picture(n), Generation(prompt=prompt), "cd"[n % 2]) for n, prompt in enumerate(prompts)]


def found(store: FeedbackStore, sort: Sort = "oldest", **which: object) -> list[str]:
    """Everything that fits, read in pages of two."""
    ids: list[str] = []
    cursor = None
    while True:
        page = store.search(ImageFilter(**which), sort, cursor, 2)  # type: ignore[arg-type]
        assert len(page.items) <= 2
        ids += [item.id for item in page.items]
        if (cursor := page.next) is None:
            return ids


def rate(store: FeedbackStore, image_id: str, stars: float, rater: str = "me", axis: str = "overall") -> str:
    return store.add_rating(Rating(image_id, stars, rater, axis))


def test_pictures_come_newest_or_oldest_first(store: FeedbackStore, images: list[str]):
    assert found(store) == images
    assert found(store, "newest") == images[::-1]
    assert found(store, collection="d") == images[1::2]
    assert found(store, collection="nowhere") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red", [0, 2]),
        ("RED circle", [0]),
        ("circle red", [0]),
        ("ci", [0]),
        ("irc", []),
        ("hot", [2]),
        ("ünd", [3]),
        ("under", []),
        ("猫", [4]),
        ("猫 赤", [4]),
        ('" OR NOT * (', []),
        ("red' & !", [0, 2]),
        ("-,-", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_prompts_are_found_by_beginnings_of_their_words(
    store: FeedbackStore, images: list[str], text: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Signs between words ask for nothing; "OR" and "NOT" are words as any other, and in no prompt here.

    Where many words begin so the prompts are looked at one by one, which finds the same.
    """
    for n, image in enumerate(images):
        rate(store, image, 5 - n / 2)
    for many in (prompt_words.MANY, 0):
        monkeypatch.setattr(prompt_words, "MANY", many)
        assert found(store, text=text) == [images[n] for n in expected]
        assert found(store, "newest", text=text) == [images[n] for n in expected][::-1]
        assert found(store, "best", text=text) == [images[n] for n in expected]


def test_words_are_letters_and_digits_in_small_letters_each_once():
    assert words("A red-hot cat, 35mm (cat:1.2)") == ["a", "red", "hot", "cat", "35mm", "1", "2"]
    assert words("STRASSE Straße") == ["strasse"]
    assert words("赤い猫cat") == ["赤", "い", "猫", "cat"]
    assert words("_-,") == []


def test_rated_and_unrated_pictures_are_told_apart(store: FeedbackStore, images: list[str]):
    rate(store, images[0], 5)
    rate(store, images[3], 2, "you")
    gone = rate(store, images[4], 2)
    store.undo(gone)
    assert found(store, rated=True) == [images[0], images[3]]
    assert found(store, rated=False) == [images[n] for n in (1, 2, 4, 5)]
    assert found(store, rated=True, collection="c") == [images[0]]
    assert found(store, rated=False, collection="c") == [images[2], images[4]]
    assert found(store, rater="you") == found(store, rated=True, rater="you") == [images[3]]
    assert found(store, rated=False, rater="you") == [images[n] for n in (0, 1, 2, 4, 5)]
    assert found(store, rater="nobody") == []
    assert found(store, rated=False, rater="nobody") == images


def test_axes_are_told_apart(store: FeedbackStore, images: list[str]):
    """Without an axis, pictures are rated by stars, which are on the axis "overall"."""
    rate(store, images[0], 5)
    rate(store, images[1], 3, axis="colour")
    assert found(store, rated=True) == [images[0]]
    assert found(store, rated=True, axis="colour") == [images[1]]
    assert found(store, rated=False, axis="colour") == [images[n] for n in (0, 2, 3, 4, 5)]
    assert found(store, axis="colour", min_value=0.5) == [images[1]]
    assert found(store, "best", axis="colour") == [images[1]]


def test_values_are_means_over_raters_or_those_of_one(store: FeedbackStore, images: list[str]):
    """5 and 2 stars of five are 1 and 0.25, in the mean 0.625; 3 stars are 0.5."""
    rate(store, images[0], 5)
    rate(store, images[0], 2, "you")
    rate(store, images[1], 3)
    assert found(store, min_value=0.6) == [images[0]]
    assert found(store, max_value=0.5) == [images[1]]
    assert found(store, min_value=0.625, max_value=0.625) == [images[0]]
    assert found(store, max_value=0.25, rater="you") == [images[0]]
    assert found(store, min_value=0.3, rater="you") == []


def test_best_and_worst_come_first_among_the_rated(store: FeedbackStore, images: list[str]):
    """Means: 1 for d, 0.5 for c and for b (1 and 0), of which the newer comes first, 0.25 for a, 0 for e."""
    for image, stars in zip(images, (2, 5, 3, 5, 1), strict=False):
        rate(store, image, stars)
    rate(store, images[1], 1, "you")
    assert found(store, "best") == [images[n] for n in (3, 2, 1, 0, 4)]
    assert found(store, "worst") == [images[n] for n in (4, 0, 1, 2, 3)]
    assert found(store, "best", collection="d") == [images[3], images[1]]
    assert found(store, "best", rater="you") == [images[1]]


def test_watermarks_are_listed_and_bounded(store: FeedbackStore, images: list[str]):
    scores = {images[0]: -3.0, images[1]: 4.5, images[2]: 1e-17}
    store.add_watermark_scores(scores)
    assert found(store, "watermark") == [images[1], images[2], images[0]]
    assert found(store, "watermark", collection="c") == [images[2], images[0]]
    assert found(store, min_watermark=0.0) == [images[1], images[2]]
    assert found(store, "watermark", max_watermark=0.0) == [images[0]]
    assert [one.watermark for one in store.search(ImageFilter(max_watermark=0.0)).items] == [-3.0]
    assert store.without_watermark_score() == images[:2:-1]
    store.add_watermark_scores({images[0]: 9.0})
    assert found(store, "watermark")[0] == images[0]
    with pytest.raises(InvalidRecord):
        store.add_watermark_scores({images[0]: float("nan")})


def test_dates_are_when_the_picture_was_recorded(store: FeedbackStore, images: list[str]):
    when = store.image(images[2]).created_at
    assert found(store, since=when) == images[2:]
    assert found(store, until=when) == images[:2]
    assert found(store, since=when + timedelta(days=1)) == []
    assert found(store, until=when + timedelta(days=1)) == images


def matches(image: StoredImage, which: ImageFilter) -> bool:
    """The filters by their meaning, for one picture."""
    own = [r for r in image.ratings if which.rater in (None, r.rater) and r.axis == (which.axis or "overall")]
    value = np.mean([r.value for r in own]) if own else None
    asked = words(which.text or "")
    has = words(image.generation.prompt or "")
    return (
        (which.collection in (None, image.collection))
        and (which.rated is None or which.rated == bool(own))
        and (which.rater is None or which.rated is False or bool(own))
        and (which.min_value is None or (value is not None and value >= which.min_value))
        and all(any(word.startswith(beginning) for word in has) for beginning in asked)
        and (which.min_watermark is None or (image.watermark is not None and image.watermark >= which.min_watermark))
    )


@pytest.mark.parametrize("few", [0, 3000])
def test_every_mixture_of_filters_finds_what_it_says(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch, few: int):
    """Both ways of looking things up, found first or on the way, against the filters' meaning for each picture."""
    monkeypatch.setattr(listing, "FEW", few)
    chance = np.random.default_rng(0)
    vocabulary = ("red", "blue", "cat", "dog")
    for n in range(40):
        prompt = " ".join(chance.choice(vocabulary, 2))
        id_ = store.add_image(picture(n), Generation(prompt=prompt), str(chance.choice(["c", "d"])))
        for rater, axis in product(("me", "you"), ("overall", "colour")):
            if chance.random() < 0.4:
                rate(store, id_, int(chance.integers(1, 6)), rater, axis)
        if chance.random() < 0.5:
            store.add_watermark_scores({id_: float(chance.normal())})
    every = store.search(ImageFilter(), "oldest", None, 500).items
    choices = {
        "collection": (None, "c"),
        "rated": (None, True, False),
        "rater": (None, "me"),
        "axis": (None, "colour"),
        "min_value": (None, 0.5),
        "text": (None, "red c"),
        "min_watermark": (None, 0.0),
    }
    for picked in product(*choices.values()):
        which = ImageFilter(**dict(zip(choices, picked, strict=True)))
        expected = [one.id for one in every if matches(one, which)]
        assert [one.id for one in store.search(which, "oldest", None, 500).items] == expected, which
        if which.rated is not False:
            best = [one.id for one in store.search(which, "best", None, 500).items]
            rated_only = ImageFilter(**{**vars(which), "rated": True})
            assert sorted(best) == sorted(one.id for one in every if matches(one, rated_only)), which


@pytest.mark.parametrize("sort", get_args(Sort))
def test_pages_neither_repeat_nor_miss_a_picture(store: FeedbackStore, sort: Sort):
    """Nine pictures with three different values, so that every page ends among equals."""
    ids = [store.add_image(picture(n), Generation(), "c") for n in range(9)]
    for n, id_ in enumerate(ids):
        rate(store, id_, 1 + n % 3)
        store.add_watermark_scores({id_: (n % 3) / 3})
    assert sorted(found(store, sort)) == sorted(ids)


@pytest.mark.parametrize("cursor", ["x", "1~2", "-1", "1.5", "~", "nan~x", "１"])
def test_a_cursor_of_something_else_is_refused(store: FeedbackStore, images: list[str], cursor: str):
    with pytest.raises(InvalidRecord, match="begin again"):
        store.search(ImageFilter(), "newest", cursor)


def test_new_pictures_do_not_disturb_a_list_that_is_being_read(store: FeedbackStore, images: list[str]):
    first = store.search(ImageFilter(), "newest", None, 3)
    store.add_image(picture(99), Generation(), "c")
    second = store.search(ImageFilter(), "newest", first.next, 3)
    assert [one.id for one in (*first.items, *second.items)] == images[::-1]


def test_no_list_sorts_what_an_index_has_in_order(store: FeedbackStore, images: list[str]):
    """By SQLite's own plan for every order, with and without filters that have an index."""
    if store._database.read(lambda connection: connection.dialect.name) != "sqlite":
        pytest.skip("PostgreSQL plans by how many rows there are, and here are six")
    for sort, which in product(get_args(Sort), (ImageFilter(), ImageFilter("c"), ImageFilter(min_value=0.5))):
        plan = store._database.read(lambda c, sort=sort, which=which: plan_of(c, sort, which))
        assert "TEMP B-TREE" not in plan, (sort, which, plan)


def plan_of(connection: Connection, sort: Sort, which: ImageFilter) -> str:
    order = listing._order(connection, which, sort)
    columns = [column.asc() if order.rising else column.desc() for column in order.columns]
    rows = listing._filtered(connection, order, which).order_by(*columns).limit(51)
    statement = rows.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
    return " ".join(row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {statement}")))
