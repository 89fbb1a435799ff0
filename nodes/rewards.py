"""Reward nodes: learn a taste from ratings, keep it, measure pictures, and put rewards together."""

from __future__ import annotations

import folder_paths
import torch

from ..feedback.rewards.colour import PROPERTIES, ColourReward
from ..feedback.rewards.combine import CombinedReward
from ..feedback.rewards.watermark import WatermarkPenalty
from . import reward_files
from .compat import FEEDBACK, REWARD, REWARDS_FOLDER, io, store, ui
from .learning import learn_taste, measured, parse_weights, pictures_of, prepared
from .plots import interval_plot

CATEGORY = "feedback/reward"


class FeedbackTrainReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackTrainReward",
            display_name="Learn a taste",
            category=CATEGORY,
            description=(
                "Learns from ratings and comparisons which pictures are liked, and says how well it does on prompts "
                "that it was not shown."
            ),
            search_aliases=["train reward", "preference model", "taste", "aesthetic score", "reward model"],
            is_output_node=True,
            inputs=[
                FEEDBACK.Input("feedback", tooltip="What to learn from: the output of Collect feedback."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The image encoder through whose eyes the taste sees. The taste works with this one only.",
                ),
                io.Float.Input(
                    "caution",
                    default=1.0,
                    min=0.0,
                    max=5.0,
                    step=0.1,
                    tooltip="How many standard deviations of doubt are taken off a score. 0 trusts what was learned "
                    "everywhere; 1 is wary of pictures unlike those that were rated.",
                    advanced=True,
                ),
                io.String.Input(
                    "axis",
                    default="",
                    tooltip="Learn this axis instead of the one that Collect feedback names. Empty keeps that.",
                    advanced=True,
                ),
                io.String.Input(
                    "tag",
                    default="",
                    tooltip="Learn a tag instead of ratings: pictures with it against those that the same people "
                    "tagged or rated without it. Empty learns ratings and comparisons.",
                    advanced=True,
                ),
            ],
            outputs=[
                REWARD.Output("reward", tooltip="The taste: higher for pictures that are liked."),
                io.String.Output("report", tooltip="How good the taste is, in plain words."),
                io.Image.Output("plot", tooltip="Accuracy on held-out prompts with its interval, and its bound."),
                io.Float.Output("accuracy", tooltip="Share of held-out pairs that the taste ranks as the rater did."),
            ],
        )

    @classmethod
    def execute(cls, feedback, clip_vision, caution=1.0, axis="", tag="") -> io.NodeOutput:
        taste, report, text = learn_taste(store(), feedback, clip_vision, caution, axis, tag)
        rows: dict[str, tuple[float, float, float]] = {"this taste": report.held_out}
        if report.bound is not None:
            rows["best possible"] = (report.bound, report.bound, report.bound)
        plot = interval_plot(rows, "Pairs of held-out pictures ranked as the rater did", reference=0.5)
        preview = ui.PreviewImage(plot, cls=cls).as_dict() | {"text": (text,)}
        return io.NodeOutput(taste, text, plot, report.held_out.value, ui=preview)


class FeedbackSaveReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackSaveReward",
            display_name="Save reward",
            category=CATEGORY,
            description="Saves a reward into models/feedback_rewards. A file that is there is never overwritten.",
            search_aliases=["store reward", "export reward", "save taste"],
            is_output_node=True,
            inputs=[
                REWARD.Input("reward", tooltip="The reward to keep, such as one from Learn a taste."),
                io.String.Input(
                    "name",
                    default="my taste",
                    tooltip="Name of the file. If it is taken, a number is added to it.",
                ),
            ],
            outputs=[io.String.Output("file", tooltip="The name under which it was saved.")],
        )

    @classmethod
    def execute(cls, reward, name) -> io.NodeOutput:
        saved = reward_files.save(prepared(reward), name)
        return io.NodeOutput(saved, ui={"text": (f"Saved as {saved}",)})


class FeedbackLoadReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackLoadReward",
            display_name="Load reward",
            category=CATEGORY,
            description="Loads a reward that Save reward has kept. A taste needs the encoder that it was fitted on.",
            search_aliases=["load taste", "open reward"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folder_paths.get_filename_list(REWARDS_FOLDER),
                    tooltip="A file of models/feedback_rewards.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image encoder that the taste was fitted on. Colour and watermark rewards need none.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="The reward.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, **inputs: object) -> str:
        return reward_files.fingerprint(name)

    @classmethod
    def execute(cls, name, clip_vision=None) -> io.NodeOutput:
        return io.NodeOutput(reward_files.load(name, clip_vision))


