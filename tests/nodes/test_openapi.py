"""The description of the routes, held against the routes themselves."""

from __future__ import annotations

import json
import re

import pytest
from aiohttp import web

from feedback_loop.nodes import openapi, routes
from feedback_loop.nodes import request_models as models
from feedback_loop.nodes.routes_answers import ROOT

from .http_calls import API, NO_ID, raw


def registered() -> set[tuple[str, str]]:
    """(method, path below the root) of every route that is added."""
    table = web.RouteTableDef()
    routes.add_routes(table, lambda: pytest.fail("nothing is asked of the store"))
    return {(one.method.lower(), one.path.removeprefix(ROOT)) for one in table if isinstance(one, web.RouteDef)}


def described() -> set[tuple[str, str]]:
    paths = openapi.description(ROOT)["paths"]
    return {(method, path) for path, methods in paths.items() for method in methods}


def test_every_route_is_described_and_nothing_else():
    assert described() == registered()


def test_every_parameter_in_a_path_is_described():
    for path, methods in openapi.description(ROOT)["paths"].items():
        for operation in methods.values():
            named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))


def test_bodies_are_those_that_are_checked_and_take_no_other_field():
    schemas = openapi.description(ROOT)["components"]["schemas"]
    bodies = [one for one in vars(models).values() if isinstance(one, type) and one.__name__.endswith("Body")]
    assert len(bodies) > 8
    for model in bodies:
        schema = schemas[model.__name__]
        assert set(schema.get("properties", {})) == set(model.model_fields)
        assert schema["additionalProperties"] is False


def test_every_reference_leads_somewhere():
    document = openapi.description(ROOT)
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= set(document["components"]["schemas"])


def test_what_is_described_is_there_on_a_real_server(comfy_server):
    document = comfy_server.get(f"{API}/openapi.json")
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method in methods:
            status, _, body = raw(comfy_server, method.upper(), re.sub(r"{\w+}", NO_ID, API + path))
            assert status != 405
            assert status != 404 or b"There is no" in body, "our own 404, and not the server's"
