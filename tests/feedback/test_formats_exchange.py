"""From the store to a file and back into a store: nothing is lost, nothing comes in twice, nothing is half there."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from feedback_loop.feedback.formats import FORMATS, BadData, Bundle, Picture, reading, write
from feedback_loop.feedback.formats.bundle import Said, renamed
from feedback_loop.feedback.formats.exchange import Taken, from_store, into_store
from feedback_loop.feedback.marks import Region
from feedback_loop.feedback.media import encode_png
from feedback_loop.feedback.records import Comment, Comparison, Generation, Rating
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.tests.feedback import bundles
from feedback_loop.tests.feedback.conftest import picture

Opening = Callable[[], FeedbackStore]


@pytest.fixture
def other(tmp_path: Path):
    """A second store, on another machine so to say."""
    store = FeedbackStore(f"sqlite:///{tmp_path / 'other.sqlite3'}", tmp_path / "other_media")
    yield store
    store.close()


def everything(kept: FeedbackStore, *axes: str) -> Bundle:
    return from_store(kept, kept.feedback(), axes)


def said_by_pixels(kept: FeedbackStore, *axes: str) -> list[str]:
    """What a store holds, with pictures named by their pixels, so that two stores can be compared."""
    bundle = everything(kept, *axes)
    names = {key: kept.image(key).pixel_hash for key in bundle.pictures}
    return bundles.counted(Said(renamed(one.record, names), one.at) for one in bundle.said)


AXES = ("how <well> it's lit & framed",)


def test_what_a_store_took_in_comes_out_again_with_times_and_every_field(store: FeedbackStore) -> None:
    """Of ratings by one rater on one axis of one picture the latest counts, so earlier ones stay behind."""
    bundle = bundles.generated(1)
    taken = into_store(store, bundle, "mine")
    assert (taken.pictures, taken.judgements) == (len(bundle.pictures), len(bundle.said))
    out = everything(store, *AXES)
    latest = {(r.image_id, r.axis, r.rater): one for one in bundle.said if isinstance(r := one.record, Rating)}
    tags = {(repr(one.record)) for one in bundle.said if type(one.record).__name__ == "Tag"}
    ratings = [one.record for one in out.said if isinstance(one.record, Rating)]
    assert len(ratings) == len(latest)
    assert sum(type(one.record).__name__ == "Tag" for one in out.said) == len(tags)
    compared = [(one.winner, one.strength, at) for one, at in out.of(Comparison)]
    assert compared == [(one.winner, one.strength, at) for one, at in bundle.of(Comparison)]
    assert len(out.of(Region)) == len(bundle.of(Region)) and len(out.of(Comment)) == len(bundle.of(Comment))
    assert [p.generation for p in out.pictures.values()] == [p.generation for p in bundle.pictures.values()]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_taken_into_another_store_says_the_same_there(
    name: str, store: FeedbackStore, other: FeedbackStore, tmp_path: Path
) -> None:
    """What the second store exports is what the first exported: a fixed point after one round."""
    into_store(store, bundles.generated(2), "mine")
    path, again = tmp_path / f"one{FORMATS[name].suffix}", tmp_path / f"two{FORMATS[name].suffix}"
    write(name, everything(store), path)
    with reading(path, "ana") as bundle:
        into_store(other, bundle, "theirs")
    with reading(path, "ana") as bundle:
        expected = len(bundle.said)
    write(name, everything(other), again)
    with reading(again, "ana") as bundle:
        assert len(bundle.said) == expected > 0
    assert set(other.stats().collections) == {"theirs"}


@pytest.mark.parametrize("name", FORMATS)
def test_taking_a_file_in_twice_adds_nothing_the_second_time(name: str, store: FeedbackStore, tmp_path: Path) -> None:
    path = tmp_path / f"one{FORMATS[name].suffix}"
    write(name, bundles.generated(3), path)

    def take() -> Taken:
        with reading(path, "ana") as bundle:
            return into_store(store, bundle, "mine")

    take()
    first = said_by_pixels(store, *AXES)
    take()
    assert said_by_pixels(store, *AXES) == first and len(first) > 0


@pytest.mark.parametrize("name", ["imagefolder", "pick-a-pic", "hpdv2", "label-studio", "coco"])
def test_a_file_exported_here_and_taken_in_again_adds_nothing(name: str, store: FeedbackStore, tmp_path: Path) -> None:
    """The pictures are known by their ids, and so is everything that was said of them."""
    into_store(store, bundles.generated(4), "mine")
    before, images = said_by_pixels(store, *AXES), store.stats().images
    path = tmp_path / f"one{FORMATS[name].suffix}"
    write(name, everything(store, *AXES), path)
    with reading(path, "ana") as bundle:
        taken = into_store(store, bundle, "elsewhere")
    assert taken.pictures == 0 and taken.known > 0 and taken.judgements == 0
    assert said_by_pixels(store, *AXES) == before and store.stats().images == images
    assert "were there already" in taken.text()


def test_an_id_of_ours_with_other_pixels_is_another_picture(store: FeedbackStore) -> None:
    id_ = store.add_image(picture(1), Generation(prompt="mine"), "mine")
    data = bundles.png(random.Random(5))
    bundle = Bundle({id_: Picture(id_, lambda: data)}, [Said(Rating(id_, 1, "ana"))])
    taken = into_store(store, bundle, "theirs")
    assert (taken.pictures, taken.known) == (1, 0)
    assert store.image(id_).ratings == ()


def test_judgements_of_pictures_that_came_without_files_are_given_to_those_that_the_store_has(
    store: FeedbackStore,
) -> None:
    """A JSON file that comes back from a labelling tool names pictures only."""
    id_ = store.add_image(picture(1), Generation(prompt="mine"), "mine")
    bundle = Bundle({id_: Picture(id_, None), "x": Picture("x", None)}, [Said(Rating(id_, 2, "ana"))])
    taken = into_store(store, bundle, "theirs")
    assert (taken.pictures, taken.known, taken.judgements) == (0, 1, 1)
    assert store.image(id_).ratings[0].raw == 2
    assert "URLs are never fetched" in taken.text()


def test_a_file_of_which_nothing_can_be_taken_in_is_an_error_that_says_why(store: FeedbackStore) -> None:
    bundle = Bundle({"https://example.com/a.png": Picture("https://example.com/a.png", None)})
    with pytest.raises(BadData, match="URLs are never fetched"):
        into_store(store, bundle, "theirs")
    broken = Bundle({"a": Picture("a", lambda: b"\x89PNG\r\n\x1a\n" + b"x" * 40)})
    with pytest.raises(BadData, match="The first: picture 'a'"):
        into_store(store, broken, "theirs")
    assert store.stats().images == 0


def test_a_broken_picture_and_a_mask_of_another_size_do_not_stop_the_rest(store: FeedbackStore) -> None:
    bundle = bundles.generated(1)
    key = next(iter(bundle.pictures))
    bundle.pictures["broken"] = Picture("broken", lambda: b"no picture")
    bundle.said.append(Said(Rating("broken", 3, "ana")))
    small = bundles.png(random.Random(1), 3, 3, grey=True)
    bundle.said.append(Said(Region(key, "mask", (), "artifact", "ana", mask=small)))
    taken = into_store(store, bundle, "mine")
    assert taken.judgements == len(bundle.said) - 2
    assert taken.report.left["that broke a rule"] == 2
    assert taken.report.left["ratings: of pictures that did not come in"] == 1


def test_a_prefix_keeps_raters_of_a_file_from_speaking_as_people_who_are_here(store: FeedbackStore) -> None:
    into_store(store, bundles.generated(1), "mine", prefix="ana: ")
    assert all(one.record.rater.startswith("ana: ") for one in everything(store, *AXES).said)


def test_an_export_takes_what_the_query_names_and_nothing_else(store: FeedbackStore) -> None:
    bundle = bundles.generated(6)
    into_store(store, bundle, "mine")
    store.add_image(picture(9), Generation(prompt="nobody judged it"), "mine")
    middle = bundle.said[30].at
    assert middle is not None
    of_ana = from_store(store, store.feedback(raters=["ana"]))
    assert {one.record.rater for one in of_ana.said} == {"ana"}
    early = from_store(store, store.feedback(until=middle))
    assert 0 < len(early.said) and all(one.at is not None and one.at < middle for one in early.said)
    late = from_store(store, store.feedback(since=middle + timedelta(0)))
    assert len(early.said) + len(late.said) == len(everything(store).said)
    assert from_store(store, store.feedback("elsewhere")).said == []
    assert all(one.axis == "overall" for one, _ in everything(store).of(Rating))
    parts = [from_store(store, store.feedback(split=part)) for part in ("train", "held_out")]
    assert not set(parts[0].pictures) & set(parts[1].pictures)


def test_stars_can_go_out_as_pairs_of_one_prompt(store: FeedbackStore) -> None:
    """5 stars against 2 on the same words is one pair, clear by 3/4 of the scale; other words make none."""
    ids = [store.add_image(picture(n), Generation(prompt=p), "mine") for n, p in enumerate(["a cat", "A  cat", "dog"])]
    for id_, stars in zip(ids, (5, 2, 1), strict=True):
        store.add_rating(Rating(id_, stars, "ana"))
    bundle = from_store(store, store.feedback(), pairs=True)
    assert [(one.left, one.right, one.winner, one.strength) for one, _ in bundle.of(Comparison)] == [
        (ids[0], ids[1], "left", 0.75)
    ]
    assert len(bundle.of(Rating)) == 3 and from_store(store, store.feedback()).of(Comparison) == []


def test_undone_judgements_and_earlier_ratings_stay_behind(store: FeedbackStore) -> None:
    id_ = store.add_image(picture(1), Generation(prompt="a cat"), "mine")
    store.add_rating(Rating(id_, 1, "ana"))
    store.add_rating(Rating(id_, 4, "ana"))
    store.undo(store.add_comment(Comment(id_, "taken back", "ana")))
    assert [one.record for one in everything(store).said] == [Rating(id_, 4.0, "ana")]


def test_times_in_the_future_become_now(store: FeedbackStore) -> None:
    bundle = bundles.generated(1)
    bundle.said = [replace(one, at=bundles.START + timedelta(days=40_000)) for one in bundle.said[:3]]
    into_store(store, bundle, "mine")
    assert all(one.at is not None and one.at.year < 2100 for one in everything(store, *AXES).said)


def test_an_import_of_more_than_one_transaction_is_complete(store: FeedbackStore) -> None:
    pixels = [np.full((4, 4, 3), n, np.uint8) for n in range(3)]
    keys = [f"p{n}" for n in range(3)]
    files = [encode_png(one) for one in pixels]
    pictures = {k: Picture(k, lambda data=data: data) for k, data in zip(keys, files, strict=True)}
    said = [Said(Rating(keys[n % 3], float(1 + n % 5), f"rater {n}")) for n in range(450)]
    assert into_store(store, Bundle(pictures, said), "mine").judgements == 450
    assert store.stats().ratings == 450
