"""CLIP's image encoder from a folder, outside ComfyUI, read as the nodes read a CLIP_VISION: same features, same id.

So a taste that was learned in ComfyUI scores pictures on a server. What is read of the tower, and what its id is made
of, stands here for both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Encoder, RewardError
from .folders import CONFIG, checked_config, load_network
from .networks import NetworkEncoder, Preprocess

READING = "1"  # raise it whenever the same weights would give other features: it is part of an encoder's id
KIND = "clip_vision_model"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, over its training pictures; ComfyUI normalises with them whatever a preprocessor's file says."""

OF_THE_TOWER = (
    *("hidden_act", "hidden_size", "image_size", "intermediate_size", "num_attention_heads", "num_channels"),
    *("num_hidden_layers", "patch_size", "projection_dim"),
)
OF_EVERY_TOWER = {
    "attention_dropout": 0.0, "dropout": 0.0, "initializer_factor": 1.0, "initializer_range": 0.02,
    "layer_norm_eps": 1e-5, "model_type": KIND, "torch_dtype": "float32",
}  # fmt: skip


def clip_id(kind: str, config: Mapping[str, Any], size: int, weights: Mapping[str, Tensor]) -> str:
    """Kind and hash of configuration and weights. Weights are hashed at half precision: ComfyUI picks the precision by
    device, and the same file shall be the same encoder on every machine."""
    from blake3 import blake3

    read = {"reading": READING, "config": config, "size": size}
    digest = blake3(json.dumps(read, sort_keys=True, default=str).encode())
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return f"{kind}-{digest.hexdigest(length=8)}"


def pooled(tokens: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    """(B,N,C) -> mean over the patch tokens (B,C), and over the quarters of the picture (B,4C).

    grid: patches in height and width; tokens before the last height * width are class or register tokens.
    """
    patches = tokens[:, -grid[0] * grid[1] :]
    if patches.shape[1] != grid[0] * grid[1]:
        raise RewardError(
            f"This image encoder gives {tokens.shape[1]} tokens for {grid[0]} x {grid[1]} patches, which Feedback Loop "
            "does not know how to read. Connect a CLIP, SigLIP or DINO model."
        )
    plane = patches.transpose(1, 2).unflatten(2, grid)
    quarters = F.adaptive_avg_pool2d(plane, 2).flatten(2).transpose(1, 2)
    return [patches.mean(dim=1), quarters.flatten(1)]


def comfy_config(config: Any) -> dict[str, Any]:
    """What ComfyUI notes of a CLIP tower, from transformers' configuration of it."""
    return {name: getattr(config, name) for name in OF_THE_TOWER} | OF_EVERY_TOWER


def clip_encoders(folder: Path) -> list[Encoder]:
    """The tower of a folder in transformers' layout, alone or with its text encoder, under each id that it can have.

    ComfyUI has a configuration of its own for every published size, and the demo's tower has the one in its folder.
    Raises RewardError for a folder that holds no CLIP.
    """
    if not folder.is_dir():
        raise RewardError(f"There is no folder {folder}.")
    told = checked_config(folder)
    kind = str(told.get("model_type"))
    if kind not in (KIND, "clip"):
        raise RewardError(
            f"{folder.name} holds a model of the kind '{kind[:60]}'. Outside ComfyUI only CLIP's image encoders are "
            f"read ({CONFIG} says {KIND} or clip)."
        )
    network = load_network(folder, _Tower)
    config, weights = network.config, network.state_dict()
    preprocess = Preprocess(config.image_size, config.image_size, MEAN, STD)
    known = [comfy_config(config), told | {"model_type": KIND}]
    return [NetworkEncoder(clip_id(KIND, c, config.image_size, weights), network, preprocess, _read) for c in known]


class _Tower:
    """transformers' class for the tower in the shape of its automatic ones."""

    @staticmethod
    def from_config(config: Any) -> nn.Module:
        from transformers import CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(getattr(config, "vision_config", config))

    @staticmethod
    def from_pretrained(folder: Path, config: Any, **options: Any) -> Any:
        from transformers import CLIPVisionModelWithProjection

        own = getattr(config, "vision_config", config)
        # `load_network` asks for files of this machine alone, by `options`.
        return CLIPVisionModelWithProjection.from_pretrained(folder, config=own, **options)  # nosec B615


def _read(network: Any, pixels: Tensor) -> Tensor:
    """(B,3,S,S) -> (B,F): the projected embedding, then the patch tokens of the last layer but one, pooled."""
    found = network(pixel_values=pixels, output_hidden_states=True)
    side = pixels.shape[-1] // network.config.patch_size
    return torch.cat([found.image_embeds, *pooled(found.hidden_states[-2], (side, side))], dim=1)
