"""FeedbackCapture and FeedbackDataset in a real ComfyUI: what lands in the database, and what leaves the node."""

from __future__ import annotations

import io
import sqlite3
import uuid
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from feedback_loop.nodes.capture import FeedbackCapture, collection_name, given, latents_of, pictures_of
from feedback_loop.tests.comfy_host import JSON, ComfyServer, error_of

API = "/feedback_loop/v1"


@pytest.fixture
def collection() -> str:
    """A name that no other test uses, since all of them share the server and its database."""
    return f"test {uuid.uuid4()}"


def database(server: ComfyServer) -> sqlite3.Connection:
    path = server.base_directory / "user" / "__feedback_loop" / "feedback.sqlite3"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    return connection


def rows(server: ComfyServer, collection: str) -> list[sqlite3.Row]:
    """Pictures and how they were made, straight from SQLite, in the order in which they were recorded."""
    query = (
        "SELECT * FROM image JOIN generation ON generation.image_id = image.id WHERE collection = ? ORDER BY revision"
    )
    return database(server).execute(query, [collection]).fetchall()


def noise_png(server: ComfyServer, name: str, size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """A picture of noise in ComfyUI's input folder; returns its pixels (H, W, 3)."""
    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(server.base_directory / "input" / name)
    return pixels


def capture(collection: str, **inputs: Any) -> JSON:
    return {"class_type": "FeedbackCapture", "inputs": {"collection": collection, **inputs}}


def empty_images(count: int, color: int = 0x3366CC) -> JSON:
    return {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": count, "color": color}}


def test_a_graph_that_ends_in_the_node_records_every_picture_of_the_batch(comfy_server, collection) -> None:
    prompt = {"1": empty_images(3), "2": capture(collection, images=["1", 0])}
    outputs = comfy_server.run(prompt)
    recorded = rows(comfy_server, collection)
    # Three equal pictures of one run are three pictures: their place in the batch tells them apart.
    assert [row["batch_index"] for row in recorded] == [0, 1, 2]
    assert [(row["width"], row["height"], row["node_id"]) for row in recorded] == [(32, 24, "2")] * 3
    assert outputs["2"]["feedback_images"] == [row["id"] for row in recorded]
    assert outputs["2"]["feedback_collection"] == [collection]


def test_running_again_from_cache_or_after_the_cache_was_freed_records_nothing_twice(comfy_server, collection) -> None:
    prompt = {"1": empty_images(2), "2": capture(collection, images=["1", 0])}
    first = comfy_server.run(prompt)["2"]["feedback_images"]
    assert comfy_server.run(prompt)["2"]["feedback_images"] == first
    comfy_server.request("POST", "/free", {"unload_models": True, "free_memory": True})
    assert comfy_server.run(prompt)["2"]["feedback_images"] == first
    assert len(rows(comfy_server, collection)) == 2


def test_another_picture_from_the_same_node_is_recorded_beside_the_first(comfy_server, collection) -> None:
    for color in (1, 2):
        comfy_server.run({"1": empty_images(1, color), "2": capture(collection, images=["1", 0])})
    assert len({row["pixel_hash"] for row in rows(comfy_server, collection)}) == 2


def test_the_copy_and_what_comes_after_the_node_have_the_pixels_that_went_in(comfy_server, collection) -> None:
    pixels = noise_png(comfy_server, "capture_noise.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "capture_noise.png"}},
        "2": capture(collection, images=["1", 0]),
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "after_capture"}},
    }
    outputs = comfy_server.run(prompt)
    saved = comfy_server.base_directory / "output" / outputs["3"]["images"][0]["filename"]
    assert np.array_equal(np.asarray(Image.open(saved)), pixels)
    (image_id,) = outputs["2"]["feedback_images"]
    copy = fetch(comfy_server, f"{API}/images/{image_id}/file")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(copy)).convert("RGB")), pixels)


def fetch(server: ComfyServer, path: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(server.url + path) as answer:
        return answer.read()


def test_texts_seed_and_latent_that_are_connected_are_recorded(comfy_server, collection) -> None:
    prompt = {
        "1": empty_images(2),
        "3": {"class_type": "PrimitiveString", "inputs": {"value": "a cat, made by a wildcard"}},
        "4": {"class_type": "PrimitiveString", "inputs": {"value": "blurry"}},
        "5": {"class_type": "PrimitiveInt", "inputs": {"value": 2**53 + 1}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 24, "batch_size": 2}},
        "2": capture(collection, images=["1", 0], positive=["3", 0], negative=["4", 0], seed=["5", 0], latent=["6", 0]),
    }
    ids = comfy_server.run(prompt)["2"]["feedback_images"]
    for row in rows(comfy_server, collection):
        # 2^53 + 1 is the first whole number that a double, and so JavaScript, cannot hold.
        assert (row["prompt"], row["negative"], row["seed"]) == (
            "a cat, made by a wildcard",
            "blurry",
            "9007199254740993",
        )
    latents = comfy_server.base_directory / "user" / "__feedback_loop" / "media" / "latents"
    assert {path.stem for path in latents.rglob("*.safetensors")} >= set(ids)


