"""Routes about LoRAs that are trained by themselves: how they stand, another version into use, a candidate dropped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from ..training import versions
from ..training.versions import Index, VersionsError
from . import request_models as models
from . import request_queries as queries
from .auto_train_judging import close, tally_of
from .auto_train_versions import folder_of
from .request_rules import Refused
from .routes_answers import ROOT, Store, answered, body, on_thread

DROPPED = "dropped by hand"


class UseBody(models.Strict):
    """Which version comes into use; 0 is the model without a LoRA. Asked twice it changes nothing."""

    version: Annotated[int, Field(ge=0, le=1_000_000)]


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/auto_train/{{name}}")
    @answered
    async def state(request: web.Request) -> web.Response:
        queries.query(queries.NoQuery, request)
        return await _answer(request, store, lambda folder: None)

    @routes.post(f"{ROOT}/auto_train/{{name}}/use")
    @answered
    async def use(request: web.Request) -> web.Response:
        sent, _ = await body(request, UseBody)
        return await _answer(request, store, lambda folder: _use(folder, sent.version))

    @routes.post(f"{ROOT}/auto_train/{{name}}/drop")
    @answered
    async def drop(request: web.Request) -> web.Response:
        await body(request, models.EmptyBody)
        return await _answer(request, store, lambda folder: _drop(folder, store))


async def _answer(request: web.Request, store: Store, act: Callable[[Path], None]) -> web.Response:
    """Does it, and tells how things stand then. Raises Refused for a name under which nothing was trained."""
    name = request.match_info["name"]

    def done() -> dict[str, Any]:
        try:
            folder = folder_of(name)
            if not (folder / versions.FILE).exists():
                raise Refused(404, "There is no training of this name.")
            act(folder)
            return _shown(versions.read(folder), store)
        except VersionsError as error:
            raise Refused(409, str(error)) from error
        except ValueError as error:
            raise Refused(422, str(error)) from error

    return web.json_response({"name": name, **await on_thread(done)})


def _use(folder: Path, number: int) -> None:
    versions.change(folder, partial(versions.use, number=number))


def _drop(folder: Path, store: Store) -> None:
    with versions.working(folder) as mine:
        if not mine:
            raise VersionsError("A run is at work on it. Cancel that run first.")
        if (now := versions.read(folder).round) is None:
            raise VersionsError("Nothing is under way that could be dropped.")
        close(store(), now.trial)
        versions.change(folder, partial(versions.dropped, why=DROPPED))


def _shown(index: Index, store: Store) -> dict[str, Any]:
    """How many votes there are, never how they went: nobody is to follow the others."""
    told = [
        {"number": v.number, "file": v.file, "made_at": v.made_at, "ratings": v.ratings, "outcome": v.outcome,
         "why": v.why}
        for v in index.versions
    ]  # fmt: skip
    now = None
    if index.round is not None:
        tally = tally_of(store(), index.round.trial)
        votes = 0 if tally is None else tally.votes
        now = {"stage": index.round.stage, "candidate": index.round.candidate, "votes": votes}
    return {"in_use": index.in_use, "back": index.back, "round": now, "versions": told}
