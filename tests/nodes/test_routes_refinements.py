"""Rounds over HTTP, on a real server: a family, a choice in it, what comes back."""

from __future__ import annotations

import uuid

import pytest

from feedback_loop.tests.comfy_host import ComfyServer

from .http_calls import API, NO_ID, captured


@pytest.fixture(scope="module")
def made(comfy_server: ComfyServer, tmp_path_factory) -> tuple[list[str], str]:
    """(a picture and two candidates, the id of the round), by a real run of Refine marked places on the demo model."""
    collection = f"rounds {uuid.uuid4()}"
    colour = uuid.uuid4().int % 2**24
    prompt = {
        "1": {"class_type": "FeedbackDemoModel", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "two red stars", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": colour}},
        "5": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}},
        "6": {
            "class_type": "FeedbackRefineRegion",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "vae": ["1", 2], "images": ["4", 0],
                "mask": ["5", 0], "seed": 3, "steps": 2, "cfg": 2.0, "sampler_name": "euler",
                "scheduler": "sgm_uniform", "denoise": 1.0, "candidates": 2, "clip": ["1", 1],
                "comment": "larger stars, no watermark", "collection": collection,
            },
        },
    }  # fmt: skip
    comfy_server.run(prompt)
    items = comfy_server.get(f"{API}/images?collection={collection.replace(' ', '%20')}")["items"]
    assert len(items) == 3
    family = comfy_server.get(f"{API}/images/{items[0]['id']}/family")
    [round_] = family["rounds"]
    return [family["root"], *(one["image_id"] for one in round_["candidates"])], round_["id"]


def test_a_family_tells_what_was_said_and_what_came_out(comfy_server: ComfyServer, made) -> None:
    (root, *candidates), round_id = made
    for id_ in (root, *candidates):
        family = comfy_server.get(f"{API}/images/{id_}/family")
        [round_] = family["rounds"]
        assert family["root"] == root and (round_["id"], round_["parent"]) == (round_id, root)
        assert round_["comment"] == "larger stars, no watermark"
    [alone] = captured(comfy_server, f"alone {uuid.uuid4()}", 1, 0x112233)
    assert comfy_server.get(f"{API}/images/{alone}/family") == {"root": alone, "rounds": []}


def test_a_choice_becomes_comparisons(comfy_server: ComfyServer, made, rater: str) -> None:
    (root, first, second), round_id = made
    path = f"{API}/rounds/{round_id}/choice"
    key = {"Idempotency-Key": str(uuid.uuid4())}
    status, answer = comfy_server.request("POST", path, {"image_id": second, "rater": rater}, key)
    assert status == 201 and comfy_server.request("POST", path, {"image_id": second, "rater": rater}, key)[1] == answer
    [round_] = comfy_server.get(f"{API}/images/{root}/family")["rounds"]
    assert round_["accepted"] == second and round_["how"] == "said"
    compared = comfy_server.get(f"{API}/images/{second}/marks")["comparisons"]
    mine = {(one["left"], one["right"]) for one in compared if one["rater"] == rater and one["winner"] == "left"}
    assert mine == {(second, first), (second, root)}


def test_a_choice_that_cannot_be_is_refused(comfy_server: ComfyServer, made, rater: str) -> None:
    (root, *_), round_id = made
    path = f"{API}/rounds/{round_id}/choice"
    status, answer = comfy_server.request("POST", path, {"image_id": root, "rater": rater})
    assert status == 422 and "none of this round's candidates" in answer["error"]
    status, answer = comfy_server.request("POST", f"{API}/rounds/{NO_ID}/choice", {"image_id": None, "rater": rater})
    assert status == 404 and "There is no round" in answer["error"]
    assert comfy_server.request("GET", f"{API}/images/{NO_ID}/family")[0] == 404
    assert comfy_server.request("GET", f"{API}/recurring?minimum=0")[0] == 422


def test_recurring_edits_come_with_their_evidence(comfy_server: ComfyServer, rater: str) -> None:
    collection = f"recurring {uuid.uuid4()}"
    ids = captured(comfy_server, collection, 3, 0x445566)
    for id_ in ids:
        comfy_server.post(f"{API}/comments", {"image_id": id_, "text": "less clutter", "rater": rater})
    found = comfy_server.get(f"{API}/recurring?collection={collection.replace(' ', '%20')}")
    [one] = found["suggestions"]
    assert (one["name"], one["pictures"], one["raters"]) == ("less: clutter", 3, 1)
    assert set(one["examples"]) == set(ids)
    assert found["words"][0]["text"] == "clutter" and not found["words"][0]["wanted"]
