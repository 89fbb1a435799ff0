"""Reward guidance beside what else stands in a graph: every schedule, EDM, a ControlNet with a LoRA and a mask."""

from __future__ import annotations

from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy_extras.nodes_model_advanced as advanced
import nodes as comfy_nodes
import pytest
import torch
from torch import Tensor

from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.feedback.rewards.taste import TasteReward
from feedback_loop.guidance.gradient import gradient
from feedback_loop.nodes import decoder
from feedback_loop.nodes.demo import load_demo_model
from feedback_loop.nodes.denoiser import gradients, process_of
from feedback_loop.nodes.encoder import encoder_from
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.pull import Pull
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.test_jacobian import Warmth
from feedback_loop.tests.nodes.test_traps import lora

SIDES = [tiny_models.conditioning("sd15", seed) for seed in (1, 2)]


def sampled(model: Any, scheduler: str = "normal", sides: Any = SIDES, steps: int = 6, **latent: Tensor) -> Tensor:
    latents = {"samples": torch.zeros(1, 4, 8, 8)} | latent
    return comfy_nodes.common_ksampler(model, 3, steps, 2.0, "euler", scheduler, *sides, latents)[0]["samples"]


def guide(model: Any, **options: Any) -> Any:
    return FeedbackRewardGuidance.execute(model, Warmth(), tiny_models.vae(), 1.0, **options).args[0]


def warmth(latents: Tensor) -> Tensor:
    return Warmth()(tiny_models.vae().decode(latents.clone()).movedim(-1, 1))


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_stock_schedule_is_steered(scheduler, inference_mode):
    model = tiny_models.sd15()
    plain, steered = sampled(model, scheduler), sampled(guide(model), scheduler)
    assert steered.isfinite().all() and warmth(steered) > warmth(plain)


def test_an_edm_model_is_steered(inference_mode):
    """Core's node turns the tiny model into one, with data of deviation .5. At sigma the variance of x0 given x is
    V = .25 sigma^2 / (sigma^2 + .25), a step of strength .1 is .06 sqrt(V) long, and each goes
    the reward's way."""
    (model,) = advanced.ModelSamplingContinuousEDM().patch(tiny_models.sd15(), "edm", 80.0, 0.002)
    assert process_of(model).kind == "edm"
    seen: list[tuple[float, Tensor]] = []

    def look(args: dict[str, Any]) -> Tensor:
        seen.append((float(args["sigma"][0]), args["denoised"].clone()))
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(look)
    steered = FeedbackRewardGuidance.execute(model, Warmth(), tiny_models.vae(), 0.1).args[0]
    steered.set_model_sampler_post_cfg_function(look)
    sampled(steered, "karras")
    moved = [(sigma, x, y) for (sigma, x), (_, y) in zip(seen[::2], seen[1::2], strict=True) if not torch.equal(x, y)]
    assert len(moved) >= 2
    for sigma, before, after in moved:
        length = (after - before).square().mean().sqrt().item()
        assert length == pytest.approx(0.06 * 0.5 * sigma / (sigma**2 + 0.25) ** 0.5, rel=1e-3)
        assert warmth(model.model.process_latent_out(after)) > warmth(model.model.process_latent_out(before))


def controlnet() -> comfy.controlnet.ControlNet:
    """In small, and without the zeros that a new one ends in."""
    network = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, model_channels=32, hint_channels=3, num_res_blocks=[1, 1], channel_mult=[1, 2],
        transformer_depth=[1, 1], transformer_depth_middle=1, context_dim=32, num_heads=4,
        use_spatial_transformer=True, legacy=False, dtype=torch.float32, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    return comfy.controlnet.ControlNet(
        tiny_models.randomise(network, 5), load_device=comfy.model_management.get_torch_device()
    )


@pytest.mark.parametrize("gradient", ["fast", "difference", "full"])
def test_a_controlnet_a_lora_and_a_mask_in_one_graph_of_two_pictures(gradient, inference_mode):
    """Each still does its part: the hint changes the pictures, so does the LoRA, what the mask keeps stays, and
    guidance moves the rest its way."""
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    sides = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(*SIDES, controlnet(), hint, 1.0, 0.0, 1.0)
    original = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    latent = {"samples": original, "noise_mask": mask}
    model = lora(tiny_models.sd15())
    plain = sampled(model, sides=sides, steps=3, **latent)
    for other in (sampled(model, steps=3, **latent), sampled(tiny_models.sd15(), sides=sides, steps=3, **latent)):
        assert not torch.allclose(plain, other, atol=1e-3)
    steered = sampled(guide(model, gradient=gradient), sides=sides, steps=3, **latent)
    torch.testing.assert_close(steered[..., 4:], original[..., 4:], rtol=1e-4, atol=1e-4)
    assert steered.isfinite().all() and (warmth(steered) > warmth(plain)).all()


def test_the_slope_of_a_taste_through_a_real_vae_and_a_real_eye_is_that_of_finite_differences(
    monkeypatch, inference_mode
):
    """On the demo model: latents, its VAE, its image encoder, a taste with random weights over the features; along the
    slope itself. Clipped pixels are clipped here in the gradient too, which guidance does without on purpose."""
    model, _, vae, vision = load_demo_model()
    monkeypatch.setattr(decoder, "_clipped", lambda images: images.clamp(0, 1))
    encoder, generator = encoder_from(vision), torch.Generator().manual_seed(0)
    width = encoder(torch.rand(1, 3, 64, 64)).shape[1]
    parts = {"centre": torch.zeros(width), "scale": torch.ones(width), "root": torch.zeros(width, 1)}
    taste = TasteReward(encoder, parts | {"weight": torch.randn(width, generator=generator)})
    pull = Pull(taste, decoder.decoder_of(vae, model, "full"), 1.0)
    pull.decoder.load((2, 4, 8, 8))
    with gradients():
        x = 0.5 * torch.randn(2, 4, 8, 8, generator=generator)
        slope = gradient(lambda z: pull.score(z, 0.5), x)
        along = slope / slope.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            ends = [pull.score(x + h * along, 0.5).double() for h in (0.02, -0.02)]
    expected = slope.flatten(1).norm(dim=1)
    assert (expected > 0.01).all()
    torch.testing.assert_close(((ends[0] - ends[1]) / 0.04).float(), expected, rtol=0.02, atol=0)


def test_two_guidances_with_masks_of_their_own_steer_each_its_half(inference_mode):
    """On the demo model: brighter on the left, darker on the right, in one run of two pictures."""
    model, clip, vae, _ = load_demo_model()
    cond = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1

    def light(model: Any) -> Tensor:
        """(2 pictures, left and right): the mean over the half."""
        latents = sampled(model, "sgm_uniform", (cond, cond), 12, samples=torch.zeros(2, 4, 8, 8))
        return vae.decode(latents).mean(dim=(1, 3)).unflatten(1, (2, 32)).mean(-1)

    half = FeedbackRewardGuidance.execute(model, ColourReward("brightness"), vae, 1.0, mask=left).args[0]
    both = FeedbackRewardGuidance.execute(half, ColourReward("brightness", -1), vae, 1.0, mask=1 - left).args[0]
    change = light(both) - light(model)
    assert (change[:, 0] > 0.05).all() and (change[:, 1] < -0.05).all()
