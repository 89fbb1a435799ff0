"""Inputs that the training nodes share, and what their values mean."""

from __future__ import annotations

from typing import Any

from ..training.adapters import KINDS, LAYERS
from ..training.distributed_options import RATE, RATES
from ..training.objectives import Nft, Objective, Sft
from ..training.preferences import Dpo, Kto
from .compat import REWARD, io
from .examples import Sampling
from .existing_lora import choices
from .inputs import sampling_inputs
from .policy import Setup

OBJECTIVES: dict[str, type[Objective]] = {"SFT": Sft, "NFT": Nft, "DPO": Dpo, "KTO": Kto}
ONLY_RATED, MORE = "rated pictures only", "and more, scored by a reward"
NO_CHECKS, CHECKS = "train on all pictures", "hold some out and stop early"
CURVES, SAMPLES = "curves", "curves and samples"


def goal_of(chosen: dict[str, Any]) -> tuple[Objective, dict[str, Any]]:
    """The objective that a DynamicCombo's value names, and the same as it is written into the file."""
    kind = chosen["objective"]
    settings = {key: value for key, value in chosen.items() if key != "objective"}
    return OBJECTIVES[kind](**settings), {"objective": kind, **settings}


def rate_of(objective: str, given: float) -> float:
    """The learning rate; 0 stands for the objective's own."""
    return given or RATES.get(objective.lower(), RATE)


def objective_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "objective",
        tooltip="SFT learns from the good pictures, best with few ratings. NFT also flees the bad ones. DPO learns "
        "from pairs of one prompt, KTO from likes and dislikes.",
        options=[
            io.DynamicCombo.Option("SFT", _sft()),
            io.DynamicCombo.Option("NFT", _nft()),
            io.DynamicCombo.Option("DPO", _dpo()),
            io.DynamicCombo.Option("KTO", _kto()),
        ],
    )


def _sft() -> list[io.Input]:
    return [
        io.Float.Input(
            "tau", default=1.0, min=0.05, max=10.0, step=0.05,
            tooltip="How many standard deviations of rating make a picture count 2.7 times as much. Lower is greedier.",
        ),
    ]  # fmt: skip


def _nft() -> list[io.Input]:
    return [
        io.Float.Input(
            "beta", default=1.0, min=0.05, max=10.0, step=0.05,
            tooltip="The lower, the further the LoRA moves for the same ratings.",
        ),
        io.Float.Input(
            "kl", default=1e-3, min=0.0, max=10.0, step=1e-4, round=False,
            tooltip="Pull back to the model as it was; raise it if pictures lose quality or become alike.",
        ),
    ]  # fmt: skip


def _dpo() -> list[io.Input]:
    return [
        io.Float.Input(
            "beta", default=2000.0, min=0.0, max=100_000.0, step=100.0,
            tooltip="How hard the LoRA is held to the model; 2000 to 5000 are usual. 0 lets it find its own.",
        ),
        io.Boolean.Input(
            "safe", default=True,
            tooltip="Keeps the model from getting worse at the preferred pictures while it gets worse at the others.",
        ),
    ]  # fmt: skip


def _kto() -> list[io.Input]:
    return [
        io.Float.Input(
            "beta", default=1000.0, min=1.0, max=100_000.0, step=100.0,
            tooltip="How hard the LoRA is held to the model; 500 to 5000 are usual.",
        ),
    ]  # fmt: skip


def pictures_input() -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        "pictures",
        tooltip="Train on the rated pictures alone, or make more of the same prompts as well.",
        options=[io.DynamicCombo.Option(ONLY_RATED, []), io.DynamicCombo.Option(MORE, _more())],
    )


def _more() -> list[io.Input]:
    return [
        REWARD.Input("reward", tooltip="Scores the new pictures, for example a taste learned from the same ratings."),
        io.Int.Input(
            "count", default=200, min=2, max=100_000, tooltip="How many new pictures, over all prompts in turn."
        ),
        *sampling_inputs("the new pictures"),
    ]


def sampling_of(chosen: dict[str, Any], seed: int) -> Sampling:
    return Sampling(chosen["sampling_steps"], chosen["cfg"], chosen["sampler_name"], chosen["scheduler"], seed)


def length_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps", default=400, min=1, max=100_000,
            tooltip="How often the weights change; 200 to 1000 are usual, too many make pictures alike.",
        ),
        io.Float.Input(
            "learning_rate", default=0.0, min=0.0, max=0.1, step=1e-6, round=False,
            tooltip="How far the first steps go; it falls to 0. 0 takes the objective's own: 1e-4, and 2e-5 for DPO "
            "and KTO. Tiny models need ten times as much.",
        ),
        io.Int.Input(
            "batch", default=8, min=1, max=1024,
            tooltip="Pictures a step, or pairs for DPO. Worked off in smaller parts by itself where memory is short.",
        ),
    ]  # fmt: skip


