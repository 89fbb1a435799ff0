"""Routes that list the runs that wait for a person, and take the answer."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from ..feedback.gate import Answer, Gate, judgements
from . import request_models as models
from .gate_room import ROOM
from .routes_answers import ROOT, Store, answered, body, on_thread


class GateBody(models.Strict):
    """What a run that waits goes on with: pictures, best first, and none to reject them all.

    mask: an 8-bit grey PNG of the picture's size in base64; it lies on the first picture unless mask_of names another.
    """

    action: Literal["choose", "rank", "approve", "reject"]
    images: Annotated[list[models.Id], Field(max_length=4096)] = []
    mask: models.Base64 | None = None
    mask_of: models.Id | None = None
    comment: models.Text | None = None
    lead_time: models.Seconds | None = None
    rater: models.Name


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/gates")
    @answered
    async def pending(request: web.Request) -> web.Response:
        ROOM.seen()
        return web.json_response({"gates": [_shown(gate) for gate in ROOM.pending()]})

    @routes.post(f"{ROOT}/gates/{{key}}")
    @answered
    async def answer(request: web.Request) -> web.Response:
        sent, key = await body(request, GateBody)
        said = _answer(sent)

        def stored() -> list[str]:
            with ROOM.answering(request.match_info["key"], said, key) as question:
                return [] if question is None else store().add_said(judgements(question, said), key)

        ids = await on_thread(stored)
        return web.json_response({"key": request.match_info["key"], "judgements": ids})


def _answer(sent: GateBody) -> Answer:
    mask = None if sent.mask is None else base64.b64decode(sent.mask)
    return Answer(sent.action, tuple(sent.images), sent.rater, mask, sent.mask_of, sent.comment, sent.lead_time)


def _shown(gate: Gate) -> dict[str, Any]:
    key, question = gate.key, gate.question
    return {
        "key": str(key),
        "prompt_id": key.prompt_id,
        "node_id": key.node_id,
        "list_index": key.list_index,
        "mode": question.mode,
        "images": list(question.image_ids),
        "collection": question.collection,
        "seconds_left": ROOM.seconds_left(gate),
        "on_timeout": question.on_timeout,
        "workflow_id": question.workflow_id,
    }
