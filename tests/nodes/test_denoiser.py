"""Models, VAEs and rewards of ComfyUI's own classes in normal tensors, out of inference mode and back."""

from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.taesd.taesd
import folder_paths
import pytest
import torch
from torch import nn

from feedback_loop.diffusion.process import Process
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.rewards.combine import CombinedReward
from feedback_loop.feedback.rewards.taste import TasteReward
from feedback_loop.feedback.rewards.watermark import Detector, WatermarkPenalty
from feedback_loop.nodes.decoder import check_pictures, decoder_of
from feedback_loop.nodes.denoiser import (
    Shared,
    WrongConnectionError,
    alias,
    gradients,
    normal_reward,
    patchers_of,
    process_of,
    process_of_sampling,
)
from feedback_loop.nodes.encoder import encoder_from
from feedback_loop.tests.nodes import tiny_models


def latents(channels=4, size=8, batch=1, seed=0):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_inference_mode_is_left_inside_and_entered_again_also_after_an_exception(inference_mode):
    with gradients():
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.is_inference_mode_enabled()
    with pytest.raises(comfy.model_management.InterruptProcessingException), gradients():
        raise comfy.model_management.InterruptProcessingException
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()


def test_an_alias_of_a_vae_shares_every_byte_and_takes_part_in_a_backward_pass(inference_mode):
    """Weights that a loader node made are inference tensors; backward works through the alias only."""
    network = tiny_models.vae().first_stage_model
    assert all(weight.is_inference() for weight in network.parameters())
    twin = alias(network)
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr() and not ours.is_inference() and not ours.requires_grad
    with gradients():
        x = latents().clone().requires_grad_()
        twin.decode(x).sum().backward()
        assert x.grad is not None and x.grad.abs().sum() > 0
    assert torch.equal(twin.decode(latents()), network.decode(latents()))


def test_an_alias_keeps_tied_weights_tied(inference_mode):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    twin = alias(tied)
    assert twin[0].weight is twin[1].weight


class Quantised(torch.Tensor):
    """Stands for a tensor class whose storage must not be asked for: comfy-kitchen's own kills the process."""

    def untyped_storage(self):
        raise AssertionError("asked a quantised tensor for its storage")

    def data_ptr(self):
        raise AssertionError("asked a quantised tensor for its address")


def test_weights_that_are_no_plain_tensors_are_shared_by_reference():
    module = nn.Module()
    quantised = torch.ones(3).as_subclass(Quantised)
    module.register_buffer("weight", quantised)
    assert alias(module).weight is quantised
    assert Shared(module, [module])().weight is quantised


def test_handles_of_dynamic_memory_are_left_alone():
    """ComfyUI's dynamic memory notes handles on modules that cannot be copied."""

    class Handle:
        def __deepcopy__(self, memo):
            raise AssertionError("copied a handle")

    module = nn.Sequential(nn.Linear(2, 2))
    module.dynamic_pins, module[0]._v = {"cuda": Handle()}, Handle()
    assert alias(module)[0]._v is module[0]._v


def test_a_shared_network_is_copied_once_and_again_when_comfyui_has_replaced_a_weight():
    module = nn.Linear(2, 2)
    shared = Shared(module, [module])
    first = shared()
    assert shared() is first
    module.weight = nn.Parameter(torch.zeros(2, 2))
    assert torch.equal(shared().weight, module.weight)
    again = shared()
    shared.release()
    assert shared() is not again


def test_a_reward_in_normal_tensors_scores_the_same_and_has_a_gradient(inference_mode):
    reward = WatermarkPenalty(detector=Detector().eval())
    assert all(weight.is_inference() for weight in reward.detector.parameters())
    images = torch.rand(2, 3, 64, 64)
    normal = normal_reward(reward)()
    torch.testing.assert_close(normal(images), reward(images))
    with gradients():
        leaf = images.clone().requires_grad_()
        normal(leaf).sum().backward()
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0


def test_each_network_of_a_reward_gets_one_place_in_comfyuis_memory_management():
    reward = WatermarkPenalty(detector=Detector())
    assert [patcher.model for patcher in patchers_of(reward)] == [reward.detector]


def test_a_network_keeps_its_one_place_however_often_it_is_asked_for_and_copied():
    """A second ModelPatcher that goes away before the network does is a memory leak to ComfyUI, and is warned of."""
    reward = WatermarkPenalty()
    (first,), (again,) = patchers_of(reward), patchers_of(CombinedReward([reward], [1.0]))
    assert first is again and first.model is reward.detector
    normal_reward(reward)()
    assert patchers_of(reward) == [first]


def test_an_encoder_brings_its_own_place_in_memory_and_is_not_moved_by_the_reward():
    """A CLIP_VISION has a ModelPatcher already; a second one for the same weights would count them twice."""
    network = nn.Linear(3, 3)
    patcher = comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))

    class Mean:
        id = "mean"

        def __call__(self, images):
            return network(images.mean(dim=(2, 3)))

        def networks(self):
            return [network]

        def patchers(self):
            return [patcher]

    class Taste(Reward):
        name = "taste"

        def __init__(self):
            self.encoders = (Mean(),)

        def score(self, images, prompts, embed):
            return embed(self.encoders[0]).sum(dim=1)

    taste = Taste()
    assert patchers_of(taste) == [patcher]
    normal = normal_reward(taste)()
    assert normal.networks() == []
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(normal(images), taste(images))


