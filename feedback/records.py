"""What is recorded about pictures, and what people said of them: plain values, no database.

Times are aware UTC datetimes, ids are text UUIDs, a seed is text because it can be as large as 2^64 - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

Winner = Literal["left", "right", "tie", "both_bad", "skip"]

MAX_NAME = 200  # characters of a name: rater, axis, collection, file
MAX_TEXT = 100_000  # characters of a prompt or a comment


class InvalidRecord(ValueError):
    """A record holds something that no database may be trusted with; the message says what."""


class NotFound(LookupError):
    """An id that the store does not know."""


class NotYours(PermissionError):
    """A judgement of another rater."""


class Conflict(ValueError):
    """A write that contradicts an earlier one: an idempotency key used before, or the undoing of an undo."""


def checked_text(text: str, name: str, limit: int = MAX_TEXT, empty: bool = True) -> str:
    """Returns `text`, or raises InvalidRecord for NUL, lone surrogates, and text that is too long or empty.

    SQLite cuts text at NUL where PostgreSQL refuses it, and neither holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise InvalidRecord(f"{name} must be text, not {type(text).__name__}.")
    if len(text) > limit:
        raise InvalidRecord(f"{name} is {len(text)} characters long; at most {limit} are kept.")
    if not text and not empty:
        raise InvalidRecord(f"{name} is empty; give it at least one character.")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRecord(f"{name} holds a NUL or half of a surrogate pair; remove it.")
    return text


def checked_number(number: float, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns `number` as float, or raises InvalidRecord unless it is finite and within low..high."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise InvalidRecord(f"{name} must be a number, not {type(number).__name__}.")
    if not math.isfinite(number) or not low <= number <= high:
        raise InvalidRecord(f"{name} is {number}; it must be a finite number from {low:g} to {high:g}.")
    return float(number)


@dataclass(frozen=True)
class Lora:
    """A LoRA as it was applied: file name, and strengths on the model and on the text encoder (None: not applied)."""

    name: str
    strength_model: float | None
    strength_clip: float | None = None


@dataclass(frozen=True)
class Provenance:
    """How a picture was made, as far as the graph says so; None where it does not."""

    prompt: str | None = None
    negative: str | None = None
    seed: str | None = None
    steps: int | None = None
    cfg: float | None = None
    sampler: str | None = None
    scheduler: str | None = None
    denoise: float | None = None
    checkpoint: str | None = None
    loras: tuple[Lora, ...] | None = None


@dataclass(frozen=True)
class Generation(Provenance):
    """A provenance, and where in which run the picture came out. `api_prompt` and `workflow` are JSON objects.

    `versions` names software and weights, for example {"comfyui": "0.30.0"}.
    """

    prompt_id: str | None = None
    node_id: str | None = None
    batch_index: int = 0
    checkpoint_hash: str | None = None
    api_prompt: dict[str, Any] | None = None
    workflow: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, provenance: Provenance, **rest: Any) -> Generation:
        """The provenance with the fields of the run added."""
        return cls(**{**vars(provenance), **rest})


@dataclass(frozen=True)
class Rating:
    """One rater's score of one picture on one axis: `raw` on the scale `scale_min..scale_max`.

    `lead_time` is the seconds from seeing the picture to rating it, where known.
    """

    image_id: str
    raw: float
    rater: str
    axis: str = "overall"
    scale_min: float = 1.0
    scale_max: float = 5.0
    lead_time: float | None = None
    comment: str | None = None

    def __post_init__(self) -> None:
        checked_number(self.scale_min, "The lower end of the scale", -1e9, 1e9)
        checked_number(self.scale_max, "The upper end of the scale", -1e9, 1e9)
        if self.scale_min >= self.scale_max:
            raise InvalidRecord("The lower end of the scale must be below the upper end.")
        checked_number(self.raw, "The rating", self.scale_min, self.scale_max)
        _check_judgement(self.rater, self.axis)
        if self.lead_time is not None:
            checked_number(self.lead_time, "The lead time", 0, 1e9)
        if self.comment is not None:
            checked_text(self.comment, "The comment", empty=False)

    @property
    def value(self) -> float:
        """The rating as a fraction of its scale, 0..1."""
        return (self.raw - self.scale_min) / (self.scale_max - self.scale_min)


@dataclass(frozen=True)
class Comparison:
    """Two pictures side by side and what one rater made of them.

    `strength` 0..1 says how clear the choice was; `policy` and `propensity` (0..1) how the pair came to be asked.
    """

    left: str
    right: str
    winner: Winner
    rater: str
    axis: str = "overall"
    strength: float | None = None
    policy: str | None = None
    propensity: float | None = None
    lead_time: float | None = None

    def __post_init__(self) -> None:
        if self.left == self.right:
            raise InvalidRecord("A picture can't be compared with itself; left and right must differ.")
        if self.winner not in get_args(Winner):
            raise InvalidRecord(f"The winner must be one of {', '.join(get_args(Winner))}, not {self.winner!r}.")
        _check_judgement(self.rater, self.axis)
        for name in ("strength", "propensity"):
            if (fraction := getattr(self, name)) is not None:
                checked_number(fraction, f"The {name}", 0, 1)
        if self.lead_time is not None:
            checked_number(self.lead_time, "The lead time", 0, 1e9)
        if self.policy is not None:
            checked_text(self.policy, "The policy", MAX_NAME, empty=False)


@dataclass(frozen=True)
class Comment:
    """What a rater wrote about a picture."""

    image_id: str
    text: str
    rater: str

    def __post_init__(self) -> None:
        checked_text(self.text, "The comment", empty=False)
        checked_text(self.rater, "The rater's name", MAX_NAME, empty=False)


def _check_judgement(rater: str, axis: str) -> None:
    checked_text(rater, "The rater's name", MAX_NAME, empty=False)
    checked_text(axis, "The axis", MAX_NAME, empty=False)


@dataclass(frozen=True)
class RequestKey:
    """The key that a client gave to a write, so that sending it twice writes once; and the hash of what was sent."""

    key: str
    body_hash: str


@dataclass(frozen=True)
class ModelRun:
    """A reward or LoRA that was fitted: from which judgements (`data_hash`, `revision`), how, and how well."""

    kind: str
    name: str
    revision: int
    data_hash: str
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    file_hash: str | None = None


@dataclass(frozen=True)
class Feedback:
    """The FEEDBACK socket: a query over the store, frozen at a revision so that the same query gives the same answer.

    collection None takes all collections, raters () all raters. Pictures rated by fewer than `min_ratings` raters are
    left out of `FeedbackStore.rated`.
    """

    revision: int
    collection: str | None = None
    raters: tuple[str, ...] = ()
    axis: str = "overall"
    min_ratings: int = 1


@dataclass(frozen=True)
class RatedImage:
    """The rating that counts of one rater on one picture. `value` is 0..1, `raw` as it was given."""

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


@dataclass(frozen=True)
class ComparedImages:
    """A comparison that counts, with the prompts of both pictures."""

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
    """A recorded picture. Sizes in pixels; `file_hash` is `blake3:<64 hex digits>` of the stored copy."""

    id: str
    collection: str
    file_hash: str
    pixel_hash: str
    width: int
    height: int
    created_at: datetime
    generation: Generation
    ratings: tuple[StoredRating, ...] = ()


@dataclass(frozen=True)
class Page:
    """One page of pictures, newest first; `next` continues after it, None at the end."""

    items: tuple[StoredImage, ...]
    next: str | None


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
