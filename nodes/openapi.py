"""The OpenAPI 3.1 description of our routes, made of the models that check what is sent."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from . import format_routes, gate_routes, routes_auto_train, routes_refinements
from . import request_models as models
from . import request_queries as queries
from .openapi_answers import ANSWERS, reference

REFUSALS = {
    "400": "no valid JSON",
    "401": "in team mode: no token, or one that is not known",
    "403": "a foreign page or host, or another rater's judgement",
    "404": "no such picture or judgement",
    "408": "the body did not arrive in time",
    "409": "it contradicts what is: a key that was used for something else, an undone undo, a switch that is off",
    "413": "too large",
    "415": "no JSON",
    "422": "a field is missing, unknown or out of bounds",
    "429": "too many requests; Retry-After says how many seconds to wait",
    "501": "a Python package that this format needs is not installed",
    "503": "the database can't be read or written",
}
JUDGEMENTS: dict[str, tuple[str, type[BaseModel]]] = {
    "/ratings": ("Score a picture", models.RatingBody),
    "/comparisons": ("Compare two pictures", models.ComparisonBody),
    "/rankings": ("Put pictures in order", models.RankingBody),
    "/regions": ("Mark a place in a picture", models.RegionBody),
    "/word_marks": ("Mark a word of the prompt", models.WordMarkBody),
    "/tags": ("Put a tag on a picture", models.TagBody),
    "/comments": ("Say something of a picture", models.CommentBody),
    "/interactions": ("Note what somebody did with a picture", models.InteractionBody),
}
OTHER_BODIES: list[type[BaseModel]] = [
    models.SettingsBody,
    models.CollectionBody,
    models.EmptyBody,
    gate_routes.GateBody,
    routes_refinements.ChoiceBody,
    routes_auto_train.UseBody,
]
IDEMPOTENCY_KEY = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}


@cache
def description(root: str) -> dict[str, Any]:
    """The document that `openapi.json` answers with."""
    bodies = [model for _, model in JUDGEMENTS.values()] + OTHER_BODIES
    pairs = [(model, "validation") for model in bodies]
    _, schemas = models_json_schema(pairs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Feedback Loop", "version": "1"},
        "servers": [{"url": root}],
        "paths": _paths(),
        "security": [{}, {"token": []}],
        "components": {
            "schemas": {**schemas["$defs"], **ANSWERS},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "needed in team mode"}},
        },
    }


def _paths() -> dict[str, Any]:
    return {
        **_pictures(),
        **{path: {"post": _write(*what)} for path, what in JUDGEMENTS.items()},
        **_upkeep(),
        **_rounds(),
        **_auto_train(),
        **_exchange(),
        **_gates(),
    }


def _pictures() -> dict[str, Any]:
    return {
        "/images": {"get": _read("Pictures, filtered and in order", "Images", _query(queries.ImagesQuery))},
        "/images/{id}": {
            "get": _read("One picture", "Image", [_path()]),
            "delete": _read("Delete a picture with all that was said of it", "Freed", [_path()]),
        },
        "/images/{id}/marks": {"get": _read("Regions, words, tags and comments", "Marks", [_path()])},
        "/images/{id}/file": {"get": _operation("The picture itself", _binary("image/png"), [_path()])},
        "/images/{id}/thumbnail": {"get": _operation("A small copy", _binary("image/jpeg"), [_path()])},
        "/pairs/next": {"get": _read("The next two pictures to compare", "Pair", _query(queries.PairQuery))},
        "/judgements/{id}": {"delete": _read("Undo", "Id", [_path(), *_query(queries.UndoQuery)])},
    }


def _upkeep() -> dict[str, Any]:
    return {
        "/stats": {"get": _read("Counts, and how far they go", "Stats", [])},
        "/settings": {
            "get": _read("What is recorded", "Settings", []),
            "put": _send("Change what is recorded", models.SettingsBody, "Settings"),
        },
        "/me": {"get": _read("Whose token this is, in team mode", "Me", [])},
        "/history/scan": {"post": _send("Record the output folder", models.CollectionBody, "Scan")},
        "/watermarks/scan": {"post": _send("Look for watermarks where nobody did", models.EmptyBody, "Looked")},
        "/prune": {"post": _send("Delete what nobody judged", models.EmptyBody, "Freed")},
        "/backup": {"post": _send("Write a backup into the data folder", models.EmptyBody, "Backup")},
        "/openapi.json": {"get": _operation("This document", _json("OpenAPI 3.1", {"type": "object"}), [])},
    }


def _rounds() -> dict[str, Any]:
    recurring = _query(routes_refinements.RecurringQuery)
    choice = _write("Choose in a round of refinement", routes_refinements.ChoiceBody)
    return {
        "/images/{id}/family": {"get": _read("The rounds that a picture came from and led to", "Family", [_path()])},
        "/rounds/{id}/choice": {"post": {**choice, "parameters": [_path(), IDEMPOTENCY_KEY]}},
        "/recurring": {"get": _read("Edits that come back, and what they suggest", "Recurring", recurring)},
    }


def _auto_train() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    use = _send("Take a version into use", routes_auto_train.UseBody, "AutoTrain")
    drop = _send("Drop the candidate", models.EmptyBody, "AutoTrain")
    return {
        "/auto_train/{name}": {"get": _read("A LoRA that is trained by itself", "AutoTrain", [name])},
        "/auto_train/{name}/use": {"post": {**use, "parameters": [name]}},
        "/auto_train/{name}/drop": {"post": {**drop, "parameters": [name]}},
    }


def _exchange() -> dict[str, Any]:
    taken = {name: {"type": "integer"} for name in ("pictures", "known", "judgements")} | {"report": {"type": "string"}}
    answer = _json("What came in", {"type": "object", "required": list(taken), "properties": taken})
    header = {"name": format_routes.HEADER, "in": "header", "required": True, "schema": {"type": "string"}}
    fields = format_routes.ImportFields.model_json_schema()["properties"]
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {**fields, "file": {"type": "string", "format": "binary"}},
    }
    body = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    files = {"description": "The data set", "content": {"application/zip": {}, "application/vnd.apache.parquet": {}}}
    return {
        "/import": {"post": {**_operation("Take a data set in", answer, [header]), "requestBody": body}},
        "/export": {"get": _operation("Give a data set out", files, _query(format_routes.ExportQuery))},
    }


def _gates() -> dict[str, Any]:
    key = {"name": "key", "in": "path", "required": True, "schema": {"type": "string"}}
    answer = _send("Answer a run that waits", gate_routes.GateBody, "Answered")
    return {
        "/gates": {"get": _read("Runs that wait for a person", "Gates", [])},
        "/gates/{key}": {"post": {**answer, "parameters": [key, IDEMPOTENCY_KEY]}},
    }


def _operation(
    summary: str, answer: dict[str, Any], parameters: list[dict[str, Any]], status: str = "200"
) -> dict[str, Any]:
    error = {"application/json": {"schema": reference("Error")}}
    refusals = {code: {"description": why, "content": error} for code, why in REFUSALS.items()}
    return {"summary": summary, "parameters": parameters, "responses": {status: answer, **refusals}}


def _read(summary: str, answer: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return _operation(summary, _json(answer, reference(answer)), parameters)


def _send(summary: str, model: type[BaseModel], answer: str) -> dict[str, Any]:
    return {**_read(summary, answer, []), "requestBody": _body(model)}


def _write(summary: str, model: type[BaseModel]) -> dict[str, Any]:
    answer = _json("Its id, once it is on disk", reference("Id"))
    return {**_operation(summary, answer, [IDEMPOTENCY_KEY], "201"), "requestBody": _body(model)}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": reference(model.__name__)}}}


def _json(what: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


def _binary(mime: str) -> dict[str, Any]:
    return {"description": "The file", "content": {mime: {}}}


def _path() -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^{models.UUID.pattern}$"}
    return {"name": "id", "in": "path", "required": True, "schema": schema}


def _query(model: type[queries.Query]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    needed = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in needed, "schema": one}
        for name, one in schema["properties"].items()
    ]
