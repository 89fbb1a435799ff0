"""Whatever a user connects or types wrongly, the node says in a sentence what is wrong and what to do.

ComfyUI checks the types of sockets; what it lets through is tried here: parts of another model, a checkpoint's missing
part (None), an any-type node's output, empty or impossible settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
import torch

from feedback_loop.feedback.records import Feedback
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.tests.nodes import tiny_models

NOTHING_RATED = Feedback(revision=0, collection="nobody rated this")


class NoGradient(Reward):
    name = "counts pixels"
    differentiable = False

    def score(self, images, prompts, embed):
        return images.sum((1, 2, 3))


class NotANumber(Reward):
    name = "broken"

    def score(self, images, prompts, embed):
        return images.mean((1, 2, 3)) * float("nan")


def brightness() -> Reward:
    return ColourReward("brightness")


LATENTS = {"samples": torch.zeros(3, 4, 1, 1)}
SAMPLING = {"seed": 1, "steps": 1, "cfg": 2.0, "width": 64, "height": 64}
VALID: dict[str, tuple[str, dict[str, Any]]] = {
    "FeedbackRewardGuidance": (
        "guidance",
        {"model": tiny_models.sd15, "reward": brightness, "vae": tiny_models.vae, "strength": 1.0},
    ),
    "FeedbackEvaluate": (
        "evaluate",
        {
            "model_a": tiny_models.sd15,
            "model_b": tiny_models.sd15,
            "clip": tiny_models.clip,
            "vae": tiny_models.vae,
            "judge": brightness,
            "prompts": "a circle",
            "negative": "",
            "seeds": 1,
            "sampler_name": "euler",
            "scheduler": "normal",
        }
        | SAMPLING,
    ),
    "FeedbackTrainLora": (
        "training",
        {
            "model": tiny_models.sd15,
            "feedback": NOTHING_RATED,
            "clip": tiny_models.clip,
            "vae": tiny_models.vae,
            "objective": {"objective": "SFT", "tau": 1.0},
            "pictures": {"pictures": "rated pictures only"},
            "steps": 1,
            "learning_rate": 1e-4,
            "batch": 1,
            "rank": 2,
            "seed": 0,
            "name": "feedback",
        },
    ),
    "FeedbackDataset": ("dataset", {"collection": "", "raters": "", "axis": "overall", "min_ratings": 1}),
    "FeedbackCapture": ("capture", {"images": lambda: torch.zeros(1, 8, 8, 3), "collection": "default"}),
}
"""Each node with inputs that work, or come as far as the error of an empty store. Functions are called for a value."""


@dataclass
class Case:
    """`changed` replaces inputs of VALID; the error says `says` (a pattern)."""

    node: str
    what: str
    says: str
    changed: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.node}: {self.what}"


CASES = [
    Case("FeedbackRewardGuidance", "VAE of another model", "16 channels.*VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackRewardGuidance", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackRewardGuidance", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case("FeedbackRewardGuidance", "reward without gradient", "no gradient.*another reward", {"reward": NoGradient}),
    Case(
        "FeedbackRewardGuidance",
        "end before start",
        r"below end_percent|end_percent.*above",
        {"start_percent": 0.8, "end_percent": 0.2},
    ),
    Case("FeedbackEvaluate", "no prompt", "write at least one", {"prompts": " \n "}),
    Case("FeedbackEvaluate", "CLIP of another model", "connect the CLIP that belongs", {"clip": tiny_models.sdxl_clip}),
    Case("FeedbackEvaluate", "checkpoint without CLIP", "no text encoder.*Connect", {"clip": None}),
    Case("FeedbackEvaluate", "VAE of another model", "Connect the VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackEvaluate", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackEvaluate", "judge without answers", "no number for 1 of the 1.*another judge", {"judge": NotANumber}),
    Case("FeedbackEvaluate", "picture for a judge", "no reward.*Connect", {"judge": lambda: torch.zeros(1)}),
    Case("FeedbackEvaluate", "B of another kind", "connect the CLIP that belongs", {"model_b": tiny_models.sdxl}),
    Case("FeedbackTrainLora", "nothing rated", "rate at least two"),
    Case("FeedbackTrainLora", "name with a folder", "no file name.*use letters", {"name": "../up"}),
    Case("FeedbackTrainLora", "empty name", "no file name.*use letters", {"name": ""}),
    Case("FeedbackTrainLora", "VAE of another model", "Connect the VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackTrainLora", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackDataset", "nothing rated", "Nothing was rated.*stars"),
    Case("FeedbackDataset", "collection that is not there", "no collection named .x.", {"collection": "x"}),
    Case("FeedbackCapture", "empty collection", "collection is empty.*Give it a name", {"collection": "  "}),
    Case("FeedbackCapture", "mask for pictures", "connect the IMAGE output", {"images": lambda: torch.zeros(8, 8)}),
    Case(
        "FeedbackCapture",
        "latents of another batch",
        "latent",
        {"latent": lambda: LATENTS},
    ),
]


def value(given: Any) -> Any:
    return given() if isinstance(given, Callable) else given


def run(node: str, changed: dict[str, Any]) -> None:
    module, valid = VALID[node]
    [found] = [n for n in import_module(f"feedback_loop.nodes.{module}").NODES if n.define_schema().node_id == node]
    with torch.inference_mode():
        found.execute(**{name: value(given) for name, given in (valid | changed).items()})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_said_in_a_sentence_that_says_what_to_do(case: Case) -> None:
    with pytest.raises(ValueError) as caught:
        run(case.node, case.changed)
    said = str(caught.value)
    assert re.search(case.says, said, re.DOTALL | re.IGNORECASE), said
    assert said.rstrip(")").endswith(".") and len(said.split()) > 5, f"no sentence: {said}"
    assert "NoneType" not in said and "attribute" not in said, said
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
