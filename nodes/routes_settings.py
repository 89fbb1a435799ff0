"""What the server records, as its user wants it: a small JSON file in the data folder, and the routes to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from aiohttp import web

from ..feedback.marks import Interaction
from ..feedback.media import write_durably
from . import request_models as models
from . import request_queries as queries
from .request_rules import Refused
from .routes_answers import ROOT, Store, answered, body, created, on_thread

OFF = (
    "Interactions are not recorded: the switch is off. Turn on “Learn from what I do with pictures” in the settings of "
    "Feedback Loop if you want that."
)


@dataclass(frozen=True)
class ServerSettings:
    """interactions: whether what people do with pictures anyway is recorded beside what they say of them."""

    interactions: bool = False


def settings_file() -> Path:
    from .compat import data_directory

    return data_directory() / "settings.json"


def read(path: Path) -> ServerSettings:
    """The settings, everything off where none were written or where they can't be understood."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return ServerSettings()
    return ServerSettings(interactions=isinstance(found, dict) and found.get("interactions") is True)


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/settings")
    @answered
    async def settings(request: web.Request) -> web.Response:
        queries.query(queries.NoQuery, request)
        return web.json_response(asdict(await on_thread(lambda: read(settings_file()))))

    @routes.put(f"{ROOT}/settings")
    @answered
    async def change(request: web.Request) -> web.Response:
        sent, _ = await body(request, models.SettingsBody)
        wanted = asdict(ServerSettings(**sent.model_dump()))
        await on_thread(lambda: write_durably(settings_file(), json.dumps(wanted).encode()))
        return web.json_response(wanted)

    @routes.post(f"{ROOT}/interactions")
    @answered
    async def interact(request: web.Request) -> web.Response:
        sent, key = await body(request, models.InteractionBody)
        if not (await on_thread(lambda: read(settings_file()))).interactions:
            raise Refused(409, OFF)
        done = Interaction(**sent.model_dump())
        return created(await on_thread(lambda: store().add_interaction(done, key)))
