"""Every kind of judgement through the routes: what is stored, what is shown beside the picture, what is refused."""

from __future__ import annotations

import base64
import io
import json
import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from .http_calls import API, NO_ID, raw
from .routes_host import RoutesServer, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoutesServer]:
    with serving(tmp_path_factory.mktemp("routes")) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(server: RoutesServer) -> list[str]:
    return [server.picture(colour, "a red kite over the sea") for colour in range(4)]


def mask_png(width: int = 16, height: int = 12, mode: str = "L") -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 255, np.uint8)).convert(mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


RECT = {"shape": "rect", "geometry": [[0.25, 0.5], [0.75, 1]], "label": "artifact"}
WORD = {"word_index": 2, "word": "kite", "label": "misaligned"}


def post(server: RoutesServer, path: str, body: dict, headers: dict | None = None) -> tuple[int, dict]:
    return server.request("POST", f"{API}/{path}", body, headers)


def marks(server: RoutesServer, picture: str, kind: str, rater: str) -> list[dict]:
    return [one for one in server.get(f"{API}/images/{picture}/marks")[kind] if one["rater"] == rater]


MARKS = [
    ("regions", {**RECT, "severity": 0.5, "comment": "six fingers"}),
    ("regions", {"shape": "point", "geometry": [[0, 1]], "label": "watermark"}),
    ("regions", {"shape": "polygon", "geometry": [[0, 0], [1, 0], [0, 1]], "label": "good"}),
    ("regions", {"shape": "mask", "geometry": [], "label": "artifact", "mask": mask_png()}),
    ("word_marks", WORD),
    ("tags", {"tag": "high quality"}),
    ("comments", {"text": "<img src=x onerror=alert(1)>"}),
]


@pytest.mark.parametrize(
    ("kind", "mark"), MARKS, ids=lambda value: value if isinstance(value, str) else value.get("shape", "")
)
def test_a_mark_is_shown_beside_its_picture_until_it_is_taken_back(server, pictures, rater, kind, mark):
    status, answer = post(server, kind, {"image_id": pictures[0], "rater": rater, **mark})
    assert status == 201, answer
    (found,) = marks(server, pictures[0], kind, rater)
    assert found["id"] == answer["id"]
    for name, value in mark.items():
        if name == "mask":
            with Image.open(io.BytesIO(base64.b64decode(found["mask"]))) as stored:
                assert (stored.size, stored.mode, stored.getextrema()) == ((16, 12), "L", (255, 255))
        else:
            assert found[name] == value
    assert marks(server, pictures[1], kind, rater) == []
    assert server.request("DELETE", f"{API}/judgements/{answer['id']}")[0] == 200
    assert marks(server, pictures[0], kind, rater) == []


def test_a_mark_sent_twice_with_one_key_is_one_mark(server, pictures, rater):
    for kind, mark in MARKS:
        body, key = {"image_id": pictures[2], "rater": rater, **mark}, {"Idempotency-Key": uuid.uuid4().hex}
        assert post(server, kind, body, key) == post(server, kind, body, key)
        assert post(server, kind, {**body, "image_id": pictures[3]}, key)[0] == 409
    assert [len(marks(server, pictures[2], kind, rater)) for kind in ("regions", "tags")] == [4, 1]


def test_a_ranking_of_four_gives_its_six_pairs(server, rater):
    ids = [server.picture(100 + place) for place in range(4)]
    assert post(server, "rankings", {"image_ids": ids, "axis": rater, "rater": rater, "lead_time": 2.5})[0] == 201
    compared = server.store.compared(server.store.feedback(axis=rater))
    better = {(one.left, one.right) if one.winner == "left" else (one.right, one.left) for one in compared}
    assert better == {(ids[a], ids[b]) for a in range(4) for b in range(a + 1, 4)}


@pytest.mark.parametrize(
    "change",
    [
        {"image_ids": []},
        {"image_ids": [NO_ID]},
        {"image_ids": [NO_ID, NO_ID]},
        {"image_ids": [str(uuid.uuid4()) for _ in range(65)]},
        {"image_ids": NO_ID},
        {"image_ids": [NO_ID, 5]},
        {"image_ids": [NO_ID, "../../etc/passwd"]},
        {"lead_time": -1},
        {"axis": ""},
    ],
)
def test_a_ranking_that_is_not_as_described_is_refused(server, pictures, rater, change):
    status, answer = post(server, "rankings", {"image_ids": pictures, "rater": rater, **change})
    assert status == 422
    assert set(answer) == {"error"}


@pytest.mark.parametrize(
    "change",
    [
        {"shape": "circle"},
        {"geometry": [[0.25, 0.5]]},
        {"geometry": [[0.25, 0.5], [0.75, 1.01]]},
        {"geometry": [[-0.1, 0.5], [0.75, 1]]},
        {"geometry": [[0.25, 0.5, 0.75], [0.75, 1]]},
        {"geometry": [["0.25", "0.5"], ["0.75", "1"]]},
        {"geometry": [0.25, 0.5]},
        {"geometry": "all"},
        {"shape": "polygon", "geometry": [[0, 0], [1, 1]]},
        {"shape": "polygon", "geometry": [[0, 0]] * 1001},
        {"shape": "point"},
        {"shape": "mask"},
        {"shape": "mask", "geometry": []},
        {"shape": "mask", "geometry": [], "mask": "no base64!"},
        {"shape": "mask", "geometry": [], "mask": base64.b64encode(b"no picture").decode()},
        {"shape": "mask", "geometry": [], "mask": mask_png(1, 1)},
        {"shape": "mask", "geometry": [], "mask": mask_png(17, 12)},
        {"shape": "mask", "geometry": [], "mask": mask_png(mode="RGB")},
        {"shape": "mask", "geometry": [], "mask": ""},
        {"shape": "mask", "geometry": [], "mask": "A" * 500_004},
        {"mask": mask_png()},
        {"label": ""},
        {"severity": 1.5},
        {"severity": True},
        {"comment": ""},
        {"path": "../../etc/passwd"},
    ],
)
def test_a_region_that_is_not_as_described_is_refused(server, pictures, rater, change):
    status, answer = post(server, "regions", {"image_id": pictures[0], "rater": rater, **RECT, **change})
    assert status == 422
    assert set(answer) == {"error"}
    assert marks(server, pictures[0], "regions", rater) == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_region_at_no_number_is_refused(server, pictures, rater, number):
    text = json.dumps({"image_id": pictures[0], "rater": rater, **RECT}).replace("0.25", number)
    headers = {"Content-Type": "application/json"}
    assert raw(server, "POST", f"{API}/regions", text.encode(), headers)[0] in (400, 422)


@pytest.mark.parametrize(
    ("kind", "mark"),
    [
        ("word_marks", {**WORD, "word_index": -1}),
        ("word_marks", {**WORD, "word_index": 1e9}),
        ("word_marks", {**WORD, "word_index": "2"}),
        ("word_marks", {**WORD, "word": ""}),
        ("word_marks", {**WORD, "word": "x" * 1001}),
        ("word_marks", {**WORD, "label": "bad"}),
        ("tags", {"tag": ""}),
        ("tags", {"tag": "x" * 201}),
        ("tags", {"tag": "a\0b"}),
        ("tags", {"tag": ["a"]}),
        ("tags", {}),
    ],
)
def test_a_word_or_a_tag_that_is_not_as_described_is_refused(server, pictures, rater, kind, mark):
    status, answer = post(server, kind, {"image_id": pictures[0], "rater": rater, **mark})
    assert status == 422
    assert set(answer) == {"error"}


def test_nothing_is_said_of_an_unknown_picture(server, pictures, rater):
    for kind, mark in MARKS:
        assert post(server, kind, {"image_id": NO_ID, "rater": rater, **mark})[0] == 404
    assert post(server, "rankings", {"image_ids": [pictures[0], NO_ID], "rater": rater})[0] == 404
    assert server.request("GET", f"{API}/images/{NO_ID}/marks")[0] == 404


def test_a_ranking_can_be_taken_back_whole(server, pictures, rater):
    id_ = post(server, "rankings", {"image_ids": pictures, "axis": rater, "rater": rater})[1]["id"]
    assert server.request("DELETE", f"{API}/judgements/{id_}?rater={NO_ID}")[0] == 403
    assert server.request("DELETE", f"{API}/judgements/{id_}")[0] == 200
    assert server.store.compared(server.store.feedback(axis=rater)) == []


def test_interactions_are_recorded_only_while_the_switch_is_on(server, pictures, rater):
    body = {"image_id": pictures[0], "rater": rater, "kind": "upscaled", "result_id": pictures[1]}
    assert server.get(f"{API}/settings") == {"interactions": False}, "off until the user turns it on"
    status, answer = post(server, "interactions", body)
    assert status == 409
    assert "switch is off" in answer["error"]
    assert server.request("PUT", f"{API}/settings", {"interactions": True}) == (200, {"interactions": True})
    assert server.get(f"{API}/settings") == {"interactions": True}
    assert post(server, "interactions", body)[0] == 201
    for wrong in ({"kind": "looked at"}, {"result_id": 5}, {"image_id": None}, {"weight": 1}):
        assert post(server, "interactions", {**body, **wrong})[0] == 422
    assert post(server, "interactions", {**body, "result_id": NO_ID})[0] == 404
    server.request("PUT", f"{API}/settings", {"interactions": False})
    assert post(server, "interactions", body)[0] == 409


@pytest.mark.parametrize("body", [{}, {"interactions": 1}, {"interactions": "true"}, {"interactions": True, "more": 1}])
def test_settings_are_taken_only_as_described(server, body):
    assert server.request("PUT", f"{API}/settings", body)[0] == 422
    assert server.get(f"{API}/settings") == {"interactions": False}
