"""The OpenAPI 3.1 description of our routes, made of the models that check what is sent."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .request_models import (
    UUID,
    CommentBody,
    ComparisonBody,
    ImagesQuery,
    Query,
    RatingBody,
    UndoQuery,
)

TEXT = {"type": "string"}
ID = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string", "format": "uuid"}}}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": TEXT}}
RATING = {
    "type": "object",
    "properties": {
        "id": TEXT,
        "rater": TEXT,
        "axis": TEXT,
        "value": {"type": "number"},
        "scale": {"$ref": "#/components/schemas/Scale"},
        "created_at": {"type": "string", "format": "date-time"},
    },
}
IMAGE = {
    "type": "object",
    "properties": {
        "id": TEXT,
        "collection": TEXT,
        "prompt": {"type": ["string", "null"]},
        "seed": {"type": ["string", "null"], "description": "a whole number below 2^64, as text"},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "created_at": {"type": "string", "format": "date-time"},
        "ratings": {"type": "array", "items": {"$ref": "#/components/schemas/Rating"}},
    },
}
PAGE = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/components/schemas/Image"}},
        "next": {"type": ["string", "null"]},
    },
}
REFUSALS = {
    "400": "no valid JSON",
    "403": "a foreign page or host, or another rater's judgement",
    "404": "no such picture or judgement",
    "409": "an idempotency key that was used for something else, or the undoing of an undo",
    "413": "too large",
    "415": "no JSON",
    "422": "a field is missing, unknown or out of bounds",
    "503": "the database can't be written",
}


@cache
def description(root: str) -> dict[str, Any]:
    """The document that `openapi.json` answers with."""
    bodies: list[type[BaseModel]] = [RatingBody, ComparisonBody, CommentBody]
    pairs = [(model, "validation") for model in bodies]
    _, schemas = models_json_schema(pairs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Feedback Loop", "version": "1"},
        "servers": [{"url": root}],
        "paths": _paths(),
        "components": {"schemas": {**schemas["$defs"], "Image": IMAGE, "Rating": RATING, "Error": ERROR}},
    }


def _paths() -> dict[str, Any]:
    return {
        "/images": {"get": _operation("Pictures, newest first", _json("A page", PAGE), _query(ImagesQuery))},
        "/images/{id}": {"get": _operation("One picture", _json("The picture", IMAGE), [_path()])},
        "/images/{id}/file": {"get": _operation("The picture itself", _binary("image/png"), [_path()])},
        "/images/{id}/thumbnail": {"get": _operation("A small copy", _binary("image/jpeg"), [_path()])},
        "/ratings": {"post": _write("Score a picture", RatingBody)},
        "/comparisons": {"post": _write("Compare two pictures", ComparisonBody)},
        "/comments": {"post": _write("Say something of a picture", CommentBody)},
        "/judgements/{id}": {
            "delete": _operation("Undo", _json("The superseding row", ID), [_path(), *_query(UndoQuery)])
        },
        "/stats": {"get": _operation("Counts", _json("What the database holds", {"type": "object"}), [])},
        "/openapi.json": {"get": _operation("This document", _json("OpenAPI 3.1", {"type": "object"}), [])},
    }


def _operation(
    summary: str, answer: dict[str, Any], parameters: list[dict[str, Any]], status: str = "200"
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {code: {"description": why, "content": error} for code, why in REFUSALS.items()}
    return {"summary": summary, "parameters": parameters, "responses": {status: answer, **refusals}}


def _write(summary: str, model: type[BaseModel]) -> dict[str, Any]:
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {**_operation(summary, _json("Its id, once it is on disk", ID), [key], "201"), "requestBody": body}


def _json(what: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _binary(mime: str) -> dict[str, Any]:
    return {"description": "The file", "content": {mime: {}}}


def _path() -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^{UUID.pattern}$"}
    return {"name": "id", "in": "path", "required": True, "schema": schema}


def _query(model: type[Query]) -> list[dict[str, Any]]:
    properties = model.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
