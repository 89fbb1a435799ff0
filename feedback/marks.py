"""What people say of pictures beyond stars and pairs: orders, places, words, tags, and what they do with pictures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from .checks import MAX_NAME, InvalidRecord, checked_number, checked_text

Shape = Literal["point", "rect", "polygon", "mask"]
WordLabel = Literal["misaligned", "missing", "good"]
InteractionKind = Literal["saved", "deleted", "regenerated", "inpainted", "upscaled", "picked"]

POINTS: dict[str, tuple[int, int]] = {"point": (1, 1), "rect": (2, 2), "polygon": (3, 1000), "mask": (0, 0)}
"""How many points the geometry of a shape has: at least, at most."""

MAX_RANKED = 64
MAX_WORD = 1000  # characters


@dataclass(frozen=True)
class Ranking:
    """Pictures in the order in which one rater likes them, best first; it says something of every pair of them."""

    image_ids: tuple[str, ...]
    rater: str
    axis: str = "overall"
    lead_time: float | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.image_ids) <= MAX_RANKED:
            raise InvalidRecord(f"A ranking has 2 to {MAX_RANKED} pictures, not {len(self.image_ids)}.")
        if len(set(self.image_ids)) < len(self.image_ids):
            raise InvalidRecord("A ranking names a picture twice; every picture has one place.")
        _check_rater(self.rater)
        checked_text(self.axis, "The axis", MAX_NAME, empty=False)
        if self.lead_time is not None:
            checked_number(self.lead_time, "The lead time", 0, 1e9)


@dataclass(frozen=True)
class Region:
    """A place in a picture and what is to be said of it.

    geometry: (x, y) in fractions of width and height: the point, two opposite corners of a rectangle, the corners of a
    polygon, nothing for a mask. mask: an 8-bit grey PNG of the picture's size. severity: 0..1.
    """

    image_id: str
    shape: Shape
    geometry: tuple[tuple[float, float], ...]
    label: str
    rater: str
    severity: float | None = None
    comment: str | None = None
    mask: bytes | None = None

    def __post_init__(self) -> None:
        _check_one_of(self.shape, Shape, "shape")
        _check_geometry(self.shape, self.geometry)
        if (self.mask is None) == (self.shape == "mask"):
            raise InvalidRecord("A region of the shape mask, and no other, comes with a mask.")
        checked_text(self.label, "The label", MAX_NAME, empty=False)
        _check_rater(self.rater)
        if self.severity is not None:
            checked_number(self.severity, "The severity", 0, 1)
        if self.comment is not None:
            checked_text(self.comment, "The comment", empty=False)


def _check_geometry(shape: str, geometry: tuple[tuple[float, float], ...]) -> None:
    least, most = POINTS[shape]
    if not least <= len(geometry) <= most:
        count = str(least) if least == most else f"{least} to {most}"
        raise InvalidRecord(f"A region of the shape {shape} has {count} points, not {len(geometry)}.")
    for point in geometry:
        if len(point) != 2:
            raise InvalidRecord("A point of a region is two numbers, x and y.")
        for number in point:
            checked_number(number, "A coordinate", 0, 1)
    if shape == "rect" and (geometry[0][0] == geometry[1][0] or geometry[0][1] == geometry[1][1]):
        raise InvalidRecord("A rectangle needs two corners that differ in x and in y; mark a point instead.")


@dataclass(frozen=True)
class WordMark:
    """How a picture follows one word of its prompt, the word at `word_index` of `prompt.split()`."""

    image_id: str
    word_index: int
    word: str
    label: WordLabel
    rater: str

    def __post_init__(self) -> None:
        if isinstance(self.word_index, bool) or not isinstance(self.word_index, int) or self.word_index < 0:
            raise InvalidRecord(f"The place of a word is a whole number from 0 on, not {self.word_index!r}.")
        checked_text(self.word, "The word", MAX_WORD, empty=False)
        _check_one_of(self.label, WordLabel, "label of a word")
        _check_rater(self.rater)


@dataclass(frozen=True)
class Tag:
    """A word or two that a rater puts on a picture."""

    image_id: str
    tag: str
    rater: str

    def __post_init__(self) -> None:
        if not checked_text(self.tag, "The tag", MAX_NAME, empty=False).strip():
            raise InvalidRecord("The tag is blank; give it at least one letter.")
        _check_rater(self.rater)


@dataclass(frozen=True)
class Interaction:
    """What somebody did with a picture without being asked; `result_id` is the picture that came of it, if any."""

    kind: InteractionKind
    image_id: str
    rater: str
    result_id: str | None = None

    def __post_init__(self) -> None:
        _check_one_of(self.kind, InteractionKind, "kind of interaction")
        _check_rater(self.rater)
        if self.result_id == self.image_id:
            raise InvalidRecord("A picture can't be the result of itself; leave result_id out.")


def _check_one_of(word: str, choices: object, name: str) -> None:
    if word not in get_args(choices):
        raise InvalidRecord(f"The {name} must be one of {', '.join(get_args(choices))}, not {word!r}.")


def _check_rater(rater: str) -> None:
    checked_text(rater, "The rater's name", MAX_NAME, empty=False)


# What is read back: each mark with its id, who made it and when.


@dataclass(frozen=True)
class StoredRegion:
    """A marked place that counts; see `Region`."""

    id: str
    rater: str
    created_at: datetime
    image_id: str
    shape: Shape
    geometry: tuple[tuple[float, float], ...]
    label: str
    severity: float | None
    comment: str | None
    mask: bytes | None


@dataclass(frozen=True)
class StoredWordMark:
    """A marked word that counts; see `WordMark`."""

    id: str
    rater: str
    created_at: datetime
    image_id: str
    word_index: int
    word: str
    label: WordLabel


@dataclass(frozen=True)
class StoredTag:
    """A tag that counts."""

    id: str
    rater: str
    created_at: datetime
    image_id: str
    tag: str


@dataclass(frozen=True)
class StoredComment:
    """A comment that counts; `about` is the rating that it was given with, if it was."""

    id: str
    rater: str
    created_at: datetime
    image_id: str
    text: str
    about: str | None


@dataclass(frozen=True)
class StoredComparison:
    """A comparison that counts; left and right are ids of pictures."""

    id: str
    rater: str
    created_at: datetime
    left: str
    right: str
    winner: str
    axis: str
    policy: str | None


@dataclass(frozen=True)
class StoredRanking:
    """A ranking that counts, best first."""

    id: str
    rater: str
    created_at: datetime
    image_ids: tuple[str, ...]
    axis: str


@dataclass(frozen=True)
class Marks:
    """What counts of the marks on one picture, oldest first, and of the comparisons and rankings that it is in."""

    regions: tuple[StoredRegion, ...] = ()
    word_marks: tuple[StoredWordMark, ...] = ()
    tags: tuple[StoredTag, ...] = ()
    comments: tuple[StoredComment, ...] = ()
    comparisons: tuple[StoredComparison, ...] = ()
    rankings: tuple[StoredRanking, ...] = ()
