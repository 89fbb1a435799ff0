"""The tiny models with weights as fp8_scaled files have them, loaded by ComfyUI's own classes."""

from __future__ import annotations

import json
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

from . import tiny_models

CONFIGS = {
    "sd15": ("SD15", "_SD15"), "sdxl": ("SDXL", "_SDXL"), "sd3": ("SD3", "_SD3"), "flux": ("Flux", "_FLUX"),
    "qwen": ("QwenImage", "_QWEN"), "zimage": ("ZImage", "_ZIMAGE"), "wan": ("WAN21_T2V", "_WAN"),
}  # fmt: skip


def quantised_weights(network: nn.Module, quant_format: str) -> dict[str, Tensor]:
    """The state dict, with quantised weights in the linear layers inside blocks."""
    weights = dict(network.state_dict())
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear) and ("block" in path or "layers." in path):
            name = f"{path}.weight"
            layout = QUANT_ALGOS[quant_format]["comfy_tensor_layout"]
            quantised = QuantizedTensor.from_float(weights.pop(name).detach().clone(), layout, scale="recalculate")
            weights |= quantised.state_dict(name)
            marker = json.dumps({"format": quant_format}).encode()
            weights[f"{path}.comfy_quant"] = torch.tensor(list(marker), dtype=torch.uint8)
    return weights


def quantised(
    kind: str, quant_format: str = "float8_e4m3fn", computed: torch.dtype = torch.float32, **changed: int
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL whose file is quantised; computed: in which precision. changed: settings of the network."""
    name, settings = CONFIGS[kind]
    family, own = getattr(comfy.supported_models, name), getattr(tiny_models, settings) | changed
    weights = quantised_weights(tiny_models._patcher(family(own), 0).model.diffusion_model, quant_format)
    config: Any = family(own)
    config.quant_config = {"mixed_ops": True}
    config.set_inference_dtype(computed, computed)
    model = config.get_model({})
    missing, unexpected = model.diffusion_model.load_state_dict(weights, strict=False)
    assert not unexpected and not [key for key in missing if not key.endswith("weight_scale")], (missing, unexpected)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=offload)