class FeedbackWatermarkPenalty(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackWatermarkPenalty",
            display_name="Watermark penalty",
            category=CATEGORY,
            description="A reward that falls where a picture carries a visible watermark. Needs no ratings.",
            search_aliases=["remove watermark", "logo", "no text", "watermark detector"],
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
            ],
            outputs=[REWARD.Output("reward", tooltip="0 for a clean picture, lower the surer a watermark is.")],
        )

    @classmethod
    def execute(cls, margin=3.0) -> io.NodeOutput:
        return io.NodeOutput(WatermarkPenalty(margin))


class FeedbackColorReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        amount = io.Float.Input(
            "value",
            default=0.5,
            min=-2.0,
            max=1.0,
            step=0.01,
            tooltip="The value to come near to. Brightness and saturation 0 to 1, contrast 0 to .5, warmth -1 to 1, "
            "colourfulness 0 to 1, sharpness about -2 (soft) to -1 (crisp).",
        )
        return io.Schema(
            node_id="FeedbackColorReward",
            display_name="Colour reward",
            category=CATEGORY,
            description="Rewards more or less of a property that can be measured: light, colour, contrast, sharpness.",
            search_aliases=["brightness", "saturation", "contrast", "warmth", "sharpness", "colorfulness", "color"],
            inputs=[
                io.Combo.Input(
                    "property",
                    options=list(PROPERTIES),
                    tooltip="What is measured. One unit is about what ordinary pictures differ by.",
                ),
                io.DynamicCombo.Input(
                    "aim",
                    options=[
                        io.DynamicCombo.Option("more", []),
                        io.DynamicCombo.Option("less", []),
                        io.DynamicCombo.Option("target", [amount]),
                    ],
                    tooltip="As much of it as can be, as little as can be, or near to one value.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="The reward, in standard deviations of ordinary pictures.")],
        )

    @classmethod
    def execute(cls, property, aim) -> io.NodeOutput:
        return io.NodeOutput(ColourReward(property, -1 if aim["aim"] == "less" else 1, aim.get("value")))


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
            description="Adds rewards with weights into one. Their pictures are decoded and encoded once for all.",
            search_aliases=["add rewards", "weighted sum", "mix rewards"],
            inputs=[
                io.Autogrow.Input("rewards", template=slots, tooltip="The rewards to add."),
                io.String.Input(
                    "weights",
                    default="1",
                    tooltip="One number for each reward in order, separated by commas, such as 1, 0.5, -1. A negative "
                    "weight makes a penalty of a reward; rewards without a number count 1.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="The weighted sum.")],
        )

    @classmethod
    def execute(cls, rewards, weights="1") -> io.NodeOutput:
        parts = [prepared(reward) for reward in rewards.values() if reward is not None]
        return io.NodeOutput(CombinedReward(parts, parse_weights(weights, len(parts))))


class FeedbackScoreImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackScoreImages",
            display_name="Score pictures",
            category=CATEGORY,
            description="Scores pictures with a reward and sorts them, best first.",
            search_aliases=["rank images", "sort images", "best of", "rate automatically"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score."),
                REWARD.Input("reward", tooltip="What they are scored with."),
            ],
            outputs=[
                io.Image.Output("sorted", tooltip="The same pictures, the best first."),
                io.Float.Output("scores", is_output_list=True, tooltip="Their scores, in the order that they came in."),
                io.Float.Output("mean", tooltip="The mean of the scores."),
            ],
        )

    @classmethod
    def execute(cls, images, reward) -> io.NodeOutput:
        scores = measured(reward, pictures_of(images))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        lines = [f"{place}. picture {i + 1}: {scores[i]:+.3f}" for place, i in enumerate(order, 1)]
        mean = sum(scores) / len(scores)
        text = "\n".join([f"{prepared(reward).name}: mean {mean:+.3f}", *lines])
        return io.NodeOutput(images[torch.tensor(order)], scores, mean, ui={"text": (text,), "scores": scores})


NODES: list[type[io.ComfyNode]] = [
    FeedbackTrainReward,
    FeedbackSaveReward,
    FeedbackLoadReward,
    FeedbackWatermarkPenalty,
    FeedbackColorReward,
    FeedbackCombineRewards,
    FeedbackScoreImages,
]
