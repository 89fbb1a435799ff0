"""Bodies that are too large or never come, keys that are used again: the server goes on answering everybody else."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import quote, urlsplit

import pytest

from feedback_loop.tests.nodes.http_calls import API, listed, rating

from .target import Target

MEGABYTE = 2**20


def opened(target: Target, head: bytes, sent: bytes) -> socket.socket:
    """A connection on which this was sent so far."""
    parts = urlsplit(target.server.url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=120)
    connection.sendall(head.replace(b"HOST", parts.netloc.encode()) + sent)
    return connection


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {API}/{path} HTTP/1.1", "Host: HOST", *lines, "", ""]).encode()


def endless(megabytes: int) -> Iterator[bytes]:
    yield from (b" " * MEGABYTE for _ in range(megabytes))


JSON_TYPE = "Content-Type: application/json"


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", ["ratings", "regions"])
def test_101_mb_are_refused_by_what_they_say_and_by_what_comes(target: Target, path: str) -> None:
    said = opened(target, head(path, JSON_TYPE, f"Content-Length: {101 * MEGABYTE}"), b"{")
    with said:
        assert b" 413 " in said.recv(4096).split(b"\r\n")[0]
    answer = target.send("POST", f"{API}/{path}", endless(101), {"Content-Type": "application/json"})
    assert answer.status in (0, 413)


@pytest.mark.usefixtures("unharmed")
def test_bodies_that_never_come_keep_nobody_else_waiting(target: Target) -> None:
    """More of them than there are threads for requests."""
    slow = head("ratings", JSON_TYPE, "Content-Length: 1000")
    with ExitStack() as waiting:
        for _ in range(40):
            waiting.enter_context(opened(target, slow, b'{"image_id": "'))
        assert listed(target.server, target.images[0], target.owner)
        assert target.send("GET", f"{API}/images/{target.images[0]}/thumbnail").status == 200


@pytest.mark.long
@pytest.mark.usefixtures("unharmed")
def test_a_body_that_does_not_come_is_answered_in_the_end(target: Target) -> None:
    with opened(target, head("ratings", JSON_TYPE, "Content-Length: 1000"), b"{") as connection:
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_key_that_was_used_is_answered_with_the_same_id_and_refused_for_anything_else(target: Target) -> None:
    """The last test of this module that counts what there is, because this one leaves a rating."""
    key = {"Content-Type": "application/json", "Idempotency-Key": "replayed"}
    said = rating(target.images[1], "replayer")
    first, again = (target.send("POST", f"{API}/ratings", json.dumps(said).encode(), key) for _ in range(2))
    assert (first.status, first.json()) == (201, again.json())
    for other in ({**said, "value": 5}, {**said, "rater": "x"}, {**said, "image_id": target.images[0]}):
        target.refuses(target.send("POST", f"{API}/ratings", json.dumps(other).encode(), key), (409,))
    comment = {"image_id": target.images[1], "text": "x", "rater": "replayer"}
    target.refuses(target.send("POST", f"{API}/comments", json.dumps(comment).encode(), key), (409,))
    assert len(listed(target.server, target.images[1], "replayer")) == 1


ODD = [
    '"',
    "*",
    '" OR "',
    "a*",
    "NEAR(a b)",
    "prompt:",
    "^a",
    "-a",
    "(",
    "'; DROP TABLE image; --",
    "%",
    "_",
    "\\",
    "=1+1",
]


@pytest.mark.parametrize("text", ODD)
def test_whatever_is_searched_for_is_only_text(target: Target, text: str) -> None:
    for name in ("text", "collection", "rater", "axis"):
        answer = target.send("GET", f"{API}/images?limit=5&{name}={quote(text)}")
        assert (answer.status, answer.json()["items"] if name == "collection" else []) == (200, []), answer.body[:500]


def test_no_answer_can_be_taken_for_a_page_or_put_into_a_frame_of_another(target: Target) -> None:
    """Whatever a picture says of itself, it is served as the picture that we made of its pixels."""
    for path, kind in (("file", "image/png"), ("thumbnail", "image/jpeg")):
        answer = target.send("GET", f"{API}/images/{target.images[0]}/{path}")
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ['a"; filename="x.html', "a\r\nSet-Cookie: a=b", "../../x", "<img src=x onerror=alert(1)>"]
)
def test_the_name_of_a_download_is_ours(target: Target, name: str) -> None:
    """An export that has just been sent may still be tidied away, and then the next is refused with 409."""
    answer = target.send("GET", f"{API}/export?format=imagefolder&collection={quote(name)}")
    assert "set-cookie" not in answer.headers
    if answer.status == 200:
        assert answer.headers["content-disposition"] == 'attachment; filename="feedback-imagefolder.zip"'
    else:
        target.refuses(answer)
