"""The HTTP interface of a real ComfyUI with the pack: what it stores, what it answers, and whom it refuses."""

from __future__ import annotations

import http.client
import io
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image

from feedback_loop.tests.comfy_host import JSON, ComfyServer

API = "/feedback_loop/v1"
NO_ID = str(uuid.uuid4())
STARS = {"min": 1, "max": 5}


@pytest.fixture(scope="module")
def collection() -> str:
    return f"routes {uuid.uuid4()}"


@pytest.fixture(scope="module")
def images(comfy_server: ComfyServer, collection: str) -> list[str]:
    """The ids of three captured pictures, (24, 32) pixels each of one colour."""
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": 3, "color": 0x3366CC}},
        "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": collection}},
    }
    return comfy_server.run(graph)["2"]["feedback_images"]


@pytest.fixture
def rater() -> str:
    """Somebody new for every test, since the server's database is shared."""
    return f"rater {uuid.uuid4()}"


def raw(
    server: ComfyServer, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request that is sent exactly as given."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def rating(image: str, rater: str, value: Any = 4, **more: Any) -> JSON:
    return {"image_id": image, "value": value, "scale": STARS, "axis": "overall", "rater": rater, **more}


def listed(server: ComfyServer, image: str, rater: str) -> list[JSON]:
    """This rater's ratings of the picture."""
    return [one for one in server.get(f"{API}/images/{image}")["ratings"] if one["rater"] == rater]


def judged(server: ComfyServer) -> tuple[int, int, int]:
    stats = server.get(f"{API}/stats")
    return stats["ratings"], stats["comparisons"], stats["comments"]


def test_pictures_are_listed_newest_first_in_pages(comfy_server, images, collection):
    query = f"{API}/images?collection={quote(collection)}"
    whole = comfy_server.get(query)
    assert [item["id"] for item in whole["items"]] == images[::-1]
    assert whole["next"] is None
    first = comfy_server.get(f"{query}&limit=2")
    second = comfy_server.get(f"{query}&limit=2&cursor={first['next']}")
    assert [item["id"] for item in first["items"] + second["items"]] == images[::-1]
    assert second["next"] is None
    item = whole["items"][0]
    assert set(item) >= {"id", "prompt", "seed", "width", "height", "created_at", "ratings"}
    assert (item["width"], item["height"], item["prompt"], item["seed"]) == (32, 24, None, None)


def test_a_picture_and_its_thumbnail_can_be_fetched(comfy_server, images):
    for name, form, size in (("file", "PNG", (32, 24)), ("thumbnail", "JPEG", (32, 24))):
        status, headers, body = raw(comfy_server, "GET", f"{API}/images/{images[0]}/{name}")
        assert status == 200
        assert headers["content-type"] == f"image/{form.lower()}"
        assert headers["x-content-type-options"] == "nosniff"
        with Image.open(io.BytesIO(body)) as picture:
            assert (picture.format, picture.size) == (form, size)
            red, green, blue = picture.convert("RGB").getpixel((3, 3))  # type: ignore[misc]
        assert max(abs(red - 0x33), abs(green - 0x66), abs(blue - 0xCC)) <= (0 if form == "PNG" else 4)


def test_core_serves_the_same_routes_under_api(comfy_server, images):
    assert comfy_server.get(f"/api{API}/images/{images[0]}") == comfy_server.get(f"{API}/images/{images[0]}")


def test_a_rating_is_listed_beside_its_picture_on_its_own_scale(comfy_server, images, rater):
    status, answer = comfy_server.request("POST", f"{API}/ratings", rating(images[0], rater, 4))
    assert (status, set(answer)) == (201, {"id"})
    (one,) = listed(comfy_server, images[0], rater)
    assert (one["id"], one["value"], one["scale"], one["axis"]) == (
        answer["id"],
        4,
        {"min": 1.0, "max": 5.0},
        "overall",
    )


def test_the_axis_is_overall_unless_said_otherwise(comfy_server, images, rater):
    body = rating(images[0], rater)
    del body["axis"]
    comfy_server.post(f"{API}/ratings", body)
    assert [one["axis"] for one in listed(comfy_server, images[0], rater)] == ["overall"]


def test_undo_answers_with_the_row_that_supersedes_and_clear_takes_all(comfy_server, images, rater):
    ids = [comfy_server.post(f"{API}/ratings", rating(images[0], rater, value))["id"] for value in (1, 2, 5)]
    status, undo = comfy_server.request("DELETE", f"{API}/judgements/{ids[2]}")
    assert (status, set(undo)) == (200, {"id"})
    assert undo["id"] not in ids
    assert [one["value"] for one in listed(comfy_server, images[0], rater)] == [2]
    assert comfy_server.request("DELETE", f"{API}/judgements/{ids[2]}") == (200, undo)
    comfy_server.request("DELETE", f"{API}/judgements/{ids[1]}?clear=true")
    assert listed(comfy_server, images[0], rater) == []


def test_who_says_who_they_are_can_undo_only_their_own(comfy_server, images, rater):
    id_ = comfy_server.post(f"{API}/ratings", rating(images[0], rater))["id"]
    status, answer = comfy_server.request("DELETE", f"{API}/judgements/{id_}?rater=somebody")
    assert status == 403
    assert "another rater" in answer["error"]
    assert len(listed(comfy_server, images[0], rater)) == 1
    assert comfy_server.request("DELETE", f"{API}/judgements/{id_}?rater={quote(rater)}")[0] == 200


def test_an_undo_can_not_be_undone(comfy_server, images, rater):
    id_ = comfy_server.post(f"{API}/ratings", rating(images[0], rater))["id"]
    undo = comfy_server.request("DELETE", f"{API}/judgements/{id_}")[1]["id"]
    assert comfy_server.request("DELETE", f"{API}/judgements/{undo}")[0] == 409


def test_comparisons_and_comments_are_counted(comfy_server, images, rater):
    before = judged(comfy_server)
    comparison = {"left": images[0], "right": images[1], "winner": "both_bad", "axis": "overall", "rater": rater}
    more = {"strength": 0.5, "policy": "random", "propensity": 0.1}
    for path, body in (
        ("comparisons", comparison),
        ("comparisons", {**comparison, **more, "winner": "tie"}),
        ("comments", {"image_id": images[0], "text": "<img src=x onerror=alert(1)>", "rater": rater}),
        ("ratings", rating(images[0], rater, comment="too dark")),
    ):
        status, answer = comfy_server.request("POST", f"{API}/{path}", body)
        assert (status, set(answer)) == (201, {"id"})
    assert judged(comfy_server) == (before[0] + 1, before[1] + 2, before[2] + 2)


def test_a_write_sent_twice_with_one_key_is_one_judgement(comfy_server, images, rater):
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = comfy_server.request("POST", f"{API}/ratings", rating(images[0], rater), key)
    with ThreadPoolExecutor(8) as threads:
        body = rating(images[0], rater)
        again = list(threads.map(lambda _: comfy_server.request("POST", f"/api{API}/ratings", body, key), range(8)))
    assert again == [first] * 8
    assert len(listed(comfy_server, images[0], rater)) == 1


def test_a_key_used_for_something_else_is_refused(comfy_server, images, rater):
    key = {"Idempotency-Key": uuid.uuid4().hex}
    comfy_server.request("POST", f"{API}/ratings", rating(images[0], rater, 4), key)
    status, answer = comfy_server.request("POST", f"{API}/ratings", rating(images[0], rater, 5), key)
    assert status == 409
    assert "Idempotency-Key" in answer["error"]
    comparison = {"left": images[0], "right": images[1], "winner": "left", "rater": rater}
    assert comfy_server.request("POST", f"{API}/comparisons", comparison, key)[0] == 409
    assert [one["value"] for one in listed(comfy_server, images[0], rater)] == [4]


def test_ratings_of_many_clients_at_once_all_arrive(comfy_server, images, rater):
    def rate(number: int) -> int:
        body = rating(images[number % 3], f"{rater} {number}", number % 5 + 1)
        return comfy_server.request("POST", f"{API}/ratings", body)[0]

    before = judged(comfy_server)[0]
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(rate, range(64))) == {201}
    assert judged(comfy_server)[0] == before + 64


