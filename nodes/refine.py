"""FeedbackRefineRegion: marked places of a picture are made anew, and all else stays bit-equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..guidance import regions
from .compat import REWARD, io, ui
from .inputs import denoise_input, sampling_inputs, seed_input
from .refining import ADDED, INSTEAD, Plan, refined, stored_rounds
from .region_mask import FeedbackRegionMask


class FeedbackRefineRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackRefineRegion",
            display_name="Refine marked places",
            category="feedback/refine",
            description=(
                "Makes the marked part of a picture anew, several times, puts the best one back without a seam, and "
                "leaves every pixel outside of the mask as it was. Each round is recorded."
            ),
            search_aliases=["inpaint", "detailer", "fix region", "regenerate part", "crop and stitch", "refine"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model; one made for inpainting is recognised."),
                io.Conditioning.Input("positive", tooltip="The prompt, where no comment says what is wanted."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. What the comment forbids is added."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input("images", tooltip="The pictures to refine, each by itself."),
                io.Mask.Input("mask", tooltip="What to make anew (white). One for each picture, or one for all."),
                seed_input("The seed of the first candidate; the others count on from it.", changes=True),
                *sampling_inputs("each candidate", "steps", "simple"),
                denoise_input("1 makes the place wholly anew, .4 keeps its rough shape."),
                io.Int.Input(
                    "candidates", default=4, min=1, max=32, tooltip="How many are made; the best one is put in."
                ),
                *_later_refine_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Each picture with its best candidate."),
                io.Image.Output(display_name="candidates", tooltip="All candidates, whole pictures, the best first."),
                io.String.Output(
                    display_name="round", is_output_list=True, tooltip="The ids under which the rounds are recorded."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Tensor, mask: Tensor, **given: Any) -> io.NodeOutput:
        plan, masks = Plan.of(cls.hidden, given), _masks(mask, images)
        marked = [i for i, one in enumerate(masks) if one.any()]
        results = [refined(plan, images[i : i + 1], masks[i]) for i in marked]
        ids = stored_rounds(cls.hidden, plan, images[marked], results) if plan.collection and marked else []
        best = images.clone()
        for i, one in zip(marked, results, strict=True):
            best[i] = one.pictures[0]
        every = torch.cat([one.pictures for one in results]) if marked else images
        told = [one.summary() for one in results] or ["Nothing is marked. Mark a place in the picture and run again."]
        shown = ui.PreviewImage(every, cls=cls).as_dict() | {"text": ("\n".join(told),)}
        return io.NodeOutput(best, every, ids, ui=shown)


def _masks(mask: Tensor, images: Tensor) -> list[Tensor]:
    """One (H, W) for each picture; the last one serves for pictures without one. Raises ValueError for another size."""
    mask = mask.reshape(-1, *mask.shape[-2:]).float().clamp(0, 1)
    if mask.shape[-2:] != images.shape[1:3]:
        raise regions.RegionError(
            f"The mask has {mask.shape[-1]} x {mask.shape[-2]} pixels, the picture {images.shape[2]} x "
            f"{images.shape[1]}: connect the mask that was made for this picture."
        )
    return [mask[min(i, len(mask) - 1)] for i in range(len(images))]


def _later_refine_inputs() -> list[io.Input]:
    return [
        io.Clip.Input("clip", optional=True, tooltip="The text encoder. Needed for a comment."),
        io.String.Input(
            "comment",
            default="",
            multiline=True,
            optional=True,
            tooltip="What should be there, or what should not: a smaller star, no text. Connect the comment of Mask of "
            "marked places, or write it.",
        ),
        REWARD.Input("reward", optional=True, tooltip="Orders the candidates by what it gives for the place alone."),
        io.String.Input(
            "collection",
            default="refined",
            optional=True,
            tooltip="The collection in which the round and its candidates are recorded. Empty records nothing.",
        ),
        io.Combo.Input(
            "inpaint",
            options=["differential", "mask"],
            optional=True,
            advanced=True,
            tooltip="differential: the edge of the mask is freed step by step and grows into its surroundings. mask: "
            "all of it is free from the start.",
        ),
        io.Float.Input(
            "context",
            default=0.5,
            min=0.0,
            max=10.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How much of the picture around the mask the model sees, in extents of the mask.",
        ),
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=4096,
            step=8,
            optional=True,
            advanced=True,
            tooltip="The side, in pixels, that the model likes best: 512 for SD1.5, 1024 for SDXL, SD3 and Flux. 0 "
            "chooses by the model.",
        ),
        io.Float.Input(
            "zoom",
            default=1.0,
            min=1.0,
            max=8.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Small places are made up to so many times as large, for detail, and shrunk again.",
        ),
        io.Float.Input(
            "feather",
            default=6.0,
            min=0.0,
            max=64.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="Within how many pixels the new part is blended in, inside of the mask.",
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How strongly the reward also steers the place while it is made. 0 only orders the candidates.",
        ),
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="The words that `positive` was encoded from, where the comment is added to them. Empty finds them "
            "in the graph.",
        ),
        io.Combo.Input(
            "comment_is",
            options=[INSTEAD, ADDED],
            optional=True,
            advanced=True,
            tooltip="What becomes of what the comment wants. the prompt there: the place is made by the comment alone. "
            "added to the prompt: it is said after the picture's own prompt.",
        ),
    ]


NODES: list[type[io.ComfyNode]] = [FeedbackRegionMask, FeedbackRefineRegion]
