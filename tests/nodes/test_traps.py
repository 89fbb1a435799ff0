"""Traps of the host: our nodes among stock ones, in inference mode, in any order, and nothing is left behind.

Everything runs as in a prompt: inside inference mode, on models whose weights are inference tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import comfy.model_management
import comfy.sd
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_freelunch as freelunch
import comfy_extras.nodes_model_advanced as advanced
import comfy_extras.nodes_pag as pag
import nodes as comfy_nodes
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.nodes import sampling
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.learning import measured
from feedback_loop.nodes.policy import trainable
from feedback_loop.tests.nodes import tiny_models

POSITIVE, NEGATIVE = tiny_models.conditioning("sd15", 1), tiny_models.conditioning("sd15", 2)


class Towards(Reward):
    """The mean of one colour channel, steep enough that every guided step has full length."""

    differentiable = True

    def __init__(self, channel: int, sign: float = 1.0) -> None:
        self.name, self.channel, self.sign = f"channel {channel}", channel, sign

    def score(self, images: Tensor, prompts: object, embed: object) -> Tensor:
        return 20 * self.sign * images[:, self.channel].mean(dim=(1, 2))


class Failing(Towards):
    """Raises what it is told to in the middle of a run."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(0)
        self.error = error

    def score(self, images: Tensor, prompts: object, embed: object) -> Tensor:
        raise self.error


@pytest.fixture(scope="module")
def loaded() -> tuple:
    with torch.inference_mode():
        return tiny_models.sd15(1, "v"), tiny_models.vae(2)


@pytest.fixture
def model(loaded: tuple) -> ModelPatcher:
    return loaded[0]


@pytest.fixture
def vae(loaded: tuple):
    return loaded[1]


@pytest.fixture(autouse=True)
def as_in_a_prompt() -> Iterator[None]:
    """Inference mode around each test, and afterwards no mode and no global of ComfyUI's may have changed."""
    with torch.inference_mode():
        yield
        assert torch.is_inference_mode_enabled()
        assert not comfy.model_management.in_training
        assert not comfy.model_management.processing_interrupted()
    assert torch.is_grad_enabled()


def guide(model: ModelPatcher, vae, reward: Reward, strength: float = 1.0) -> ModelPatcher:
    return FeedbackRewardGuidance.execute(model, reward, vae, strength).args[0]


def ksampler(model: ModelPatcher, steps: int = 4, seed: int = 3, **latent) -> Tensor:
    latent = {"samples": torch.zeros(1, 4, 8, 8)} | latent
    sampled = comfy_nodes.common_ksampler(model, seed, steps, 2.0, "euler", "normal", POSITIVE, NEGATIVE, latent)
    return sampled[0]["samples"]


def channel(vae, latents: Tensor, index: int = 0) -> float:
    return float(vae.decode(latents.clone())[..., index].mean())


def state(model) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def lora(model: ModelPatcher) -> ModelPatcher:
    """As the stock LoRA loader applies a file: a small change of one attention layer."""
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    width = model.model.state_dict()[f"{name}.weight"].shape[0]
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(width, 2, generator=generator), torch.randn(2, width, generator=generator)
    file = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}
    return comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)[0]


STOCK: dict[str, Callable[[ModelPatcher], ModelPatcher]] = {
    "LoRA": lora,
    "RescaleCFG": lambda m: advanced.RescaleCFG().patch(m, 0.7)[0],
    "ModelSamplingDiscrete": lambda m: advanced.ModelSamplingDiscrete().patch(m, "v_prediction", True)[0],
    "FreeU": lambda m: freelunch.FreeU_V2.execute(m, 1.1, 1.2, 0.9, 0.8).args[0],
    "PerturbedAttention": lambda m: pag.PerturbedAttentionGuidance.execute(m, 1.0).args[0],
}


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_patch_keeps_working_before_and_after_guidance(name: str, model, vae) -> None:
    """The patch still changes the picture, guidance still moves it its way, and strength 0 leaves the patch's own."""
    patch = STOCK[name]
    patched = ksampler(patch(model))
    before, after = ksampler(guide(patch(model), vae, Towards(0))), ksampler(patch(guide(model, vae, Towards(0))))
    assert not torch.equal(patched, ksampler(model))
    assert channel(vae, before) > channel(vae, patched) and channel(vae, after) > channel(vae, patched)
    assert not torch.equal(after, ksampler(guide(model, vae, Towards(0))))
    assert torch.equal(ksampler(guide(patch(model), vae, Towards(0), 0.0)), patched)


