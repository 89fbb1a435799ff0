"""Particles, search and noise optimisation as nodes of a real ComfyUI, on the demo model, beside the stock nodes."""

from __future__ import annotations

from feedback_loop.tests.comfy_host import ComfyServer, error_of

LIGHT = {"decoder": "auto", "reward": ["light", 0], "vae": ["demo", 2]}
RUN = {"noise": ["noise", 0], "guider": ["guider", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}


def graph(sampler: str = "euler_ancestral") -> dict:
    """Pictures by the plain sampler, by particles, by search, and by the noise that the search gives out."""
    text = {"class_type": "CLIPTextEncode"}
    steer = {"particles": 4, "strength": 10.0, "method": "difference", "every": 2, "keep": "best"}
    search = {"candidates": 4, "halving": True, "rounds": 1, "look": "anywhere", "nearness": 0.95, "budget": 0}
    optimise = {"method": "gradient", "iterations": 3, "stay": "white noise (DNO)", "learning_rate": 5.0, "pairs": 2}
    nodes = {
        "demo": ("FeedbackDemoModel", {}),
        "light": ("FeedbackColorReward", {"property": "brightness", "aim": "more"}),
        "noise": ("RandomNoise", {"noise_seed": 3}),
        "guider": (
            "CFGGuider",
            {"model": ["demo", 0], "positive": ["prompt", 0], "negative": ["nothing", 0], "cfg": 2.0},
        ),
        "sampler": ("KSamplerSelect", {"sampler_name": sampler}),
        "sigmas": (
            "BasicScheduler",
            {"model": ["demo", 0], "scheduler": "sgm_uniform", "steps": 8, "denoise": 1.0},
        ),
        "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}),
        "steering": (
            "FeedbackRewardSteering",
            LIGHT | steer | {"sampler": ["sampler", 0], "damping": 1.0, "with_guidance": "keep it"},
        ),
        "plain": ("SamplerCustomAdvanced", RUN | {"sampler": ["sampler", 0]}),
        "steered": ("SamplerCustomAdvanced", RUN | {"sampler": ["steering", 0]}),
        "searched": (
            "FeedbackBestOfN",
            RUN | LIGHT | search | {"sampler": ["sampler", 0], "stop": "when all are tried"},
        ),
        "again": ("SamplerCustomAdvanced", RUN | {"sampler": ["sampler", 0], "noise": ["searched", 2]}),
        "optimised": ("FeedbackOptimizeNoise", RUN | LIGHT | optimise | {"sampler": ["sampler", 0]}),
    }
    for name in ("plain", "steered", "again"):
        nodes[f"{name} decoded"] = ("VAEDecode", {"samples": [name, 0], "vae": ["demo", 2]})
        nodes[f"{name} scored"] = ("FeedbackScoreImages", {"images": [f"{name} decoded", 0], "reward": ["light", 0]})
    for name, output in (("searched", 1), ("optimised", 2)):
        nodes[f"{name} scored"] = ("FeedbackScoreImages", {"images": [name, output], "reward": ["light", 0]})
    prompts = {"prompt": "one large star", "nothing": ""}
    encoded = {key: text | {"inputs": {"text": value, "clip": ["demo", 1]}} for key, value in prompts.items()}
    return encoded | {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def test_particles_search_and_optimised_noise_beat_the_plain_sampler_and_report_it(comfy_server: ComfyServer) -> None:
    """Two pictures each, brightness as the reward; and the noise that was found gives the same scores
    again. 4 candidates of 8 steps cost 4*2 + 2*2 + 1*4 = 16 evaluations, 4 particles 4*8."""
    outputs = comfy_server.run(graph())
    mean = {name: sum(shown["scores"]) / 2 for name, shown in outputs.items() if "scores" in shown}
    for name in ("steered", "searched", "optimised"):
        assert mean[f"{name} scored"] > mean["plain scored"], mean
    assert outputs["again scored"]["scores"] == outputs["searched scored"]["scores"]
    assert "21 denoiser evaluations, as many as 2.62 plain runs" in outputs["searched"]["text"][0]
    assert "3 iterations" in outputs["optimised"]["text"][0]
    assert "4 particles a picture with euler_ancestral, 32 denoiser evaluations" in comfy_server.log()


def test_a_sampler_that_cannot_be_steered_is_named_to_the_user(comfy_server: ComfyServer) -> None:
    entry = comfy_server.wait(comfy_server.queue_prompt(graph("dpmpp_2m")))
    assert "FeedbackRewardSteering: The sampler 'dpmpp_2m' cannot be steered" in (error_of(entry) or "")
