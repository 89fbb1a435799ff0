"""What is read from graphs, and what is left open instead of being guessed."""

from __future__ import annotations

from typing import Any

import pytest

from feedback_loop.feedback.provenance import read
from feedback_loop.feedback.records import Lora, Provenance

Node = dict[str, Any]


def node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}


def stock(**changes: Node) -> dict[str, Node]:
    """The default graph, with nodes replaced or added."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "pos": node("CLIPTextEncode", text="a cat", clip=["ckpt", 1]),
        "neg": node("CLIPTextEncode", text="blurry", clip=["ckpt", 1]),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["ckpt", 0],
            positive=["pos", 0],
            negative=["neg", 0],
            latent_image=["empty", 0],
            seed=2**64 - 1,
            steps=20,
            cfg=7,
            sampler_name="euler",
            scheduler="karras",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["ckpt", 2]),
        "capture": node("FeedbackCapture", images=["decode", 0], collection="c"),
        **changes,
    }


STOCK = Provenance("a cat", "blurry", str(2**64 - 1), 20, 7.0, "euler", "karras", 1.0, "m.safetensors", ())


def of(graph: dict[str, Node], capture: str = "capture") -> Provenance:
    return read(graph, None, capture)


def sampled(**inputs: Any) -> Node:
    """The stock sampler with inputs changed; None takes one away."""
    merged = {**stock()["sampler"]["inputs"], **inputs}
    return node("KSampler", **{name: value for name, value in merged.items() if value is not None})


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


def test_joined_texts_are_joined():
    graph = stock(
        a=node("PrimitiveString", value="a"),
        joined=node("StringConcatenate", string_a=["a", 0], string_b="cat", delimiter=" "),
        pos=node("CLIPTextEncode", text=["joined", 0], clip=["ckpt", 1]),
    )
    assert of(graph) == STOCK


def test_a_text_that_another_node_makes_at_run_time_is_not_known():
    for maker in (node("AskModel", text="a cat"), node("Wildcards", value="a {red|blue} cat", seed=3)):
        graph = stock(maker=maker, pos=node("CLIPTextEncode", text=["maker", 0], clip=["ckpt", 1]))
        assert of(graph).prompt is None
        assert of(graph).negative == "blurry"


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


def custom(**changes: Node) -> dict[str, Node]:
    """The same run as the stock graph's, taken apart."""
    parts = {
        "noise": node("RandomNoise", noise_seed=2**64 - 1),
        "guider": node("CFGGuider", model=["ckpt", 0], positive=["pos", 0], negative=["neg", 0], cfg=7.0),
        "select": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["ckpt", 0], scheduler="karras", steps=20, denoise=1.0),
        "sampler": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["select", 0],
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
        ),
    }
    return stock(**{**parts, **changes})


def test_the_custom_sampler_is_read_from_its_parts():
    assert of(custom()) == STOCK


def test_sampler_custom_holds_seed_and_cfg_itself():
    graph = custom(
        sampler=node(
            "SamplerCustom",
            model=["ckpt", 0],
            positive=["pos", 0],
            negative=["neg", 0],
            sampler=["select", 0],
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
            add_noise=True,
            noise_seed=2**64 - 1,
            cfg=7.0,
        )
    )
    assert of(graph) == STOCK


def test_a_basic_guider_has_neither_negative_nor_cfg():
    graph = custom(guider=node("BasicGuider", model=["ckpt", 0], conditioning=["pos", 0]))
    assert (of(graph).prompt, of(graph).negative, of(graph).cfg) == ("a cat", None, None)
    assert of(graph).checkpoint == "m.safetensors"


def test_a_dual_guider_has_two_prompts_and_two_scales_so_no_one_scale():
    graph = custom(
        two=node("CLIPTextEncode", text="a hat", clip=["ckpt", 1]),
        guider=node(
            "DualCFGGuider",
            model=["ckpt", 0],
            cond1=["pos", 0],
            cond2=["two", 0],
            negative=["neg", 0],
            cfg_conds=8.0,
            cfg_cond2_negative=4.0,
        ),
    )
    assert (of(graph).prompt, of(graph).negative, of(graph).cfg) == ("a cat\na hat", "blurry", None)


@pytest.mark.parametrize(
    ("select", "name"),
    [
        (node("SamplerDPMPP_2M_SDE", eta=1.0, noise_device="cpu"), "dpmpp_2m_sde"),
        (node("SamplerDPMPP_2M_SDE", eta=1.0, noise_device="gpu"), "dpmpp_2m_sde_gpu"),
        (node("SamplerEulerAncestral", eta=1.0), "euler_ancestral"),
        (node("SamplerOfAnotherPack", order=3), None),
        (node("FeedbackRewardSteering", sampler=["inner", 0], particles=4), "heun"),
    ],
)
def test_samplers_of_their_own_node(select: Node, name: str | None):
    assert of(custom(select=select, inner=node("KSamplerSelect", sampler_name="heun"))).sampler == name


