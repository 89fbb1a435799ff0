"""What all routes share: who may ask, threads beside the event loop, and errors as sentences.

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

from ..feedback.media import BadPicture
from ..feedback.records import Conflict, InvalidRecord, NotFound, NotYours
from . import request_models as models
from .request_rules import Refused, check_sender, json_body, request_key
from .team import DOOR, Door, check_rater

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

T = TypeVar("T")
Store = Callable[[], "FeedbackStore"]
"""Called on a worker thread, at the first request that needs the store."""
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROOT = "/feedback_loop/v1"
THREADS = ThreadPoolExecutor(8, "feedback-http")

STATUS: dict[type[Exception], int] = {NotFound: 404, NotYours: 403, Conflict: 409, InvalidRecord: 422, BadPicture: 422}
"""What the store refuses, as HTTP says it."""


def answered(answer: Answer) -> Answer:
    """Refuses strangers, and turns what was refused further in into a JSON object whose "error" is a sentence."""

    @wraps(answer)
    async def checked(request: web.Request) -> web.StreamResponse:
        from ..feedback.database import DatabaseReadOnly, DatabaseUnusable

        try:
            check_sender(request)
            await door_of(request).admit(request)
            return await answer(request)
        except Refused as error:
            return web.json_response({"error": str(error)}, status=error.status, headers=error.headers)
        except tuple(STATUS) as error:
            return web.json_response({"error": str(error)}, status=STATUS[type(error)])
        except (DatabaseReadOnly, DatabaseUnusable) as error:
            return web.json_response({"error": str(error)}, status=503)

    return checked


async def body(request: web.Request, model: type[models.M]) -> tuple[models.M, Any]:
    """(what was sent, the idempotency key with the hash of it). Raises Refused, also for another rater's name."""
    data = await json_body(request)
    sent = models.parsed(model, data)
    check_rater(request, sent)
    return sent, request_key(request, json.dumps(data, sort_keys=True))


def door_of(request: web.Request) -> Door:
    """Raises Refused where the routes were added without the door that counts requests and knows tokens."""
    if (door := request.app.get(DOOR)) is None:
        raise Refused(503, "Feedback Loop was not set up on this server.")
    return door


async def on_thread(work: Callable[[], T]) -> T:
    """Runs what waits for the disk beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, work)


def created(id_: str) -> web.Response:
    return web.json_response({"id": id_}, status=201)
