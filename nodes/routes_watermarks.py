"""The route that has pictures looked at for watermarks which nobody has looked at yet."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from . import request_models as models
from .routes_answers import ROOT, Store, answered, body, on_thread
from .watermarks import LOOKER, Looker


def add_routes(routes: web.RouteTableDef, store: Store, looker: Looker = LOOKER) -> None:
    @routes.post(f"{ROOT}/watermarks/scan")
    @answered
    async def look(request: web.Request) -> web.Response:
        await body(request, models.EmptyBody)
        return web.json_response(asdict(await on_thread(looker.look_at_all)))
