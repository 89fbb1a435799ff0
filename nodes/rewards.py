"""Reward nodes: learn a taste from ratings, keep and load rewards, and measure pictures with them."""

from __future__ import annotations

import folder_paths
import torch

from . import reward_files
from .compat import FEEDBACK, REWARD, REWARDS_FOLDER, io, store, ui
from .learning import learn_taste, measured, pictures_of, prepared
from .plots import histogram, interval_plot

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
                    optional=True,
                    tooltip="Learn this axis instead of the one that Collect feedback names. Empty keeps that.",
                    advanced=True,
                ),
                io.String.Input(
                    "tag",
                    default="",
                    optional=True,
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
                io.Int.Output(
                    "ranking",
                    is_output_list=True,
                    tooltip="Numbers of the pictures, the best first, counted from 0 as in Get Image from Batch.",
                ),
                io.Image.Output("histogram", tooltip="How many pictures got which score."),
            ],
        )

    @classmethod
    def execute(cls, images, reward) -> io.NodeOutput:
        scores = measured(reward, pictures_of(images))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        lines = [f"{place}. picture {i + 1}: {scores[i]:+.3f}" for place, i in enumerate(order, 1)]
        mean = sum(scores) / len(scores)
        text = "\n".join([f"{prepared(reward).name}: mean {mean:+.3f}", *lines])
        best_first, chart = images[torch.tensor(order)], histogram(scores, prepared(reward).name)
        preview = ui.PreviewImage(pictures_of(best_first).movedim(1, -1), cls=cls).as_dict() | {
            "text": (text,),
            "scores": scores,
        }
        return io.NodeOutput(best_first, scores, mean, order, chart, ui=preview)


NODES: list[type[io.ComfyNode]] = [FeedbackTrainReward, FeedbackSaveReward, FeedbackLoadReward, FeedbackScoreImages]
