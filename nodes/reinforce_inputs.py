"""Inputs of FeedbackReinforceLora, beside those that it shares with the other trainer."""

from __future__ import annotations

from .compat import FEEDBACK, REWARD, io
from .inputs import sampling_inputs
from .training_inputs import adapter_inputs, lora_inputs

REWARDED, PEOPLE, AT_GATE = "a reward", "people", "people, at the gate"
AUTO, NO_ALARM, WARN, STOP = "when something is connected", "off", "warn", "stop"


def inputs() -> list[io.Input]:
    """All after the prompts, in the order in which they are shown."""
    return [
        # not inside scored_by: the frontend cannot make a node whose first choice brings a socket
        REWARD.Input(
            "reward", optional=True, tooltip="Scores the pictures: a taste, a colour, a penalty, or several combined."
        ),
        scored_by_input(),
        objective_input(),
        *length_inputs(),
        *lora_inputs("reinforced"),
        *sampling_inputs("the pictures"),
        *size_inputs(),
        alarm_input(),
        *more_inputs(),
        *adapter_inputs(),
        *watched_inputs(),
    ]


def scored_by_input() -> io.DynamicCombo.Input:
    collection = io.String.Input(
        "collection", default="reinforce", tooltip="Each epoch's pictures come into this collection, to be rated there."
    )
    hours = io.Float.Input(
        "hours", default=24.0, min=0.0, max=1000.0, step=0.5,
        tooltip="How long an epoch waits for the ratings. Cancel and resume work meanwhile.",
    )  # fmt: skip
    asked_for = io.String.Input(
        "collection", default="reinforce", tooltip="Each epoch's pictures and what was answered come into it."
    )
    mode = io.Combo.Input(
        "mode", options=["choose", "rank", "approve"],
        tooltip="What is asked about each prompt's pictures. choose: the best one. rank: all in order, which says "
        "most. approve: those that are good.",
    )  # fmt: skip
    patience = io.Float.Input(
        "hours", default=24.0, min=0.0, max=1000.0, step=0.5,
        tooltip="How long the next answer is waited for. Cancel and resume work meanwhile.",
    )  # fmt: skip
    return io.DynamicCombo.Input(
        "scored_by",
        tooltip="Who says how good a picture is: a reward; people, who rate each epoch's pictures in the sidebar; or "
        "people who are asked at once about each prompt's pictures, as by Wait for a choice.",
        options=[
            io.DynamicCombo.Option(REWARDED, []),
            io.DynamicCombo.Option(PEOPLE, [collection, hours]),
            io.DynamicCombo.Option(AT_GATE, [asked_for, mode, patience]),
        ],
    )


def objective_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "objective",
        tooltip="NFT is the one to begin with. AWM is its relative with a clip. PPO learns from the sampler's own "
        "steps, also for few-step models. DRaFT follows the reward's gradient: fastest, and first to fool it.",
        options=[
            io.DynamicCombo.Option("NFT", [_beta(), _kl(1e-3)]),
            io.DynamicCombo.Option("AWM", [_clip(0.05), _kl_old(), _kl(3e-3)]),
            io.DynamicCombo.Option("PPO", [_clip(1e-4), _kl(0.01), _eta(), _window()]),
            io.DynamicCombo.Option("DRaFT", [_kl(1e-3)]),
        ],
    )


def _beta() -> io.Input:
    return io.Float.Input(
        "beta", default=1.0, min=0.05, max=10.0, step=0.05,
        tooltip="The lower, the further the LoRA moves for the same scores.",
    )  # fmt: skip


def _kl(default: float) -> io.Input:
    return io.Float.Input(
        "kl", default=default, min=0.0, max=10.0, step=1e-4, round=False,
        tooltip="Pull back to the model as it was; raise it if pictures lose quality or become alike.",
    )  # fmt: skip


def _kl_old() -> io.Input:
    return io.Float.Input(
        "kl_old", default=0.5, min=0.01, max=10.0, step=0.05,
        tooltip="Pull back to the model that drew the epoch's pictures; .3 to 1.",
    )  # fmt: skip


def _clip(default: float) -> io.Input:
    return io.Float.Input(
        "clip", default=default, min=1e-6, max=0.5, step=1e-5, round=False,
        tooltip="How far a step may become likelier or rarer before it counts no more.",
    )  # fmt: skip


def _eta() -> io.Input:
    return io.Float.Input(
        "eta", default=1.0, min=0.05, max=1.0, step=0.05,
        tooltip="Noise that is added in the steps learned from: 1 for SD 1.5 and SDXL, .7 for flow models.",
    )  # fmt: skip


def _window() -> io.Input:
    return io.Int.Input(
        "window", default=2, min=1, max=100,
        tooltip="Steps of a run that are learned from, in the first half, others in each epoch.",
    )  # fmt: skip


def length_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "epochs", default=20, min=1, max=10_000,
            tooltip="How often the model draws anew, and is scored and trained on it.",
        ),
        io.Int.Input(
            "prompts_per_epoch", default=8, min=1, max=1024, tooltip="Different prompts an epoch, all in turn."
        ),
        io.Int.Input(
            "group_size", default=4, min=1, max=1024,
            tooltip="Pictures of each prompt, which are compared with each other; 4 to 16.",
        ),
        io.Int.Input("updates", default=4, min=1, max=1000, tooltip="Steps of training an epoch."),
        io.Int.Input(
            "batch", default=8, min=1, max=1024,
            tooltip="Pictures a step (sampler steps for PPO). NFT and AWM see each at four noise levels.",
        ),
        io.Float.Input(
            "learning_rate", default=1e-4, min=1e-7, max=0.1, step=1e-6, round=False,
            tooltip="How far the first steps go; it falls to 0. 1e-4 for real models, 1e-3 for tiny ones.",
        ),
    ]  # fmt: skip


def size_inputs() -> list[io.Input]:
    return [
        io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of the pictures in pixels."),
        io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height of the pictures in pixels."),
    ]


def watched_inputs() -> list[io.Input]:
    """What is only looked at; not inside `alarm`, whose first choice cannot bring a socket, see `inputs`."""
    return [
        REWARD.Input(
            "second_reward", optional=True,
            tooltip="Another reward, that is only looked at: when it falls while the first rises, the first is hacked.",
        ),
        FEEDBACK.Input(
            "ratings", optional=True,
            tooltip="Ratings that were not used to learn the reward: when the model moves away from what was liked "
            "there while the reward rises, something is wrong.",
        ),
    ]  # fmt: skip


def alarm_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "alarm",
        optional=True,
        tooltip="What to do when the reward rises at the cost of a second one, or of ratings. The first choice stops "
        "the run, wherever second_reward or ratings are connected.",
        options=[
            io.DynamicCombo.Option(AUTO, []),
            io.DynamicCombo.Option(NO_ALARM, []),
            io.DynamicCombo.Option(STOP, watched_inputs()),
            io.DynamicCombo.Option(WARN, watched_inputs()),
        ],
    )


def more_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "patience", default=0, min=0, max=1000, optional=True,
            tooltip="Epochs without a new best before training ends. 0 never ends early.",
        ),
        io.Boolean.Input(
            "win_rate", default=False, optional=True,
            tooltip="Learn from how many of its group a picture beats, not from by how much: outliers rule less.",
        ),
        io.Sampler.Input("sampler", optional=True, tooltip="A sampler instead of `sampler_name`; PPO brings its own."),
        io.Sigmas.Input("sigmas", optional=True, tooltip="Noise levels instead of those of `scheduler`."),
    ]  # fmt: skip
