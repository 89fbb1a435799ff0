"""What the store promises about pictures and how they were made."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pytest

from feedback_loop.feedback.records import (
    Generation,
    InvalidRecord,
    Lora,
)
from feedback_loop.feedback.store import FeedbackStore

from .conftest import picture

GRAPH = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 5, "cfg": 2.0}},
    "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": "c"}},
}


def made(**changes: object) -> Generation:
    fields = {"prompt": "a red circle", "seed": "5", "api_prompt": GRAPH, "node_id": "2", "prompt_id": "p1", **changes}
    return Generation(**fields)  # type: ignore[arg-type]


def test_a_picture_comes_back_bit_for_bit_with_how_it_was_made(store: FeedbackStore):
    """The largest seed, 2^64 - 1, is what SQLite's integers and JavaScript's numbers can't hold."""
    generation = Generation(
        prompt="a red circle",
        negative="",
        seed=str(2**64 - 1),
        steps=20,
        cfg=7.5,
        sampler="euler",
        scheduler="normal",
        denoise=0.5,
        checkpoint="m.safetensors",
        loras=(Lora("a", 0.5, None), Lora("b", -1.0, 0.25)),
        prompt_id="p",
        node_id="12:3",
        batch_index=3,
        checkpoint_hash="blake3:0",
        versions={"comfyui": "0.30.0"},
    )
    before = datetime.now(timezone.utc)
    id_ = store.add_image(picture(), generation, "c")
    found = store.image(id_)
    assert found.generation == generation
    assert (found.width, found.height, found.collection) == (19, 16, "c")
    assert before <= found.created_at <= datetime.now(timezone.utc)
    assert np.array_equal(store.image_pixels(id_), picture())


def test_unknown_loras_and_no_loras_are_told_apart(store: FeedbackStore):
    ids = [store.add_image(picture(n), Generation(loras=loras), "c") for n, loras in enumerate((None, ()))]
    assert [store.image(id_).generation.loras for id_ in ids] == [None, ()]


def test_a_run_repeated_from_the_cache_records_nothing_twice(store: FeedbackStore):
    """Another prompt id and other settings of the capturing node, but the same pixels from the same graph."""
    first = store.add_image(picture(), made(), "c")
    revision = store.revision()
    other = {**GRAPH, "2": {"class_type": "FeedbackCapture", "inputs": {"images": ["1", 0], "collection": "x"}}}
    assert store.add_image(picture(), made(prompt_id="p2"), "c") == first
    assert store.add_image(picture(), made(api_prompt=other), "c") == first
    assert store.revision() == revision
    assert store.stats().images == 1


@pytest.mark.parametrize(
    "change",
    [
        {"api_prompt": {**GRAPH, "1": {"class_type": "KSampler", "inputs": {"seed": 6, "cfg": 2.0}}}},
        {"batch_index": 1},
        {"node_id": "1"},
    ],
)
def test_the_same_pixels_from_elsewhere_are_another_picture(store: FeedbackStore, change: dict):
    assert store.add_image(picture(), made(), "c") != store.add_image(picture(), made(**change), "c")


def test_the_same_picture_in_another_collection_is_another_picture_but_one_file(store: FeedbackStore):
    a, b = (store.add_image(picture(), made(), name) for name in ("c", "d"))
    assert a != b
    assert store.image_file(a) == store.image_file(b)
    assert store.stats().media_bytes == store.image_file(a).stat().st_size


def test_a_graph_elsewhere_in_the_workflow_does_not_make_another_picture(store: FeedbackStore):
    more = {**GRAPH, "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}
    assert store.add_image(picture(), made(), "c") == store.add_image(picture(), made(api_prompt=more), "c")


def test_without_a_graph_the_settings_tell_pictures_apart(store: FeedbackStore):
    a = store.add_image(picture(), Generation(seed="1"), "c")
    assert store.add_image(picture(), Generation(seed="1", prompt_id="later"), "c") == a
    assert store.add_image(picture(), Generation(seed="2"), "c") != a


def test_a_batch_is_recorded_wholly_or_not_at_all(store: FeedbackStore):
    good = [(picture(n), Generation(seed=str(n))) for n in range(3)]
    with pytest.raises(InvalidRecord, match="seed"):
        store.add_images([*good, (picture(9), Generation(seed="-1"))], "c")
    assert store.stats().images == 0
    ids = store.add_images(good, "c")
    assert [store.image(id_).generation.seed for id_ in ids] == ["0", "1", "2"]


@pytest.mark.parametrize("seed", ["-1", str(2**64), "1.5", "", "٣", "9" * 5000])
def test_a_seed_that_no_sampler_takes_is_refused(store: FeedbackStore, seed: str):
    with pytest.raises(InvalidRecord, match="seed"):
        store.add_image(picture(), Generation(seed=seed), "c")


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 100_001])
def test_text_that_databases_disagree_on_is_refused(store: FeedbackStore, text: str):
    with pytest.raises(InvalidRecord):
        store.add_image(picture(), Generation(prompt=text), "c")


