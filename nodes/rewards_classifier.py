"""FeedbackClassifierReward: one label of an image classifier as a reward."""

from __future__ import annotations

from typing import Any

from ..feedback.rewards.base import RewardError
from ..feedback.rewards.classifier import ClassifierReward, label_index, load_classifier
from . import reward_folders
from .compat import REWARD, io
from .encoder import ManagedNetwork

CATEGORY = "feedback/reward"


def classifier_reward(name: str, label: str, direction: int, enough: float) -> ClassifierReward:
    """Raises RewardError for a model that isn't there or can't be read, and for a label that it does not have."""
    encoder, labels, exclusive = load_classifier(reward_folders.folder_of(name))
    index = label_index(labels, label)
    return ClassifierReward(ManagedNetwork(encoder), index, label, exclusive, direction, enough)


def options() -> list[io.DynamicCombo.Option]:
    """Each classifier of models/rewards with its labels."""
    return [
        io.DynamicCombo.Option(
            name,
            [io.Combo.Input("label", options=labels, tooltip="The label that pictures should get, or should not.")],
        )
        for name, labels in reward_folders.classifiers().items()
    ] or [io.DynamicCombo.Option(reward_folders.NONE, [])]


class FeedbackClassifierReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackClassifierReward",
            display_name="Classifier reward",
            category=CATEGORY,
            description=(
                "Rewards pictures to which an image classifier gives a label: any of Hugging Face's classifiers in "
                "models/rewards, and timm's where timm is installed."
            ),
            search_aliases=["classifier guidance", "label", "image classification", "nsfw", "style classifier", "timm"],
            inputs=[
                io.DynamicCombo.Input(
                    "model",
                    options=options(),
                    tooltip="A folder of models/rewards with config.json, model.safetensors and "
                    "preprocessor_config.json. New folders show up after refreshing the page (R).",
                ),
                io.Combo.Input(
                    "aim", options=["more", "less"], default="more", tooltip="Towards the label, or away from it."
                ),
                io.Float.Input(
                    "enough",
                    default=4.0,
                    min=-10.0,
                    max=20.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Log-odds at which the label is taken as given and the pull ends: 4 is a probability of "
                    "98 %. Beyond that only the classifier's mistakes are left to gain.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="Log-odds of the label against all others, up to enough.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model: Any = None, **inputs: object) -> str:
        return reward_folders.fingerprint(model, inputs)

    @classmethod
    def execute(cls, model, aim="more", enough=4.0) -> io.NodeOutput:
        if model["model"] == reward_folders.NONE:
            raise RewardError(
                "There is no image classifier in models/rewards. Put the folder of one there, with config.json, "
                "model.safetensors and preprocessor_config.json, and refresh the page."
            )
        label = str(model.get("label", ""))
        return io.NodeOutput(classifier_reward(model["model"], label, -1 if aim == "less" else 1, enough))


NODES: list[type[io.ComfyNode]] = [FeedbackClassifierReward]