def test_two_guidance_nodes_in_a_row_both_pull(model, vae) -> None:
    """More red and less blue: each alone moves its own channel, both together move both; the order is all the same."""
    plain = ksampler(model)
    red, blue = Towards(0), Towards(2, -1.0)
    both = ksampler(guide(guide(model, vae, red), vae, blue))
    swapped = ksampler(guide(guide(model, vae, blue), vae, red))
    assert channel(vae, both, 0) - channel(vae, both, 2) > channel(vae, plain, 0) - channel(vae, plain, 2)
    torch.testing.assert_close(both, swapped, rtol=1e-3, atol=1e-3)


def test_two_guidance_nodes_that_pull_against_each_other_cancel(model, vae) -> None:
    """Gradients g and -g: no step at all, and no division by its length 0."""
    both = ksampler(guide(guide(model, vae, Towards(0)), vae, Towards(0, -1.0)))
    torch.testing.assert_close(both, ksampler(model), rtol=1e-3, atol=1e-3)


def test_the_custom_sampling_nodes_take_a_guided_model(model, vae) -> None:
    """Same noise, sigmas and CFG as the KSampler: the same picture."""
    guided = guide(model, vae, Towards(0))
    guider = custom.CFGGuider.execute(guided, POSITIVE, NEGATIVE, 2.0).args[0]
    sigmas = custom.BasicScheduler.execute(guided, "normal", 4, 1.0).args[0]
    sampler = custom.KSamplerSelect.execute("euler").args[0]
    noise = custom.RandomNoise.execute(3).args[0]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    out = custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]["samples"]
    torch.testing.assert_close(out, ksampler(guided))


def test_a_guider_without_a_negative_prompt_takes_a_guided_model(model, vae) -> None:
    def run(patched: ModelPatcher) -> Tensor:
        guider = custom.BasicGuider.execute(patched, POSITIVE).args[0]
        sigmas = custom.BasicScheduler.execute(patched, "normal", 4, 1.0).args[0]
        sampler, noise = custom.KSamplerSelect.execute("euler").args[0], custom.RandomNoise.execute(3).args[0]
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]["samples"]

    assert channel(vae, run(guide(model, vae, Towards(0)))) > channel(vae, run(model))


def test_inpainting_with_a_guided_model_keeps_what_is_outside_the_mask(model, vae) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    original = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    out = ksampler(guide(model, vae, Towards(0)), samples=original, noise_mask=mask)
    plain = ksampler(model, samples=original, noise_mask=mask)
    torch.testing.assert_close(out[..., 4:], original[..., 4:], rtol=1e-4, atol=1e-4)
    assert not torch.equal(out[..., :4], plain[..., :4])


def test_what_a_guided_run_made_goes_on_through_stock_nodes(model, vae) -> None:
    """Decoded, encoded again and refined in a second pass, as in a hires fix."""
    first = ksampler(guide(model, vae, Towards(0)))
    (pixels,) = comfy_nodes.VAEDecode().decode(vae, {"samples": first})
    (latent,) = comfy_nodes.VAEEncode().encode(vae, pixels)
    second = ksampler(model, samples=latent["samples"])
    assert second.isfinite().all() and pixels.shape == (1, 64, 64, 3)


def test_a_rollout_with_a_guided_model_is_its_ksampler_runs(model, vae) -> None:
    guided = guide(model, vae, Towards(0))
    prompts = [tiny_models.conditioning("sd15", 10 + i) for i in range(3)]
    latents = sampling.sample(guided, prompts, NEGATIVE, [5, 6, 7], 4, 2.0, "euler", "normal", 64, 64)
    for i in range(3):
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        alone = comfy_nodes.common_ksampler(guided, 5 + i, 4, 2.0, "euler", "normal", prompts[i], NEGATIVE, latent)
        torch.testing.assert_close(latents[i : i + 1], alone[0]["samples"], rtol=1e-3, atol=1e-3)


