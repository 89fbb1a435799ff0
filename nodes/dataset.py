"""FeedbackDataset: picks what was said by collection, rater and axis, and hands it to nodes that learn from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from ..feedback.records import Feedback, RatedImage
from .compat import FEEDBACK, io, store, ui

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

EXTREMES = 6  # pictures shown from either end
COLUMNS = 6
SIDE = 128  # pixels of a picture in the preview


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, without blanks around them, each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def mean_values(rated: Sequence[RatedImage]) -> dict[str, float]:
    """The mean rating in 0..1 of each picture, best first."""
    values: dict[str, list[float]] = defaultdict(list)
    for rating in rated:
        values[rating.image_id].append(rating.value)
    means = {image_id: fmean(given) for image_id, given in values.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def nothing_found(feedback: Feedback, collections: Sequence[str]) -> str:
    """The sentence for a query that no judgement answers: what was asked, and what there is."""
    if feedback.collection is not None and feedback.collection not in collections:
        known = ", ".join(f"“{name}”" for name in sorted(collections)) or "none yet"
        return f"There is no collection named “{feedback.collection}”. Collections with pictures: {known}."
    where = f"in the collection “{feedback.collection}”" if feedback.collection else "in any collection"
    who = f" by {', '.join(feedback.raters)}" if feedback.raters else ""
    often = f" from {feedback.min_ratings} people each" if feedback.min_ratings > 1 else ""
    return (
        f"Nothing was rated{who}{often} on the axis “{feedback.axis}” {where} yet. Give some pictures stars in a "
        "Capture pictures node, then run this again."
    )


def extremes(values: dict[str, float]) -> list[str]:
    """The best and the worst pictures; all of them when they are few."""
    ids = list(values)
    return ids if len(ids) <= 2 * EXTREMES else ids[:EXTREMES] + ids[-EXTREMES:]


def preview(kept: FeedbackStore, values: dict[str, float]) -> torch.Tensor:
    """The best and the worst pictures with their mean stars, as IMAGE (1, H, W, 3)."""
    from .plots import grid

    shown = extremes(values)
    pictures = torch.stack([fitted(torch.from_numpy(kept.image_pixels(image_id))) for image_id in shown])
    return grid(pictures, COLUMNS, [f"{1 + 4 * values[image_id]:.1f} stars" for image_id in shown], SIDE)


def fitted(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (H, W, 3) as float (SIDE, SIDE, 3) in 0..1, whole, on white where it is not square."""
    picture = pixels.permute(2, 0, 1)[None].float() / 255
    scale = SIDE / max(picture.shape[-2:])
    size = [max(1, round(length * scale)) for length in picture.shape[-2:]]
    mode = "nearest" if scale >= 1 else "area"
    small = torch.nn.functional.interpolate(picture, size, mode=mode)[0]
    canvas = torch.ones(3, SIDE, SIDE)
    top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    canvas[:, top : top + size[0], left : left + size[1]] = small
    return canvas.permute(1, 2, 0)


class FeedbackDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackDataset",
            display_name="Collect feedback",
            category="feedback/capture",
            description=(
                "Picks ratings by collection, rater and axis for the nodes that learn from them. It looks again "
                "whenever a rating is given, changed or taken back."
            ),
            search_aliases=["ratings", "feedback dataset", "load ratings", "preferences"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "collection",
                    default="default",
                    tooltip="Only pictures of this collection, as named in Capture pictures. Empty takes all of them.",
                ),
                io.String.Input(
                    "raters",
                    default="",
                    tooltip="Only what these people said: names separated by commas. Empty takes everybody.",
                ),
                io.String.Input(
                    "axis",
                    default="overall",
                    tooltip="What was judged. The stars of Capture pictures are on the axis overall.",
                    advanced=True,
                ),
                io.Int.Input(
                    "min_ratings",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="How many people must have rated a picture for it to count. 1 takes every rated picture.",
                    advanced=True,
                ),
            ],
            outputs=[
                FEEDBACK.Output(display_name="feedback", tooltip="The chosen feedback, as it stands at this moment."),
                io.Int.Output(display_name="count", tooltip="How many rated pictures were found."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> int:
        return store().feedback().revision

    @classmethod
    def execute(cls, collection: str, raters: str, axis: str, min_ratings: int) -> io.NodeOutput:
        kept = store()
        query = kept.feedback(collection.strip() or None, names(raters), axis.strip() or "overall")
        feedback = replace(query, min_ratings=min_ratings)
        values = mean_values(kept.rated(feedback))
        if not values and not kept.compared(feedback):
            raise ValueError(nothing_found(feedback, list(kept.stats().collections)))
        shown = ui.PreviewImage(preview(kept, values), cls=cls) if values else None
        return io.NodeOutput(feedback, len(values), ui=shown)


NODES: list[type[io.ComfyNode]] = [FeedbackDataset]