@pytest.mark.parametrize(
    ("sigmas", "expected"),
    [
        (node("KarrasScheduler", steps=12, sigma_max=14.6, sigma_min=0.03, rho=7.0), (12, "karras", None)),
        (node("ManualSigmas", sigmas="14.6, 3, .5, 0.0"), (3, None, None)),
        (node("SplitSigmasDenoise", sigmas=["inner", 0], denoise=0.5), (9, "beta", None)),
        (node("SigmasOfAnotherPack", steps=7, denoise=0.5, curve="x"), (7, None, 0.5)),
    ],
)
def test_schedules_of_their_own_node(sigmas: Node, expected: tuple):
    inner = node("BasicScheduler", model=["ckpt", 0], scheduler="beta", steps=9, denoise=1.0)
    found = of(custom(sigmas=sigmas, inner=inner))
    assert (found.steps, found.scheduler, found.denoise) == expected


def advanced(latent: list, add_noise: str, seed: int, **inputs: Any) -> Node:
    kept = {k: v for k, v in stock()["sampler"]["inputs"].items() if k not in ("seed", "denoise", "latent_image")}
    return node("KSamplerAdvanced", **kept, latent_image=latent, add_noise=add_noise, noise_seed=seed, **inputs)


def test_a_refiner_that_adds_no_noise_has_the_seed_of_the_stage_before():
    graph = stock(
        base=advanced(["empty", 0], "enable", 7, start_at_step=0, end_at_step=15),
        sampler=advanced(["base", 0], "disable", 99, start_at_step=15, end_at_step=20),
    )
    assert (of(graph).seed, of(graph).denoise, of(graph).steps) == ("7", None, 20)


def test_the_last_of_two_samplers_made_the_picture():
    """As in a high-resolution fix: the second pass has its own seed, denoise and prompt."""
    graph = stock(
        larger=node("LatentUpscaleBy", samples=["sampler", 0], upscale_method="bicubic", scale_by=1.5),
        second=sampled(latent_image=["larger", 0], seed=3, denoise=0.5, steps=8),
        decode=node("VAEDecode", samples=["second", 0], vae=["ckpt", 2]),
        scaled=node("ImageUpscaleWithModel", upscale_model=["esrgan", 0], image=["decode", 0]),
        esrgan=node("UpscaleModelLoader", model_name="x4"),
        capture=node("FeedbackCapture", images=["scaled", 0]),
    )
    found = of(graph)
    assert (found.seed, found.denoise, found.steps, found.checkpoint) == ("3", 0.5, 8, "m.safetensors")


def test_a_picture_of_two_samplers_keeps_what_they_share():
    graph = stock(
        other=sampled(seed=4),
        decode2=node("VAEDecode", samples=["other", 0], vae=["ckpt", 2]),
        batch=node("ImageBatch", image1=["decode", 0], image2=["decode2", 0]),
        capture=node("FeedbackCapture", images=["batch", 0]),
    )
    found = of(graph)
    assert found.seed is None
    assert (found.prompt, found.steps, found.checkpoint) == ("a cat", 20, "m.safetensors")


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


def test_controlnets_hand_positive_and_negative_on_by_slot():
    graph = stock(
        control=node(
            "ControlNetApplyAdvanced",
            positive=["pos", 0],
            negative=["neg", 0],
            control_net=["cn", 0],
            image=["photo", 0],
            strength=1.0,
        ),
        cn=node("ControlNetLoader", control_net_name="c"),
        photo=node("LoadImage", image="photo.png"),
        sampler=sampled(positive=["control", 0], negative=["control", 1]),
    )
    assert of(graph) == STOCK
    graph["sampler"] = sampled(positive=["control", 1], negative=["control", 0])
    assert (of(graph).prompt, of(graph).negative) == ("blurry", "a cat"), "crossed on purpose"