def test_what_no_graph_says_stays_empty(comfy_server, collection) -> None:
    comfy_server.run({"1": empty_images(1), "2": capture(collection, images=["1", 0])})
    (row,) = rows(comfy_server, collection)
    unknown = ("prompt", "negative", "seed", "steps", "cfg", "sampler", "scheduler", "denoise", "checkpoint", "loras")
    assert {name: row[name] for name in unknown} == dict.fromkeys(unknown)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [({"collection": "  "}, "collection is empty"), ({"latent": ["6", 0]}, "latent holds 5 items, but there are 2")],
)
def test_a_wrong_input_stops_the_run_with_a_sentence(comfy_server, collection, broken, sentence) -> None:
    prompt = {
        "1": empty_images(2, color=9),
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 24, "batch_size": 5}},
        "2": capture(**{"collection": collection, "images": ["1", 0], **broken}),
    }
    entry = comfy_server.wait(comfy_server.queue_prompt(prompt))
    assert sentence in (error_of(entry) or "")
    assert rows(comfy_server, collection) == []


def dataset(collection: str, **inputs: Any) -> JSON:
    defaults = {"raters": "", "axis": "overall", "min_ratings": 1}
    return {"class_type": "FeedbackDataset", "inputs": {"collection": collection, **defaults, **inputs}}


def counted(server: ComfyServer, collection: str, **inputs: Any) -> str:
    prompt = {
        "1": dataset(collection, **inputs),
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }
    return server.run(prompt)["2"]["text"][0]


def rate(server: ComfyServer, image_id: str, stars: int, rater: str = "ann") -> str:
    scale = {"min": 1, "max": 5}
    body = {"image_id": image_id, "value": stars, "scale": scale, "axis": "overall", "rater": rater}
    return server.post(f"{API}/ratings", body)["id"]


def test_the_dataset_counts_rated_pictures_and_sees_each_rating_come_and_go(comfy_server, collection) -> None:
    prompt = {"1": empty_images(3, color=5), "2": capture(collection, images=["1", 0])}
    first, second, _ = comfy_server.run(prompt)["2"]["feedback_images"]
    rate(comfy_server, first, 5)
    assert counted(comfy_server, collection) == "1"
    taken_back = rate(comfy_server, second, 2)
    assert counted(comfy_server, collection) == "2"
    rate(comfy_server, first, 4, rater="bob")
    assert counted(comfy_server, collection) == "2"
    assert counted(comfy_server, collection, raters="bob, carl") == "1"
    assert counted(comfy_server, collection, min_ratings=2) == "1"
    comfy_server.request("DELETE", f"{API}/judgements/{taken_back}")
    assert counted(comfy_server, collection) == "1"


def test_a_dataset_without_ratings_says_what_to_do(comfy_server, collection) -> None:
    entry = comfy_server.wait(comfy_server.queue_prompt({"1": dataset(collection)}))
    assert f"There is no collection named “{collection}”" in (error_of(entry) or "")
    comfy_server.run({"1": empty_images(1, color=77), "2": capture(collection, images=["1", 0])})
    entry = comfy_server.wait(comfy_server.queue_prompt({"1": dataset(collection)}))
    assert "Give some pictures stars" in (error_of(entry) or "")


def test_the_tensor_that_leaves_the_node_is_the_one_that_went_in() -> None:
    images = torch.rand(2, 8, 8, 3)
    before = images.clone()
    node = FeedbackCapture.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    output = node.execute(images=images, collection="in process")
    assert output.args[0] is images
    assert torch.equal(images, before)


def test_pixels_are_cut_off_as_comfyui_saves_them_and_grey_becomes_rgb() -> None:
    # 255 * 0.5 = 127.5 is saved as 127; values outside 0..1 are clipped.
    values = torch.tensor([0.0, 0.5, 1.0, -0.2, 1.7]).reshape(1, 1, 5, 1)
    (picture,) = pictures_of(values)
    assert picture.tolist() == [[[level] * 3 for level in (0, 127, 255, 0, 255)]]


def test_an_image_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="not \\(batch, height, width, channels\\)"):
        pictures_of(torch.zeros(8, 8, 3))


def test_latents_keep_their_values_and_must_match_the_pictures() -> None:
    samples = torch.randn(2, 4, 3, 3)
    assert np.array_equal(latents_of({"samples": samples}, 2), samples.numpy())
    with pytest.raises(ValueError, match="2 items, but there are 3 images"):
        latents_of({"samples": samples}, 3)


def test_only_connected_inputs_win_and_an_empty_prompt_counts_as_connected() -> None:
    assert given(None, None, None) == {}
    assert given("", None, 0) == {"prompt": "", "seed": "0"}


def test_a_collection_has_no_blanks_around_it() -> None:
    assert collection_name("  a b ") == "a b"