def tastes(clip_vision, count):
    """Tastes with random weights, each with an encoder object of its own, as separate nodes make them."""
    made = []
    for seed in range(count):
        encoder = encoder_from(clip_vision)
        width = encoder(torch.rand(1, 3, 32, 32)).shape[1]
        weight = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        zero, one = torch.zeros(width), torch.ones(width)
        made.append(
            TasteReward(encoder, {"centre": zero, "scale": one, "weight": weight, "root": torch.zeros(width, 1)})
        )
    return made


def test_a_combination_of_tastes_has_the_gradient_of_finite_differences_through_comfyuis_clip(inference_mode):
    """Two encoder objects for one CLIP_VISION: neither it nor its place in memory management is copied."""
    clip_vision = tiny_models.clip_vision()
    combined = CombinedReward(tastes(clip_vision, 2), [1.0, 0.5])
    assert patchers_of(combined) == [clip_vision.patcher]
    normal = normal_reward(combined)()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 0.6 + 0.2
    torch.testing.assert_close(normal(images), combined(images))
    assert normal.networks() == [] and all(part.networks() == [] for part in normal.parts)
    with gradients():
        leaf = images.clone().requires_grad_()
        slope = torch.autograd.grad(normal(leaf).sum(), leaf)[0]
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    ahead, behind = (combined(images + step * direction).sum().item() for step in (0.003, -0.003))
    along = (slope * direction).sum().item()
    assert along == pytest.approx((ahead - behind) / 0.006, abs=0.02 * slope.norm().item())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tiny_models.sd15, Process("eps")),
        (lambda: tiny_models.sd15(prediction="v"), Process("v")),
        (tiny_models.sdxl, Process("eps")),
        (tiny_models.sd3, Process("flow")),
        (tiny_models.flux, Process("flow")),
    ],
    ids=["sd15", "sd15 v", "sdxl", "sd3", "flux"],
)
def test_the_process_is_read_from_the_models_own_sampling(make, expected):
    assert process_of(make()) == expected


def sampling(*bases):
    return type("ModelSampling", bases, {})()


def test_a_patched_sampling_wins_over_the_models_own():
    """ModelSamplingDiscrete and ModelSamplingSD3 put an object patch over model_sampling."""
    model = tiny_models.sd15()
    law = comfy.model_sampling
    model.add_object_patch("model_sampling", sampling(law.ModelSamplingDiscrete, law.V_PREDICTION))
    assert process_of(model) == Process("v")


def test_edm_latents_have_the_variance_of_their_sigma_data():
    """Playground 2.5 scales its latents to a standard deviation of .5, and calls that sigma_data."""
    law = comfy.model_sampling
    edm = sampling(law.ModelSamplingContinuousEDM, law.EDM)
    edm.set_parameters(0.002, 80.0, 0.5)
    assert process_of_sampling(edm) == Process("edm", sigma_data=0.5, latent_variance=0.25)


def test_a_flows_noise_scale_is_part_of_its_process():
    law = comfy.model_sampling
    flow = sampling(law.ModelSamplingDiscreteFlow, law.CONST)
    flow.set_noise_scale(2.0)
    assert process_of_sampling(flow) == Process("flow", noise_scale=2.0)