@pytest.mark.parametrize(
    ("join", "prompt"),
    [
        (node("ConditioningCombine", conditioning_1=["pos", 0], conditioning_2=["two", 0]), "a cat\na hat"),
        (node("ConditioningConcat", conditioning_to=["pos", 0], conditioning_from=["two", 0]), "a cat\na hat"),
        (node("ConditioningCombine", conditioning_1=["pos", 0], conditioning_2=["pos", 0]), "a cat"),
        (node("ConditioningCombine", conditioning_1=["pos", 0], conditioning_2=["odd", 0]), None),
        (
            node(
                "ConditioningAverage",
                conditioning_to=["pos", 0],
                conditioning_from=["two", 0],
                conditioning_to_strength=1.0,
            ),
            "a cat",
        ),
        (node("ConditioningSetArea", conditioning=["pos", 0], width=8, height=8, x=0, y=0, strength=1.0), "a cat"),
        (node("FluxGuidance", conditioning=["pos", 0], guidance=3.5), "a cat"),
        (node("ReferenceLatent", conditioning=["pos", 0], latent=["empty", 0]), "a cat"),
        (node("ConditioningZeroOut", conditioning=["pos", 0]), None),
        (node("CLIPTextEncodeControlnet", clip=["ckpt", 1], conditioning=["pos", 0], text="hint"), "a cat"),
        (
            node("GLIGENTextBoxApply", conditioning_to=["pos", 0], clip=["ckpt", 1], gligen=["g", 0], text="box"),
            "a cat",
        ),
    ],
)
def test_conditionings_are_followed_to_their_words(join: Node, prompt: str | None):
    extra = {"two": node("CLIPTextEncode", text="a hat", clip=["ckpt", 1]), "odd": node("Unknown", mood="sad")}
    assert of(stock(**extra, join=join, sampler=sampled(positive=["join", 0]))).prompt == prompt


@pytest.mark.parametrize(
    ("encode", "prompt"),
    [
        (node("CLIPTextEncodeSDXL", clip=["ckpt", 1], text_g="a cat", text_l="a cat", width=64), "a cat"),
        (node("CLIPTextEncodeSDXL", clip=["ckpt", 1], text_g="a cat", text_l="fur"), "a cat\nfur"),
        (node("CLIPTextEncodeFlux", clip=["ckpt", 1], clip_l="", t5xxl="a cat", guidance=3.5), "a cat"),
        (node("CLIPTextEncodeSD3", clip=["ckpt", 1], clip_l="a cat", clip_g="a cat", t5xxl="a cat"), "a cat"),
        (node("TextEncodeQwenImageEdit", clip=["ckpt", 1], prompt="a cat", image=["photo", 0]), "a cat"),
        (node("CLIPTextEncodeLumina2", clip=["ckpt", 1], system_prompt="superior", user_prompt="a cat"), "a cat"),
        (node("smZ CLIPTextEncode", clip=["ckpt", 1], text="a cat", parser="A1111"), "a cat"),
        (node("CLIPTextEncode", clip=["ckpt", 1], text=""), ""),
        (node("StableZero123_Conditioning", clip_vision=["ckpt", 3], elevation=0.0), None),
    ],
)
def test_text_encoders_of_many_models(encode: Node, prompt: str | None):
    assert of(stock(pos=encode)).prompt == prompt


def test_an_encoder_with_both_prompts_hands_them_on_by_slot():
    both = node("TextEncodeBooguEdit", clip=["ckpt", 1], prompt="a cat", negative_prompt="blurry")
    graph = stock(both=both, sampler=sampled(positive=["both", 0], negative=["both", 1]))
    assert of(graph) == STOCK


def test_a_sampler_of_another_pack_is_known_by_its_sockets():
    graph = stock(
        sampler=node(
            "XlabsSampler",
            model=["ckpt", 0],
            conditioning=["pos", 0],
            neg_conditioning=["neg", 0],
            latent_image=["empty", 0],
            noise_seed=5,
            steps=25,
            denoise_strength=1.0,
        )
    )
    assert of(graph) == Provenance("a cat", "blurry", "5", 25, None, None, None, 1.0, "m.safetensors", ())


def test_a_sampler_behind_an_api_holds_its_prompt_itself():
    graph = stock(decode=node("CloudPicture", prompt="a cat", seed=5, size="1024"))
    found = of(graph)
    assert (found.prompt, found.seed, found.checkpoint, found.loras) == ("a cat", "5", None, None)


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


def test_combinations_of_combinations_take_no_time_and_no_memory():
    """Each of 100 levels uses the one below twice: 2^100 paths, one text."""
    conditionings = {
        f"c{n}": node("ConditioningCombine", conditioning_1=[f"c{n - 1}", 0], conditioning_2=[f"c{n - 1}", 0])
        for n in range(1, 100)
    }
    graph = stock(**conditionings, c0=stock()["pos"], sampler=sampled(positive=["c99", 0]))
    assert of(graph) == STOCK
    texts = {
        f"t{n}": node("StringConcatenate", string_a=[f"t{n - 1}", 0], string_b=[f"t{n - 1}", 0], delimiter="")
        for n in range(1, 100)
    }
    graph = stock(**texts, t0=node("PrimitiveString", value="cat"))
    graph["pos"] = node("CLIPTextEncode", text=["t3", 0], clip=["ckpt", 1])
    assert of(graph).prompt == "cat" * 8
    graph["pos"] = node("CLIPTextEncode", text=["t99", 0], clip=["ckpt", 1])
    assert of(graph).prompt is None, "longer than any prompt that is kept"
