"""Our routes on a real aiohttp server and a real store, without the rest of ComfyUI: it starts in an instant."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import routes, routes_history, routes_watermarks
from feedback_loop.nodes.routes_answers import THREADS
from feedback_loop.nodes.team import DOOR, Door
from feedback_loop.nodes.watermarks import Looker
from feedback_loop.tests.comfy_host import ComfyServer


class RoutesServer(ComfyServer):
    """`url` and `request` as ComfyUI's server has them; `store` and `looker` behind it, `events` sent to pages."""

    def __init__(self, url: str, store: FeedbackStore) -> None:
        self.url = url
        self.store = store
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.looker = Looker(lambda: store, lambda *event: self.events.append(event), lambda: False)

    def picture(self, colour: int = 0, prompt: str | None = None, collection: str = "default") -> str:
        """The id of a new picture of 16 x 12 pixels, all of one grey."""
        pixels = np.full((12, 16, 3), colour, np.uint8)
        return self.store.add_image(pixels, Generation(prompt=prompt, seed=str(colour)), collection)


@contextmanager
def serving(
    folder: Path, team: bool = False, output: Path | None = None, url: str | None = None
) -> Iterator[RoutesServer]:
    """The routes over a store in `folder` or at `url`, which looks for older pictures in `output`."""
    store = FeedbackStore(url or f"sqlite:///{folder / 'feedback.sqlite3'}", folder / "media")
    loop, server = asyncio.new_event_loop(), RoutesServer("", store)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    app = _application(server, team, output or folder / "output")
    runner = web.AppRunner(app)
    try:
        server.url = asyncio.run_coroutine_threadsafe(_start(runner), loop).result(60)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
        server.looker.stop()
        store.close()


def _application(server: RoutesServer, team: bool, output: Path) -> web.Application:
    app, table = web.Application(), web.RouteTableDef()
    for subject in routes.SUBJECTS:
        if subject is routes_history:
            routes_history.add_routes(
                table, lambda: server.store, lambda: output, lambda *event: server.events.append(event)
            )
        elif subject is routes_watermarks:
            routes_watermarks.add_routes(table, lambda: server.store, server.looker)
        else:
            subject.add_routes(table, lambda: server.store)
    app[DOOR] = Door(lambda: server.store, THREADS, team)
    app.router.add_routes(table)
    return app


async def _start(runner: web.AppRunner) -> str:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"
