"""The HTTP interface under /feedback_loop/v1/, put together from the routes of each subject."""

from __future__ import annotations

from aiohttp import web

from . import (
    format_routes,
    gate_routes,
    routes_auto_train,
    routes_history,
    routes_judgements,
    routes_pictures,
    routes_refinements,
    routes_settings,
    routes_upkeep,
    routes_watermarks,
)
from .routes_answers import ROOT, THREADS, Store, answered
from .team import DOOR, Door

SUBJECTS = (
    routes_pictures,
    routes_judgements,
    routes_refinements,
    routes_settings,
    routes_upkeep,
    routes_history,
    routes_watermarks,
    routes_auto_train,
    format_routes,
    gate_routes,
)


def register() -> None:
    """Adds the routes to ComfyUI's server; core serves them under /api too."""
    from server import PromptServer

    from .compat import store

    set_up(PromptServer.instance.app, store)
    add_routes(PromptServer.instance.routes, store)


def set_up(app: web.Application, store: Store) -> None:
    """Gives the server the door that every request to our routes passes."""
    app[DOOR] = Door(store, THREADS)


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    """Adds the routes to a table. `store` is called on a worker thread, at the first request that needs it."""
    for subject in SUBJECTS:
        subject.add_routes(routes, store)

    @routes.get(f"{ROOT}/openapi.json")
    @answered
    async def describe(request: web.Request) -> web.Response:
        from . import openapi  # here, because it takes longer to import than all the rest and is seldom asked for

        return web.json_response(openapi.description(ROOT))
