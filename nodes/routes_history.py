"""The route that records what lies in ComfyUI's output folder, so that older pictures can be rated too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..feedback import history, media
from ..feedback.records import InvalidRecord
from . import request_models as models
from .compat import tell_pages
from .request_rules import Refused
from .routes_answers import ROOT, Store, answered, body, on_thread

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

EVENT = "feedback_loop.history"
AT_ONCE = 8  # files between two signs of progress
MAX_REASONS = 50


@dataclass
class Tally:
    """What became of the files so far. `reasons` names the first ones that were refused."""

    files: int
    done: int = 0
    added: int = 0
    known: int = 0
    refused: int = 0
    reasons: list[dict[str, str]] = field(default_factory=list)


def output_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory())


def add_routes(
    routes: web.RouteTableDef,
    store: Store,
    folder: Callable[[], Path] = output_folder,
    tell: Callable[[str, dict[str, Any]], None] = tell_pages,
) -> None:
    running = asyncio.Lock()

    @routes.post(f"{ROOT}/history/scan")
    @answered
    async def scan_output(request: web.Request) -> web.Response:
        sent, _ = await body(request, models.CollectionBody)
        if running.locked():
            raise Refused(409, "The output folder is being looked through already; wait until that is done.")
        async with running:
            scan = await on_thread(lambda: Scan(store(), folder(), sent.collection))
            # In small turns, so that other requests get threads too and that ComfyUI can be ended in between.
            for some in _turns(scan.files):
                await on_thread(lambda some=some: scan.take(some))
                tell(EVENT, _progress(scan.tally, sent.collection))
        return web.json_response({**_progress(scan.tally, sent.collection), "reasons": scan.tally.reasons})


def _turns(found: Sequence[Path]) -> Iterator[Sequence[Path]]:
    return (found[start : start + AT_ONCE] for start in range(0, len(found), AT_ONCE))


def _progress(tally: Tally, collection: str) -> dict[str, Any]:
    counts = {name: getattr(tally, name) for name in ("files", "done", "added", "known", "refused")}
    return {**counts, "collection": collection}


class Scan:
    """Adds the pictures of files to a collection, unless they are in it already, and counts what became of them."""

    def __init__(self, store: FeedbackStore, folder: Path, collection: str) -> None:
        self._store = store
        self._folder = folder
        self._collection = collection
        self._sources = store.sources(collection)
        self.files = history.files(folder)
        self.tally = Tally(len(self.files))

    def take(self, some: Sequence[Path]) -> None:
        for path in some:
            try:
                past = history.read(path)
                self._add(past)
            except (media.BadPicture, InvalidRecord) as error:
                self._refuse(path, str(error))
            except RecursionError:
                self._refuse(path, "The graph in the file is nested too deeply.")
        self.tally.done += len(some)

    def _add(self, past: history.PastPicture) -> None:
        source = media.content_hash(past.data)
        if source in self._sources or self._store.shows(media.pixel_hash(media.decode(past.data)), self._collection):
            self.tally.known += 1
            return
        self._store.add_image(past.data, past.generation, self._collection)
        self._sources.add(source)
        self.tally.added += 1

    def _refuse(self, path: Path, reason: str) -> None:
        self.tally.refused += 1
        if len(self.tally.reasons) < MAX_REASONS:
            self.tally.reasons.append({"file": path.relative_to(self._folder).as_posix(), "reason": reason})
