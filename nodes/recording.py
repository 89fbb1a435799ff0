"""What the nodes that take pictures into the store share: pixels, how they were made, and the recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..feedback import provenance
from ..feedback.graph import upstream
from ..feedback.marks import Tag
from ..feedback.records import MAX_NAME, Generation, Provenance
from .compat import io, store
from .run_notes import RATER, of_run
from .watermarks import LOOKER

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**64 - 1


def positive_input() -> io.String.Input:
    return io.String.Input(
        "positive",
        optional=True,
        force_input=True,
        tooltip="The prompt, if it is made at run time. Left open, it is read from the graph that ran.",
    )


def seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        optional=True,
        force_input=True,
        min=0,
        max=MAX_SEED,
        tooltip="The seed, if it is made at run time. Left open, it is read from the graph that ran.",
    )


def pictures_of(images: torch.Tensor) -> list[np.ndarray]:
    """IMAGE (B, H, W, 1, 3 or 4) in 0..1 as uint8 (H, W, 3 or 4), cut off as SaveImage does: both files agree."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"images has the shape {tuple(images.shape)}, not (batch, height, width, channels) with 1, 3 or 4 "
            "channels; connect the IMAGE output of a node such as VAE Decode."
        )
    if images.shape[-1] == 1:
        images = images.expand(-1, -1, -1, 3)
    return list(np.clip(255.0 * images.detach().cpu().float().numpy(), 0, 255).astype(np.uint8))


def collection_name(text: str) -> str:
    """The name without blanks around it, or ValueError if nothing is left."""
    if not (name := text.strip()):
        raise ValueError("collection is empty. Give it a name, such as the name of your project.")
    return name


def given(positive: str | None, negative: str | None, seed: int | None) -> dict[str, str]:
    """What was connected, by its name in a Provenance: it wins over what the graph says."""
    texts = {"prompt": positive, "negative": negative, "seed": None if seed is None else str(seed)}
    return {name: text for name, text in texts.items() if text is not None}


def generation_of(hidden: Any, overrides: dict[str, str]) -> Generation:
    """How the run that is going on makes pictures, from the hidden inputs of the node."""
    from comfy_execution.utils import get_executing_context
    from comfyui_version import __version__ as comfyui_version

    prompt: dict[str, Any] = hidden.prompt or {}
    workflow = (hidden.extra_pnginfo or {}).get("workflow")
    node_id = str(hidden.unique_id)
    found = provenance.read(prompt, workflow, node_id) if prompt else Provenance()
    context = get_executing_context()
    return Generation.of(
        replace(found, **overrides),
        prompt_id=context.prompt_id if context else None,
        node_id=node_id,
        api_prompt=prompt or None,
        workflow=workflow,
        versions={"comfyui": comfyui_version},
    )


def record(
    pictures: Sequence[np.ndarray], generation: Generation, collection: str, latents: np.ndarray | None
) -> list[str]:
    """The ids of the pictures, once all of them are on disk; what was recorded before keeps its id.

    Their watermark scores follow beside the run.
    """
    kept = store()
    made = [(picture, replace(generation, batch_index=index)) for index, picture in enumerate(pictures)]
    ids = kept.add_images(made, collection)
    if latents is not None:
        for image_id, latent in zip(ids, latents, strict=True):
            kept.add_latent(image_id, latent)
    _tag_with_rules(ids, generation)
    LOOKER.look_at(ids)
    return ids


def _tag_with_rules(ids: Sequence[str], generation: Generation) -> None:
    """What rules did to the pictures while they were made becomes tags of theirs."""
    if not generation.api_prompt or generation.node_id is None:
        return
    above = upstream(generation.api_prompt, generation.node_id)
    for image_id, texts in zip(ids, of_run(generation.prompt_id, above, len(ids)), strict=True):
        for text in texts:
            store().add_tag(Tag(image_id, text[:MAX_NAME], RATER))
