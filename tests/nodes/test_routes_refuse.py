"""What strangers may not do to the routes of a real ComfyUI: each is answered with 4xx, and nothing is written."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from .http_calls import API, NO_ID, judged, listed, rating, raw

HUGE = "9" * 10_000


@pytest.mark.parametrize(
    "change",
    [
        {"value": 6},
        {"value": 0.999},
        {"value": "4"},
        {"value": True},
        {"value": None},
        {"value": [4]},
        {"scale": {"min": 5, "max": 1}},
        {"scale": {"min": 1, "max": 1}},
        {"scale": {"min": 1}},
        {"scale": {"min": 1, "max": 5, "step": 1}},
        {"scale": "1-5"},
        {"rater": ""},
        {"rater": 3},
        {"rater": "a\0b"},
        {"rater": "\ud800"},
        {"rater": "x" * 201},
        {"axis": ""},
        {"axis": "x" * 4096},
        {"comment": ""},
        {"comment": "x" * 100_001},
        {"stars": 5},
        {"__proto__": {}},
        {"path": "../../etc/passwd"},
        {"image_id": "../../etc/passwd"},
        {"image_id": "' OR 1=1 --"},
        {"image_id": NO_ID.upper()},
        {"image_id": NO_ID + "\n"},
        {"image_id": 5},
    ],
)
def test_a_rating_that_is_not_as_described_is_refused_with_a_reason(comfy_server, images, rater, change):
    before = judged(comfy_server)
    status, answer = comfy_server.request("POST", f"{API}/ratings", {**rating(images[0], rater), **change})
    assert status == 422
    assert set(answer) == {"error"}
    assert judged(comfy_server) == before


@pytest.mark.parametrize(
    "change",
    [
        {"winner": "me"},
        {"winner": ["left"]},
        {"strength": 2},
        {"strength": "0.5"},
        {"propensity": -1},
        {"policy": ""},
        {"right": None},
        {"same": True},
    ],
)
def test_a_comparison_that_is_not_as_described_is_refused(comfy_server, images, rater, change):
    body = {"left": images[0], "right": images[1], "winner": "left", "axis": "overall", "rater": rater, **change}
    assert comfy_server.request("POST", f"{API}/comparisons", body)[0] == 422


def test_a_picture_compared_with_itself_is_refused(comfy_server, images, rater):
    body = {"left": images[0], "right": images[0], "winner": "left", "rater": rater}
    status, answer = comfy_server.request("POST", f"{API}/comparisons", body)
    assert status == 422
    assert "different pictures" in answer["error"]


def test_unknown_pictures_and_judgements_are_not_found(comfy_server, images, rater):
    comparison = {"left": images[0], "right": NO_ID, "winner": "left", "rater": rater}
    comment = {"image_id": NO_ID, "text": "x", "rater": rater}
    for method, path, body in (
        ("POST", "ratings", rating(NO_ID, rater)),
        ("POST", "comparisons", comparison),
        ("POST", "comments", comment),
        ("DELETE", f"judgements/{NO_ID}", None),
        ("GET", f"images/{NO_ID}", None),
        ("GET", f"images/{NO_ID}/file", None),
        ("GET", f"images/{NO_ID}/thumbnail", None),
    ):
        status, answer = comfy_server.request(method, f"{API}/{path}", body)
        assert status == 404
        assert NO_ID in answer["error"]


BODY = '{"image_id": "%s", "value": %s, "scale": {"min": 1, "max": 5}, "rater": "r"}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"\xff\xfe", 400),
        (b"image_id=1&value=4", 400),
        ((BODY % (NO_ID, "NaN")).encode(), 400),
        ((BODY % (NO_ID, "Infinity")).encode(), 400),
        ((BODY % (NO_ID, "1e999")).encode(), 422),
        ((BODY % (NO_ID, HUGE)).encode(), 400),
        ((BODY % (NO_ID, '4, "value": 5')).encode(), 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 90_000, 400),
        (b" " * (512 * 1024 + 1), 413),
    ],
)
def test_what_is_no_clean_json_is_refused(comfy_server, body: bytes, status: int):
    found, _, answer = raw(comfy_server, "POST", f"{API}/ratings", body, {"Content-Type": "application/json"})
    assert found == status
    assert set(json.loads(answer)) == {"error"}
    assert comfy_server.alive()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_only_json_is_taken_so_that_no_form_of_a_page_can_write(comfy_server, images, rater, kind):
    body = json.dumps(rating(images[0], rater)).encode()
    headers = {"Content-Type": kind} if kind else {}
    status, _, answer = raw(comfy_server, "POST", f"{API}/ratings", body, headers)
    assert status == 415
    assert "application/json" in json.loads(answer)["error"]
    assert listed(comfy_server, images[0], rater) == []


@pytest.mark.parametrize("path", ["ratings", "comparisons", "comments", f"judgements/{NO_ID}"])
def test_nothing_is_written_by_a_get(comfy_server, path):
    before = judged(comfy_server)
    assert raw(comfy_server, "GET", f"{API}/{path}")[0] in (404, 405)
    assert judged(comfy_server) == before


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://evil.example:8188", "file://", "chrome-extension://abc", ""]
)
def test_pages_from_elsewhere_are_refused(comfy_server, images, rater, origin):
    body = json.dumps(rating(images[0], rater)).encode()
    headers = {"Content-Type": "application/json", "Origin": origin}
    assert raw(comfy_server, "POST", f"{API}/ratings", body, headers)[0] == 403
    assert raw(comfy_server, "GET", f"{API}/images", headers={"Origin": origin})[0] == 403
    assert listed(comfy_server, images[0], rater) == []


def test_the_pages_own_origin_is_allowed(comfy_server, images, rater):
    headers = {"Origin": comfy_server.url}
    assert comfy_server.request("POST", f"{API}/ratings", rating(images[0], rater), headers)[0] == 201


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8188", "127.0.0.1.evil.example", "[::1].evil", "a@localhost", "[", ""]
)
def test_a_rebound_name_is_refused_with_the_variable_that_allows_it(comfy_server, images, rater, host):
    body = json.dumps(rating(images[0], rater)).encode()
    headers = {"Content-Type": "application/json", "Host": host}
    status, _, answer = raw(comfy_server, "POST", f"{API}/ratings", body, headers)
    assert status == 403
    assert "FEEDBACK_LOOP_ALLOWED_HOSTS" in json.loads(answer)["error"]
    assert raw(comfy_server, "GET", f"{API}/images", headers={"Host": host})[0] == 403


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "192.168.1.7:8188", "[::1]:8188", "comfy.localhost"])
def test_addresses_and_this_machines_names_are_hosts_of_ours(comfy_server, host):
    assert raw(comfy_server, "GET", f"{API}/stats", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        "limit=1000000000",
        "limit=abc",
        "limit=1e3",
        "limit=2&limit=3",
        f"cursor={HUGE[:200]}",
        "cursor=-1",
        "cursor=1%20OR%201=1",
        "collection=",
        "collection=" + "x" * 4096,
        "collection=%00",
        "sort=id;DROP%20TABLE%20image",
    ],
)
def test_lists_are_asked_for_within_bounds(comfy_server, query):
    assert raw(comfy_server, "GET", f"{API}/images?{query}")[0] == 422


def test_a_collection_that_looks_like_sql_is_just_empty(comfy_server):
    assert comfy_server.get(f"{API}/images?collection={quote(chr(39))}%20OR%201=1--")["items"] == []


@pytest.mark.parametrize(
    "id_",
    [
        "..%2f..%2fetc%2fpasswd",
        "..%252f..%252fetc%252fpasswd",
        "%2fetc%2fpasswd",
        "%5c%5chost%5cshare",
        "a%00b",
        "CON",
        "a.png%20%5binput%5d",
        "x" * 4096,
        "'%20OR%201=1%20--",
    ],
)
def test_no_path_gets_into_an_id(comfy_server, id_):
    for path in (f"images/{id_}", f"images/{id_}/file", f"images/{id_}/thumbnail"):
        assert raw(comfy_server, "GET", f"{API}/{path}")[0] == 404
    assert raw(comfy_server, "DELETE", f"{API}/judgements/{id_}")[0] == 404
    assert comfy_server.alive()


@pytest.mark.parametrize("key", ["x" * 256, "", "a\tb"])
def test_a_key_is_a_short_plain_text(comfy_server, images, rater, key):
    status, _ = comfy_server.request("POST", f"{API}/ratings", rating(images[0], rater), {"Idempotency-Key": key})
    assert status == 400
    assert listed(comfy_server, images[0], rater) == []
