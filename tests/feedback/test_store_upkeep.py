"""Deleting, pruning, backups, counts that stay right, and databases of the first schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select, text

from feedback_loop.feedback import tables
from feedback_loop.feedback.marks import Interaction, Ranking, Region, Tag, WordMark
from feedback_loop.feedback.records import Comment, Comparison, Generation, NotFound, Rating
from feedback_loop.feedback.results import Freed, ImageFilter
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture, sqlite_only

GRAPH = {"1": {"class_type": "KSampler", "inputs": {"seed": 5}}}


@pytest.fixture
def images(store: FeedbackStore) -> list[str]:
    return store.add_images([(picture(n), Generation(prompt=f"p{n}")) for n in range(4)], "c")


def say_everything(store: FeedbackStore, image: str, other: str, rater: str = "me") -> list[str]:
    """One of each kind, and a rating with a comment."""
    word = (store.image(image).generation.prompt or "").split()[0]
    return [
        store.add_rating(Rating(image, 2, rater, comment="too dark", lead_time=2.0)),
        store.add_comparison(Comparison(image, other, "left", rater, lead_time=4.0)),
        store.add_comparison(Comparison(other, image, "right", rater, lead_time=6.0)),
        store.add_ranking(Ranking((image, other), rater)),
        store.add_region(Region(image, "point", ((0.5, 0.5),), "artifact", rater)),
        store.add_word_mark(WordMark(image, 0, word, "good", rater)),
        store.add_tag(Tag(image, "sharp", rater)),
        store.add_comment(Comment(image, "look", rater)),
        store.add_interaction(Interaction("saved", image, rater)),
    ]


def rows(store: FeedbackStore) -> dict[str, int]:
    """How many rows each table has, but for counters."""

    def count(connection: Any) -> dict[str, int]:
        every = {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in tables.metadata.tables.items()
        }
        every["prompt_text"] = connection.execute(text("SELECT count(*) FROM prompt_text")).scalar_one()
        return every

    return store._database.read(count)


def counts(store: FeedbackStore) -> tuple[Any, ...]:
    stats = store.stats()
    lists = [
        [(i.id, i.ratings) for i in store.search(ImageFilter(**which), sort).items]  # type: ignore[arg-type]
        for which, sort in (
            ({}, "best"),
            ({"rated": True}, "newest"),
            ({"rated": False}, "newest"),
            ({"text": "p"}, "newest"),
        )
    ]
    return stats.kinds, stats.collections, stats.media_bytes, stats.raters, store.reliability(), lists


# Deleting


def test_a_deleted_picture_leaves_nothing_of_what_was_said_of_it(store: FeedbackStore, images: list[str]):
    """Everything but the rater, who may come again, and the other picture is as it was before."""
    before = rows(store)
    extra = store.add_image(picture(9), Generation(prompt="nine", api_prompt=GRAPH, workflow={"nodes": []}), "d")
    store.add_embedding(extra, "e", np.ones(2))
    store.add_latent(extra, np.ones((4, 2, 2), np.float32))
    store.add_watermark_scores({extra: 1.0})
    for id_ in say_everything(store, extra, images[0])[::2]:
        store.undo(id_)
    say_everything(store, extra, images[1], "you")
    file = store.image_file(extra)
    size = file.stat().st_size + len(store.thumbnail(extra))
    freed = store.delete_image(extra)
    after = rows(store)
    left = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert left == {"rater": 2, "rater_tally": 2}
    assert freed.images == 1 and freed.bytes > size, "the latent is counted too"
    assert not file.exists()
    assert store.latent(extra) is None
    with pytest.raises(NotFound):
        store.delete_image(extra)
    assert store.reliability() == []
    assert store.stats().kinds == {}


def test_deleting_counts_back_exactly_what_counted(store: FeedbackStore, images: list[str]):
    say_everything(store, images[0], images[1])
    say_everything(store, images[2], images[0])
    say_everything(store, images[2], images[3], "you")
    store.delete_image(images[0])
    quick = counts(store)
    store.rebuild()
    assert counts(store) == quick


def test_a_ranking_keeps_the_order_of_the_pictures_that_are_left(store: FeedbackStore, images: list[str]):
    store.add_ranking(Ranking(tuple(images[:3]), "me"))
    store.delete_image(images[1])
    (pair,) = store.compared(store.feedback())
    assert (pair.left if pair.winner == "left" else pair.right) == images[0]
    store.delete_image(images[0])
    assert store.compared(store.feedback()) == []
    assert store.stats().kinds == {}, "one picture is no ranking"


def test_a_file_that_another_picture_shows_stays(store: FeedbackStore):
    one, other = (store.add_image(picture(), Generation(), collection) for collection in "cd")
    assert store.delete_image(one) == Freed(1, 0)
    assert np.array_equal(store.image_pixels(other), picture())
    assert store.delete_image(other).bytes > 0
    assert store.stats().media_bytes == 0


def test_a_graph_that_made_another_picture_stays(store: FeedbackStore):
    one, other = (store.add_image(picture(n), Generation(api_prompt=GRAPH), "c") for n in range(2))
    store.delete_image(one)
    assert store.graphs(other)[0] == GRAPH
    store.delete_image(other)
    assert rows(store)["document"] == 0


def test_deleting_changes_the_feedback(store: FeedbackStore, images: list[str]):
    store.add_rating(Rating(images[0], 2, "me"))
    before = store.feedback()
    store.delete_image(images[0])
    assert store.feedback().revision > before.revision
    assert store.rated(store.feedback()) == []


def test_pruning_takes_what_nobody_said_anything_of(store: FeedbackStore):
    """Also what was taken back was said; and a picture that came out of another's use is part of what was done."""
    ids = store.add_images([(picture(n), Generation(prompt=f"p{n}")) for n in range(12)], "c")
    kept = ids[:9]
    store.undo(store.add_rating(Rating(ids[0], 2, "me")))
    store.add_comparison(Comparison(ids[1], ids[2], "skip", "me"))
    store.add_ranking(Ranking((ids[3], ids[4]), "me"))
    store.add_region(Region(ids[5], "point", ((0.5, 0.5),), "artifact", "me"))
    store.add_tag(Tag(ids[6], "sharp", "me"))
    store.add_interaction(Interaction("upscaled", ids[7], "me", ids[8]))
    freed = store.prune()
    assert freed.images == 3 and freed.bytes > 0
    assert {one.id for one in store.images().items} == set(kept)
    assert store.prune() == Freed(0, 0)


