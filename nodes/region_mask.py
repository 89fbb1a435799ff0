"""FeedbackRegionMask: what people marked in a picture becomes a MASK."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..feedback import media, refinements
from ..feedback.marks import StoredRegion
from ..guidance import regions
from ..guidance.regions import Combine
from .compat import io, store, ui
from .dataset import names
from .recording import pictures_of

UNION, MAJORITY = "union", "majority"
CIRCLE, SNAP = "circle", "snap"


def ids_showing(images: Tensor, collection: str) -> list[list[str]]:
    """For each picture of the batch, those in the store that show exactly it."""
    where = collection.strip() or None
    hashes = [media.pixel_hash(pixels) for pixels in pictures_of(images)]
    return [store().ask(lambda c, found=found: refinements.with_pixels(c, found, where)) for found in hashes]


def marks_on(images: Tensor, collection: str, labels: str, raters: str) -> list[list[StoredRegion]]:
    """The marked places of each picture of the batch that are asked for."""
    wanted, whose = {name.lower() for name in names(labels)}, set(names(raters))
    found: list[list[StoredRegion]] = []
    for ids in ids_showing(images, collection):
        marks = store().marks(ids)
        every = [region for id_ in ids for region in marks[id_].regions]
        kept = [one for one in every if not wanted or one.label.lower() in wanted]
        found.append([one for one in kept if not whose or one.rater in whose])
    return found


def mask_of(region: StoredRegion, pixels: np.ndarray, snap: bool, radius: float, tolerance: float) -> np.ndarray:
    """(H, W) float32 in 0..1. radius: of a point, in fractions of the shorter side."""
    height, width = pixels.shape[:2]
    points = region.geometry
    if region.mask is not None:
        return regions.painted(media.decode_mask(region.mask), height, width)
    if region.shape == "rect":
        return regions.box(points[0], points[1], height, width)
    if region.shape == "polygon":
        return regions.polygon(points, height, width)
    if snap:
        return regions.snapped(points[0], pixels, tolerance, radius)
    return regions.disc(points[0], radius, height, width)


def combined_mask(
    marks: Sequence[StoredRegion], pixels: np.ndarray, combine: Combine, snap: bool, radius: float, tolerance: float
) -> Tensor:
    """(H, W): the marks of all raters in one; zeros where there are none."""
    by_rater: dict[str, list[np.ndarray]] = {}
    for one in marks:
        by_rater.setdefault(one.rater, []).append(mask_of(one, pixels, snap, radius, tolerance))
    whole = regions.combined(by_rater, combine)
    return torch.zeros(pixels.shape[:2]) if whole is None else torch.from_numpy(whole)


def said_of(marks: Sequence[Sequence[StoredRegion]]) -> tuple[str, str]:
    """(the comments of the marks, their labels), each once, separated by commas."""
    every = [one for some in marks for one in some]
    comments = dict.fromkeys(one.comment.strip() for one in every if one.comment and one.comment.strip())
    return ", ".join(comments), ", ".join(dict.fromkeys(one.label for one in every))


class FeedbackRegionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackRegionMask",
            display_name="Mask of marked places",
            category="feedback/refine",
            description=(
                "The places that people marked in a picture, in the capture node or the sidebar, as a mask: points, "
                "boxes and brush strokes, by label, of one person or of several."
            ),
            search_aliases=["region", "inpaint mask", "marks to mask", "annotations", "segment by point"],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The marked pictures, as they were captured; they are known by sight."
                ),
                io.String.Input(
                    "labels", default="", tooltip="Only marks with these labels, separated by commas. Empty: all marks."
                ),
                io.Combo.Input(
                    "points",
                    options=[SNAP, CIRCLE],
                    tooltip="What becomes of a marked point. snap: the object of like colour that it lies on. circle: "
                    "a circle around it.",
                ),
                io.Float.Input(
                    "radius",
                    default=8.0,
                    min=0.1,
                    max=50.0,
                    step=0.5,
                    tooltip="Radius of the circle around a point, in percent of the picture's shorter side.",
                ),
                io.Int.Input(
                    "grow",
                    default=4,
                    min=-256,
                    max=256,
                    tooltip="Pixels by which the mask grows, or shrinks if below 0.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=128.0,
                    step=0.5,
                    tooltip="Within how many pixels the edge of the mask rises, inside of it. 0 leaves it hard, which "
                    "is right for Refine marked places.",
                ),
                *_later_mask_inputs(),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="White where something is marked; one for each picture."),
                io.String.Output(display_name="comment", tooltip="What was written at the marks."),
                io.String.Output(display_name="labels", tooltip="The labels of the marks that were found."),
                io.Int.Output(display_name="count", tooltip="How many marks were found."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> int:
        return store().feedback().revision

    @classmethod
    def execute(
        cls,
        images: Tensor,
        labels: str,
        points: str,
        radius: float,
        grow: int,
        feather: float,
        raters: str = "",
        combine: Combine = UNION,
        tolerance: float = 20.0,
        collection: str = "",
    ) -> io.NodeOutput:
        marks = marks_on(images, collection, labels, raters)
        pixels = [one[..., :3] for one in pictures_of(images)]
        snap = points == SNAP
        masks = [
            combined_mask(m, p, combine, snap, radius / 100, tolerance) for m, p in zip(marks, pixels, strict=True)
        ]
        mask = regions.feathered(regions.grown(torch.stack(masks), grow), feather)
        # growing makes nothing of nothing, but shrinking must not turn an empty mask around
        mask = mask * (torch.stack(masks).amax(dim=(1, 2), keepdim=True) > 0)
        comment, found = said_of(marks)
        count = sum(len(some) for some in marks)
        shown = ui.PreviewMask(mask, cls=cls).as_dict() | {"text": (f"{count} marks: {found or 'none'}",)}
        return io.NodeOutput(mask, comment, found, count, ui=shown)


def _later_mask_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "raters",
            default="",
            optional=True,
            advanced=True,
            tooltip="Only marks of these people, separated by commas. Empty takes everybody's.",
        ),
        io.Combo.Input(
            "combine",
            options=[UNION, MAJORITY],
            optional=True,
            advanced=True,
            tooltip="Where several people marked: union takes what anybody marked, majority what more than half of "
            "them did.",
        ),
        io.Float.Input(
            "tolerance",
            default=20.0,
            min=1.0,
            max=100.0,
            step=1.0,
            optional=True,
            advanced=True,
            tooltip="How far colours may differ within an object that a point snaps to: 5 is hardly visible, 20 "
            "another shade, 50 another colour.",
        ),
        io.String.Input(
            "collection",
            default="",
            optional=True,
            advanced=True,
            tooltip="Only marks on pictures of this collection. Empty looks in all.",
        ),
    ]
