"""Rewards made of rewards: several as one, and one in a part of the picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..feedback.rewards.base import Reward, RewardError
from ..feedback.rewards.combine import HOW, CombinedReward, Scale, scale_of
from ..feedback.rewards.mask import MaskReward, box_of
from .compat import REWARD, io
from .denoiser import WrongConnectionError
from .learning import measured, parse_weights, pictures_of, prepared

CATEGORY = "feedback/reward"
SPAN = re.compile(r"\s*(\d*\.?\d+)\s*-\s*(\d*\.?\d+)\s*")


def combined(rewards: Sequence[Any], weights: str, how: str, active: str, reference: Tensor | None) -> Reward:
    """Raises RewardError for settings that don't fit the rewards, and where a scale is needed but none is known."""
    parts = [prepared(reward) for reward in rewards if reward is not None]
    numbers, spans = parse_weights(weights, len(parts)), parse_spans(active, len(parts))
    if how != "sum" and len(parts) > 1 and reference is None:
        raise RewardError(
            f"For the {how} the rewards have to be on one scale: connect some pictures as reference, such as 8 or more "
            "plain samples of the model."
        )
    scales = None if reference is None else [scaled(part, reference) for part in parts]
    return CombinedReward(parts, numbers, how, scales, spans)


def scaled(part: Reward, reference: Tensor) -> Scale:
    return scale_of(measured(part, pictures_of(reference)), part.name)


def parse_spans(text: str, count: int) -> list[tuple[float, float]]:
    """ "0-1, 0.2-0.6" -> (start, end) for each of `count` rewards; missing ones count all along. Raises RewardError."""
    named = [part for part in text.replace(";", ",").split(",") if part.strip()]
    matches = [SPAN.fullmatch(part) for part in named]
    spans = [(float(match[1]), float(match[2])) for match in matches if match]
    if len(spans) < len(named) or any(not 0 <= start < end <= 1 for start, end in spans):
        raise RewardError(
            f"active is '{text[:60]}'; write for each reward from where to where in the run it counts, as shares of 1, "
            "such as 0-1, 0.2-0.6."
        )
    if len(spans) > max(count, 1):
        raise RewardError(f"There are {len(spans)} parts of the run for {count} rewards; take some away.")
    return spans + [(0.0, 1.0)] * (count - len(spans))


class FeedbackCombineRewards(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = io.Autogrow.TemplatePrefix(
            REWARD.Input("reward", tooltip="A reward to add. A new slot appears when one is connected."),
            prefix="reward",
            min=1,
            max=16,
        )
        return io.Schema(
            node_id="FeedbackCombineRewards",
            display_name="Combine rewards",
            category=CATEGORY,
            description=(
                "Makes one reward of several: their weighted sum, the worst of them, or their product. Pictures are "
                "decoded and encoded once for all."
            ),
            search_aliases=["add rewards", "weighted sum", "mix rewards", "minimum", "product", "schedule"],
            inputs=[
                io.Autogrow.Input("rewards", template=slots, tooltip="The rewards to combine."),
                io.String.Input(
                    "weights",
                    default="1",
                    tooltip="One number for each reward in order, separated by commas, such as 1, 0.5, -1. A negative "
                    "weight makes a penalty of a reward; rewards without a number count 1.",
                ),
                io.Combo.Input(
                    "how",
                    options=list(HOW),
                    default="sum",
                    optional=True,
                    advanced=True,
                    tooltip="sum: strengths make up for weaknesses. minimum: the reward that does worst counts alone. "
                    "product: none may be poor, and what is good already counts little.",
                ),
                io.String.Input(
                    "active",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="From where to where in a run each reward counts, in order: 0-0.4, 0.3-1 is layout first, "
                    "detail later. Empty: all along. Finished pictures are always judged by all.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Pictures that put the rewards on one scale, such as plain samples: each reward is counted "
                    "in standard deviations from its mean over these. Minimum and product need them.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="All of them as one reward.")],
        )

    @classmethod
    def execute(cls, rewards, weights="1", how="sum", active="", reference=None) -> io.NodeOutput:
        return io.NodeOutput(combined(list(rewards.values()), weights, how, active, reference))


class FeedbackMaskReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackMaskReward",
            display_name="Reward in a region",
            category=CATEGORY,
            description="Lets a reward look at the part of the picture in a mask, with some of what is around it.",
            search_aliases=["region reward", "crop reward", "local reward", "mask"],
            inputs=[
                REWARD.Input("reward", tooltip="What the region is judged by."),
                io.Mask.Input(
                    "mask",
                    tooltip="Where the reward looks (white). Of several masks all that is white in any counts. Any "
                    "size: it is read as shares of the picture.",
                ),
                io.Float.Input(
                    "padding",
                    default=1.25,
                    min=1.0,
                    max=4.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much larger than the mask the crop is. Without surroundings rewards misread what "
                    "they are shown.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="The reward of the region alone.")],
        )

    @classmethod
    def execute(cls, reward, mask, padding=1.25) -> io.NodeOutput:
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 3):
            raise WrongConnectionError("What is connected as mask is no MASK. Connect one, such as from a mask editor.")
        return io.NodeOutput(MaskReward(prepared(reward), box_of(mask.cpu(), padding)))


NODES: list[type[io.ComfyNode]] = [FeedbackCombineRewards, FeedbackMaskReward]
