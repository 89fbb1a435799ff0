"""An image encoder whose joint space is as wide as that of `tiny_models.clip()`: both halves of a CLIP."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision

from . import tiny_models


def clip_vision(seed: int = 0, width: int = 32, kind: str = "clip_vision_model") -> Any:
    """CLIP's image tower of 8-pixel patches on 32 pixels; its embedding has `width` numbers."""
    config = {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3,
        "hidden_act": "quick_gelu", "image_size": 32, "model_type": kind, "num_channels": 3, "patch_size": 8,
        "projection_dim": width,
    }  # fmt: skip
    made = comfy.clip_vision.ClipVisionModel(config)
    tiny_models.randomise(made.model, seed)
    return made


def connected(**changed: Any) -> dict[str, Any]:
    """The text reward's choice of model: both encoders connected."""
    made = {
        "model": "the connected CLIP and CLIP Vision",
        "clip": tiny_models.clip(),
        "clip_vision": clip_vision(),
    }
    return made | changed
