"""Files of strangers, put where ComfyUI finds them or uploaded: refused by name and with a reason, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from feedback_loop.tests.comfy_host import JSON, error_of
from feedback_loop.tests.nodes.http_calls import API

from . import files
from .target import LEAKS, SENTENCE, Answer, Target

# --- pictures of the output folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan(target: Target) -> JSON:
    """What became of the output folder, in which all of the pictures lie."""
    return target.server.post(f"{API}/history/scan", {"collection": "found"})


@pytest.mark.parametrize("name", [*files.PICTURES, "a link.png", "a pipe.png"])
def test_a_picture_that_is_none_or_too_much_is_named_and_left_where_it_is(scan: JSON, name: str) -> None:
    reasons = {one["file"]: one["reason"] for one in scan["reasons"]}
    assert name in reasons, f"{name} was taken in"
    assert SENTENCE.match(reasons[name])


def test_links_are_not_followed_and_the_rest_of_the_folder_is_seen(target: Target, scan: JSON) -> None:
    """The linked folder holds the server's whole base directory, output folder included."""
    assert scan["files"] == len(files.PICTURES) + len(files.STRANGE_PICTURES) + 2
    assert not [one for one in scan["reasons"] if "linked folder" in one["file"]]
    found = target.server.get(f"{API}/images?collection=found&limit=500")["items"]
    assert len(found) == scan["added"]
    for picture in found:
        assert picture["seed"] is None or 0 <= int(picture["seed"]) < 2**64
        assert (picture["width"], picture["height"]) == (8, 8)


# --- uploads ---------------------------------------------------------------------------------------------------------


HEADERS = {"X-Feedback-Loop": "1"}


def upload(
    target: Target, data: bytes, file_name: str = "data.zip", headers: dict[str, str] = HEADERS, **fields: str
) -> Answer:
    """A form as a browser sends it, with a boundary of its own, so that nothing in the file can end it."""
    edge = uuid.uuid4().hex
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.append(f'Content-Disposition: form-data; name="file"; filename="{file_name}"\r\n\r\n'.encode() + data)
    body = b"".join(b"--" + edge.encode() + b"\r\n" + part + b"\r\n" for part in parts) + f"--{edge}--\r\n".encode()
    return target.send(
        "POST", f"{API}/import", body, {"Content-Type": f"multipart/form-data; boundary={edge}", **headers}
    )


@pytest.mark.usefixtures("scan", "unharmed")
@pytest.mark.parametrize("make", files.DATA_SETS.values(), ids=list(files.DATA_SETS))
def test_of_a_hostile_data_set_nothing_is_taken_in(target: Target, make: Callable[[], bytes]) -> None:
    answer = upload(target, make())
    if answer.status != 200:
        target.refuses(answer)
        return
    found = answer.json()
    assert (found["pictures"], found["judgements"]) == (0, 0)
    assert len(found["report"]) > 20
    assert not [leak for leak in LEAKS if leak in found["report"]]


@pytest.mark.usefixtures("scan", "unharmed")
@pytest.mark.parametrize(
    ("fields", "file_name"),
    [
        ({"format": "pickle"}, "a.zip"),
        ({"collection": "a\0b"}, "a.zip"),
        ({"collection": "x" * 5000}, "a.zip"),
        ({"path": "/etc/passwd"}, "a.zip"),
        ({"url": "http://127.0.0.1:9/"}, "a.zip"),
        ({}, "../../../escaped.zip"),
        ({}, "/etc/cron.d/escaped"),
        ({}, "a\\..\\..\\escaped.zip"),
    ],
)
def test_an_upload_says_neither_where_it_comes_from_nor_where_it_goes(
    target: Target, fields: dict[str, str], file_name: str
) -> None:
    """The file itself is bad too, so that its name alone decides nothing."""
    target.refuses(upload(target, b"neither JSON nor ZIP", file_name, **fields))


@pytest.mark.usefixtures("scan", "unharmed")
@pytest.mark.parametrize("headers", [{}, {**HEADERS, "Content-Type": "text/plain"}, {**HEADERS, "Origin": "null"}])
def test_an_upload_that_any_page_could_send_is_refused(target: Target, headers: dict[str, str]) -> None:
    target.refuses(upload(target, files.said("a.png", files.png()), headers=headers), (403, 415, 422))


def test_no_half_of_an_upload_stays_on_disk(target: Target) -> None:
    own = target.folder / "base" / "user" / "__feedback_loop"
    assert not list(own.glob("exchange_*"))


# --- rewards ---------------------------------------------------------------------------------------------------------


def scored_by(name: str) -> JSON:
    """A graph that scores a picture with a reward from a file."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "FeedbackLoadReward", "inputs": {"name": name}},
        "3": {"class_type": "FeedbackScoreImages", "inputs": {"images": ["1", 0], "reward": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }


@pytest.mark.usefixtures("scan", "unharmed")
@pytest.mark.parametrize("name", [*files.REWARDS, "a link"])
def test_a_hostile_reward_ends_the_prompt_with_a_sentence(target: Target, name: str) -> None:
    entry = target.server.wait(target.server.queue_prompt(scored_by(files.reward_file(name))))
    assert entry["status"]["status_str"] == "error"
    said = str(error_of(entry)).strip()
    assert said.startswith("FeedbackLoadReward: ") and SENTENCE.match(said.removeprefix("FeedbackLoadReward: ")), said
    assert kind_of_error(entry).endswith("RewardError")


def kind_of_error(entry: JSON) -> str:
    return next(details["exception_type"] for kind, details in entry["status"]["messages"] if kind == "execution_error")


# --- names in a graph ------------------------------------------------------------------------------------------------

OUTSIDE: dict[str, Any] = {
    "dots": "../../../secret.safetensors",
    "absolute": "/etc/passwd",
    "a share": "\\\\host\\share\\x",
    "NUL": "a\0b",
    "a core suffix": "secret.png [input]",
    "4096 characters": "x" * 4096,
    "a number": 5,
    "an object": {"__class__": "x"},
}


@pytest.mark.usefixtures("scan", "unharmed")
@pytest.mark.parametrize("value", OUTSIDE.values(), ids=list(OUTSIDE))
@pytest.mark.parametrize(
    ("node", "field"), [("FeedbackLoadReward", "name"), ("FeedbackImport", "file")], ids=["reward", "data set"]
)
def test_a_file_that_is_not_in_the_list_can_not_be_named(target: Target, node: str, field: str, value: Any) -> None:
    inputs = {"name": value} if field == "name" else {"file": value, "format": "find out", "collection": "c"}
    graph = scored_by("") | {"2": {"class_type": node, "inputs": {**inputs, "rater": "r"}}}
    if node == "FeedbackImport":
        graph = {"2": graph["2"]}
    status, answer = target.server.request("POST", "/prompt", {"prompt": graph, "client_id": "attack"})
    assert status == 400, answer
    assert not [leak for leak in LEAKS if leak in str(answer)]
