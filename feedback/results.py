"""What the store gives back: queries, pictures, the judgements that count, and numbers about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

from .checks import MAX_NAME, InvalidRecord, checked_number, checked_text
from .made import Generation

Winner = Literal["left", "right", "tie", "both_bad", "skip"]
Kind = Literal["rating", "comparison", "ranking", "tag", "interaction"]
Part = Literal["all", "train", "held_out"]
Sort = Literal["newest", "oldest", "best", "worst", "watermark"]
Policy = Literal["learn", "train"]
Picked = Literal["learn", "train", "blind"]

EXPLICIT: tuple[Kind, ...] = ("rating", "comparison", "ranking", "tag")
"""Kinds of judgement that somebody gave on purpose; interactions come in only when they are asked for."""


@dataclass(frozen=True)
class Feedback:
    """The FEEDBACK socket: a query over the store, frozen at a revision so that the same query gives the same answer.

    collection None takes all collections, raters () all raters. Pictures rated by fewer than `min_ratings` raters are
    left out of `FeedbackStore.rated`. since, until: aware datetimes, when the judgement was given, until excluded.
    kinds: see EXPLICIT. An interaction counts `interaction_weight` (0..1) of a rating, if its kind is asked for.
    tag: asks for pictures with and without this tag instead of ratings on the axis. split: all pictures, or the part
    of the prompts, fixed by a hash of their words, to train on (9 of 10) or to hold out.
    """

    revision: int
    collection: str | None = None
    raters: tuple[str, ...] = ()
    axis: str = "overall"
    min_ratings: int = 1
    since: datetime | None = None
    until: datetime | None = None
    kinds: tuple[Kind, ...] = EXPLICIT
    interaction_weight: float = 0.2
    tag: str | None = None
    split: Part = "all"

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in get_args(Kind)]:
            raise InvalidRecord(f"There is no kind of feedback {unknown[0]!r}; take {', '.join(get_args(Kind))}.")
        if self.split not in get_args(Part):
            raise InvalidRecord(f"There is no split {self.split!r}; take {', '.join(get_args(Part))}.")
        checked_number(self.interaction_weight, "The weight of interactions", 0, 1)
        if self.tag is not None:
            checked_text(self.tag, "The tag", MAX_NAME, empty=False)


@dataclass(frozen=True)
class RatedImage:
    """The rating that counts of one rater on one picture. `value` is 0..1, `raw` as it was given.

    `weight` below 1: how much it says beside a rating, for what was only concluded from an interaction.
    """

    rating_id: str
    image_id: str
    prompt: str | None
    value: float
    raw: float
    scale: tuple[float, float]
    rater: str
    axis: str
    created_at: datetime
    generation: Generation
    kind: Kind = "rating"
    weight: float = 1.0


@dataclass(frozen=True)
class ComparedImages:
    """A comparison that counts, with the prompts of both pictures. A ranking gives one for each of its pairs."""

    comparison_id: str
    left: str
    right: str
    winner: Winner
    strength: float | None
    rater: str
    axis: str
    created_at: datetime
    left_prompt: str | None
    right_prompt: str | None
    kind: Kind = "comparison"
    weight: float = 1.0


@dataclass(frozen=True)
class StoredRating:
    """A rating that counts, as it is listed beside its picture."""

    id: str
    rater: str
    axis: str
    value: float
    raw: float
    scale: tuple[float, float]
    created_at: datetime


@dataclass(frozen=True)
class StoredImage:
    """A recorded picture. Sizes in pixels; `file_hash` is `blake3:<64 hex digits>` of the stored copy.

    `watermark` is the score that a detector gave, where one looked at it; higher is more surely marked.
    """

    id: str
    collection: str
    file_hash: str
    pixel_hash: str
    width: int
    height: int
    created_at: datetime
    generation: Generation
    ratings: tuple[StoredRating, ...] = ()
    watermark: float | None = None


@dataclass(frozen=True)
class ImageFilter:
    """Which pictures to list; None asks nothing.

    rated: whether anybody (or `rater`) rated it, on any axis or on `axis`. min_value, max_value: 0..1, of the rating by
    `rater`, else of the mean over raters, on `axis` ("overall" where none is named). since, until: when the picture was
    recorded, until excluded. text: beginnings of words of the prompt, all of which must be there.
    """

    collection: str | None = None
    rated: bool | None = None
    rater: str | None = None
    axis: str | None = None
    min_value: float | None = None
    max_value: float | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    min_watermark: float | None = None
    max_watermark: float | None = None


@dataclass(frozen=True)
class Page:
    """One page of pictures, in the order asked for; `next` continues after it, None at the end."""

    items: tuple[StoredImage, ...]
    next: str | None


@dataclass(frozen=True)
class Pair:
    """Two pictures to be compared next, their sides drawn by lot.

    propensity: the probability, among the candidates looked at, that `policy` picks these two; "blind" is for pairs of
    a blind trial. repeat_of: the earlier comparison by the same rater that this one asks again with sides exchanged.
    """

    left: str
    right: str
    policy: Picked
    propensity: float
    repeat_of: str | None = None


@dataclass(frozen=True)
class Freed:
    """What a deletion took away: pictures, and bytes on disk."""

    images: int
    bytes: int


@dataclass(frozen=True)
class RaterReliability:
    """How steadily somebody judges.

    left_share: of the pairs they decided, how often they took the left one, None before the first; left_interval is
    its 95 % interval, and one that leaves out 0.5 shows a habit. self_agreement: of `repeats` pairs that came again,
    how many got the same answer. median_seconds: from seeing to judging, over the latest judgements that tell.
    """

    rater: str
    judgements: int
    left_share: float | None
    left_interval: tuple[float, float] | None
    self_agreement: float | None
    repeats: int
    median_seconds: float | None


@dataclass(frozen=True)
class Stats:
    """What the store holds; undone judgements are not counted. `read_only` says why nothing can be written."""

    revision: int
    images: int
    ratings: int
    comparisons: int
    comments: int
    raters: int
    media_bytes: int
    collections: dict[str, int]
    read_only: str | None
    kinds: dict[str, int] = field(default_factory=dict)
    """How many judgements of each kind count."""
