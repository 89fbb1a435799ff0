"""FeedbackCapture: records pictures with how they were made, shows them with stars, and passes them on unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..feedback import provenance
from ..feedback.records import Generation, Provenance
from .compat import io, store

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**64 - 1


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


def latents_of(latent: dict[str, Any], count: int) -> np.ndarray:
    """The samples of a LATENT, float32 (count, C, ...), or ValueError unless there is one for each picture."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or len(samples) != count:
        held = "nested samples" if getattr(samples, "is_nested", False) else f"{len(samples)} items"
        raise ValueError(
            f"latent holds {held}, but there are {count} images. Connect the latent that these images were decoded "
            "from, or leave it out."
        )
    return samples.detach().cpu().float().numpy()


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
    """The ids of the pictures, once all of them are on disk; what was recorded before keeps its id."""
    kept = store()
    ids = []
    for index, picture in enumerate(pictures):
        ids.append(kept.add_image(picture, replace(generation, batch_index=index), collection))
        if latents is not None:
            kept.add_latent(ids[-1], latents[index])
    return ids


class FeedbackCapture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackCapture",
            display_name="Capture pictures",
            category="feedback/capture",
            description=(
                "Records every picture with its prompt, seed and settings, and lets you rate it with stars, at once or "
                "later. The pictures pass through unchanged."
            ),
            search_aliases=["rate images", "stars", "rating", "human feedback", "collect ratings"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to record. They leave the node unchanged."),
                io.String.Input(
                    "collection",
                    default="default",
                    tooltip="A name for pictures that belong together, such as a project. Ratings are picked by it.",
                ),
                io.String.Input(
                    "positive",
                    optional=True,
                    force_input=True,
                    tooltip="The prompt, if it is made at run time. Left open, it is read from the graph that ran.",
                ),
                io.String.Input(
                    "negative",
                    optional=True,
                    force_input=True,
                    tooltip="The negative prompt, if it is made at run time. Left open, it is read from the graph.",
                ),
                io.Int.Input(
                    "seed",
                    optional=True,
                    force_input=True,
                    min=0,
                    max=MAX_SEED,
                    tooltip="The seed, if it is made at run time. Left open, it is read from the graph that ran.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latents that these pictures were decoded from, kept so that training need not encode.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The same pictures, unchanged.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        collection: str,
        positive: str | None = None,
        negative: str | None = None,
        seed: int | None = None,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        name = collection_name(collection)
        pictures = pictures_of(images)
        latents = None if latent is None else latents_of(latent, len(pictures))
        generation = generation_of(cls.hidden, given(positive, negative, seed))
        ids = record(pictures, generation, name, latents)
        # Not under "images": the frontend would draw those over the node; the node's own view shows these.
        return io.NodeOutput(images, ui={"feedback_images": ids, "feedback_collection": [name]})


NODES: list[type[io.ComfyNode]] = [FeedbackCapture]
