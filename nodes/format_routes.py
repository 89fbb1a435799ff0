"""Data sets over HTTP: `POST import` takes a file in, `GET export` gives one out.

An upload is a form, which any page could send, so it needs a header of ours: a foreign page may not set one.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import BodyPartReader, web

from . import request_queries as queries
from .request_models import Name, Strict, parsed
from .request_rules import Refused
from .routes_answers import ROOT, Store, answered, on_thread
from .team import rater_of

if TYPE_CHECKING:
    from ..feedback.formats.bundle import Bundle, Report
    from ..feedback.formats.exchange import Taken
    from ..feedback.store import FeedbackStore

HEADER = "X-Feedback-Loop"
REPORT = "X-Feedback-Loop-Report"
SECONDS = 600  # for an upload
MAX_FIELD = 4096  # bytes of a field that is no file
BLOCK = 2**20
LONGEST_REPORT = 4000  # characters in a header

Form = Literal["imagefolder", "parquet", "pick-a-pic", "trl", "imagereward", "hpdv2", "label-studio", "coco"]


class ImportFields(Strict):
    """What stands in the form beside the file."""

    format: Form | Literal["find out"] = "find out"
    collection: Name = "imported"
    rater: Name = "imported"


class ExportQuery(queries.Query):
    """What to export, and as what. `axis`, `rater`: one name; raters of all names without. `names`: or numbers."""

    format: Form
    collection: Name | None = None
    rater: Name | None = None
    axis: Name = "overall"
    pairs_from_stars: bool = False
    names: bool = True


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    """Adds `import` and `export`; one of them runs at a time."""
    busy = asyncio.Lock()

    @routes.post(f"{ROOT}/import")
    @answered
    async def take(request: web.Request) -> web.Response:
        queries.query(queries.NoQuery, request)
        if HEADER not in request.headers:
            raise Refused(
                403, f"Send an upload with the header {HEADER}: 1, which shows that no foreign page sends it."
            )
        async with _alone(busy), _folder() as folder:
            path, fields = await _received(request, folder)
            taken = await on_thread(lambda: _told(lambda: _take(store(), path, fields, rater_of(request))))
        answer = {"pictures": taken.pictures, "known": taken.known, "judgements": taken.judgements}
        return web.json_response({**answer, "report": taken.text()})

    @routes.get(f"{ROOT}/export")
    @answered
    async def give(request: web.Request) -> web.StreamResponse:
        asked = queries.query(ExportQuery, request)
        async with _alone(busy), _folder() as folder:
            path, report = await on_thread(lambda: _told(lambda: _give(store(), asked, folder)))
            return await _sent(request, path, report)


@asynccontextmanager
async def _alone(busy: asyncio.Lock) -> AsyncIterator[None]:
    if busy.locked():
        raise Refused(409, "Another import or export is going on; wait until it is done.")
    async with busy:
        yield


@asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    """A folder for files on their way, on the disk where pictures are kept, removed afterwards."""
    from .compat import data_directory

    def made() -> tempfile.TemporaryDirectory[str]:
        root = data_directory()
        root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="exchange_", dir=root)

    folder = await on_thread(made)
    try:
        yield Path(folder.name)
    finally:
        await on_thread(folder.cleanup)


def _told(work: Callable[[], Any]) -> Any:
    """What the file itself is to blame for becomes a sentence for whoever sent it."""
    from ..feedback.formats.bundle import BadData
    from ..feedback.formats.parquet import MissingPackage

    try:
        return work()
    except BadData as error:
        raise Refused(422, str(error)) from error
    except MissingPackage as error:
        raise Refused(501, str(error)) from error


# --- in --------------------------------------------------------------------------------------------------------------


async def _received(request: web.Request, folder: Path) -> tuple[Path, ImportFields]:
    """The file, on disk, and the other fields. Raises Refused for any other form."""
    if request.content_type != "multipart/form-data":
        raise Refused(415, "Send a form (multipart/form-data) with the fields file, format, collection and rater.")
    limit = request.client_max_size or 2**40
    if (request.content_length or 0) > limit:
        raise Refused(413, _too_large(limit))
    try:
        return await asyncio.wait_for(_read(request, folder, limit), SECONDS)
    except asyncio.TimeoutError as error:
        raise Refused(408, f"The file did not arrive within {SECONDS} seconds.") from error
    except (ValueError, AssertionError, RuntimeError, UnicodeDecodeError) as error:
        raise Refused(400, f"The form can't be read: {str(error)[:200]}.") from error


def _too_large(limit: int) -> str:
    return (
        f"The file is too large; ComfyUI takes {limit} bytes (--max-upload-size). Put it into the input folder and use "
        "the node Import feedback."
    )


async def _read(request: web.Request, folder: Path, limit: int) -> tuple[Path, ImportFields]:
    fields: dict[str, str] = {}
    path = folder / "received"
    parts = await request.multipart()
    while (part := await parts.next()) is not None:
        if not isinstance(part, BodyPartReader) or part.name is None or part.name in (*fields, *_there(path)):
            raise Refused(422, "The form has a part without a name, a nested one, or one name twice.")
        if part.name == "file":
            await _keep(part, path, limit)
        elif len(fields) >= len(ImportFields.model_fields):
            raise Refused(422, "The form has too many fields.")
        else:
            fields[part.name] = await _text(part)
    if not path.exists():
        raise Refused(422, "The form has no field called file.")
    return path, parsed(ImportFields, fields)


def _there(path: Path) -> tuple[str, ...]:
    return ("file",) if path.exists() else ()


async def _text(part: BodyPartReader) -> str:
    data = b""
    while chunk := await part.read_chunk(MAX_FIELD):
        data += chunk
        if len(data) > MAX_FIELD:
            raise Refused(413, f"A field is too long; at most {MAX_FIELD} bytes are read.")
    return data.decode("utf-8")


async def _keep(part: BodyPartReader, path: Path, limit: int) -> None:
    size = 0
    with path.open("xb") as file:
        while chunk := await part.read_chunk(BLOCK):
            size += len(chunk)
            if size > limit:
                raise Refused(413, _too_large(limit))
            await on_thread(lambda chunk=chunk: file.write(chunk))


def _take(kept: FeedbackStore, path: Path, fields: ImportFields, member: str | None) -> Taken:
    """In a team nobody speaks as somebody else: the names in the file come after that of who sent it."""
    from . import exchange_files

    prefix = "" if member is None else f"{member}: "
    return exchange_files.take_in(kept, path, fields.format, fields.collection, fields.rater, prefix, _still_wanted)


def _still_wanted(done: int, total: int) -> None:
    """Lets ComfyUI end in the middle of a long import; sending the file again goes on with it."""
    if not threading.main_thread().is_alive():
        raise Refused(503, "ComfyUI is being ended.")


# --- out -------------------------------------------------------------------------------------------------------------


def _give(kept: FeedbackStore, asked: ExportQuery, folder: Path) -> tuple[Path, Report]:
    from ..feedback.formats import FORMATS, write
    from . import exchange_files

    query = kept.feedback(asked.collection, [asked.rater] if asked.rater else [], asked.axis)
    bundle: Bundle = exchange_files.bundle_of(kept, query, (), asked.pairs_from_stars, asked.names)
    path = folder / f"feedback-{asked.format}{FORMATS[asked.format].suffix}"
    return path, write(asked.format, bundle, path)


async def _sent(request: web.Request, path: Path, report: Report) -> web.StreamResponse:
    kind = "application/zip" if path.suffix == ".zip" else "application/vnd.apache.parquet"
    headers = {
        "Content-Type": kind,
        "Content-Disposition": f'attachment; filename="{path.name}"',
        "Content-Length": str(os.stat(path).st_size),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        REPORT: json.dumps({"held": report.held, "left_out": report.left})[:LONGEST_REPORT],
    }
    answer = web.StreamResponse(headers=headers)
    await answer.prepare(request)
    with path.open("rb") as file, suppress(ConnectionResetError):
        while block := await on_thread(lambda: file.read(BLOCK)):
            await answer.write(block)
        await answer.write_eof()
    return answer
