"""A LoRA of a diffusers pipeline in ComfyUI: its own loader takes every layer, and D is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.supported_models
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from feedback_loop.nodes.demo import load_unet
from feedback_loop.nodes.policy import sigma_sampler
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.training.pipelines import DEMO, tiny_sd3
from feedback_loop.training import lora_files
from feedback_loop.training.pipeline import load
from feedback_loop.training.pipeline_policy import PipelinePolicy

pytestmark = pytest.mark.comfy


def sd3_of(network: Any) -> Any:
    """The transformer of tiny_sd3 in ComfyUI's own class, by ComfyUI's own table of names."""
    text = {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}}
    config = tiny_models._SD3 | {"depth": 2, "num_blocks": 2, "context_embedder_config": text}
    model = tiny_models._patcher(comfy.supported_models.SD3(config), 0)
    weights = comfy.model_detection.convert_diffusers_mmdit(network.state_dict())
    model.model.diffusion_model.load_state_dict(weights, strict=True)
    return model


def pushed(folder: Path) -> PipelinePolicy:
    policy, generator = PipelinePolicy(load(folder, torch.float32), rank=2, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def seen(policy: PipelinePolicy, generator: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Two noised latents, their levels, and what the network is told."""
    sigma = policy.sigma_at(torch.tensor([0.3, 0.8]))
    x = torch.randn(2, policy.network.config.in_channels, 8, 8, generator=generator)
    x = x * (policy.process.a(sigma) ** 2 + policy.process.s(sigma) ** 2).sqrt().reshape(-1, 1, 1, 1)
    if policy.process.kind == "flow":
        told = {"text": torch.randn(2, 9, 32, generator=generator), "pooled": torch.randn(2, 16, generator=generator)}
    else:
        told = {"text": torch.randn(2, 77, 96, generator=generator)}
    return x, sigma, told


@pytest.mark.parametrize("kind", ["demo", "sd3"])
def test_comfyui_loads_every_layer_and_denoises_as_trained(kind: str, tmp_path: Path) -> None:
    policy = pushed(DEMO if kind == "demo" else tiny_sd3(tmp_path / "pipeline"))
    x, sigma, told = seen(policy, torch.Generator().manual_seed(2))
    with torch.no_grad():
        trained = policy.denoise(x, sigma, [{name: value[i] for name, value in told.items()} for i in range(2)])
        with policy.view("ref"):
            plain = policy.denoise(x, sigma, [{name: value[i] for name, value in told.items()} for i in range(2)])
        layers = policy.adapters.low_rank()
    names, out = policy.names(layers), tmp_path / "lora.safetensors"
    lora_files.save(out, layers, {}, set(names.values()), names)

    bare = load(DEMO if kind == "demo" else tmp_path / "pipeline", torch.float32).network
    model = load_unet() if kind == "demo" else sd3_of(bare)
    known, tensors = comfy.lora.model_lora_keys_unet(model.model, {}), load_file(out)
    assert lora_files.unmatched(tensors, known) == []
    assert len(comfy.lora.load_lora(tensors, known)) == len(layers)
    applied, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    comfy.model_management.load_models_gpu([applied])
    given = {"c_crossattn": told["text"]} | ({"y": told["pooled"]} if "pooled" in told else {})
    with torch.inference_mode():
        loaded = applied.model.apply_model(x, sigma, **given)
    assert float((loaded - trained).abs().max()) < 1e-4
    assert float((plain - trained).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["demo", "sd3"])
def test_noise_levels_are_drawn_as_in_comfyui(kind: str, tmp_path: Path) -> None:
    pipeline = load(DEMO if kind == "demo" else tiny_sd3(tmp_path / "pipeline"), torch.float32)
    model, u = load_unet() if kind == "demo" else tiny_models.sd3(), torch.linspace(0.01, 0.99, 20)
    expected = sigma_sampler(model.get_model_object("model_sampling"))(u)
    torch.testing.assert_close(pipeline.noise.sigma_at(u), expected, rtol=1e-4, atol=1e-6)
