"""Routes about pictures: lists, files, thumbnails."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ..feedback.records import StoredImage
from . import request_models as models
from .request_rules import Refused
from .routes_answers import ROOT, Store, answered, on_thread

FOREVER = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def add_routes(routes: web.RouteTableDef, store: Store) -> None:
    @routes.get(f"{ROOT}/images")
    @answered
    async def images(request: web.Request) -> web.Response:
        asked = models.query(models.ImagesQuery, request)
        page = await on_thread(lambda: store().images(asked.collection, asked.cursor, asked.limit))
        return web.json_response({"items": [picture(item) for item in page.items], "next": page.next})

    @routes.get(f"{ROOT}/images/{{id}}")
    @answered
    async def image(request: web.Request) -> web.Response:
        id_ = models.path_id(request)
        return web.json_response(picture(await on_thread(lambda: store().image(id_))))

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