def test_keys_of_other_packs_are_not_recorded(store: FeedbackStore):
    """By the name of the input, by the look of the value, and in the workflow, where widget values have no names."""
    look = "sk-" + "a" * 40
    graph = {"1": {"class_type": "Ask", "inputs": {"api_key": "my secret", "text": f"use {look} please", "n": 3}}}
    workflow = {"nodes": [{"id": 1, "widgets_values": ["my secret", "a cat", look]}]}
    generation = Generation(api_prompt=graph, workflow=workflow, node_id="1")
    id_ = store.add_image(picture(), generation, "c")
    assert store.graphs(id_) == (
        {"1": {"class_type": "Ask", "inputs": {"api_key": "[redacted]", "text": "use [redacted] please", "n": 3}}},
        {"nodes": [{"id": 1, "widgets_values": ["[redacted]", "a cat", "[redacted]"]}]},
    )
    folder = store.image_file(id_).parents[2]
    assert not any(b"my secret" in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_node_that_always_runs_does_not_keep_its_picture_from_being_recorded(store: FeedbackStore):
    """ComfyUI writes NaN into the prompt as `is_changed` of such nodes, and NaN is no JSON."""
    graph = {"1": {"class_type": "Now", "inputs": {}, "is_changed": [float("nan")]}}
    id_ = store.add_image(picture(), Generation(api_prompt=graph, node_id="1"), "c")
    assert store.graphs(id_)[0] == {"1": {"class_type": "Now", "inputs": {}, "is_changed": [None]}}


def test_pages_go_through_all_pictures_newest_first_while_new_ones_come(store: FeedbackStore):
    ids = store.add_images([(picture(n), Generation()) for n in range(5)], "c")
    first = store.images("c", limit=2)
    newer = store.add_image(picture(9), Generation(), "c")
    store.add_image(picture(10), Generation(), "other")
    second = store.images("c", first.next, 2)
    third = store.images("c", second.next, 2)
    assert [item.id for page in (first, second, third) for item in page.items] == ids[::-1]
    assert third.next is None
    assert store.images("c", limit=1).items[0].id == newer
    assert len(store.images().items) == 7


@pytest.fixture
def image(store: FeedbackStore) -> str:
    return store.add_image(picture(), Generation(prompt="a red circle"), "c")


def test_embeddings_are_kept_by_encoder_and_the_first_stays(store: FeedbackStore, image: str):
    vector = np.array([1.5, -2.0], np.float32)
    store.add_embedding(image, "a", vector)
    store.add_embedding(image, "a", vector + 1)
    assert np.array_equal(store.embedding(image, "a"), vector)  # type: ignore[arg-type]
    assert store.embedding(image, "b") is None
    assert list(store.embeddings([image, "nope"], "a")) == [image]


def test_an_embedding_with_nan_is_refused(store: FeedbackStore, image: str):
    with pytest.raises(InvalidRecord):
        store.add_embedding(image, "a", np.array([np.nan]))


def test_more_pictures_than_a_statement_takes_parameters(store: FeedbackStore):
    """SQLite's older builds take 999 parameters in a statement; 1,001 pictures are asked for at once."""
    ids = store.add_images([(picture(n, size=1), Generation(seed=str(n))) for n in range(3)], "c")
    store.add_embeddings({id_: np.ones(1) for id_ in ids}, "e")
    asked = [*ids, *(f"unknown {n}" for n in range(998))]
    assert set(store.embeddings(asked, "e")) == set(ids)
