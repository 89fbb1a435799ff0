"""What may be sent in a body: pydantic models, strict and bounded, of which the OpenAPI description is made too."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..feedback.records import MAX_NAME, MAX_TEXT, checked_text
from .request_rules import Refused

MAX_WORD = 1000  # characters
MAX_MASK = 500_000  # characters of base64; a brush stroke in a large picture takes some ten thousand
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _clean(text: str) -> str:
    return checked_text(text, "The text")


Id = Annotated[str, StringConstraints(pattern=f"^{UUID.pattern}$", max_length=36)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_clean)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT), AfterValidator(_clean)]
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Point = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


def _bytes(text: str) -> str:
    base64.b64decode(text, validate=True)  # binascii.Error is a ValueError, which pydantic turns into a reason
    return text


Base64 = Annotated[str, StringConstraints(min_length=1, max_length=MAX_MASK), AfterValidator(_bytes)]


class Strict(BaseModel):
    """No field but those named, and no text where a number is meant."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Scale(Strict):
    """The ends of the scale that a rating's value is on."""

    min: Number
    max: Number

    @model_validator(mode="after")
    def _rises(self) -> Scale:
        if self.min >= self.max:
            raise ValueError("min must be below max")
        return self


class RatingBody(Strict):
    """A score of one picture on one axis."""

    image_id: Id
    value: Number
    scale: Scale
    axis: Name = "overall"
    rater: Name
    comment: Text | None = None
    lead_time: Seconds | None = None

    @model_validator(mode="after")
    def _on_scale(self) -> RatingBody:
        if not self.scale.min <= self.value <= self.scale.max:
            raise ValueError(f"value must lie on the scale, from {self.scale.min:g} to {self.scale.max:g}")
        return self


class ComparisonBody(Strict):
    """Which of two pictures is better on one axis; policy and propensity say how the pair was picked."""

    left: Id
    right: Id
    winner: Literal["left", "right", "tie", "both_bad", "skip"]
    axis: Name = "overall"
    rater: Name
    strength: Fraction | None = None
    policy: Name | None = None
    propensity: Fraction | None = None
    lead_time: Seconds | None = None

    @model_validator(mode="after")
    def _two_pictures(self) -> ComparisonBody:
        if self.left == self.right:
            raise ValueError("left and right must be different pictures")
        return self


class CommentBody(Strict):
    """What a rater says of a picture in words."""

    image_id: Id
    text: Text
    rater: Name


class RankingBody(Strict):
    """Pictures put in order on one axis, best first; every pair in it counts as compared."""

    image_ids: Annotated[list[Id], Field(min_length=2, max_length=64)]
    axis: Name = "overall"
    rater: Name
    lead_time: Seconds | None = None

    @model_validator(mode="after")
    def _distinct(self) -> RankingBody:
        if len(set(self.image_ids)) < len(self.image_ids):
            raise ValueError("image_ids names a picture twice")
        return self


class RegionBody(Strict):
    """A place in a picture. Geometry in fractions of width and height: 1 point, 2 corners, or 3 and more in a polygon.

    A mask has no geometry; it is an 8-bit grey PNG of the picture's size, in base64.
    """

    image_id: Id
    shape: Literal["point", "rect", "polygon", "mask"]
    geometry: Annotated[list[Point], Field(max_length=1000)] = []
    label: Name
    rater: Name
    severity: Fraction | None = None
    comment: Text | None = None
    mask: Base64 | None = None


class WordMarkBody(Strict):
    """A word of the prompt, counted from 0 between blanks, and how the picture follows it."""

    image_id: Id
    word_index: Annotated[int, Field(ge=0, le=MAX_TEXT)]
    word: Annotated[str, StringConstraints(min_length=1, max_length=MAX_WORD), AfterValidator(_clean)]
    label: Literal["misaligned", "missing", "good"]
    rater: Name


class TagBody(Strict):
    """A word or two that a rater puts on a picture."""

    image_id: Id
    tag: Name
    rater: Name


class InteractionBody(Strict):
    """What somebody did with a picture without being asked. result_id: the picture that came of it."""

    kind: Literal["saved", "deleted", "regenerated", "inpainted", "upscaled", "picked"]
    image_id: Id
    result_id: Id | None = None
    rater: Name


class SettingsBody(Strict):
    """What the server records beyond explicit judgements."""

    interactions: bool


class CollectionBody(Strict):
    """Where the pictures of the output folder are recorded."""

    collection: Name


class EmptyBody(Strict):
    """An object without fields: {}."""


M = TypeVar("M", bound=BaseModel)


def parsed(model: type[M], data: Any) -> M:
    """`data` as the model, or Refused with every reason."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
        raise Refused(422, f"The request can't be taken: {'; '.join(reasons)[:1000]}.") from error


def path_id(request: web.Request) -> str:
    """The id in the path, or Refused: ids are UUIDs and nothing else gets further."""
    id_ = request.match_info["id"]
    if not UUID.fullmatch(id_):
        raise Refused(404, "There is nothing of this id.")
    return id_