def test_the_description_names_every_route_and_its_bodies(comfy_server):
    from feedback_loop.nodes.request_models import CommentBody, ComparisonBody, RatingBody

    document = comfy_server.get(f"{API}/openapi.json")
    assert document["openapi"].startswith("3.1")
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert found == {
        ("get", "/images"),
        ("get", "/images/{id}"),
        ("get", "/images/{id}/file"),
        ("get", "/images/{id}/thumbnail"),
        ("post", "/ratings"),
        ("post", "/comparisons"),
        ("post", "/comments"),
        ("delete", "/judgements/{id}"),
        ("get", "/stats"),
        ("get", "/openapi.json"),
    }
    schemas = document["components"]["schemas"]
    for model in (RatingBody, ComparisonBody, CommentBody):
        schema = schemas[model.__name__]
        assert set(schema["properties"]) == set(model.model_fields)
        assert schema["additionalProperties"] is False
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= set(schemas)


def test_the_description_has_no_route_that_the_server_lacks(comfy_server, images):
    for path, methods in comfy_server.get(f"{API}/openapi.json")["paths"].items():
        for method in methods:
            status, _, body = raw(comfy_server, method.upper(), API + path.replace("{id}", NO_ID))
            assert status != 405
            assert status != 404 or b"There is no" in body, "our own 404, and not the server's"


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


def test_a_picture_whose_file_was_removed_says_so(comfy_server, collection):
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0x010203}},
        "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": f"{collection} removed"}},
    }
    (id_,) = comfy_server.run(graph)["2"]["feedback_images"]
    before = raw(comfy_server, "GET", f"{API}/images/{id_}/file")[2]
    media = comfy_server.base_directory / "user" / "__feedback_loop" / "media"
    (file,) = (path for path in media.rglob("*.png") if path.read_bytes() == before)
    file.unlink()
    for name in ("file", "thumbnail"):
        status, answer = comfy_server.request("GET", f"{API}/images/{id_}/{name}")
        assert status == 404
        assert "removed" in answer["error"]
