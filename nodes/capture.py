"""FeedbackCapture: records pictures with how they were made, shows them with stars, and passes them on unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .compat import io
from .recording import collection_name, generation_of, given, pictures_of, positive_input, record, seed_input

if TYPE_CHECKING:
    import torch


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
                positive_input(),
                io.String.Input(
                    "negative",
                    optional=True,
                    force_input=True,
                    tooltip="The negative prompt, if it is made at run time. Left open, it is read from the graph.",
                ),
                seed_input(),
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
