"""Rankings, regions, word marks, tags and interactions: what is refused, what comes back, and what undo leaves."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feedback_loop.feedback.marks import Interaction, Ranking, Region, Tag, WordMark
from feedback_loop.feedback.records import Comment, Comparison, Generation, InvalidRecord, NotFound, Rating, RequestKey
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture

POINT = Region("i", "point", ((0.5, 0.25),), "artifact", "me")


@pytest.fixture
def images(store: FeedbackStore) -> list[str]:
    """Three pictures, 19 x 16, of one prompt."""
    return store.add_images([(picture(n), Generation(prompt="a red  circle")) for n in range(3)], "c")


def png(pixels: np.ndarray, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(image_id: str, mask: bytes) -> Region:
    return Region(image_id, "mask", (), "artifact", "me", mask=mask)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Ranking, {"image_ids": ("a",), "rater": "me"}),
        (Ranking, {"image_ids": ("a", "b", "a"), "rater": "me"}),
        (Ranking, {"image_ids": tuple(map(str, range(65))), "rater": "me"}),
        (Ranking, {"image_ids": ("a", "b"), "rater": ""}),
        (Ranking, {"image_ids": ("a", "b"), "rater": "me", "lead_time": float("nan")}),
        (WordMark, {"image_id": "i", "word_index": -1, "word": "red", "label": "good", "rater": "me"}),
        (WordMark, {"image_id": "i", "word_index": True, "word": "red", "label": "good", "rater": "me"}),
        (WordMark, {"image_id": "i", "word_index": 0, "word": "red", "label": "great", "rater": "me"}),
        (WordMark, {"image_id": "i", "word_index": 0, "word": "", "label": "good", "rater": "me"}),
        (Tag, {"image_id": "i", "tag": "  ", "rater": "me"}),
        (Tag, {"image_id": "i", "tag": "a\0b", "rater": "me"}),
        (Tag, {"image_id": "i", "tag": "x" * 201, "rater": "me"}),
        (Interaction, {"kind": "liked", "image_id": "i", "rater": "me"}),
        (Interaction, {"kind": "saved", "image_id": "i", "rater": "me", "result_id": "i"}),
    ],
)
def test_a_mark_that_can_not_be_true_is_refused(kind: Any, fields: dict[str, Any]):
    with pytest.raises(InvalidRecord):
        kind(**fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": "circle"},
        {"geometry": ()},
        {"geometry": ((0.5, 0.5), (0.6, 0.6))},
        {"geometry": ((0.5, 1.01),)},
        {"geometry": ((0.5, float("nan")),)},
        {"geometry": ((0.5, 0.5, 0.5),)},
        {"shape": "rect", "geometry": ((0.1, 0.1), (0.1, 0.9))},
        {"shape": "polygon", "geometry": ((0, 0), (1, 1))},
        {"shape": "polygon", "geometry": ((0, 0),) * 1001},
        {"shape": "mask", "geometry": ()},
        {"mask": b"x"},
        {"severity": 1.5},
        {"label": ""},
        {"comment": ""},
    ],
)
def test_a_region_that_no_picture_can_have_is_refused(changes: dict[str, Any]):
    with pytest.raises(InvalidRecord):
        replace(POINT, **changes)


def test_marks_come_back_as_they_were_given(store: FeedbackStore, images: list[str]):
    first = images[0]
    corners = ((0.1, 0.2), (0.3, 0.4))
    region = store.add_region(Region(first, "rect", corners, "watermark", "me", severity=0.5, comment="top left"))
    word = store.add_word_mark(WordMark(first, 1, "red", "misaligned", "me"))
    tag = store.add_tag(Tag(first, " high quality ", "you"))
    rating = store.add_rating(Rating(first, 2, "me", comment="too red"))
    comment = store.add_comment(Comment(first, "look", "you"))
    marks = store.marks([first])[first]
    (found,) = marks.regions
    assert (found.id, found.rater, found.shape, found.geometry) == (region, "me", "rect", corners)
    assert (found.label, found.severity, found.comment, found.mask) == ("watermark", 0.5, "top left", None)
    assert [(w.id, w.word_index, w.word, w.label) for w in marks.word_marks] == [(word, 1, "red", "misaligned")]
    assert [(t.id, t.tag, t.rater) for t in marks.tags] == [(tag, "high quality", "you")]
    assert [(c.text, c.about) for c in marks.comments] == [("too red", rating), ("look", None)]
    assert marks.comments[1].id == comment


def test_a_picture_without_marks_has_none(store: FeedbackStore, images: list[str]):
    store.add_tag(Tag(images[0], "sharp", "me"))
    assert store.marks([images[1]])[images[1]].tags == ()
    assert store.marks([]) == {}


def test_a_mask_keeps_its_pixels_and_loses_everything_else(store: FeedbackStore, images: list[str]):
    """A text chunk in the file could carry anything to whoever downloads the mask."""
    from PIL.PngImagePlugin import PngInfo

    pixels = np.zeros((16, 19), np.uint8)
    pixels[3:5, 7:9] = 200
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("secret", "s3cret")
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    store.add_region(mask_of(images[0], buffer.getvalue()))
    (region,) = store.marks(images)[images[0]].regions
    assert region.mask is not None and b"s3cret" not in region.mask
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(region.mask))), pixels)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (png(np.full((16, 18), 255, np.uint8)), "18 x 16 pixels, the picture 19 x 16"),
        (png(np.full((1, 1), 255, np.uint8)), "1 x 1"),
        (png(np.zeros((16, 19), np.uint8)), "marks nothing"),
        (png(np.full((16, 19), 255, np.uint8), "RGB"), "8-bit grey"),
        (png(np.full((16, 19), 255, np.uint8))[:48], "can't be decoded"),
        (b"GIF89a", "no PNG"),
    ],
)
def test_a_mask_that_does_not_fit_its_picture_is_refused(
    store: FeedbackStore, images: list[str], mask: bytes, sentence: str
):
    revision = store.revision()
    with pytest.raises(InvalidRecord, match=sentence):
        store.add_region(mask_of(images[0], mask))
    assert store.revision() == revision


def test_only_words_of_the_prompt_can_be_marked(store: FeedbackStore, images: list[str]):
    """Words are counted between blanks: "a red  circle" has three."""
    store.add_word_mark(WordMark(images[0], 2, "circle", "missing", "me"))
    with pytest.raises(InvalidRecord, match="not 'circle' but 'red'"):
        store.add_word_mark(WordMark(images[0], 1, "circle", "missing", "me"))
    with pytest.raises(InvalidRecord, match="no such word"):
        store.add_word_mark(WordMark(images[0], 3, "circle", "missing", "me"))
    silent = store.add_image(picture(9), Generation(), "c")
    with pytest.raises(InvalidRecord, match="no such word"):
        store.add_word_mark(WordMark(silent, 0, "a", "missing", "me"))


def test_the_same_tag_by_the_same_rater_stays_one(store: FeedbackStore, images: list[str]):
    first = store.add_tag(Tag(images[0], "sharp", "me"))
    assert store.add_tag(Tag(images[0], "sharp ", "me")) == first
    assert store.add_tag(Tag(images[0], "sharp", "you")) != first
    store.undo(first)
    assert store.add_tag(Tag(images[0], "sharp", "me")) != first
    assert store.stats().kinds["tag"] == 2


ADD: dict[str, Any] = {
    "rating": lambda s, i: s.add_rating(Rating(i[0], 2, "me")),
    "comparison": lambda s, i: s.add_comparison(Comparison(i[0], i[1], "left", "me")),
    "ranking": lambda s, i: s.add_ranking(Ranking(tuple(i), "me")),
    "region": lambda s, i: s.add_region(replace(POINT, image_id=i[0])),
    "word_mark": lambda s, i: s.add_word_mark(WordMark(i[0], 1, "red", "good", "me")),
    "tag": lambda s, i: s.add_tag(Tag(i[0], "sharp", "me")),
    "comment": lambda s, i: s.add_comment(Comment(i[0], "look", "me")),
    "interaction": lambda s, i: s.add_interaction(Interaction("inpainted", i[0], "me", i[1])),
}


@pytest.mark.parametrize("kind", ADD)
def test_every_kind_is_counted_until_it_is_taken_back(store: FeedbackStore, images: list[str], kind: str):
    before = (store.stats().kinds, store.marks(images), store.rated(store.feedback()), store.compared(store.feedback()))
    id_ = ADD[kind](store, images)
    revision = store.feedback().revision
    assert store.stats().kinds == {kind: 1}
    assert [one.judgements for one in store.reliability()] == [1]
    undone = store.undo(id_)
    after = (store.stats().kinds, store.marks(images), store.rated(store.feedback()), store.compared(store.feedback()))
    assert after == before
    assert store.reliability() == []
    assert store.undo(id_) == undone
    assert store.feedback().revision > revision


@pytest.mark.parametrize("kind", ADD)
def test_every_kind_needs_a_picture_that_is_there_and_is_written_once_for_a_key(
    store: FeedbackStore, images: list[str], kind: str
):
    revision = store.revision()
    with pytest.raises(NotFound):
        ADD[kind](store, ["nope", *images[1:]])
    assert store.revision() == revision
    key = RequestKey("k", "hash")
    adding = getattr(store, f"add_{kind}")
    record = {
        "rating": Rating(images[0], 2, "me"),
        "comparison": Comparison(images[0], images[1], "left", "me"),
        "ranking": Ranking(tuple(images), "me"),
        "region": replace(POINT, image_id=images[0]),
        "word_mark": WordMark(images[0], 1, "red", "good", "me"),
        "tag": Tag(images[0], "sharp", "me"),
        "comment": Comment(images[0], "look", "me"),
        "interaction": Interaction("saved", images[0], "me"),
    }[kind]
    assert adding(record, key) == adding(record, key)
    assert store.stats().kinds == {kind: 1}