def test_a_picture_that_comes_again_after_its_deletion_is_whole(store: FeedbackStore):
    first = store.add_image(picture(), Generation(), "c")
    store.delete_image(first)
    again = store.add_image(picture(), Generation(), "c")
    assert again != first
    assert np.array_equal(store.image_pixels(again), picture())


# Counts


def test_counts_that_are_kept_are_those_that_counting_gives(store: FeedbackStore):
    """A long mixture of everything that changes them, by three raters, against a rebuild from nothing."""
    chance = np.random.default_rng(3)
    ids = store.add_images([(picture(n), Generation(prompt=f"p{n}")) for n in range(8)], "c")
    said: list[str] = []
    for _ in range(120):
        one, other = (str(id_) for id_ in chance.choice(ids, 2, replace=False))
        rater = str(chance.choice(["me", "you", "they"]))
        kind = chance.integers(0, 6)
        if kind <= 1:
            axis = str(chance.choice(["overall", "colour"]))
            said.append(store.add_rating(Rating(one, int(chance.integers(1, 6)), rater, axis)))
        elif kind == 2:
            winner = str(chance.choice(["left", "right", "tie", "skip"]))
            said.append(store.add_comparison(Comparison(*sorted((one, other)), winner, rater)))  # type: ignore[arg-type]
        elif kind == 3:
            said.append(store.add_ranking(Ranking((one, other), rater)))
        elif kind == 4:
            said.append(store.add_tag(Tag(one, "sharp", rater)))
        elif said:
            store.undo(str(chance.choice(said)), clear=bool(chance.integers(0, 2)))
    store.delete_image(ids[0])
    quick = counts(store)
    store.rebuild()
    assert counts(store) == quick
    assert len(quick[4]) == 3


def test_reliability_tells_side_steadiness_and_speed(store: FeedbackStore, images: list[str]):
    """Left in 3 of 4 decided; a against b came three times as a, a, b: one of two repeats the same.

    Wilson's interval of 3 of 4 at 95 % is .301 to .954. The median of 1, 2, 3, 4 and 10 seconds is 3.
    """
    a, b, c, d = images
    for left, right, winner, seconds in (
        (a, b, "left", 1.0),
        (b, a, "right", 2.0),
        (a, c, "left", 3.0),
        (c, d, "tie", 4.0),
        (b, a, "left", 10.0),
    ):
        store.add_comparison(Comparison(left, right, winner, "me", lead_time=seconds))
    store.add_tag(Tag(a, "sharp", "you"))
    me, you = store.reliability()
    assert (me.rater, me.judgements, me.left_share) == ("me", 5, 0.75)
    assert me.left_interval == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert (me.self_agreement, me.repeats, me.median_seconds) == (0.5, 2, 3.0)
    store.rebuild()
    assert store.reliability() == [me, you]
    assert (you.rater, you.judgements, you.left_share, you.self_agreement) == ("you", 1, None, None)


# Tokens


def test_a_token_is_its_raters_until_it_is_revoked_and_is_nowhere_in_the_database(store: FeedbackStore):
    mine, other = store.add_token("me"), store.add_token("me")
    assert mine != other
    assert store.rater_of_token(mine) == store.rater_of_token(other) == "me"
    assert store.rater_of_token(mine[:-1]) is None
    hashes = store._database.read(lambda c: c.execute(select(tables.api_token.c.token_hash)).scalars().all())
    assert not any(mine in hash_ for hash_ in hashes)
    assert store.revoke_tokens("me") == 2
    assert store.rater_of_token(mine) is None
    assert store.revoke_tokens("me") == 0
    with pytest.raises(NotFound):
        store.revoke_tokens("nobody")


# Backups


@sqlite_only
def test_a_backup_is_a_store_of_its_own_that_later_deletions_leave_whole(
    store: FeedbackStore, images: list[str], tmp_path: Path
):
    say_everything(store, images[0], images[1])
    before = counts(store)
    store.thumbnail(images[0])
    store.backup(tmp_path / "backups" / "one")
    store.delete_image(images[0])
    with pytest.raises(FileExistsError, match="another name"):
        store.backup(tmp_path / "backups" / "one")
    folder = tmp_path / "backups" / "one"
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["one"], "nothing half done is left"
    again = FeedbackStore(f"sqlite:///{folder / 'feedback.sqlite3'}", folder / "media")
    try:
        assert counts(again) == before
        assert np.array_equal(again.image_pixels(images[0]), picture(0))
    finally:
        again.close()
