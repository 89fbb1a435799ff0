"""Rules about requests that need no server to be tried."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from feedback_loop.nodes import request_rules
from feedback_loop.nodes.request_rules import ALLOWED_HOSTS, Refused, check_sender, json_body


def application() -> web.Application:
    """One route that takes a body under the rules and says how it went."""

    async def take(request: web.Request) -> web.Response:
        try:
            check_sender(request)
            return web.json_response(await json_body(request))
        except Refused as error:
            return web.json_response({"error": str(error)}, status=error.status)

    app = web.Application()
    app.router.add_post("/", take)
    return app


async def answers(*requests: dict) -> list[tuple[int, dict]]:
    async with TestClient(TestServer(application())) as client:
        found = []
        for request in requests:
            async with client.post("/", **request) as answer:
                found.append((answer.status, await answer.json()))
        return found


def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_rules, "BODY_SECONDS", 0.05)

    async def dripping():
        yield b'{"a":'
        await asyncio.sleep(2)
        yield b"1}"

    headers = {"Content-Type": "application/json"}
    ((status, answer),) = asyncio.run(answers({"data": dripping(), "headers": headers}))
    assert status == 408
    assert "0.05 seconds" in answer["error"]


def test_a_body_without_a_length_is_cut_off_at_the_same_size():
    async def endless():
        for _ in range(600):
            yield b" " * 1024

    headers = {"Content-Type": "application/json"}
    assert asyncio.run(answers({"data": endless(), "headers": headers}))[0][0] == 413


def test_hosts_behind_a_tunnel_are_allowed_by_the_variable(monkeypatch: pytest.MonkeyPatch):
    tunnel = {"Host": "me.tunnel.example", "Origin": "https://me.tunnel.example"}
    other = {"Host": "127.0.0.1:1", "Origin": "https://me.tunnel.example:8443"}
    foreign = {"Host": "me.tunnel.example", "Origin": "https://evil.example"}
    requests = [{"json": {}, "headers": headers} for headers in (tunnel, other, foreign)]
    assert [status for status, _ in asyncio.run(answers(*requests))] == [403, 403, 403]
    monkeypatch.setenv(ALLOWED_HOSTS, "another.example:80, Me.Tunnel.example")
    assert [status for status, _ in asyncio.run(answers(*requests))] == [200, 200, 403]
