"""LoRA files of any program, as the start of a new training: read by ComfyUI's own loader, key names and all."""

from __future__ import annotations

import logging
from collections.abc import Callable
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


def existing_lora(
    model: ModelPatcher, name: str, rank: int, tell: Callable[[str], None] = logging.warning
) -> dict[str, LowRank] | None:
    """The file's layers of this model; None for "none". Raises LoraFileError for a file that does not fit.

    tell: is told what of the file can't be gone on with, such as what it does to a text encoder.
    """
    if name == NONE:
        return None
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise LoraFileError(f"There is no LoRA {name} any more: choose another as existing_lora, or none.")
    tensors = comfy.utils.load_torch_file(path, safe_load=True)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(tensors, known, log_missing=False)
    if not patches:
        raise LoraFileError(f"{name} changes no layer of this model; it was made for another kind of model.")
    layers, left = _layers(model, name, patches, rank)
    left = [*left, *(key for key in tensors if not _belongs(key, known))]
    if not layers:
        raise LoraFileError(
            f"{name} has no linear or convolution layer of this model to go on with, only others such as {left[0]}: "
            "load it into the model and train a new LoRA on top."
        )
    if left:
        tell(
            f"{name}: {len(left)} of its parts are left out, such as {' and '.join(sorted(left)[:2])}. Training goes "
            "on with the weights of the model's linear and convolution layers alone, not with a text encoder's, "
            "biases or norms."
        )
    return layers


def _belongs(key: str, known: dict[str, Any]) -> bool:
    """Whether a tensor of the file is of a layer of the model, under one of the names that ComfyUI knows for it."""
    ends = [place for place, letter in enumerate(key) if letter == "." or key.startswith("_lora.", place)]
    return any(key[:end] in known for end in ends) or key in known


def _layers(model: ModelPatcher, name: str, patches: dict[Any, Any], rank: int) -> tuple[dict[str, LowRank], list[str]]:
    """(the layers to go on with, names of the weights that the file changes and that no LoRA can)."""
    by_weight: dict[str, list[Any]] = {}
    for key, patch in patches.items():
        # a tuple says that it is about a part of the weight: (name, (dimension, start, length), function)
        weight, offset, function = (key, None, None) if isinstance(key, str) else tuple([*key, None, None][:3])
        by_weight.setdefault(weight, []).append((1.0, patch, 1.0, offset, function))
    layers, left, weights = {}, [], model.model.state_dict()
    for weight, those in by_weight.items():
        if not (weight.startswith(PREFIX) and weight.endswith(".weight") and weights[weight].ndim > 1):
            left.append(weight)
            continue
        path = weight.removeprefix(PREFIX).removesuffix(".weight")
        layers[path] = _plain(those) or _nearest(name, weights[weight], weight, those, rank)
    return layers, left


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
