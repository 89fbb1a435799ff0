"""What is read from graphs, and what is left open instead of being guessed."""

from __future__ import annotations

from typing import Any

import pytest

from feedback_loop.feedback.records import Lora, Provenance

from .graphs import STOCK, Node, node, of, sampled, stock


def test_the_stock_graph_is_read_whole():
    assert of(stock()) == STOCK


@pytest.mark.parametrize("name", ["Reroute", "RerouteNode|pysssss", "Reroute (rgthree)"])
def test_reroutes_change_nothing(name: str):
    kinds = {"r1": ["decode", 0], "r2": ["pos", 0], "r3": ["ckpt", 0], "r4": ["sampler", 0]}
    reroutes = {key: node(name, **{"": link}) for key, link in kinds.items()}
    graph = stock(
        **reroutes,
        sampler=sampled(positive=["r2", 0], model=["r3", 0]),
        decode=node("VAEDecode", samples=["r4", 0], vae=["ckpt", 2]),
        capture=node("FeedbackCapture", images=["r1", 0]),
    )
    assert of(graph) == STOCK


def test_subgraphs_have_ids_with_colons():
    graph = {f"12:{key}" if key in ("sampler", "pos") else key: value for key, value in stock().items()}
    graph["12:sampler"] = sampled(positive=["12:pos", 0])
    graph["decode"] = node("VAEDecode", samples=["12:sampler", 0], vae=["ckpt", 2])
    assert of(graph) == STOCK


def test_values_come_through_primitive_nodes():
    graph = stock(
        seed=node("PrimitiveInt", value=2**64 - 1),
        cfg=node("PrimitiveFloat", value=7.0),
        words=node("PrimitiveStringMultiline", value="a cat"),
        way=node("Reroute", **{"": ["words", 0]}),
        name=node("PrimitiveString", value="euler"),
        sampler=sampled(seed=["seed", 0], cfg=["cfg", 0], sampler_name=["name", 0]),
        pos=node("CLIPTextEncode", text=["way", 0], clip=["ckpt", 1]),
    )
    assert of(graph) == STOCK


def test_a_seed_that_is_computed_is_not_known():
    graph = stock(sum=node("MathInt", a=1, b=2, seed=9), sampler=sampled(seed=["sum", 0]))
    assert of(graph).seed is None
    assert of(graph).steps == 20


@pytest.mark.parametrize("seed", [-1, 2**64, "12", None, 1.5, True, float("nan"), float("inf"), [], {}])
def test_what_is_no_seed_is_not_known(seed: Any):
    graph = stock()
    graph["sampler"]["inputs"]["seed"] = seed
    assert of(graph).seed is None


def test_a_switch_leads_to_the_side_that_ran():
    graph = stock(
        dog=node("CLIPTextEncode", text="a dog", clip=["ckpt", 1]),
        on=node("PrimitiveBoolean", value=True),
        switch=node("ComfySwitchNode", switch=["on", 0], on_false=["dog", 0], on_true=["pos", 0]),
        sampler=sampled(positive=["switch", 0]),
    )
    assert of(graph) == STOCK
    graph["on"]["inputs"]["value"] = False
    assert of(graph).prompt == "a dog"


def test_loras_are_listed_in_the_order_of_their_application():
    graph = stock(
        one=node(
            "LoraLoader", model=["ckpt", 0], clip=["ckpt", 1], lora_name="one", strength_model=0.5, strength_clip=0.25
        ),
        two=node("LoraLoaderModelOnly", model=["one", 0], lora_name="two", strength_model=-1),
        off=node("LoraLoader", model=["two", 0], clip=["one", 1], lora_name="off", strength_model=0, strength_clip=0),
        shift=node("ModelSamplingDiscrete", model=["off", 0], sampling="eps"),
        sampler=sampled(model=["shift", 0]),
    )
    found = of(graph)
    assert found.loras == (Lora("one", 0.5, 0.25), Lora("two", -1.0, None))
    assert found.checkpoint == "m.safetensors"


def test_a_node_with_many_loras_lists_those_that_are_on():
    rows = {
        "lora_1": {"on": True, "lora": "one", "strength": 0.5},
        "lora_2": {"on": False, "lora": "two", "strength": 1},
        "lora_3": {"on": True, "lora": "three", "strength": 1, "strengthTwo": 0.5},
    }
    graph = stock(
        power=node("Power Lora Loader (rgthree)", model=["ckpt", 0], clip=["ckpt", 1], **rows),
        sampler=sampled(model=["power", 0]),
    )
    assert of(graph).loras == (Lora("one", 0.5, 0.5), Lora("three", 1.0, 0.5))


@pytest.mark.parametrize(
    "patch",
    [
        node("LoraModelLoader", model=["ckpt", 0], lora=["train", 0], strength_model=1.0),
        node("CR Apply LoRA Stack", model=["ckpt", 0], clip=["ckpt", 1], lora_stack=["train", 0]),
        node("LoraLoader", model=["ckpt", 0], clip=["ckpt", 1], lora_name=["train", 0], strength_model=1.0),
    ],
)
def test_a_lora_without_a_name_makes_the_list_unknown_but_not_the_checkpoint(patch: Node):
    graph = stock(patch=patch, train=node("Train"), sampler=sampled(model=["patch", 0]))
    assert of(graph).loras is None
    assert of(graph).checkpoint == "m.safetensors"


