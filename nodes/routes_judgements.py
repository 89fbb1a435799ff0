"""Routes that record what somebody says of a picture, and the one that takes it back."""

from __future__ import annotations

from aiohttp import web

from ..feedback.records import Comment, Comparison, Rating
from . import request_models as models
from .routes_answers import ROOT, Store, answered, body, created, on_thread


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    @routes.post(f"{ROOT}/ratings")
    @answered
    async def rate(request: web.Request) -> web.Response:
        sent, key = await body(request, models.RatingBody)
        scale = {"scale_min": sent.scale.min, "scale_max": sent.scale.max}
        rating = Rating(sent.image_id, sent.value, sent.rater, sent.axis, **scale, comment=sent.comment)
        return created(await on_thread(lambda: store().add_rating(rating, key)))

    @routes.post(f"{ROOT}/comparisons")
    @answered
    async def compare(request: web.Request) -> web.Response:
        sent, key = await body(request, models.ComparisonBody)
        comparison = Comparison(**sent.model_dump())
        return created(await on_thread(lambda: store().add_comparison(comparison, key)))

    @routes.post(f"{ROOT}/comments")
    @answered
    async def comment(request: web.Request) -> web.Response:
        sent, key = await body(request, models.CommentBody)
        written = Comment(**sent.model_dump())
        return created(await on_thread(lambda: store().add_comment(written, key)))

    @routes.delete(f"{ROOT}/judgements/{{id}}")
    @answered
    async def undo(request: web.Request) -> web.Response:
        id_, asked = models.path_id(request), models.query(models.UndoQuery, request)
        undone = await on_thread(lambda: store().undo(id_, asked.rater, asked.clear))
        return web.json_response({"id": undone})
