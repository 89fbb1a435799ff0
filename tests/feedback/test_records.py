"""Records refuse at the door what a database could not be trusted with."""

from __future__ import annotations

import math

import pytest

from feedback_loop.feedback.records import Comment, Comparison, Generation, InvalidRecord, Provenance, Rating


@pytest.mark.parametrize(
    ("raw", "low", "high", "value"), [(1, 1, 5, 0.0), (3, 1, 5, 0.5), (5, 1, 5, 1.0), (-1, -1, 1, 0.0), (7, 0, 10, 0.7)]
)
def test_a_rating_becomes_the_fraction_of_its_scale(raw: float, low: float, high: float, value: float):
    """(raw - low) / (high - low)."""
    assert Rating("i", raw, "me", scale_min=low, scale_max=high).value == pytest.approx(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"raw": 0},
        {"raw": 5.01},
        {"raw": math.nan},
        {"raw": math.inf},
        {"raw": True},
        {"raw": "3"},
        {"scale_min": 5},
        {"scale_max": math.inf},
        {"rater": ""},
        {"rater": "a\0b"},
        {"rater": "x" * 201},
        {"axis": ""},
        {"axis": "\udcff"},
        {"lead_time": -1},
        {"lead_time": math.nan},
        {"comment": ""},
        {"comment": "x" * 100_001},
    ],
)
def test_a_rating_that_makes_no_sense_is_refused(fields: dict):
    with pytest.raises(InvalidRecord):
        Rating(**{"image_id": "i", "raw": 3, "rater": "me", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"right": "a"},
        {"winner": "middle"},
        {"winner": None},
        {"strength": 1.1},
        {"propensity": -0.1},
        {"propensity": math.nan},
        {"policy": ""},
        {"rater": ""},
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(fields: dict):
    with pytest.raises(InvalidRecord):
        Comparison(**{"left": "a", "right": "b", "winner": "left", "rater": "me", **fields})


def test_an_empty_comment_is_refused():
    with pytest.raises(InvalidRecord):
        Comment("i", "", "me")


def test_a_generation_takes_over_what_was_read_from_the_graph():
    generation = Generation.of(Provenance(prompt="a", seed="5"), seed="6", batch_index=2)
    assert (generation.prompt, generation.seed, generation.batch_index) == ("a", "6", 2)