@pytest.mark.parametrize("name", ["IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_models_without_noise_are_refused(name):
    law = comfy.model_sampling
    with pytest.raises(WrongConnectionError, match="no noise to guide"):
        process_of_sampling(sampling(law.ModelSamplingDiscrete, getattr(law, name)))


@pytest.mark.parametrize("name", ["COSMOS_RFLOW", "V_PREDICTION_DDPM"])
def test_an_unknown_sampling_is_refused_by_its_name(name):
    law = comfy.model_sampling
    with pytest.raises(WrongConnectionError, match=name):
        process_of_sampling(sampling(law.ModelSamplingDiscrete, getattr(law, name)))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_decoding_is_what_the_stock_decoder_shows(kind):
    """VAE.decode after process_latent_out, to float rounding; ours keeps the graph and theirs does not."""
    model, channels = tiny_models.MODELS[kind](), tiny_models.CHANNELS[kind]
    vae, x = tiny_models.vae(channels=channels), latents(channels)
    ours = decoder_of(vae, model, "full")(x)
    theirs = vae.decode(model.model.process_latent_out(x)).movedim(-1, 1)
    assert ours.shape == (1, 3, 64, 64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def kl_pair():
    return tiny_models.vae(), tiny_models.sd15()


def wan_pair():
    """Wan's and Qwen-Image's autoencoder: a picture is a film of one frame, and the latent format holds tensors."""
    network = comfy.ldm.wan.vae.WanVAE(dim=16, z_dim=16, temperal_downsample=[False, True, True])
    vae = comfy.sd.VAE(tiny_models.randomise(network, 0).state_dict(), dtype=torch.float32)
    model = tiny_models.sd3()
    model.model.latent_format = comfy.latent_formats.Wan21()
    return vae, model


@pytest.mark.parametrize("make", [kl_pair, wan_pair])
def test_the_gradient_through_a_real_vae_is_that_of_finite_differences(make, inference_mode):
    """Central differences along three random directions with a step of .02, whose own error is of order step^2. The
    slope along a random direction is about as large as the gradient's norm."""
    vae, model = make()
    list(vae.first_stage_model.decoder.parameters())[-2].mul_(0.3)
    decoder, x, step = decoder_of(vae, model, "full"), latents(vae.latent_channels), 0.02
    with gradients():
        weights = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def score(z):
        return (decoder(z).double() * weights).sum()

    assert 0 < decoder(x).min() and decoder(x).max() < 1, "clipped pixels would have two different slopes"
    with gradients():
        leaf = x.clone().requires_grad_()
        slope = torch.autograd.grad(score(leaf), leaf)[0]
    for seed in (2, 3, 4):
        direction = latents(vae.latent_channels, seed=seed)
        difference = (score(x + step * direction) - score(x - step * direction)).item() / (2 * step)
        assert (slope * direction).sum().item() == pytest.approx(difference, abs=0.01 * slope.norm().item())


def test_a_pixel_beyond_white_keeps_its_gradient():
    """Clipping has slope zero outside 0..1, so a blown-out watermark could never be pulled back."""
    vae = tiny_models.vae()
    with torch.no_grad():
        vae.first_stage_model.decoder.conv_out.bias.fill_(3.0)
    leaf = latents().requires_grad_()
    images = decoder_of(vae, tiny_models.sd15(), "full")(leaf)
    assert images.max() == 1 and (images == 1).float().mean() > 0.9
    images.mean().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("latent", "size", "pixels"), [(32, "half", 128), (32, "full", 256), (32, "auto", 128), (16, "half", 128)]
)
def test_half_size_halves_the_pictures_unless_they_are_tiny(latent, size, pixels):
    decoder = decoder_of(tiny_models.vae(), tiny_models.sd15(), size)
    assert decoder(latents(size=latent)).shape == (1, 3, pixels, pixels)
    assert decoder.memory_for((1, 4, latent, latent)) == 3 * tiny_models.vae().memory_used_decode(
        (1, 4, pixels // 8, pixels // 8), torch.float32
    )


@pytest.fixture
def small_decoder():
    """A TAESD with random weights, where ComfyUI looks for installed ones."""
    folder = Path(folder_paths.get_folder_paths("vae_approx")[0])
    folder.mkdir(parents=True, exist_ok=True)
    network = tiny_models.randomise(comfy.taesd.taesd.TAESD(), 0)
    path = folder / "taesd_decoder.safetensors"
    comfy.utils.save_torch_file(network.taesd_decoder.state_dict(), str(path))
    yield network
    path.unlink()


def test_an_installed_small_decoder_is_found_and_used(small_decoder, inference_mode):
    """TAESD reads latents in model space and gives 0..1; its weights leave the full VAE unused."""
    decoder = decoder_of(tiny_models.vae(), tiny_models.sd15(), "auto")
    x = latents()
    torch.testing.assert_close(decoder(x), small_decoder.taesd_decoder(x).clamp(0, 1), rtol=0, atol=1e-6)
    assert decoder(latents(size=32)).shape == (1, 3, 128, 128)
    with gradients():
        leaf = x.clone().requires_grad_()
        decoder(leaf).sum().backward()
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0


def test_a_small_decoder_that_is_not_installed_is_named():
    with pytest.raises(WrongConnectionError, match="taesd_decoder.safetensors into models/vae_approx"):
        decoder_of(tiny_models.vae(), tiny_models.sd15(), "small")


def test_a_vae_of_another_model_is_refused_with_both_numbers():
    with pytest.raises(WrongConnectionError, match="4 channels, but the model's have 16"):
        decoder_of(tiny_models.vae(), tiny_models.sd3())


def test_a_checkpoint_without_a_vae_is_explained():
    with pytest.raises(WrongConnectionError, match="no VAE"):
        decoder_of(None, tiny_models.sd15())


def test_audio_is_refused():
    vae = tiny_models.vae()
    vae.latent_dim, vae.output_channels = 1, 2
    with pytest.raises(WrongConnectionError, match="audio"):
        decoder_of(vae, tiny_models.sd15())


def test_pictures_are_told_from_video_and_sound():
    assert check_pictures((2, 4, 8, 8)) == check_pictures((2, 4, 1, 8, 8)) == (2, 4, 8, 8)
    with pytest.raises(WrongConnectionError, match="video of 5 frames"):
        check_pictures((1, 16, 5, 8, 8))
    with pytest.raises(WrongConnectionError, match="sound"):
        check_pictures((1, 64, 100))
