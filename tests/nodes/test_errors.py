"""Whatever a user connects or types wrongly, the node says in a sentence what is wrong and what to do.

ComfyUI checks the types of sockets; what it lets through is tried here: parts of another model, a checkpoint's missing
part (None), an any-type node's output, empty or impossible settings.
"""

from __future__ import annotations

import asyncio
import inspect
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
from feedback_loop.nodes import MODULES, compat
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
    "FeedbackTextConditioning": (
        "text",
        {
            "positive": lambda: tiny_models.conditioning("sd15"),
            "clip": tiny_models.clip,
            "comment": "brighter",
            "strength": 1.0,
            "mode": "direction",
            "prompt": "two stars",
        },
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
    "FeedbackTrainReward": ("rewards", {"feedback": NOTHING_RATED, "clip_vision": tiny_models.clip_vision}),
    "FeedbackSaveReward": ("rewards", {"reward": brightness, "name": "bright"}),
    "FeedbackLoadReward": ("rewards", {"name": "bright.safetensors"}),
    "FeedbackCombineRewards": ("rewards", {"rewards": lambda: {"reward0": brightness()}, "weights": "1"}),
    "FeedbackScoreImages": ("rewards", {"images": lambda: torch.zeros(2, 8, 8, 3), "reward": brightness}),
    "FeedbackImport": (
        "formats",
        {"file": "mine.zip", "format": "find out", "collection": "imported", "rater": "imported"},
    ),
    "FeedbackExport": (
        "formats",
        {
            "feedback": NOTHING_RATED,
            "format": "imagefolder",
            "name": "mine",
            "pairs_from_stars": False,
            "raters": "names",
            "more_axes": "",
        },
    ),
    "FeedbackDataset": ("dataset", {"collection": "", "raters": "", "axis": "overall", "min_ratings": 1}),
    "FeedbackCapture": ("capture", {"images": lambda: torch.zeros(1, 8, 8, 3), "collection": "default"}),
    "FeedbackGate": (
        "gate",
        {
            "images": lambda: torch.zeros(1, 8, 8, 3),
            "mode": "choose",
            "timeout": 1,
            "on_timeout": "skip",
            "without_client": "skip",
            "collection": "default",
        },
    ),
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
    Case("FeedbackTextConditioning", "checkpoint without CLIP", "no text encoder.*Connect", {"clip": None}),
    Case("FeedbackTextConditioning", "CLIP of another model", "connect the CLIP", {"clip": tiny_models.sdxl_clip}),
    Case("FeedbackTextConditioning", "prompt that nobody knows", "Write them into prompt", {"prompt": ""}),
    Case("FeedbackTextConditioning", "weight without end", "from 0 to 10", {"earlier": "99: larger"}),
    Case(
        "FeedbackTextConditioning",
        "end before start",
        "has to be below end_percent",
        {"start_percent": 0.8, "end_percent": 0.2},
    ),
    Case("FeedbackEvaluate", "no prompt", "write at least one", {"prompts": " \n "}),
    Case("FeedbackEvaluate", "CLIP of another model", "connect the CLIP that belongs", {"clip": tiny_models.sdxl_clip}),
    Case("FeedbackEvaluate", "checkpoint without CLIP", "no text encoder.*Connect", {"clip": None}),
    Case("FeedbackEvaluate", "VAE of another model", "Connect the VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackEvaluate", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackEvaluate", "judge without answers", "no number.*Look at its VAE", {"judge": NotANumber}),
    Case("FeedbackEvaluate", "picture for a judge", "no reward.*Connect", {"judge": lambda: torch.zeros(1)}),
    Case("FeedbackEvaluate", "B of another kind", "connect the CLIP that belongs", {"model_b": tiny_models.sdxl}),
    Case("FeedbackTrainLora", "nothing rated", "rate at least two"),
    Case("FeedbackTrainLora", "name with a folder", "no file name.*use letters", {"name": "../up"}),
    Case("FeedbackTrainLora", "empty name", "no file name.*use letters", {"name": ""}),
    Case("FeedbackTrainLora", "VAE of another model", "Connect the VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackTrainLora", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackTrainReward", "nothing rated", "too few.*give at least 8 ratings"),
    Case("FeedbackTrainReward", "axis and a tag", "both given.*Write one", {"axis": "mood", "tag": "dark"}),
    Case("FeedbackTrainReward", "tag that nobody used", "No picture.*has the tag.*put it on", {"tag": "dark"}),
    Case("FeedbackTrainReward", "no image encoder", "no image encoder.*Load CLIP Vision", {"clip_vision": None}),
    Case("FeedbackTrainReward", "picture for feedback", "no feedback.*Connect", {"feedback": lambda: torch.zeros(1)}),
    Case("FeedbackSaveReward", "name without letters", "no name for a file.*use letters", {"name": "../.."}),
    Case("FeedbackSaveReward", "reward that is no data", "cannot be saved", {"reward": NoGradient}),
    Case("FeedbackSaveReward", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case("FeedbackLoadReward", "file that is gone", "There is no reward.*save one", {"name": "gone.safetensors"}),
    Case("FeedbackLoadReward", "file outside", "no reward|outside", {"name": "../../secret.safetensors"}),
    Case("FeedbackCombineRewards", "nothing connected", "at least one reward.*connect", {"rewards": dict}),
    Case("FeedbackCombineRewards", "words for weights", "numbers separated by commas", {"weights": "much, less"}),
    Case("FeedbackCombineRewards", "weights without end", "between -1,000,000 and", {"weights": "1e30"}),
    Case("FeedbackCombineRewards", "a weight too many", "2 weights for 1 reward.*take some away", {"weights": "1, 2"}),
    Case("FeedbackCombineRewards", "picture for a reward", "no reward.*Connect", {"rewards": lambda: {"a": LATENTS}}),
    Case("FeedbackScoreImages", "no picture", "at least one picture", {"images": lambda: torch.zeros(0, 8, 8, 3)}),
    Case("FeedbackScoreImages", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case("FeedbackScoreImages", "reward without answers", "no number.*Look at its VAE", {"reward": NotANumber}),
    Case("FeedbackImport", "file that is gone", "There is no data set.*choose it by its name"),
    Case("FeedbackImport", "file outside", "There is no data set.*input folder", {"file": "../secret.zip"}),
    Case("FeedbackExport", "nothing rated", "no feedback to export.*Rate some pictures"),
    Case("FeedbackExport", "picture for feedback", "no feedback.*Connect", {"feedback": lambda: torch.zeros(1)}),
    Case("FeedbackDataset", "nothing rated", "Nothing was rated.*stars", {"axis": "charm that nobody judged"}),
    Case("FeedbackDataset", "collection that is not there", "no collection named .x.", {"collection": "x"}),
    Case("FeedbackCapture", "empty collection", "collection is empty.*Give it a name", {"collection": "  "}),
    Case("FeedbackCapture", "mask for pictures", "connect the IMAGE output", {"images": lambda: torch.zeros(8, 8)}),
    Case("FeedbackGate", "empty collection", "collection is empty.*Give it a name", {"collection": "  "}),
    Case("FeedbackGate", "mask for pictures", "connect the IMAGE output", {"images": lambda: torch.zeros(8, 8)}),
    Case("FeedbackGate", "no picture", "no picture.*connect", {"images": lambda: torch.zeros(0, 8, 8, 3)}),
    Case(
        "FeedbackGate",
        "too many to rank",
        "65 pictures are too many.*at most 64",
        {"mode": "rank", "images": lambda: torch.zeros(65, 8, 8, 3)},
    ),
    Case("FeedbackGate", "best without a reward", "needs a reward.*Connect one", {"on_timeout": "best by reward"}),
    Case(
        "FeedbackGate",
        "picture for a reward",
        "no reward.*Connect",
        {"without_client": "best by reward", "reward": lambda: torch.zeros(1)},
    ),
    Case(
        "FeedbackCapture",
        "latents of another batch",
        "latent",
        {"latent": lambda: LATENTS},
    ),
]


NOTHING_TO_GET_WRONG = {"FeedbackDemoModel", "FeedbackWatermarkPenalty", "FeedbackColorReward"}
"""No sockets to connect, and settings that ComfyUI itself keeps within their limits."""


@pytest.fixture(scope="module", autouse=True)
def reward_folder() -> None:
    compat.register_folders()


def value(given: Any) -> Any:
    return given() if isinstance(given, Callable) else given


def run(node: str, changed: dict[str, Any]) -> None:
    module, valid = VALID[node]
    [found] = [n for n in import_module(f"feedback_loop.nodes.{module}").NODES if n.define_schema().node_id == node]
    with torch.inference_mode():
        done = found.execute(**{name: value(given) for name, given in (valid | changed).items()})
        if inspect.iscoroutine(done):
            asyncio.run(done)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_said_in_a_sentence_that_says_what_to_do(case: Case) -> None:
    with pytest.raises(ValueError) as caught:
        run(case.node, case.changed)
    said = str(caught.value)
    assert re.search(case.says, said, re.DOTALL | re.IGNORECASE), said
    assert said.rstrip(")").endswith(".") and len(said.split()) > 5, f"no sentence: {said}"
    assert "NoneType" not in said and "attribute" not in said, said
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_every_node_of_the_pack_has_its_mistakes_tried() -> None:
    modules = [import_module(f"feedback_loop.nodes.{name}") for name in MODULES]
    nodes = {node.define_schema().node_id for module in modules for node in module.NODES}
    assert {case.node for case in CASES} | NOTHING_TO_GET_WRONG == nodes


@pytest.mark.parametrize("node", ["FeedbackRewardGuidance", "FeedbackScoreImages", "FeedbackSaveReward"])
def test_the_inputs_that_the_mistakes_are_made_in_work_without_them(node: str) -> None:
    """The negative control: no case fails for another reason than its own."""
    run(node, {})
