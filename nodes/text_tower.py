"""CLIP -> texts in the joint space of pictures and words: the projected, pooled output of one of its text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import comfy.clip_model
import comfy.sd1_clip
import torch
from torch import Tensor

from ..feedback.rewards.networks import unit
from ..feedback.rewards.text import TextTower
from .denoiser import WrongConnectionError
from .encoder import ClipVisionEncoder

SIGLIP = (
    "ComfyUI reads of {kind} only what comes before its joint space, so words can't be compared with it. Connect a "
    "CLIP image encoder (ViT-L, H or bigG), or put the whole SigLIP model into models/rewards and choose it as model."
)
COLOURS = {
    "red": (0.84, 0.16, 0.16),
    "green": (0.16, 0.63, 0.24),
    "blue": (0.19, 0.33, 0.82),
    "yellow": (0.93, 0.78, 0.16),
    "purple": (0.55, 0.24, 0.71),
}


def joint_width(clip_vision: Any) -> int:
    """Width of the image embedding in CLIP's joint space. Raises WrongConnectionError for encoders that have none."""
    width = getattr(clip_vision, "config", {}).get("projection_dim")
    if getattr(clip_vision, "model_type", "") != "clip_vision_model" or not width:
        raise WrongConnectionError(SIGLIP.format(kind=getattr(clip_vision, "model_type", "this encoder")))
    return int(width)


def text_tower(clip: Any, width: int) -> TextTower:
    """The text encoder of a CLIP whose embeddings are `width` wide; ComfyUI loads and moves it.

    Fits: CLIP-L with its projection (clip_l.safetensors as for Flux, SDXL and SD3), CLIP-H of SD 2, CLIP-G of SDXL.
    Raises WrongConnectionError for what has none such, as T5 and the CLIP-L inside SD 1.5 checkpoints.
    """
    if clip is None or getattr(clip, "cond_stage_model", None) is None:
        raise WrongConnectionError("There is no text encoder in what is connected as clip. Connect Load CLIP.")
    found = dict(_towers(clip.cond_stage_model))
    fitting = [name for name, (_, wide) in found.items() if wide == width]
    if not fitting:
        have = ", ".join(f"{name} of {wide} numbers" for name, (_, wide) in found.items()) or "no CLIP text encoder"
        raise WrongConnectionError(
            f"The image encoder's joint space has {width} numbers, but clip holds {have}. Connect the CLIP that was "
            "trained with it: clip_l for ViT-L (768), SDXL's clip_g for bigG (1280), SD 2's for H (1024)."
        )
    tower = found[fitting[0]][0]
    _check_projection(tower)

    def embed(texts: Sequence[str]) -> Tensor:
        return torch.cat([_embedded(clip, tower, fitting[0], text) for text in texts])

    return embed


def _towers(model: torch.nn.Module) -> Iterator[tuple[str, tuple[comfy.sd1_clip.SDClipModel, int]]]:
    """(key of its tokens, (encoder, width of its projection)) of each CLIP text encoder."""
    for name, tower in model.named_children():
        transformer = getattr(tower, "transformer", None)
        if isinstance(tower, comfy.sd1_clip.SDClipModel) and isinstance(transformer, comfy.clip_model.CLIPTextModel):
            yield name.removeprefix("clip_"), (tower, _projection(tower).shape[0])


def _projection(tower: comfy.sd1_clip.SDClipModel) -> Tensor:
    return tower.get_submodule("transformer.text_projection").get_parameter("weight").detach()


def _check_projection(tower: comfy.sd1_clip.SDClipModel) -> None:
    """SD 1.5's checkpoints lack the projection, and ComfyUI then leaves whatever was in memory in its place."""
    weight = _projection(tower).float()
    square = weight.shape[0] == weight.shape[1]
    spread = float(weight.std()) if bool(weight.isfinite().all()) else float("inf")
    if not 1e-5 < spread < 10 or (square and torch.equal(weight, torch.eye(len(weight), device=weight.device))):
        raise WrongConnectionError(
            "This CLIP has no projection into the joint space with pictures, as in SD 1.5 checkpoints. Connect a whole "
            "CLIP-L with Load CLIP, such as clip_l.safetensors, or put a CLIP model into models/rewards."
        )


@torch.no_grad()
def _embedded(clip: Any, tower: comfy.sd1_clip.SDClipModel, key: str, text: str) -> Tensor:
    """(1,F). Of a text that is longer than the encoder's window the first part counts."""
    tokens = clip.tokenize(text)
    clip.cond_stage_model.reset_clip_options()
    clip.load_model(tokens)
    tower.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        _, pooled = tower.encode([[token for token, *_ in tokens[key][0]]])[:2]
    finally:
        clip.cond_stage_model.reset_clip_options()
    return pooled.float().cpu()


def mismatch(encoder: ClipVisionEncoder, tower: TextTower) -> str:
    """A warning unless coloured discs and their names fit best as they belong; empty when all is well.

    Of the 120 ways to give five names to five discs, towers that know nothing of one another hit this one by chance.
    """
    with torch.no_grad():
        words = unit(tower([f"a {name} circle" for name in COLOURS]))
        pictures = unit(encoder(_discs())[:, : words.shape[1]].cpu())
    similar = pictures @ words.T
    order = torch.arange(len(COLOURS))
    fits = {places: float(similar[order, list(places)].sum()) for places in permutations(order.tolist())}
    if max(fits, key=lambda places: fits[places]) == tuple(order.tolist()):
        return ""
    return (
        "These two encoders do not match coloured discs with their names, so they were hardly trained together: take "
        "the CLIP and the CLIP_VISION of one model."
    )


def _discs() -> Tensor:
    """(5,3,64,64): a disc of each colour on grey."""
    across = torch.linspace(-2, 2, 64)
    inside = (across[:, None] ** 2 + across[None] ** 2 < 1).float()
    colours = torch.tensor(list(COLOURS.values())).view(-1, 3, 1, 1)
    return 0.5 + (colours - 0.5) * inside
