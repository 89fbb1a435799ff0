"""Which words a conditioning was encoded from."""

from __future__ import annotations

import pytest

from .graphs import STOCK, Node, node, of, sampled, stock


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
