"""FeedbackWatermarkPenalty, and FeedbackTrainWatermarkDetector, which fits its detector to one's own pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from ..feedback.rewards.watermark import WatermarkPenalty, location
from .compat import REWARD, io, store, ui
from .denoiser import WrongConnectionError, gradients, patchers_of
from .learning import AT_ONCE, pictures_of
from .plots import interval_plot

if TYPE_CHECKING:
    from ..training.watermark_own import OwnReport

CATEGORY = "feedback/reward"
BUILT_IN, AUDITOR = "built in", "auditor"
MOST = 400
"""Pictures that a run looks at: more add minutes and little else."""


def penalty(margin: float, detector: str, trained: Any) -> WatermarkPenalty:
    """Raises WrongConnectionError when another reward than a watermark penalty is connected as trained."""
    if trained is None:
        return WatermarkPenalty(margin, made="auditor" if detector == AUDITOR else "shipped")
    if not isinstance(trained, WatermarkPenalty):
        raise WrongConnectionError(
            "What is connected as trained is no watermark detector. Connect Train watermark detector, or Load reward "
            "with one that it made."
        )
    return WatermarkPenalty(margin, trained.detector, trained.made)


def location_map(reward: WatermarkPenalty, images: Tensor | None) -> Tensor:
    """MASK (B,H,W) of where marks are seen; one black picture of 64 x 64 where there is none to look at."""
    if images is None:
        return torch.zeros(1, 64, 64)
    comfy.model_management.load_models_gpu(patchers_of(reward))
    device, found = comfy.model_management.vae_device(), []
    for block in pictures_of(images).split(AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        with torch.no_grad():
            found.append(location(reward.detector, block.to(device).float()).cpu())
    return torch.cat(found)


class FeedbackWatermarkPenalty(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackWatermarkPenalty",
            display_name="Watermark penalty",
            category=CATEGORY,
            description=(
                "A reward that falls where a picture carries a visible watermark. Needs no ratings. With pictures "
                "connected it also shows where the marks are."
            ),
            search_aliases=["remove watermark", "logo", "no text", "watermark detector", "watermark mask"],
            inputs=[
                io.Float.Input(
                    "margin",
                    default=3.0,
                    min=-5.0,
                    max=8.0,
                    step=0.5,
                    tooltip="How sure the detector has to be that there is none before the pull ends: at 3 it fades "
                    "around a probability of 5 %. Higher pulls for longer.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "detector",
                    options=[BUILT_IN, AUDITOR],
                    default=BUILT_IN,
                    optional=True,
                    advanced=True,
                    tooltip="The auditor was trained apart from the detector that is built in. Guide by one and score "
                    "by the other: what fools the first seldom fools both.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Pictures to look for marks in; the map shows where they are."
                ),
                REWARD.Input(
                    "trained",
                    optional=True,
                    tooltip="A detector from Train watermark detector, used instead of one that comes with the pack.",
                ),
            ],
            outputs=[
                REWARD.Output("reward", tooltip="0 for a clean picture, lower the surer a watermark is."),
                io.Mask.Output("map", tooltip="Where marks are seen in images: white for sure. Black without images."),
            ],
        )

    @classmethod
    def execute(cls, margin=3.0, detector=BUILT_IN, images=None, trained=None) -> io.NodeOutput:
        reward = penalty(margin, detector, trained)
        return io.NodeOutput(reward, location_map(reward, images))


def own_pictures(images: Tensor | None, collection: str) -> list[np.ndarray]:
    """(H,W,3) uint8 each, MOST of them at most, evenly chosen: those connected and those of the collection.

    Raises WrongConnectionError when there is neither.
    """
    found: list[np.ndarray] = [] if images is None else list(_as_bytes(images))
    ids = store().ids_of(collection.strip()) if collection.strip() else []
    if not found and not ids:
        raise WrongConnectionError(
            f"There is no picture in the collection “{collection.strip()[:60]}”: connect images, or name another."
            if collection.strip()
            else "There are no pictures to train on: connect images, or name a collection that was captured."
        )
    chosen = ids[:: max(1, -(-(len(found) + len(ids)) // MOST))]
    return found[:MOST] + [store().image_pixels(image_id)[..., :3] for image_id in chosen]


def _as_bytes(images: Tensor) -> Iterator[np.ndarray]:
    for picture in pictures_of(images).movedim(1, -1):
        yield (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def train_detector(pictures: list[np.ndarray], steps: int, seed: int) -> tuple[WatermarkPenalty, OwnReport, str]:
    """The penalty on the trained detector, its report, and that in words. Raises RewardError for too few pictures."""
    from ..training.watermark_own import OwnRecipe, describe, learn

    bar = comfy.utils.ProgressBar(1000)

    def told(done: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(int(1000 * done), 1000)

    with gradients():
        detector, report = learn(pictures, OwnRecipe(steps=steps, seed=seed), told)
    return WatermarkPenalty(detector=detector, made="own"), report, describe(report)


def auroc_plot(report: OwnReport) -> Tensor:
    """Each family's AUROC after training, with its 95 % interval (Hanley and McNeil 1982)."""
    rows = {}
    for name, trained, _, auroc, *_ in report.rows:
        first, second, n = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc), report.tested
        spread = auroc * (1 - auroc) + (n - 1) * (first + second - 2 * auroc**2)
        error = 1.96 * max(spread, 0.0) ** 0.5 / n
        rows[name + ("" if trained else " *")] = (auroc, max(0.0, auroc - error), min(1.0, auroc + error))
    return interval_plot(rows, "Marked crops that score above clean ones (* never trained on)", 0.5, (768, 320))


class FeedbackTrainWatermarkDetector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackTrainWatermarkDetector",
            display_name="Train watermark detector",
            category=CATEGORY,
            description=(
                "Fits the watermark detector to your own pictures, by laying marks on them. Minutes on a CPU; says on "
                "held-out pictures and kinds of marks whether it helped."
            ),
            search_aliases=["fine-tune watermark", "own watermark detector", "logo detector"],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures without watermarks, like those that you make: at least 8, better 50 or more.",
                ),
                io.String.Input(
                    "collection",
                    default="",
                    tooltip="Takes captured pictures of this collection as well. Empty: images alone.",
                ),
                io.Int.Input(
                    "steps",
                    default=600,
                    min=1,
                    max=20_000,
                    tooltip="Steps of training; 600 take two or three minutes on one core.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    advanced=True,
                    tooltip="Chooses crops, marks and order. The same seed and pictures give the same detector.",
                ),
            ],
            outputs=[
                REWARD.Output("reward", tooltip="The penalty by your detector. Save reward keeps it."),
                io.String.Output("report", tooltip="How well it finds marks on pictures that it has not seen."),
                io.Image.Output("plot", tooltip="The same by family of marks, with intervals."),
            ],
        )

    @classmethod
    def execute(cls, images=None, collection="", steps=600, seed=0) -> io.NodeOutput:
        reward, report, text = train_detector(own_pictures(images, collection), steps, seed)
        plot = auroc_plot(report)
        preview = ui.PreviewImage(plot, cls=cls).as_dict() | {"text": (text,)}
        return io.NodeOutput(reward, text, plot, ui=preview)


NODES: list[type[io.ComfyNode]] = [FeedbackWatermarkPenalty, FeedbackTrainWatermarkDetector]
