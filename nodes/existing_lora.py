"""LoRA files of any program, as the start of a new training: read by ComfyUI's own loader, key names and all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.utils
import comfy.weight_adapter
import folder_paths
import torch
from torch import Tensor

from ..training.lora_files import PREFIX, LoraFileError
from ..training.low_rank import LowRank, nearest_low_rank

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

NONE = "none"

LOST = 0.01
"""A LoRA that the new rank cannot hold but for this share is refused."""


def choices() -> list[str]:
    return [NONE, *(name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors"))]


def existing_lora(model: ModelPatcher, name: str, rank: int) -> dict[str, LowRank] | None:
    """The file's layers of this model; None for "none". Raises LoraFileError for a file that does not fit."""
    if name == NONE:
        return None
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise LoraFileError(f"There is no LoRA {name} any more: choose another as existing_lora, or none.")
    tensors = comfy.utils.load_torch_file(path, safe_load=True)
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False)
    if not patches:
        raise LoraFileError(f"{name} changes no layer of this model; it was made for another kind of model.")
    return _layers(model, name, patches, rank)


def _layers(model: ModelPatcher, name: str, patches: dict[Any, Any], rank: int) -> dict[str, LowRank]:
    by_weight: dict[str, list[Any]] = {}
    for key, patch in patches.items():
        # a tuple says that it is about a part of the weight: (name, (dimension, start, length), function)
        weight, offset, function = (key, None, None) if isinstance(key, str) else tuple([*key, None, None][:3])
        by_weight.setdefault(weight, []).append((1.0, patch, 1.0, offset, function))
    layers, weights = {}, model.model.state_dict()
    for weight, those in by_weight.items():
        if weight.startswith(PREFIX) and weight.endswith(".weight"):
            path = weight.removeprefix(PREFIX).removesuffix(".weight")
            layers[path] = _plain(those) or _nearest(name, weights[weight], weight, those, rank)
    return layers


def _plain(patches: list[Any]) -> LowRank | None:
    """The parts as they stand in the file, where it is a LoRA on the whole weight and nothing more."""
    _, patch, _, offset, function = patches[0]
    if len(patches) > 1 or offset or function or not isinstance(patch, comfy.weight_adapter.LoRAAdapter):
        return None
    up, down, alpha, mid, dora, reshape = patch.weights
    if mid is not None or dora is not None or reshape is not None:
        return None
    return LowRank(down.float(), up.float(), float(down.shape[0] if alpha is None else alpha))


def _nearest(name: str, weight: Tensor, key: str, patches: list[Any], rank: int) -> LowRank:
    """DoRA, LoKr, LoHa and their kin, and parts of weights: what they add, as a LoRA of the rank asked for."""
    with torch.no_grad():
        before = weight.detach().float().clone()
        added = comfy.lora.calculate_weight(patches, before.clone(), key) - before
        part, lost = nearest_low_rank(added.cpu(), rank)
    if lost > LOST:
        raise LoraFileError(
            f"{name} is no plain LoRA, and rank {rank} holds only {1 - lost:.0%} of what it does to {key}: "
            "raise the rank, or load it into the model and train a new LoRA on top."
        )
    return part
