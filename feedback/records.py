"""What people said of pictures, and what is noted of a fit: plain values, no database. Marks are in `marks`.

Times are aware UTC datetimes, ids are text UUIDs. The names of `checks`, `made` and `results` can be had here too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from .checks import MAX_NAME as MAX_NAME
from .checks import MAX_TEXT as MAX_TEXT
from .checks import Conflict as Conflict
from .checks import InvalidRecord as InvalidRecord
from .checks import NotFound as NotFound
from .checks import NotYours as NotYours
from .checks import checked_number as checked_number
from .checks import checked_text as checked_text
from .made import Generation as Generation
from .made import Lora as Lora
from .made import Provenance as Provenance
from .results import ComparedImages as ComparedImages
from .results import Feedback as Feedback
from .results import Page as Page
from .results import RatedImage as RatedImage
from .results import Stats as Stats
from .results import StoredImage as StoredImage
from .results import StoredRating as StoredRating
from .results import Winner as Winner


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
