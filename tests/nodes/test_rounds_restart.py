"""Ten rounds of marking and refining over HTTP, and what a ComfyUI that is started again knows of them."""

from __future__ import annotations

import io
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feedback_loop.tests.comfy_host import JSON, ComfyServer, parsed

from .http_calls import API
from .test_reliability_comfy import started

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
ROUNDS, SIZE = 10, 64
COLLECTION = "ten rounds"

MODEL: JSON = {
    "1": {"class_type": "FeedbackDemoModel", "inputs": {}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "two red stars, bright background", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
}
SAMPLING = {
    "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "steps": 4, "cfg": 2.0, "sampler_name": "euler",
    "scheduler": "sgm_uniform", "denoise": 1.0,
}  # fmt: skip


def first_picture(server: ComfyServer) -> str:
    """A captured picture of the demo model; its id."""
    size = {"width": SIZE, "height": SIZE, "batch_size": 1}
    outputs = server.run({
        **MODEL,
        "4": {"class_type": "EmptyLatentImage", "inputs": size},
        "5": {"class_type": "KSampler", "inputs": {**SAMPLING, "latent_image": ["4", 0], "seed": 1}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "FeedbackCapture", "inputs": {"images": ["6", 0], "collection": COLLECTION}},
    })  # fmt: skip
    [id_] = outputs["7"]["feedback_images"]
    return id_


def file_of(server: ComfyServer, image_id: str) -> bytes:
    with urllib.request.urlopen(f"{server.url}{API}/images/{image_id}/file", timeout=60) as answer:
        return answer.read()


def pixels_of(server: ComfyServer, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file_of(server, image_id))).convert("RGB"))


def uploaded(server: ComfyServer, image_id: str) -> str:
    """The stored picture as a file of ComfyUI's input folder, as "use in graph" puts it there; its name."""
    edge, name = uuid.uuid4().hex, f"{image_id}.png"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    body = (
        head.encode() + b"Content-Type: image/png\r\n\r\n" + file_of(server, image_id) + f"\r\n--{edge}--\r\n".encode()
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/upload/image", body, kind), timeout=60) as answer:
        return parsed(answer.read())["name"]


def place(number: int) -> tuple[slice, slice]:
    """(rows, columns) in pixels that the round is about: another box each time."""
    top, left = 4 * number, 52 - 4 * number
    return slice(top, top + 20), slice(max(left - 8, 0), left + 8)


def refined(server: ComfyServer, image_id: str, number: int) -> str:
    """The candidate of one round on a picture that a person marked, said what to do, and opened again; its id."""
    rows, columns = place(number)
    corners = [[columns.start / SIZE, rows.start / SIZE], [columns.stop / SIZE, rows.stop / SIZE]]
    said = {"image_id": image_id, "shape": "rect", "geometry": corners, "label": "artifact", "rater": "ann"}
    server.post(f"{API}/regions", {**said, "comment": f"a star, no text {number}"})
    server.run({
        **MODEL,
        "4": {"class_type": "LoadImage", "inputs": {"image": uploaded(server, image_id)}},
        "5": {"class_type": "FeedbackRegionMask", "inputs": {
            "images": ["4", 0], "collection": "", "labels": "", "points": "circle", "radius": 10.0, "grow": 0,
            "feather": 0.0}},
        "6": {"class_type": "FeedbackRefineRegion", "inputs": {
            **SAMPLING, "vae": ["1", 2], "clip": ["1", 1], "images": ["4", 0], "mask": ["5", 0], "comment": ["5", 1],
            "seed": number, "candidates": 1, "collection": COLLECTION}},
    })  # fmt: skip
    rounds = server.get(f"{API}/images/{image_id}/family")["rounds"]
    [made] = [one for one in rounds if one["parent"] == image_id]
    assert made["comment"] == f"a star, no text {number}" and made["labels"] == ["artifact"]
    return made["candidates"][0]["image_id"]


def test_ten_rounds_are_a_whole_tree_after_a_restart_and_bit_equal_outside_of_their_masks(tmp_path: Path) -> None:
    server = started(tmp_path, 0)
    try:
        ids = [first_picture(server)]
        for number in range(ROUNDS):
            ids.append(refined(server, ids[-1], number))
        before = server.get(f"{API}/images/{ids[-1]}/family")
    finally:
        server.server.stop()
    server = started(tmp_path, 1)
    try:
        for id_ in ids:
            assert server.get(f"{API}/images/{id_}/family") == before
        pictures = [pixels_of(server, id_) for id_ in ids]
    finally:
        server.server.stop()
    assert before["root"] == ids[0]
    assert [one["parent"] for one in before["rounds"]] == ids[:-1]
    assert [[made["image_id"] for made in one["candidates"]] for one in before["rounds"]] == [[id_] for id_ in ids[1:]]
    assert [one["accepted"] for one in before["rounds"][:-1]] == ids[1:-1]
    touched = np.zeros((SIZE, SIZE), bool)
    for number, (old, new) in enumerate(zip(pictures, pictures[1:], strict=False)):
        inside = np.zeros((SIZE, SIZE), bool)
        inside[place(number)] = True
        assert np.array_equal(new[~inside], old[~inside]) and not np.array_equal(new[inside], old[inside])
        touched |= inside
    assert np.array_equal(pictures[-1][~touched], pictures[0][~touched]) and (~touched).sum() > SIZE