def test_a_merged_model_has_no_one_name():
    graph = stock(
        other=node("CheckpointLoaderSimple", ckpt_name="n.safetensors"),
        merge=node("ModelMergeSimple", model1=["ckpt", 0], model2=["other", 0], ratio=0.5),
        sampler=sampled(model=["merge", 0]),
    )
    assert (of(graph).checkpoint, of(graph).loras) == (None, None)
    assert of(graph).prompt == "a cat"


@pytest.mark.parametrize(
    ("loader", "name"),
    [
        (node("UNETLoader", unet_name="u.safetensors", weight_dtype="default"), "u.safetensors"),
        (node("UnetLoaderGGUF", unet_name="u.gguf"), "u.gguf"),
        (node("DiffusersLoader", model_path="folder"), "folder"),
        (node("FeedbackDemoModel"), "FeedbackDemoModel"),
        (node("SomeLoader", speed="fast"), None),
    ],
)
def test_models_of_other_loaders(loader: Node, name: str | None):
    assert of(stock(loader=loader, sampler=sampled(model=["loader", 0]))).checkpoint == name


def test_a_picture_that_no_sampler_made_has_no_provenance():
    loaded = node("LoadImage", image="photo.png")
    assert of(stock(decode=loaded)) == Provenance()
    mixed = stock(
        photo=loaded,
        batch=node("ImageBatch", image1=["decode", 0], image2=["photo", 0]),
        capture=node("FeedbackCapture", images=["batch", 0]),
    )
    assert of(mixed) == Provenance(), "which of the two a picture of the batch is, is not known"


def test_a_picture_painted_over_is_of_the_sampler_that_painted():
    graph = stock(
        photo=node("LoadImage", image="photo.png"),
        encoded=node("VAEEncode", pixels=["photo", 0], vae=["ckpt", 2]),
        sampler=sampled(latent_image=["encoded", 0], denoise=0.4),
    )
    assert (of(graph).prompt, of(graph).denoise) == ("a cat", 0.4)


def test_several_capturing_nodes_read_their_own_branch():
    graph = stock(
        other=sampled(seed=4),
        decode2=node("VAEDecode", samples=["other", 0], vae=["ckpt", 2]),
        capture2=node("FeedbackCapture", images=["decode2", 0]),
    )
    assert (of(graph).seed, of(graph, "capture2").seed) == (str(2**64 - 1), "4")


def test_what_the_capturing_node_is_told_is_not_mistaken_for_where_pictures_come_from():
    graph = stock(
        photo=node("LoadImage", image="photo.png"),
        other=node("VAEEncode", pixels=["photo", 0], vae=["ckpt", 2]),
        words=node("AskModel", text="x"),
        capture=node("FeedbackCapture", images=["decode", 0], latent=["other", 0], positive=["words", 0]),
    )
    assert of(graph) == STOCK


SWITCHES = {str(n): node("ComfySwitchNode", switch=[str(n + 1), 0], on_true=["0", 0]) for n in range(5000)}


TEXTS = {f"t{n}": node("PrimitiveString", value=[f"t{n + 1}", 0]) for n in range(5000)}


DEEP = {f"c{n}": node("FluxGuidance", conditioning=[f"c{n + 1}", 0], guidance=["t0", 0]) for n in range(95)}


LONG = {str(n): node("ImageInvert", image=[str(n + 1), 0]) for n in range(5000)}


@pytest.mark.parametrize(
    "graph",
    [
        {},
        {"capture": None},
        {"capture": {"class_type": "FeedbackCapture"}},
        {"capture": node("FeedbackCapture", images=["gone", 0])},
        {"capture": node("FeedbackCapture", images=["capture", 0])},
        {"capture": node("FeedbackCapture", images=["a", 0]), "a": {"class_type": 3, "inputs": []}},
        {"capture": node("FeedbackCapture", images=["a", 0]), "a": node("Reroute", **{"": ["a", 0]})},
        {"capture": node("FeedbackCapture", images=["0", 0]), **LONG},
        {"capture": node("FeedbackCapture", images=["0", 0]), **SWITCHES},
        stock(sampler=sampled(model=None, positive=["c0", 0], negative=None), **DEEP, **TEXTS)
        | {"c95": node("CLIPTextEncode", text=["t0", 0])},
        stock(sampler=sampled(model=["sampler", 0], positive=["sampler", 0], negative=["loop", 0], latent_image=None))
        | {"loop": node("ConditioningCombine", conditioning_1=["loop", 0], conditioning_2=["loop", 0])},
    ],
)
def test_malformed_and_circular_graphs_are_just_not_found(graph: dict):
    found = of(graph)
    assert (found.prompt, found.negative, found.checkpoint) == (None, None, None)
