"""The HTTP interface of a real ComfyUI with the pack: what it stores and what it answers."""

from __future__ import annotations

import io
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from PIL import Image

from .http_calls import API, captured, judged, listed, rating, raw


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


def test_a_picture_whose_file_was_removed_says_so(comfy_server, collection):
    (id_,) = captured(comfy_server, f"{collection} removed", 1, 0x010203)
    before = raw(comfy_server, "GET", f"{API}/images/{id_}/file")[2]
    media = comfy_server.base_directory / "user" / "__feedback_loop" / "media"
    (file,) = (path for path in media.rglob("*.png") if path.read_bytes() == before)
    file.unlink()
    for name in ("file", "thumbnail"):
        status, answer = comfy_server.request("GET", f"{API}/images/{id_}/{name}")
        assert status == 404
        assert "removed" in answer["error"]
