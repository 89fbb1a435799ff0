"""Routes about the store as a whole: counts."""

from __future__ import annotations

from aiohttp import web

from . import request_models as models
from .routes_answers import ROOT, Store, answered, on_thread


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/stats")
    @answered
    async def stats(request: web.Request) -> web.Response:
        models.query(models.NoQuery, request)
        return web.json_response(vars(await on_thread(lambda: store().stats())))
