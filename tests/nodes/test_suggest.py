"""FeedbackSuggest: shows evidence, applies only what is named."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from comfy_execution.graph_utils import ExecutionBlocker

from feedback_loop.feedback.marks import Region
from feedback_loop.feedback.records import Comment, Generation
from feedback_loop.feedback.rewards.watermark import WatermarkPenalty
from feedback_loop.guidance.text import Said
from feedback_loop.nodes.compat import store
from feedback_loop.nodes.suggest import FeedbackSuggest, UnknownSuggestionError


@pytest.fixture
def collection():
    name = f"suggest {uuid.uuid4()}"
    for i in range(3):
        pixels = np.full((8, 8, 3), i, np.uint8)
        id_ = store().add_image(pixels, Generation(), name)
        store().add_comment(Comment(id_, "brighter background, no text", "ann"))
        store().add_region(Region(id_, "point", ((0.9, 0.9),), "watermark", f"rater {i}"))
    return name


def test_nothing_is_applied_before_it_is_named(collection):
    result = FeedbackSuggest.execute(collection, 3, "")
    comment, reward, report = result.args
    assert comment == "" and isinstance(reward, ExecutionBlocker)
    assert "more: bright background  (as a standing wish; in 3 pictures" in report
    assert "penalty: watermark" in report and "by 3 people" in report and "bottom right 3" in report
    assert "applied" not in report and result.ui["text"] == (report,)


def test_what_is_named_is_applied_and_reads_as_it_was_meant(collection):
    comment, reward, report = FeedbackSuggest.execute(
        collection, 3, "more: bright background\nless: text\nPenalty: watermark\n"
    ).args
    assert comment == "bright background, no text" and isinstance(reward, WatermarkPenalty)
    assert Said(comment).phrase(True) == "bright background" and Said(comment).phrase(False) == "text"
    assert report.count("applied ") == 3


def test_what_is_not_suggested_cannot_be_accepted(collection):
    with pytest.raises(UnknownSuggestionError, match="'more: cats' is not suggested. Suggested: .*less: text"):
        FeedbackSuggest.execute(collection, 3, "more: cats")
    with pytest.raises(UnknownSuggestionError, match="nothing yet"):
        FeedbackSuggest.execute(collection, 4, "less: text")


def test_it_looks_again_when_something_is_said(collection):
    before = FeedbackSuggest.fingerprint_inputs()
    id_ = store().add_image(np.full((8, 8, 3), 9, np.uint8), Generation(), collection)
    store().add_comment(Comment(id_, "larger", "ann"))
    assert FeedbackSuggest.fingerprint_inputs() != before
