"""FeedbackDataset in this process: what it picks out of a real store, and when it runs again."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
import torch

from feedback_loop.feedback.marks import Interaction, Ranking, Tag
from feedback_loop.feedback.records import Comparison, Generation, Rating
from feedback_loop.feedback.results import ComparedImages, Feedback, RatedImage
from feedback_loop.nodes.compat import store
from feedback_loop.nodes.dataset import FeedbackDataset, fitted, mean_values, moment, names, shares_won

NOW = datetime(2026, 1, 31, tzinfo=timezone.utc)


@pytest.fixture
def collection() -> str:
    return f"dataset {uuid.uuid4()}"


@pytest.fixture
def pictures(collection: str) -> list[str]:
    """Three pictures of three prompts, 16 x 16."""
    drawn = [np.full((16, 16, 3), 40 * n, np.uint8) for n in range(3)]
    return store().add_images([(p, Generation(prompt=f"{collection} {n}")) for n, p in enumerate(drawn)], collection)


def chosen(collection: str, **inputs: Any) -> tuple[Feedback, int, int, torch.Tensor]:
    defaults = {"raters": "", "axis": "overall", "min_ratings": 1}
    return FeedbackDataset.execute(**{"collection": collection, **defaults, **inputs}).args


def test_rated_pictures_and_compared_pairs_are_counted_and_shown(collection: str, pictures: list[str]) -> None:
    """A ranking of three has three pairs, and with the comparison there are four."""
    store().add_rating(Rating(pictures[0], 5, "ann"))
    store().add_comparison(Comparison(pictures[0], pictures[1], "left", "ann"))
    store().add_ranking(Ranking(tuple(pictures), "ann"))
    feedback, count, comparisons, preview = chosen(collection)
    assert (count, comparisons) == (1, 4)
    assert len(store().rated(feedback)) == 1
    assert preview.ndim == 4 and preview.shape[0] == 1 and preview.shape[-1] == 3


def test_kinds_that_are_turned_off_are_left_out(collection: str, pictures: list[str]) -> None:
    store().add_rating(Rating(pictures[0], 5, "ann"))
    store().add_comparison(Comparison(pictures[0], pictures[1], "left", "ann"))
    store().add_ranking(Ranking(tuple(pictures), "ann"))
    assert chosen(collection, rankings=False)[1:3] == (1, 1)
    assert chosen(collection, comparisons=False)[1:3] == (1, 3)
    assert chosen(collection, ratings=False)[1:3] == (0, 4)
    with pytest.raises(ValueError, match="Nothing was rated"):
        chosen(collection, ratings=False, rankings=False, comparisons=False)


def test_interactions_count_only_when_they_are_asked_for(collection: str, pictures: list[str]) -> None:
    store().add_rating(Rating(pictures[0], 5, "ann"))
    store().add_interaction(Interaction("saved", pictures[1], "ann"))
    assert chosen(collection)[1] == 1
    feedback, count, *_ = chosen(collection, interactions=True, interaction_weight=0.5)
    assert count == 2
    assert [one.weight for one in store().rated(feedback)] == [1.0, 0.5]


def test_a_tag_is_learned_in_place_of_ratings(collection: str, pictures: list[str]) -> None:
    store().add_tag(Tag(pictures[0], "sharp", "ann"))
    store().add_rating(Rating(pictures[1], 5, "ann"))
    feedback, count, comparisons, _ = chosen(collection, tag=" sharp ")
    assert (count, comparisons) == (2, 0)
    assert {one.image_id: one.value for one in store().rated(feedback)} == {pictures[0]: 1.0, pictures[1]: 0.0}


def test_it_runs_again_exactly_when_something_was_said(collection: str, pictures: list[str]) -> None:
    """New pictures alone change nothing; each judgement does, and so does taking it back."""
    inputs = {"collection": collection, "raters": "", "axis": "overall", "min_ratings": 1}
    seen = [FeedbackDataset.fingerprint_inputs(**inputs)]
    store().add_image(np.zeros((8, 8, 3), np.uint8), Generation(), collection)
    assert FeedbackDataset.fingerprint_inputs(**inputs) == seen[0]
    ids = [
        store().add_rating(Rating(pictures[0], 5, "ann")),
        store().add_ranking(Ranking(tuple(pictures), "ann")),
        store().add_tag(Tag(pictures[0], "sharp", "ann")),
    ]
    seen.append(FeedbackDataset.fingerprint_inputs(**inputs))
    for id_ in ids:
        store().undo(id_)
        seen.append(FeedbackDataset.fingerprint_inputs(**inputs))
    store().delete_image(pictures[0])
    seen.append(FeedbackDataset.fingerprint_inputs(**inputs))
    assert seen == sorted(set(seen))


def test_the_two_parts_of_a_split_make_up_the_whole(collection: str) -> None:
    drawn = [np.full((8, 8, 3), n, np.uint8) for n in range(60)]
    ids = store().add_images([(p, Generation(prompt=f"word{n}")) for n, p in enumerate(drawn)], collection)
    store().add_ratings([Rating(id_, 3, "ann") for id_ in ids])
    train, held_out = (chosen(collection, split=part)[1] for part in ("train", "held_out"))
    assert train + held_out == 60
    assert 0 < held_out < train


def test_what_saved_workflows_hold_still_comes_first() -> None:
    """Values of widgets are saved by their order, and scripts name only the inputs that there were."""
    schema = FeedbackDataset.define_schema()
    assert [one.id for one in schema.inputs][:4] == ["collection", "raters", "axis", "min_ratings"]
    assert all(one.optional for one in schema.inputs[4:])
    assert [one.display_name for one in schema.outputs][:2] == ["feedback", "count"]


def test_a_date_that_nobody_can_read_is_told(collection: str, pictures: list[str]) -> None:
    store().add_rating(Rating(pictures[0], 5, "ann"))
    with pytest.raises(ValueError, match="since is 'yesterday', which is no date"):
        chosen(collection, since="yesterday")


def test_dates_leave_out_what_was_said_outside_them(collection: str, pictures: list[str]) -> None:
    store().add_rating(Rating(pictures[0], 5, "ann"))
    today = datetime.now().date().isoformat()
    assert chosen(collection, since=today)[1] == 1
    assert chosen(collection, until=today)[1] == 1
    with pytest.raises(ValueError, match="widen until"):
        chosen(collection, until="2020-01-01")


def test_a_day_as_an_end_is_over_at_midnight() -> None:
    """The end of January 31st is the beginning of February 1st; a time is taken as it stands."""
    assert moment("2026-01-31", "until", end=True) == moment("2026-02-01", "since")
    assert moment("2026-01-31 18:30", "until", end=True) == moment("2026-01-31T18:30", "since")
    assert moment(" ", "since") is None


def test_names_are_split_at_commas_without_blanks_or_repeats() -> None:
    assert names(" ann, bob,,ann ,") == ("ann", "bob")


def rated(image_id: str, value: float, weight: float = 1.0) -> RatedImage:
    how = (value, 1 + 4 * value, (1.0, 5.0), "ann", "overall", NOW, Generation(), "rating", weight)
    return RatedImage(f"r {image_id}", image_id, None, *how)  # type: ignore[arg-type]


def test_the_mean_of_a_picture_is_over_its_raters_and_the_best_comes_first() -> None:
    said = [rated("a", 0.0), rated("b", 1.0), rated("a", 0.5)]
    assert list(mean_values(said).items()) == [("b", 1.0), ("a", 0.25)]


def test_what_was_concluded_counts_by_its_weight() -> None:
    """(1 * 0 + 0.25 * 1) / 1.25 = 0.2."""
    assert mean_values([rated("a", 0.0), rated("a", 1.0, weight=0.25)]) == {"a": 0.2}


def test_the_share_won_counts_a_tie_as_half_and_both_bad_as_lost() -> None:
    """a wins once and ties once: 0.75; b loses one: 0; c ties one and is bad once: 0.25; d is bad: 0."""
    said = [
        ComparedImages("1", left, right, winner, None, "ann", "overall", NOW, None, None)
        for left, right, winner in (("a", "b", "left"), ("c", "a", "tie"), ("c", "d", "both_bad"))
    ]
    assert shares_won(said) == {"a": 0.75, "c": 0.25, "b": 0.0, "d": 0.0}


def test_a_preview_shows_the_whole_picture_on_white() -> None:
    # 64 x 16 scales to 128 x 32 and stands in the middle: 48 white rows above and below.
    canvas = fitted(torch.zeros(16, 64, 3, dtype=torch.uint8))
    black = (canvas == 0).all(-1)
    assert canvas.shape == (128, 128, 3)
    assert black[48:80].all() and not black[:48].any() and not black[80:].any()
