"""While a database server is away: answers to runs that wait are kept, members stay known, and pages are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from feedback_loop.feedback.engines import DatabaseUnreachable
from feedback_loop.feedback.gate import GateKey, Question
from feedback_loop.feedback.records import Generation
from feedback_loop.nodes.gate_room import ROOM
from feedback_loop.tests.comfy_host import JSON
from feedback_loop.tests.feedback import postgres

from .http_calls import API, rating
from .routes_host import RoutesServer, serving

SIZE = (12, 16)  # of RoutesServer.picture
SECONDS = 120  # for a server that others keep waiting


@pytest.fixture(scope="module")
def database() -> Iterator[postgres.Server]:
    if (why := postgres.missing()) is not None or find_spec("psycopg") is None:
        pytest.skip(why or "psycopg is not installed")
    server = postgres.Server()
    try:
        server.execute("CREATE DATABASE team")
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(database: postgres.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoutesServer]:
    with serving(tmp_path_factory.mktemp("outage"), team=True, url=database.url("team")) as running:
        yield running


@pytest.fixture(scope="module")
def ann(server: RoutesServer) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.store.add_token('Ann')}"}


def until(question: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not question():
        assert time.monotonic() < end, f"still not after {SECONDS} s"
        time.sleep(0.05)


def asked(server: RoutesServer, ann: dict[str, str], path: str) -> JSON:
    status, answer = server.request("GET", f"{API}/{path}", headers=ann)
    assert status == 200, answer
    return answer


def test_what_is_said_while_the_database_is_away_is_stored_once_it_is_back(
    database: postgres.Server, server: RoutesServer, ann: dict[str, str]
) -> None:
    """A gate of three pictures: two comparisons and a comment come from one answer, one rating from another click."""
    ids = [server.picture(grey) for grey in range(3)]
    gate = ROOM.enter(GateKey("run", "4"), Question("choose", tuple(ids), SIZE, "c", "skip"), None)
    try:
        assert asked(server, ann, "stats")["waiting"] == 0
        database.stop()
        body = {"action": "choose", "images": [ids[1]], "comment": "sharper", "rater": "Ann"}
        status, answer = server.request("POST", f"{API}/gates/run.4.0", body, ann)
        assert status == 200, answer
        assert ROOM.answered(gate) is not None
        assert server.request("POST", f"{API}/ratings", rating(ids[0], "Ann"), ann)[0] == 201
        assert server.store.waiting == 4
        status, told = server.request("GET", f"{API}/stats", headers=ann)
        assert status == 503
        assert told["error"].endswith("4 judgements wait on this machine's disk until it does.")
    finally:
        ROOM.leave(gate, "was stopped")
        if not database.runs():
            database.start()
    until(lambda: server.store.waiting == 0)
    (left,) = asked(server, ann, f"images/{ids[0]}/marks")["comparisons"]
    (right,) = asked(server, ann, f"images/{ids[2]}/marks")["comparisons"]
    (comment,) = asked(server, ann, f"images/{ids[1]}/marks")["comments"]
    assert [left["winner"], right["winner"], comment["text"]] == ["right", "left", "sharper"]
    assert {left["rater"], right["rater"], comment["rater"]} == {"Ann"}
    # What the answer named can be taken back, although it was named before the database had it.
    assert answer["judgements"] == [left["id"], right["id"], comment["id"]]
    assert len(asked(server, ann, f"images/{ids[0]}")["ratings"]) == 1
    assert asked(server, ann, "stats")["waiting"] == 0


def test_who_was_never_seen_or_was_withdrawn_stays_outside_while_the_database_is_away(
    database: postgres.Server, server: RoutesServer, ann: dict[str, str]
) -> None:
    """503, since nobody can tell whose tokens they are; and a token that was withdrawn in time is not remembered."""
    gone = {"Authorization": f"Bearer {server.store.add_token('Gone')}"}
    assert server.request("GET", f"{API}/me", headers=gone)[0] == 200
    server.store.revoke_tokens("Gone")
    assert server.request("GET", f"{API}/me", headers=gone)[0] == 401
    database.stop()
    try:
        assert server.request("GET", f"{API}/me", headers=ann)[0] == 200
        for stranger in (gone, {"Authorization": "Bearer guessed"}):
            assert server.request("GET", f"{API}/me", headers=stranger)[0] == 503
        assert server.request("GET", f"{API}/me")[0] == 401
    finally:
        database.start()


def test_a_picture_made_while_the_database_is_away_is_refused_in_words_and_recorded_whole_the_next_time(
    database: postgres.Server, server: RoutesServer, ann: dict[str, str]
) -> None:
    """The run fails with the message, and its pictures are recorded by the same run made again."""
    made = [(np.full((12, 16, 3), 77, dtype=np.uint8), Generation(prompt="away", seed="1"))]
    database.stop()
    try:
        with pytest.raises(DatabaseUnreachable, match="See that the server runs"):
            server.store.add_images(made, "away")
    finally:
        database.start()
    (image,) = server.store.add_images(made, "away")
    (item,) = asked(server, ann, "images?collection=away")["items"]
    assert (item["id"], item["prompt"]) == (image, "away")
    status, _ = server.request("GET", f"{API}/images/{image}/file", headers=ann)
    assert status == 200
