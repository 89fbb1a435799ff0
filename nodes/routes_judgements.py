"""Routes that record what somebody says of a picture, and the one that takes it back."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import BaseModel

from ..feedback.marks import Ranking, Region, Tag, WordMark
from ..feedback.records import Comment, Comparison, Rating
from . import request_models as models
from . import request_queries as queries
from .routes_answers import ROOT, Store, answered, body, created, on_thread
from .team import check_rater, rater_of

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore


@dataclass(frozen=True)
class Kind:
    """One kind of judgement: where it is sent, as what, the record that it becomes, and who keeps it."""

    path: str
    body: type[BaseModel]
    record: Callable[[Any], Any]
    add: Callable[[FeedbackStore], Callable[..., str]]


def _plain(record: Callable[..., Any]) -> Callable[[BaseModel], Any]:
    """A body whose fields are the record's, lists being tuples there."""

    def made(sent: BaseModel) -> Any:
        fields = sent.model_dump().items()
        return record(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields})

    return made


def _rating(sent: models.RatingBody) -> Rating:
    rest = sent.model_dump(exclude={"value", "scale"})
    return Rating(raw=sent.value, scale_min=sent.scale.min, scale_max=sent.scale.max, **rest)


def _region(sent: models.RegionBody) -> Region:
    geometry = tuple((x, y) for x, y in sent.geometry)
    mask = None if sent.mask is None else base64.b64decode(sent.mask)
    return Region(geometry=geometry, mask=mask, **sent.model_dump(exclude={"geometry", "mask"}))


KINDS = (
    Kind("ratings", models.RatingBody, _rating, lambda store: store.add_rating),
    Kind("comparisons", models.ComparisonBody, _plain(Comparison), lambda store: store.add_comparison),
    Kind("rankings", models.RankingBody, _plain(Ranking), lambda store: store.add_ranking),
    Kind("regions", models.RegionBody, _region, lambda store: store.add_region),
    Kind("word_marks", models.WordMarkBody, _plain(WordMark), lambda store: store.add_word_mark),
    Kind("tags", models.TagBody, _plain(Tag), lambda store: store.add_tag),
    Kind("comments", models.CommentBody, _plain(Comment), lambda store: store.add_comment),
)


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    for kind in KINDS:
        _add(routes, store, kind)

    @routes.delete(f"{ROOT}/judgements/{{id}}")
    @answered
    async def undo(request: web.Request) -> web.Response:
        id_, asked = models.path_id(request), queries.query(queries.UndoQuery, request)
        check_rater(request, asked)
        rater = asked.rater or rater_of(request)
        undone = await on_thread(lambda: store().undo(id_, rater, asked.clear))
        return web.json_response({"id": undone})


def _add(routes: web.RouteTableDef, store: Store, kind: Kind) -> None:
    @routes.post(f"{ROOT}/{kind.path}")
    @answered
    async def judge(request: web.Request) -> web.Response:
        sent, key = await body(request, kind.body)
        return created(await on_thread(lambda: kind.add(store())(kind.record(sent), key)))
