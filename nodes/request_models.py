"""What may be sent to our routes: pydantic models, strict and bounded, and the OpenAPI description made of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..feedback.records import MAX_NAME, MAX_TEXT, checked_text
from .request_rules import Refused

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _clean(text: str) -> str:
    return checked_text(text, "The text")


Id = Annotated[str, StringConstraints(pattern=f"^{UUID.pattern}$", max_length=36)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_clean)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT), AfterValidator(_clean)]
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


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


class Query(BaseModel):
    """Parameters behind the question mark are text, so numbers are read from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Query):
    """A route without parameters."""


class ImagesQuery(Query):
    """Which pictures, newest first: of one collection or all, after `cursor`."""

    collection: Name | None = None
    cursor: Annotated[str, StringConstraints(pattern="^[0-9]{1,18}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class UndoQuery(Query):
    """`rater`: refuse unless it is theirs. `clear`: take back their earlier ratings of the picture too."""

    rater: Name | None = None
    clear: bool = False


M = TypeVar("M", bound=BaseModel)


def parsed(model: type[M], data: Any) -> M:
    """`data` as the model, or Refused with every reason."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
        raise Refused(422, f"The request can't be taken: {'; '.join(reasons)[:1000]}.") from error


def query(model: type[M], request: web.Request) -> M:
    """The parameters behind the question mark as the model, or Refused."""
    if len(set(request.query)) < len(request.query):
        raise Refused(422, "A parameter appears twice.")
    return parsed(model, dict(request.query))


def path_id(request: web.Request) -> str:
    """The id in the path, or Refused: ids are UUIDs and nothing else gets further."""
    id_ = request.match_info["id"]
    if not UUID.fullmatch(id_):
        raise Refused(404, "There is nothing of this id.")
    return id_
