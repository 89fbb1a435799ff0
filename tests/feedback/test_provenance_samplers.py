"""Which sampler made a picture, and with which settings."""

from __future__ import annotations

from typing import Any

import pytest

from feedback_loop.feedback.records import Provenance

from .graphs import STOCK, Node, custom, node, of, sampled, stock


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
        (node("ExtendIntermediateSigmas", sigmas=["inner", 0], steps=2), (None, None, None)),
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


def test_a_sampler_that_goes_on_from_nothing_known_has_no_seed():
    """It adds no noise, and what it goes on with comes out of a circle."""
    graph = stock(
        circle=node("LatentFlip", samples=["circle", 0]),
        sampler=advanced(["circle", 0], "disable", 9),
    )
    assert of(graph).seed is None
    assert of(graph).prompt == "a cat"