def lora_inputs(name: str) -> list[io.Input]:
    return [
        io.Int.Input(
            "rank", default=16, min=1, max=1024,
            tooltip="How much the LoRA can hold. 16 is plenty for a taste; file size grows with it.",
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
            tooltip="The same seed, ratings and settings give the same LoRA on the same machine.",
        ),
        io.String.Input(
            "name", default=name,
            tooltip="Saved as models/loras/<name>_00001.safetensors; the number grows with each run.",
        ),
        io.Combo.Input(
            "layers", options=list(LAYERS), default="all", advanced=True,
            tooltip="all: linear and convolution layers. linear: no convolutions. attention: the mildest.",
        ),
    ]  # fmt: skip


def adapter_inputs() -> list[io.Input]:
    """How the adapter is put on; optional, so that graphs of before they came still run."""
    return [
        io.Combo.Input(
            "adapter", options=list(KINDS), default="LoRA", optional=True, advanced=True,
            tooltip="LoRA is the usual one. rsLoRA learns faster at high ranks, DoRA better at low ones but slower, "
            "LoKr makes the smallest file.",
        ),
        io.String.Input(
            "layer_patterns", default="", optional=True, advanced=True,
            tooltip="Layers by name instead of `layers`, with * for anything, separated by commas: *attn2*, *ff*.",
        ),
        io.Combo.Input(
            "existing_lora", options=choices(), default="none", optional=True,
            tooltip="A LoRA file to go on from, by any program. Connect the model without it.",
        ),
        io.Combo.Input(
            "precision", options=["auto", "bf16", "fp32"], default="auto", optional=True, advanced=True,
            tooltip="What the model computes in; the LoRA itself is always learned in 32 bits. auto: as the model is.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing", default=False, optional=True, advanced=True,
            tooltip="Needs much less memory for a third more time. The result is the same.",
        ),
        io.Int.Input(
            "accumulation", default=1, min=1, max=1024, optional=True, advanced=True,
            tooltip="Works a batch off in so many parts, one after the other: less memory, the same result.",
        ),
        io.Float.Input(
            "ema", default=0.99, min=0.0, max=0.9999, step=0.001, round=False, optional=True, advanced=True,
            tooltip="Moving average over the last steps, which is what is saved and shown. 0 takes the last step.",
        ),
        io.Boolean.Input(
            "resume", default=True, optional=True, advanced=True,
            tooltip="Goes on where a cancelled or crashed run of exactly these settings was.",
        ),
    ]  # fmt: skip


def setup_of(numbers: dict[str, Any]) -> Setup:
    """What `adapter_inputs` and `layers` say, but for the existing LoRA."""
    return Setup(
        kind=numbers.get("adapter", "LoRA"),
        layers=numbers.get("layer_patterns", "").strip() or numbers.get("layers", "all"),
        precision=numbers.get("precision", "auto"),
        checkpointing=numbers.get("gradient_checkpointing", False),
    )


def checks_input() -> io.DynamicCombo.Input:
    every = io.Int.Input("every", default=50, min=1, max=100_000, tooltip="Steps between two looks at them.")
    patience = io.Int.Input(
        "patience", default=5, min=0, max=1000,
        tooltip="Looks without a new best before training ends. 0 never ends early; the best is handed out anyway.",
    )  # fmt: skip
    share = io.Float.Input(
        "share", default=0.1, min=0.01, max=0.5, step=0.01,
        tooltip="Share of the prompts, or of the pictures where there are few prompts, that is not trained on.",
    )  # fmt: skip
    return io.DynamicCombo.Input(
        "held_out",
        optional=True,
        tooltip="Hold some pictures out, look from time to time how the LoRA does on them, and keep the best.",
        options=[
            io.DynamicCombo.Option(NO_CHECKS, []),
            io.DynamicCombo.Option(CHECKS, [share, every, patience]),
        ],
    )


def show_input() -> io.DynamicCombo.Input:
    every = io.Int.Input("every", default=100, min=1, max=100_000, tooltip="Steps between two samples.")
    return io.DynamicCombo.Input(
        "show",
        optional=True,
        tooltip="What the node shows while it trains: curves alone, or samples of the LoRA so far as well.",
        options=[
            io.DynamicCombo.Option(CURVES, []),
            io.DynamicCombo.Option(SAMPLES, [every, *sampling_inputs("the samples")]),
        ],
    )
