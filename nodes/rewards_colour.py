"""FeedbackColorReward: light, colour, contrast and sharpness, hues and palettes as rewards."""

from __future__ import annotations

from typing import Any

from ..feedback.rewards.base import Reward
from ..feedback.rewards.colour import PROPERTIES, ColourReward
from ..feedback.rewards.hues import PaletteReward, parse_colours
from .compat import REWARD, io

CATEGORY = "feedback/reward"
PALETTE = "nearness to a palette"


def colour_reward(chosen: str, aim: dict[str, Any], palette: str) -> Reward:
    """Raises RewardError for a palette that is none."""
    direction = -1 if aim["aim"] == "less" else 1
    if chosen == PALETTE:
        return PaletteReward(parse_colours(palette), direction)
    return ColourReward(chosen, direction, aim.get("value"))


class FeedbackColorReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        amount = io.Float.Input(
            "value",
            default=0.5,
            min=-2.0,
            max=1.0,
            step=0.01,
            tooltip="The value to come near to. Brightness, saturation and amounts of a colour 0 to 1, contrast 0 to "
            ".5, warmth -1 to 1, colourfulness 0 to 1, sharpness about -2 (soft) to -1 (crisp).",
        )
        return io.Schema(
            node_id="FeedbackColorReward",
            display_name="Colour reward",
            category=CATEGORY,
            description=(
                "Rewards more or less of a property that can be measured: light, colour, contrast, sharpness, a hue, "
                "or nearness to a palette."
            ),
            search_aliases=[
                "brightness", "saturation", "contrast", "warmth", "sharpness", "colorfulness", "color", "palette",
            ],
            inputs=[
                io.Combo.Input(
                    "property",
                    options=[*PROPERTIES, PALETTE],
                    tooltip="What is measured. One unit is about what ordinary pictures differ by.",
                ),
                io.DynamicCombo.Input(
                    "aim",
                    options=[
                        io.DynamicCombo.Option("more", []),
                        io.DynamicCombo.Option("less", []),
                        io.DynamicCombo.Option("target", [amount]),
                    ],
                    tooltip="As much of it as can be, as little as can be, or near to one value. For a palette, more "
                    "and target are towards it and less is away from it.",
                ),
                io.String.Input(
                    "palette",
                    default="#1f6f8b, #f2c14e",
                    optional=True,
                    tooltip="For nearness to a palette: up to 16 colours as on web pages, separated by commas. Each "
                    "should have a place in the picture; the order does not matter.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="The reward, in standard deviations of ordinary pictures.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, property, aim, palette="#1f6f8b, #f2c14e") -> io.NodeOutput:
        return io.NodeOutput(colour_reward(property, aim, palette))


NODES: list[type[io.ComfyNode]] = [FeedbackColorReward]
