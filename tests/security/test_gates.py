"""A run that really waits, under attack: it takes one fitting answer, from one sender, once, and nothing else."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from feedback_loop.tests.comfy_host import JSON
from feedback_loop.tests.nodes.http_calls import API, NO_ID

from . import files
from .target import Answer, State, Target

WIDTH, HEIGHT = 32, 24
JSON_TYPE = {"Content-Type": "application/json"}


def waiting(target: Target) -> list[JSON]:
    return target.server.get(f"{API}/gates")["gates"]


def asked(target: Target) -> JSON:
    """What a new run waits for: to choose one of two pictures."""
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": WIDTH, "height": HEIGHT, "batch_size": 2, "color": 7}},
        "2": {
            "class_type": "FeedbackGate",
            "inputs": {
                **{"images": ["1", 0], "mode": "choose", "timeout": 0, "on_timeout": "skip"},
                **{"without_client": "wait", "collection": "attacked gate"},
            },
        },
    }
    run = target.server.queue_prompt(graph)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for gate in waiting(target):
            if gate["prompt_id"] == run:
                return gate
        time.sleep(0.05)
    raise AssertionError(f"run {run} does not wait:\n{target.server.log()[-4000:]}")


@pytest.fixture(scope="module")
def gate(target: Target, fresh_pictures: None) -> Iterator[JSON]:
    """One that waits while all attacks of this module go on."""
    yield asked(target)
    target.server.post("/interrupt", {})


@pytest.fixture(scope="module")
def calm(target: Target, gate: JSON) -> State:
    """As in conftest, but once the pictures that are asked about are there."""
    return target.state()


def send(target: Target, gate: JSON, body: JSON, headers: dict[str, str] = JSON_TYPE, method: str = "POST") -> Answer:
    path = f"{API}/gates/{quote(gate['key'], safe='')}"
    return target.send(method, path, json.dumps(body).encode(), headers)


def fitting(gate: JSON, place: int = 0, rater: str = "r") -> JSON:
    return {"action": "choose", "images": [gate["images"][place]], "rater": rater}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


Change = Callable[[Target, JSON], JSON]
"""What is changed in a fitting answer."""

PICTURES: dict[str, Change] = {
    "a picture that was not asked about": lambda target, gate: {"images": target.images[:1]},
    "a picture that is not": lambda target, gate: {"images": [NO_ID]},
    "both pictures": lambda target, gate: {"images": gate["images"]},
    "a picture twice": lambda target, gate: {"images": gate["images"][:1] * 2},
    "no picture": lambda target, gate: {"images": []},
    "4097 pictures": lambda target, gate: {"images": gate["images"][:1] * 4097},
    "a path": lambda target, gate: {"images": ["../../etc/passwd"]},
    "another action": lambda target, gate: {"action": "approve"},
    "an order": lambda target, gate: {"action": "rank", "images": gate["images"]},
    "an unknown action": lambda target, gate: {"action": "delete"},
    "a rejection that lets one go on": lambda target, gate: {"action": "reject"},
    "nobody": lambda target, gate: {"rater": ""},
    "NUL in a comment": lambda target, gate: {"comment": "a\0b"},
    "an empty comment": lambda target, gate: {"comment": ""},
    "a time before the question": lambda target, gate: {"lead_time": -1},
    "a time that is none": lambda target, gate: {"lead_time": True},
    "a field that is not known": lambda target, gate: {"path": "/etc/passwd"},
}
MASKS: dict[str, bytes] = {
    "of another size": files.png((WIDTH - 1, HEIGHT), "L"),
    "lying on its side": files.png((HEIGHT, WIDTH), "L"),
    "of one pixel": files.png((1, 1), "L"),
    "of 36 million pixels in 36 kB": files.png((6000, 6000), "L", compress_level=9),
    "that claims 65000 x 65000": files.claiming(65000, 65000),
    "in colours": files.png((WIDTH, HEIGHT)),
    "with transparency": files.png((WIDTH, HEIGHT), "LA"),
    "of one bit": files.png((WIDTH, HEIGHT), "1"),
    "cut off": files.png((WIDTH, HEIGHT), "L")[:-20],
    "that is an SVG": files.SVG,
    "that is a GIF": b"GIF89a" + bytes(64),
    "with a text of 64 MB": files.packed_text(b"zTXt"),
}
MARKED: dict[str, Change] = {
    **{f"a mask {name}": lambda target, gate, data=data: {"mask": encoded(data)} for name, data in MASKS.items()},
    "a mask that is no base64": lambda target, gate: {"mask": "%%%"},
    "an empty mask": lambda target, gate: {"mask": ""},
    "a mask of 500,004 characters": lambda target, gate: {"mask": "AAAA" * 125_001},
    "a mask on another picture": lambda target, gate: {
        "mask": encoded(files.png((WIDTH, HEIGHT), "L")),
        "mask_of": target.images[0],
    },
    "a place for no mask": lambda target, gate: {"mask_of": gate["images"][0]},
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("change", [*PICTURES.values(), *MARKED.values()], ids=[*PICTURES, *MARKED])
def test_an_answer_that_does_not_fit_is_refused_and_the_run_waits_on(
    target: Target, gate: JSON, change: Change
) -> None:
    target.refuses(send(target, gate, {**fitting(gate), **change(target, gate)}))
    assert [one["key"] for one in waiting(target)] == [gate["key"]]


STRANGE: dict[str, tuple[str, dict[str, str], tuple[int, ...]]] = {
    "a page from elsewhere": ("POST", {**JSON_TYPE, "Origin": "http://evil.example"}, (403,)),
    "a sandboxed frame": ("POST", {**JSON_TYPE, "Origin": "null"}, (403,)),
    "a rebound name": ("POST", {**JSON_TYPE, "Host": "evil.example"}, (403,)),
    "a form": ("POST", {"Content-Type": "text/plain"}, (415,)),
    "a link": ("GET", {}, (404, 405)),
    "another method": ("DELETE", JSON_TYPE, (404, 405)),
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(("method", "headers", "refused"), STRANGE.values(), ids=list(STRANGE))
def test_an_answer_that_fits_is_taken_from_no_stranger(
    target: Target, gate: JSON, method: str, headers: dict[str, str], refused: tuple[int, ...]
) -> None:
    target.refuses(send(target, gate, fitting(gate), headers, method), refused)
    assert [one["key"] for one in waiting(target)] == [gate["key"]]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("change", ["{}x", "x{}", "{}%00", "{}.1", "{}/../{}", "{}%0a"])
def test_a_key_that_only_resembles_that_of_the_run_opens_nothing(target: Target, gate: JSON, change: str) -> None:
    path = change.replace("{}", quote(gate["key"], safe=""))
    target.refuses(
        target.send("POST", f"{API}/gates/{path}", json.dumps(fitting(gate)).encode(), JSON_TYPE), (404, 405)
    )
    assert [one["key"] for one in waiting(target)] == [gate["key"]]


def comparisons(target: Target, gate: JSON) -> list[tuple[str, Any]]:
    found = target.server.get(f"{API}/images/{gate['images'][0]}/marks")["comparisons"]
    return [(one["winner"], one["rater"]) for one in found]


def test_of_many_answers_at_once_one_is_taken_and_nothing_changes_it_afterwards(target: Target, gate: JSON) -> None:
    """The last of this module, since it ends the run. Senders 0, 2, 4 ... choose the left picture, the others the
    right one, each with a key of its own; whose answer was taken is alone in the store and decides what goes on."""

    def answering(sender: int) -> Answer:
        headers = {**JSON_TYPE, "Idempotency-Key": f"gate {gate['key']} {sender}"}
        return send(target, gate, fitting(gate, sender % 2, f"sender {sender}"), headers)

    with ThreadPoolExecutor(12) as senders:
        answers = list(senders.map(answering, range(12)))
    (taken,) = [sender for sender, answer in enumerate(answers) if answer.status == 200]
    for answer in answers[:taken] + answers[taken + 1 :]:
        target.refuses(answer, (409,))
    ended = target.server.wait(gate["prompt_id"])["outputs"]["2"]["feedback_gate"][0]
    assert ended["images"] == [gate["images"][taken % 2]]
    expected = [(("left", "right")[taken % 2], f"sender {taken}")]
    assert comparisons(target, gate) == expected

    # Too late, with another answer under the key that was taken, and the same once more.
    used = {**JSON_TYPE, "Idempotency-Key": f"gate {gate['key']} {taken}"}
    target.refuses(send(target, gate, fitting(gate, 0, "late")), (409,))
    target.refuses(send(target, gate, fitting(gate, (taken + 1) % 2, f"sender {taken}"), used), (409,))
    assert answering(taken).status == 200
    assert comparisons(target, gate) == expected
