"""A database server that goes away, comes back, and is asked by several: no click is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feedback_loop.feedback.database import DatabaseUnreachable, DatabaseUnusable
from feedback_loop.feedback.engines import named, parsed_url, without_password
from feedback_loop.feedback.marks import Ranking, Region, Tag
from feedback_loop.feedback.records import Conflict, Generation, Rating, RequestKey
from feedback_loop.feedback.store import FeedbackStore

from . import postgres
from .conftest import new_database, picture, writer

PATIENCE = 300  # seconds for a server that others keep waiting


@pytest.fixture
def database_url(postgres_server: postgres.Server) -> str:
    return new_database(postgres_server)


@pytest.fixture
def server(postgres_server: postgres.Server) -> Iterator[postgres.Server]:
    """Runs again when the test is over, whatever became of it."""
    yield postgres_server
    if not postgres_server.runs():
        postgres_server.start()


@pytest.fixture
def images(store: FeedbackStore) -> list[str]:
    return [store.add_image(picture(seed), Generation(), "c") for seed in range(3)]


def wait_until_sent(store: FeedbackStore) -> None:
    until = time.monotonic() + PATIENCE
    while store.waiting and time.monotonic() < until:
        time.sleep(0.05)
    assert store.waiting == 0


def ids(store: FeedbackStore) -> list[str]:
    return [one.rating_id for one in store.rated(store.feedback())]


def lines(folder: Path, name: str = "*-*.jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for file in folder.glob(f"outbox/*/{name}") for line in file.read_text().splitlines()]


def test_what_is_said_while_the_server_is_away_arrives_in_order_when_it_is_back(
    store: FeedbackStore, images: list[str], server: postgres.Server, tmp_path: Path
):
    """One key sent twice is one rating; the undo takes back a rating that was itself only in the outbox."""
    first = store.add_rating(Rating(images[0], 1, "me"))
    key = RequestKey("k", "body")
    server.stop()
    second = store.add_rating(Rating(images[0], 2, "me"), key)
    assert store.add_rating(Rating(images[0], 2, "me"), key) == second
    with pytest.raises(Conflict):
        store.add_rating(Rating(images[0], 3, "me"), RequestKey("k", "another body"))
    mistaken = store.add_rating(Rating(images[1], 5, "me"))
    undo = store.undo(mistaken, "me")
    ranking = store.add_ranking(Ranking((images[2], images[0]), "me"))
    point = store.add_region(Region(images[0], "point", ((0.5, 0.25),), "artifact", "me"))
    last = store.add_rating(Rating(images[0], 4, "me"))
    assert [line["id"] for line in lines(tmp_path)] == [second, mistaken, undo, ranking, point, last]
    with pytest.raises(DatabaseUnreachable, match="See that the server runs"):
        store.stats()
    server.start()
    wait_until_sent(store)
    assert lines(tmp_path) == []
    assert ids(store) == [last], "the latest of the three that count"
    assert len(store.compared(store.feedback())) == 1, "the ranking of two has one pair"
    assert [region.id for region in store.marks([images[0]])[images[0]].regions] == [point]
    assert store.stats().kinds == {"rating": 3, "ranking": 1, "region": 1}
    store.undo(last)
    store.undo(second)
    assert ids(store) == [first], "which none of the others replaced"


def test_what_a_process_left_in_its_outbox_is_sent_by_the_next_one(
    open_store: Callable[[], FeedbackStore], server: postgres.Server, tmp_path: Path
):
    store = open_store()
    image = store.add_image(picture(), Generation(), "c")
    server.stop()
    said = [store.add_rating(Rating(image, 1, f"rater {number}")) for number in range(3)]
    store.close()
    (left,) = tmp_path.glob("outbox/*/*.jsonl")
    with left.open("ab") as file:
        file.write(b'{"id": "a line that was never fin')
    server.start()
    again = open_store()
    wait_until_sent(again)
    assert sorted(ids(again)) == sorted(said)


def test_a_judgement_sent_twice_is_stored_once(
    open_store: Callable[[], FeedbackStore], server: postgres.Server, tmp_path: Path
):
    """As if the process had died between writing to the database and emptying its outbox."""
    store = open_store()
    image = store.add_image(picture(), Generation(), "c")
    server.stop()
    said = store.add_rating(Rating(image, 1, "me"), RequestKey("k", "body"))
    (left,) = tmp_path.glob("outbox/*/*.jsonl")
    copy = left.read_bytes()
    server.start()
    wait_until_sent(store)
    left.with_name("9-9.jsonl").write_bytes(copy)
    again = open_store()
    wait_until_sent(again)
    assert ids(again) == [said]
    assert again.stats().ratings == 1
    assert again.add_rating(Rating(image, 1, "me"), RequestKey("k", "body")) == said


def test_what_the_database_refuses_later_is_kept_aside_and_holds_up_nobody(
    store: FeedbackStore, images: list[str], server: postgres.Server, tmp_path: Path
):
    """A tag that is there already under another id can be taken back by either id."""
    there = store.add_tag(Tag(images[0], "fine", "me"))
    server.stop()
    nowhere = store.add_rating(Rating("no picture", 1, "me"))
    again = store.add_tag(Tag(images[0], "fine", "me"))
    undo = store.undo(again, "me")
    kept = store.add_rating(Rating(images[0], 1, "me"))
    server.start()
    wait_until_sent(store)
    assert again != there
    assert [line["id"] for line in lines(tmp_path, "refused.jsonl")] == [nowhere]
    assert ids(store) == [kept]
    assert store.marks([images[0]])[images[0]].tags == ()
    assert store.undo(there) == undo


def test_no_acknowledged_rating_is_lost_when_its_writer_is_killed_while_the_server_is_away(
    open_store: Callable[[], FeedbackStore], database_url: str, server: postgres.Server, tmp_path: Path
):
    store = open_store()
    image = store.add_image(picture(), Generation(), "c")
    process = writer(database_url, tmp_path, image, "killed", 0)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(3)]
    server.stop()
    acknowledged += [process.stdout.readline().strip() for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.wait()
    assert lines(tmp_path), "some of the 200 came while the server was away"
    server.start()
    again = open_store()
    wait_until_sent(again)
    stored = ids(again)
    assert set(acknowledged) <= set(stored)
    assert len(set(stored)) == len(stored)


def test_the_password_is_told_by_no_message(server: postgres.Server, database_url: str, tmp_path: Path):
    """Neither the one of the server nor one in the URL's parameters; also not in the chain of a traceback."""
    wrong = database_url.replace("p%40ss", "wr%40ng")
    server.stop()
    told = []
    for url in (database_url, f"{wrong.split('?')[0]}?sslpassword=hidden-too"):
        with pytest.raises(DatabaseUnusable) as refused:
            FeedbackStore(url, tmp_path / "media")
        told.append("".join(traceback.format_exception(refused.value)))
    server.start()
    with pytest.raises(DatabaseUnusable, match="password authentication failed") as refused:
        FeedbackStore(wrong, tmp_path / "media")
    told.append("".join(traceback.format_exception(refused.value)))
    for text in told:
        assert "127.0.0.1" in text
        for secret in (postgres.PASSWORD, "p%40ss", "wr@ng", "wr%40ng", "hidden-too"):
            assert secret not in text


def test_a_message_that_repeats_the_password_is_masked():
    url = parsed_url("postgresql://me:s%40cret@host/db?sslpassword=other")
    assert named(url) == "me@host:5432/db"
    assert without_password("no s@cret and no other\n", url) == "no *** and no ***"


def test_a_server_that_restarts_between_two_reads_is_asked_anew(
    store: FeedbackStore, images: list[str], server: postgres.Server
):
    assert store.stats().images == 3
    server.stop()
    server.start()
    assert store.stats().images == 3
    assert store.add_rating(Rating(images[0], 1, "me")) in ids(store)
