"""Routes about rounds of refinement: a picture's family, what is chosen in a round, and which edits come back."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web

from ..feedback import refinements, suggestions, writes
from ..feedback.refinements import Family, StoredRound
from ..feedback.suggestions import Evidence, Recurring
from . import request_models as models
from . import request_queries as queries
from .routes_answers import ROOT, Store, answered, body, created, on_thread


class ChoiceBody(models.Strict):
    """Which candidate of a round is the good one; null: none of them."""

    image_id: models.Id | None
    rater: models.Name


class RecurringQuery(queries.Query):
    """Of which collection, and from how many pictures on something is suggested."""

    collection: models.Name | None = None
    minimum: queries.Times = 3


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/images/{{id}}/family")
    @answered
    async def family(request: web.Request) -> web.Response:
        queries.query(queries.NoQuery, request)
        id_ = models.path_id(request)
        return web.json_response(await on_thread(lambda: _family(store().ask(partial(_asked, image_id=id_)))))

    @routes.post(f"{ROOT}/rounds/{{id}}/choice")
    @answered
    async def choose(request: web.Request) -> web.Response:
        sent, key = await body(request, ChoiceBody)
        id_ = models.path_id(request)

        def accept(connection: Any) -> str:
            return refinements.accept(connection, id_, sent.image_id, sent.rater)

        return created(await on_thread(lambda: store().note(lambda c: writes.once(c, key, accept))))

    @routes.get(f"{ROOT}/recurring")
    @answered
    async def recurring(request: web.Request) -> web.Response:
        asked = queries.query(RecurringQuery, request)
        found = await on_thread(lambda: store().ask(lambda c: suggestions.recurring(c, asked.collection)))
        return web.json_response(_recurring(found, asked.minimum))


def _asked(connection: Any, image_id: str) -> Family:
    return refinements.family(connection, image_id)


def _family(family: Family) -> dict[str, Any]:
    return {"root": family.root, "rounds": [_round(one) for one in family.rounds]}


def _round(one: StoredRound) -> dict[str, Any]:
    return {
        "id": one.id,
        "parent": one.parent,
        "comment": one.comment,
        "labels": list(one.labels),
        "candidates": [{"image_id": made.image_id, "score": made.score} for made in one.candidates],
        "accepted": one.accepted,
        "decided": one.decided,
        "how": one.how,
        "created_at": one.created_at.isoformat(),
    }


def _recurring(found: Recurring, minimum: int) -> dict[str, Any]:
    return {
        "words": [{"wanted": w, "text": text, **_evidence(e)} for (w, text), e in found.words.items()],
        "labels": [{"label": label, **_evidence(e)} for label, e in found.labels.items()],
        "places": found.places,
        "interactions": found.interactions,
        "rounds": found.rounds,
        "accepted": found.accepted,
        "suggestions": [
            {"name": one.name, "kind": one.kind, **_evidence(one.evidence)}
            for one in suggestions.suggestions(found, minimum)
        ],
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {"pictures": evidence.pictures, "raters": evidence.raters, "examples": list(evidence.examples)}
