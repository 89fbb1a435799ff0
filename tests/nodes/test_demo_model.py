"""The demo model is one model, whether diffusers or ComfyUI runs it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.comfy

PROMPTS = [
    "two large red stars on the left, dark plain background",
    "",
    "one small blue circle, busy background, watermark",
]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Any, Any]:
    from feedback_loop.nodes.demo import load_demo_model

    with torch.inference_mode():
        return load_demo_model()


@pytest.fixture(scope="module")
def pipe() -> Any:
    from diffusers import StableDiffusionPipeline

    from feedback_loop.nodes.demo import WEIGHTS

    made = StableDiffusionPipeline.from_pretrained(WEIGHTS, safety_checker=None, torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def _diffusers_text(pipe: Any, prompt: str) -> torch.Tensor:
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return pipe.text_encoder(ids).last_hidden_state


def _denoised(pipe: Any, x: torch.Tensor, sigma: float, timestep: int, text: torch.Tensor) -> torch.Tensor:
    """x = x0 + sigma * n in ComfyUI's scaling; D = x / (1 + sigma^2) - v * sigma / sqrt(1 + sigma^2)."""
    scale = (1 + sigma**2) ** 0.5
    v = pipe.unet(x / scale, torch.tensor([timestep]), text).sample
    return x / scale**2 - v * sigma / scale


def test_the_denoiser_can_be_trained_where_comfyui_streams_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NVIDIA ComfyUI makes its own loaders' models dynamic, which a GPU's name as the load device is enough for."""
    import comfy.model_management
    import comfy.model_patcher

    from feedback_loop.nodes.demo import load_unet

    gpu = torch.device("cuda", 0)
    dynamic = comfy.model_patcher.ModelPatcherDynamic
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", dynamic)
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: gpu)
    model = load_unet()
    assert model.load_device == gpu and not model.is_dynamic()
    assert model.clone(disable_dynamic=True).model is model.model, "nodes/policy.py asks for this of a dynamic model"
    assert isinstance(dynamic.__new__(dynamic, load_device=gpu), dynamic), "core no longer gives dynamic ones for a GPU"


@torch.inference_mode()
def test_cores_own_trainer_takes_the_demo_model(parts: Any) -> None:
    """Train LoRA makes its copy by what the model's loader left behind; the weights it was given stay as they are."""
    from comfy_extras.nodes_train import TrainLoraNode

    model, clip, _, _ = parts
    before = [weight.clone() for weight in model.model.diffusion_model.parameters()]
    given = {
        "batch_size": 1, "steps": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-3, "rank": 2,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": False, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }  # fmt: skip
    with torch.inference_mode():
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("one red star"))
        output = TrainLoraNode.execute(
            model=[model], latents=[{"samples": torch.zeros(1, 4, 8, 8)}], positive=[positive],
            **{name: [value] for name, value in given.items()},
        )  # fmt: skip
    assert len(output.args[1]["loss"]) == 1 and any(bool(value.any()) for value in output.args[0].values())
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.diffusion_model.parameters(), strict=True))


def test_both_read_a_prompt_alike(parts: Any, pipe: Any) -> None:
    for prompt in PROMPTS:
        cond = parts[1].encode_from_tokens(parts[1].tokenize(prompt))
        torch.testing.assert_close(cond.float(), _diffusers_text(pipe, prompt), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_one_denoise_is_the_same_to_a_ten_thousandth(parts: Any, pipe: Any) -> None:
    comfy.model_management.load_models_gpu([parts[0]])  # a LoRA of another test may be in the weights that it shares
    model = parts[0].model
    for timestep in (999, 500, 20):
        sigma = float(model.model_sampling.sigmas[timestep])
        bar = float(pipe.scheduler.alphas_cumprod[timestep])
        assert sigma == pytest.approx(((1 - bar) / bar) ** 0.5, rel=1e-4), "the two schedules differ"
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(timestep)) * (1 + sigma**2) ** 0.5
        text = _diffusers_text(pipe, PROMPTS[0])
        ours = model.apply_model(x, torch.tensor([sigma]), c_crossattn=text)
        assert (ours - _denoised(pipe, x, sigma, timestep, text)).abs().max() < 1e-4


@torch.inference_mode()
def test_a_whole_run_gives_the_same_pixels_to_two_in_255(parts: Any, pipe: Any) -> None:
    """DDIM without noise and ComfyUI's euler walk the same path; both get the trailing timesteps of 20 steps."""
    import comfy.sample
    import comfy.samplers

    model, clip, vae, _ = parts
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    size = {"height": 64, "width": 64, "output_type": "np"}
    theirs = pipe(PROMPTS[0], num_inference_steps=20, guidance_scale=2.0, latents=noise, **size)
    steps = pipe.scheduler.timesteps.tolist()
    assert steps[0] == 999
    table = model.model.model_sampling.sigmas
    sigmas = torch.cat([table[steps], torch.zeros(1)])
    conds = [[[clip.encode_from_tokens(clip.tokenize(p)), {}]] for p in (PROMPTS[0], "")]
    # diffusers starts at the noise itself, ComfyUI at sqrt(1 + sigma^2) * noise for v-prediction: the same point.
    latent = comfy.sample.sample_custom(
        model, noise, 2.0, comfy.samplers.sampler_object("euler"), sigmas, *conds, torch.zeros(1, 4, 8, 8), seed=0
    )
    ours = vae.decode(latent)
    assert (ours - torch.from_numpy(theirs.images)).abs().max() <= 2 / 255


@torch.inference_mode()
def test_the_image_tower_is_the_same_in_transformers(parts: Any) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from feedback_loop.nodes.demo import WEIGHTS

    folder = WEIGHTS / "image_encoder"
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(folder)).float().eval()
    theirs.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()}, strict=False)
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    vision = parts[3]
    mean, std = (torch.tensor(v)[:, None, None] for v in (vision.image_mean, vision.image_std))
    pixels = (image.movedim(-1, 1) - mean) / std
    ours = vision.encode_image(image)["image_embeds"]
    # ComfyUI rounds pixels to 255 steps before it normalises, hence the tolerance.
    assert (ours - theirs(pixel_values=pixels).image_embeds).abs().max() < 2e-2
