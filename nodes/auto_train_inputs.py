"""Inputs of FeedbackAutoTrain: when to train, with which recipe, who judges, and how the pictures to judge are made."""

from __future__ import annotations

from .compat import FEEDBACK, REWARD, io
from .inputs import sampling_inputs
from .reinforce_inputs import size_inputs
from .training_inputs import (
    adapter_inputs,
    checks_input,
    length_inputs,
    lora_inputs,
    objective_input,
    pictures_input,
)

PEOPLE, REWARDED = "people", "a reward"
MODEL, IN_USE = "the model", "the LoRA in use"
LEAST = 30
"""Votes, or pictures that a reward compares: with fewer, chance wins too often."""


def inputs() -> list[io.Input]:
    """All of them, in the order in which they are shown."""
    return [
        io.Model.Input("model", tooltip="The model that made the rated pictures, without this node's LoRA."),
        FEEDBACK.Input("feedback", tooltip="Which ratings to learn from: connect Collect feedback."),
        io.Clip.Input("clip", tooltip="The model's text encoder."),
        io.Vae.Input("vae", tooltip="The model's VAE."),
        io.ClipVision.Input(
            "clip_vision",
            tooltip="Image encoder of a taste that is learned from the ratings first: where that does not beat chance "
            "on pictures that it has not seen, nothing is trained.",
        ),
        # not inside decided_by: the frontend cannot make a node whose first choice brings a socket
        REWARD.Input("reward", optional=True, tooltip="Decides whether the candidate is better, where you chose so."),
        *when_inputs(),
        decided_by_input(),
        objective_input(),
        pictures_input(),
        *length_inputs(),
        *lora_inputs("auto"),
        start_input(),
        *pair_inputs(),
        *sampling_inputs("the pictures to judge"),
        *size_inputs(),
        checks_input(),
        *(one for one in adapter_inputs() if one.id not in ("existing_lora", "resume")),
    ]


def when_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "new_ratings", default=50, min=1, max=1_000_000,
            tooltip="Trains once so many ratings, likes and comparisons have come since it trained last.",
        ),
        io.Boolean.Input(
            "dry_run", default=False, tooltip="Says what it would do now, and changes nothing.",
        ),
    ]  # fmt: skip


def decided_by_input() -> io.DynamicCombo.Input:
    votes = io.Int.Input(
        "votes", default=LEAST, min=LEAST, max=10_000,
        tooltip="So many votes are waited for. The candidate is promoted if it then wins clearly: the 95 % interval of "
        "its share of them lies above one half.",
    )  # fmt: skip
    collection = io.String.Input(
        "collection", default="auto train",
        tooltip="The pairs come into this collection, which holds nothing else, and are compared there or in all "
        "collections, in the sidebar under Compare. Nothing tells which picture is whose.",
    )  # fmt: skip
    return io.DynamicCombo.Input(
        "decided_by",
        tooltip="Who says whether a new LoRA is better than the one in use: people, who compare pairs blindly, or the "
        "connected reward, at once.",
        options=[io.DynamicCombo.Option(PEOPLE, [votes, collection]), io.DynamicCombo.Option(REWARDED, [])],
    )


def start_input() -> io.Input:
    return io.Combo.Input(
        "start_from", options=[MODEL, IN_USE], default=MODEL,
        tooltip="the model: every LoRA is learned anew from all ratings. the LoRA in use: goes on from it.",
    )  # fmt: skip


def pair_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "prompts", default="", multiline=True,
            tooltip="What to draw for the comparison, a prompt a line; best prompts that were not rated. Nothing: the "
            "prompts of the rated pictures.",
        ),
        io.Int.Input(
            "pairs", default=40, min=LEAST, max=10_000,
            tooltip="How many pairs are drawn, over all prompts in turn, each with a seed of its own.",
        ),
    ]  # fmt: skip
