"""What may stand behind the question mark: pydantic models, bounded."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from .request_models import Fraction, M, Name, Number, parsed
from .request_rules import Refused


def _dated(value: Any) -> Any:
    """Without this, a number would be taken for seconds since 1970."""
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d[T ]", value):
        raise ValueError("a time looks like 2026-01-31T12:00:00Z")
    return value


Times = Annotated[int, Field(ge=1, le=1000)]
Time = Annotated[AwareDatetime, BeforeValidator(_dated)]


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
    since: Time | None = None
    until: Time | None = None
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