def test_a_guided_run_gives_the_same_picture_after_comfyui_unloaded_everything(model, vae) -> None:
    guided = guide(model, vae, Towards(0))
    first = ksampler(guided)
    comfy.model_management.unload_all_models()
    assert torch.equal(ksampler(guided), first)


def interrupted() -> BaseException:
    return comfy.model_management.InterruptProcessingException()


@pytest.mark.parametrize("error", [interrupted, lambda: RuntimeError("broken reward"), MemoryError])
def test_after_a_reward_broke_the_run_every_stock_node_works_as_before(error, model, vae) -> None:
    plain, weights = ksampler(model), state(model.model)
    raised = error()
    with pytest.raises(type(raised)):
        ksampler(guide(model, vae, Failing(raised)))
    assert torch.is_inference_mode_enabled()
    assert torch.equal(ksampler(model), plain)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.model.state_dict().items())


def test_a_judge_that_breaks_leaves_no_mode_behind(vae) -> None:
    with pytest.raises(RuntimeError, match="broken judge"):
        measured(Failing(RuntimeError("broken judge")), torch.rand(2, 3, 64, 64), ["a", "b"])
    assert torch.is_inference_mode_enabled()


def test_guidance_after_training_on_the_same_model(model, vae) -> None:
    """A trained twin shares the weights: the plain and the guided picture are bit for bit those of before."""
    guided = guide(model, vae, Towards(0))
    plain, steered, weights = ksampler(model), ksampler(guided), state(model.model)
    with trainable(model, 4, 0) as policy:
        optimiser = torch.optim.AdamW(policy.parameters(), lr=0.1)
        x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 2.0])
        for _ in range(2):
            policy.denoise(x, sigma, [POSITIVE, NEGATIVE]).square().mean().backward()
            optimiser.step()
    assert torch.equal(ksampler(model), plain) and torch.equal(ksampler(guided), steered)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.model.diffusion_model.parameters())


@pytest.mark.parametrize("error", [interrupted, lambda: RuntimeError("no more memory")])
def test_training_that_breaks_leaves_no_mode_behind(error, model) -> None:
    plain, raised = ksampler(model), error()
    with pytest.raises(type(raised)), trainable(model, 4, 0):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        raise raised
    assert torch.is_inference_mode_enabled() and not comfy.model_management.in_training
    assert torch.equal(ksampler(model), plain)


def test_training_under_guidance_trains_the_model_and_not_the_reward(model, vae) -> None:
    """A guided MODEL connected to a trainer: its hooks stay out of the loss, which is that of the plain model."""
    x, sigma = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.5])
    with trainable(model, 4, 0) as policy, torch.no_grad():
        plain = policy.denoise(x, sigma, [POSITIVE])
    with trainable(guide(model, vae, Failing(RuntimeError("asked"))), 4, 0) as policy, torch.no_grad():
        assert torch.equal(policy.denoise(x, sigma, [POSITIVE]), plain)


def test_conditioning_is_used_again_by_every_node_unchanged(model, vae) -> None:
    """CONDITIONING is shared and cached between nodes: nobody may write to it."""
    cond, settings = POSITIVE[0]
    before, pooled, keys = cond.clone(), settings["pooled_output"].clone(), set(settings)
    ksampler(guide(model, vae, Towards(0)))
    sampling.sample(model, [POSITIVE, NEGATIVE], NEGATIVE, [1, 2], 2, 2.0, "euler", "normal", 64, 64)
    with trainable(model, 4, 0) as policy:
        policy.denoise(torch.randn(1, 4, 8, 8), torch.tensor([1.0]), [POSITIVE]).sum().backward()
    assert POSITIVE[0][0] is cond and set(settings) == keys
    assert torch.equal(cond, before) and torch.equal(settings["pooled_output"], pooled)
