"""The HTTP interface under /feedback_loop/v1/: pictures, ratings, comparisons, comments, undo, counts.

The event loop is the server's own, so whatever touches the disk runs on threads of ours. Who may ask is in
`request_rules`, what may be sent in `request_models`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from ..feedback.records import Comment, Comparison, Conflict, InvalidRecord, NotFound, NotYours, Rating, StoredImage
from . import request_models as models
from .request_rules import Refused, check_sender, json_body, request_key

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

T = TypeVar("T")
Store = Callable[[], "FeedbackStore"]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROOT = "/feedback_loop/v1"
THREADS = ThreadPoolExecutor(8, "feedback-http")
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}

STATUS: dict[type[Exception], int] = {NotFound: 404, NotYours: 403, Conflict: 409, InvalidRecord: 422}
"""What the store refuses, as HTTP says it."""


def register() -> None:
    """Adds the routes to ComfyUI's server; core serves them under /api too."""
    from server import PromptServer

    from .compat import store

    add_routes(PromptServer.instance.routes, store)


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    """Adds the routes to a table. `store` is called on a worker thread, at the first request that needs it."""
    _add_pictures(routes, store)
    _add_judgements(routes, store)

    @routes.get(f"{ROOT}/stats")
    @answered
    async def stats(request: web.Request) -> web.Response:
        models.query(models.NoQuery, request)
        return web.json_response(vars(await on_thread(lambda: store().stats())))

    @routes.get(f"{ROOT}/openapi.json")
    @answered
    async def describe(request: web.Request) -> web.Response:
        from . import openapi  # here, because it takes longer to import than all the rest and is seldom asked for

        return web.json_response(openapi.description(ROOT))


def _add_pictures(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/images")
    @answered
    async def images(request: web.Request) -> web.Response:
        asked = models.query(models.ImagesQuery, request)
        page = await on_thread(lambda: store().images(asked.collection, asked.cursor, asked.limit))
        return web.json_response({"items": [picture(item) for item in page.items], "next": page.next})

    @routes.get(f"{ROOT}/images/{{id}}")
    @answered
    async def image(request: web.Request) -> web.Response:
        id_ = models.path_id(request)
        return web.json_response(picture(await on_thread(lambda: store().image(id_))))

    @routes.get(f"{ROOT}/images/{{id}}/file")
    @answered
    async def file(request: web.Request) -> web.StreamResponse:
        id_ = models.path_id(request)
        path = await on_thread(lambda: store().image_file(id_))
        if not await on_thread(path.is_file):
            raise Refused(404, "The file of this picture was removed from the feedback folder.")
        return web.FileResponse(path, headers={**FOREVER, "Content-Type": "image/png"})

    @routes.get(f"{ROOT}/images/{{id}}/thumbnail")
    @answered
    async def thumbnail(request: web.Request) -> web.Response:
        id_ = models.path_id(request)
        try:
            data = await on_thread(lambda: store().thumbnail(id_))
        except FileNotFoundError as error:
            raise Refused(404, "The file of this picture was removed from the feedback folder.") from error
        return web.Response(body=data, content_type="image/jpeg", headers=FOREVER)


def _add_judgements(routes: web.RouteTableDef, store: Store) -> None:
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


def answered(answer: Answer) -> Answer:
    """Refuses strangers, and turns what was refused further in into a JSON object whose "error" is a sentence."""

    @wraps(answer)
    async def checked(request: web.Request) -> web.StreamResponse:
        from ..feedback.database import DatabaseReadOnly, DatabaseUnusable

        try:
            check_sender(request)
            return await answer(request)
        except Refused as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except tuple(STATUS) as error:
            return web.json_response({"error": str(error)}, status=STATUS[type(error)])
        except (DatabaseReadOnly, DatabaseUnusable) as error:
            return web.json_response({"error": str(error)}, status=503)

    return checked


async def body(request: web.Request, model: type[models.M]) -> tuple[models.M, Any]:
    """(what was sent, the idempotency key with the hash of it)."""
    data = await json_body(request)
    sent = models.parsed(model, data)
    return sent, request_key(request, json.dumps(data, sort_keys=True))


async def on_thread(work: Callable[[], T]) -> T:
    """Runs what waits for the disk beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, work)


def created(id_: str) -> web.Response:
    return web.json_response({"id": id_}, status=201)


def picture(image: StoredImage) -> dict[str, Any]:
    """A picture as it is listed. A rating's "value" is on its "scale", as it was posted."""
    return {
        "id": image.id,
        "collection": image.collection,
        "prompt": image.generation.prompt,
        "seed": image.generation.seed,
        "width": image.width,
        "height": image.height,
        "created_at": image.created_at.isoformat(),
        "ratings": [
            {
                "id": rating.id,
                "rater": rating.rater,
                "axis": rating.axis,
                "value": rating.raw,
                "scale": {"min": rating.scale[0], "max": rating.scale[1]},
                "created_at": rating.created_at.isoformat(),
            }
            for rating in image.ratings
        ],
    }
