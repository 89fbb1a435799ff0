"""What may stand behind the question mark: pydantic models, bounded."""

from __future__ import annotations

from typing import Annotated, Literal

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from .request_models import Fraction, M, Name, Number, parsed
from .request_rules import Refused


class Query(BaseModel):
    """Parameters behind the question mark are text, so numbers are read from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Query):
    """A route without parameters."""


class ImagesQuery(Query):
    """Which pictures, and in which order, after `cursor`. Values are fractions of a rating's scale, 0 to 1."""

    collection: Name | None = None
    rated: bool | None = None
    rater: Name | None = None
    axis: Name | None = None
    min_value: Fraction | None = None
    max_value: Fraction | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    text: Name | None = None
    min_watermark: Number | None = None
    max_watermark: Number | None = None
    sort: Literal["newest", "oldest", "best", "worst", "watermark"] = "newest"
    cursor: Annotated[str, StringConstraints(pattern="^([0-9e.+-]{1,30}~)?[0-9]{1,18}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class UndoQuery(Query):
    """`rater`: refuse unless it is theirs. `clear`: take back their earlier ratings of the picture too."""

    rater: Name | None = None
    clear: bool = False


class PairQuery(Query):
    """Which two pictures to compare next: those to `learn` most from, or those a model can `train` on best."""

    policy: Literal["learn", "train"] = "learn"
    collection: Name | None = None
    axis: Name = "overall"
    rater: Name


def query(model: type[M], request: web.Request) -> M:
    """The parameters behind the question mark as the model, or Refused."""
    if len(set(request.query)) < len(request.query):
        raise Refused(422, "A parameter appears twice.")
    return parsed(model, dict(request.query))
