"""Routes about pictures: lists, files, thumbnails, marks, the next pair; and the one that deletes a picture."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ..feedback.marks import Marks
from ..feedback.records import StoredImage
from ..feedback.results import ImageFilter
from . import request_models as models
from . import request_queries as queries
from .request_rules import Refused
from .routes_answers import ROOT, Store, answered, on_thread
from .team import check_rater

FOREVER = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    _add_lists(routes, store)
    _add_files(routes, store)

    @routes.get(f"{ROOT}/images/{{id}}/marks")
    @answered
    async def marks(request: web.Request) -> web.Response:
        id_ = models.path_id(request)
        found = await on_thread(lambda: store().marks([store().image(id_).id])[id_])
        return web.json_response(marked(found))

    @routes.delete(f"{ROOT}/images/{{id}}")
    @answered
    async def delete(request: web.Request) -> web.Response:
        id_ = models.path_id(request)
        return web.json_response(asdict(await on_thread(lambda: store().delete_image(id_))))

    @routes.get(f"{ROOT}/pairs/next")
    @answered
    async def next_pair(request: web.Request) -> web.Response:
        asked = queries.query(queries.PairQuery, request)
        check_rater(request, asked)
        pair = await on_thread(lambda: store().next_pair(**asked.model_dump()))
        return web.json_response(None if pair is None else asdict(pair))


def _add_lists(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/images")
    @answered
    async def images(request: web.Request) -> web.Response:
        asked = queries.query(queries.ImagesQuery, request)
        which = ImageFilter(**asked.model_dump(exclude={"sort", "cursor", "limit"}))
        page = await on_thread(lambda: store().search(which, asked.sort, asked.cursor, asked.limit))
        return web.json_response({"items": [picture(item) for item in page.items], "next": page.next})

    @routes.get(f"{ROOT}/images/{{id}}")
    @answered
    async def image(request: web.Request) -> web.Response:
        id_ = models.path_id(request)
        return web.json_response(picture(await on_thread(lambda: store().image(id_))))


def _add_files(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/images/{{id}}/file")
    @answered
    async def file(request: web.Request) -> web.StreamResponse:
        id_ = models.path_id(request)
        path = await on_thread(lambda: store().image_file(id_))
        if not await on_thread(path.is_file):
            raise Refused(404, "The file of this picture was removed from the feedback folder.")
        return web.FileResponse(path, headers={**FOREVER, "Content-Type": "image/png"})

    @routes.get(f"{ROOT}/images/{{id}}/thumbnail")
    @answered
    async def thumbnail(request: web.Request) -> web.Response:
        id_ = models.path_id(request)
        try:
            data = await on_thread(lambda: store().thumbnail(id_))
        except FileNotFoundError as error:
            raise Refused(404, "The file of this picture was removed from the feedback folder.") from error
        return web.Response(body=data, content_type="image/jpeg", headers=FOREVER)


def picture(image: StoredImage) -> dict[str, Any]:
    """A picture as it is listed. A rating's "value" is on its "scale", as it was posted."""
    return {
        "id": image.id,
        "collection": image.collection,
        "prompt": image.generation.prompt,
        "seed": image.generation.seed,
        "width": image.width,
        "height": image.height,
        "created_at": image.created_at.isoformat(),
        "watermark": image.watermark,
        "ratings": [
            {
                "id": rating.id,
                "rater": rating.rater,
                "axis": rating.axis,
                "value": rating.raw,
                "scale": {"min": rating.scale[0], "max": rating.scale[1]},
                "created_at": rating.created_at.isoformat(),
            }
            for rating in image.ratings
        ],
    }


def marked(marks: Marks) -> dict[str, Any]:
    """What was said of a picture, as it was posted, each with its id, rater and time."""
    return {kind: [_mark(mark) for mark in found] for kind, found in vars(marks).items()}


def _mark(mark: Any) -> dict[str, Any]:
    fields = {name: value for name, value in vars(mark).items() if name not in ("image_id", "about")}
    if fields.get("mask") is not None:
        fields["mask"] = base64.b64encode(fields["mask"]).decode()
    return {**fields, "created_at": mark.created_at.isoformat()}
