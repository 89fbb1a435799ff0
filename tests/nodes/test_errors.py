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

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler

from feedback_loop.feedback.records import Feedback
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.nodes import MODULES, compat
from feedback_loop.tests.nodes import tiny_joint, tiny_models
from feedback_loop.training import lora_files
from feedback_loop.training.low_rank import LowRank

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


def guider() -> comfy.samplers.CFGGuider:
    made = comfy.samplers.CFGGuider(tiny_models.sd15())
    made.set_conds(tiny_models.conditioning("sd15", 1), tiny_models.conditioning("sd15", 2))
    return made


LATENTS = {"samples": torch.zeros(3, 4, 1, 1)}
SAMPLING = {"seed": 1, "steps": 1, "cfg": 2.0, "width": 64, "height": 64}
VALID: dict[str, tuple[str, dict[str, Any]]] = {
    "FeedbackRewardGuidance": (
        "guidance",
        {"model": tiny_models.sd15, "reward": brightness, "vae": tiny_models.vae, "strength": 1.0},
    ),
    "FeedbackRule": (
        "rules",
        {
            "model": tiny_models.sd15,
            "reward": brightness,
            "vae": tiny_models.vae,
            "compare": "below",
            "threshold": 0.0,
            "action": "stop",
        },
    ),
    "FeedbackTextConditioning": (
        "text",
        {
            "positive": lambda: tiny_models.conditioning("sd15"),
            "clip": tiny_models.clip,
            "comment": "brighter",
            "strength": 1.0,
            "mode": "in the prompt",
            "prompt": "two stars",
        },
    ),
    "FeedbackRewardSteering": (
        "steering",
        {
            "sampler": lambda: comfy.samplers.ksampler("euler_ancestral"),
            "reward": brightness,
            "vae": tiny_models.vae,
            "particles": 4,
            "strength": 10.0,
        },
    ),
    "FeedbackBestOfN": (
        "search",
        {
            "noise": lambda: nodes_custom_sampler.Noise_RandomNoise(1),
            "guider": lambda: guider(),
            "sampler": lambda: comfy.samplers.ksampler("euler"),
            "sigmas": lambda: torch.tensor([10.0, 3.0, 0.0]),
            "latent_image": lambda: {"samples": torch.zeros(1, 4, 8, 8)},
            "reward": brightness,
            "vae": tiny_models.vae,
            "candidates": 2,
        },
    ),
    "FeedbackRegionMask": (
        "refine",
        {
            "images": lambda: torch.zeros(1, 8, 8, 3),
            "labels": "",
            "points": "snap",
            "radius": 8.0,
            "grow": 0,
            "feather": 0.0,
        },
    ),
    "FeedbackReferenceGuidance": (
        "reference",
        {
            "model": tiny_models.sd15,
            "vae": tiny_models.vae,
            "strength": 0.8,
            "start_percent": 0.0,
            "end_percent": 0.6,
            "liked": lambda: torch.zeros(1, 64, 64, 3),
        },
    ),
    "FeedbackSuggest": ("suggest", {"collection": "nobody rated this", "minimum": 3, "accept": ""}),
    "FeedbackRefineRegion": (
        "refine",
        {
            "model": tiny_models.sd15,
            "positive": lambda: tiny_models.conditioning("sd15"),
            "negative": lambda: tiny_models.conditioning("sd15"),
            "vae": tiny_models.vae,
            "images": lambda: torch.zeros(1, 64, 64, 3),
            "mask": lambda: torch.ones(1, 64, 64),
            "seed": 1,
            "steps": 1,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "candidates": 1,
            "collection": "",
        },
    ),
    "FeedbackOptimizeNoise": (
        "noise",
        {
            "noise": lambda: nodes_custom_sampler.Noise_RandomNoise(1),
            "guider": lambda: guider(),
            "sampler": lambda: comfy.samplers.ksampler("euler"),
            "sigmas": lambda: torch.tensor([10.0, 0.0]),
            "latent_image": lambda: {"samples": torch.zeros(1, 4, 8, 8)},
            "reward": brightness,
            "vae": tiny_models.vae,
            "iterations": 1,
        },
    ),
    "FeedbackExportLora": (
        "export_lora",
        {
            "model": tiny_models.sd15,
            "name": "exported",
            "lora": lambda: lora_files.to_tensors(
                {"out.2": LowRank(torch.ones(1, 32, 3, 3), torch.ones(4, 1, 1, 1), 1.0)}
            ),
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
    "FeedbackReinforceLora": (
        "reinforce",
        {
            "model": tiny_models.sd15,
            "clip": tiny_models.clip,
            "vae": tiny_models.vae,
            "prompts": {"prompts": "written here", "text": "a red circle"},
            "scored_by": lambda: {"scored_by": "a reward", "reward": brightness()},
            "objective": {"objective": "NFT", "beta": 1.0, "kl": 1e-3},
            "epochs": 1,
            "prompts_per_epoch": 1,
            "group_size": 2,
            "updates": 1,
            "batch": 2,
            "learning_rate": 1e-4,
            "rank": 2,
            "seed": 0,
            "name": "reinforced",
            "sampling_steps": 1,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "width": 64,
            "height": 64,
        },
    ),
    "FeedbackAutoTrain": (
        "auto_train",
        {
            "model": tiny_models.sd15,
            "feedback": NOTHING_RATED,
            "clip": tiny_models.clip,
            "vae": tiny_models.vae,
            "clip_vision": tiny_models.clip_vision,
            "new_ratings": 1,
            "dry_run": True,
            "decided_by": {"decided_by": "people", "votes": 30, "collection": "pairs"},
            "objective": {"objective": "SFT", "tau": 1.0},
            "pictures": {"pictures": "rated pictures only"},
            "name": "auto",
        },
    ),
    "FeedbackTrainReward": ("rewards", {"feedback": NOTHING_RATED, "clip_vision": tiny_models.clip_vision}),
    "FeedbackSaveReward": ("rewards", {"reward": brightness, "name": "bright"}),
    "FeedbackLoadReward": ("rewards", {"name": "bright.safetensors"}),
    "FeedbackCombineRewards": ("rewards_combine", {"rewards": lambda: {"reward0": brightness()}, "weights": "1"}),
    "FeedbackMaskReward": ("rewards_combine", {"reward": brightness, "mask": lambda: torch.ones(1, 8, 8)}),
    "FeedbackColorReward": ("rewards_colour", {"property": "brightness", "aim": {"aim": "more"}}),
    "FeedbackWatermarkPenalty": ("rewards_watermark", {}),
    "FeedbackTrainWatermarkDetector": ("rewards_watermark", {"images": lambda: torch.rand(8, 64, 64, 3), "steps": 1}),
    "FeedbackClassifierReward": ("rewards_classifier", {"model": {"model": "gone", "label": "cat"}}),
    "FeedbackTextReward": ("rewards_text", {"wish": "bright", "opposite": "dark", "model": tiny_joint.connected}),
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
    Case("FeedbackRule", "VAE of another model", "16 channels.*VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackRule", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case("FeedbackRule", "nothing to switch to", "Connect a CLIP Text", {"action": "switch conditioning"}),
    Case("FeedbackRewardGuidance", "picture for a judge", "`judge` is no reward", {"judge": lambda: torch.zeros(1)}),
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
    Case(
        "FeedbackRewardSteering",
        "sampler without noise",
        "'euler' cannot be steered.*Choose euler_ancestral",
        {"sampler": lambda: comfy.samplers.ksampler("euler")},
    ),
    Case("FeedbackRewardSteering", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case("FeedbackOptimizeNoise", "reward without gradient", "no gradient.*zero-order", {"reward": NoGradient}),
    Case("FeedbackOptimizeNoise", "VAE of another model", "16 channels.*VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackOptimizeNoise", "picture for noise", "makes none.*RandomNoise", {"noise": lambda: torch.zeros(1)}),
    Case("FeedbackOptimizeNoise", "picture for a judge", "no reward.*Connect", {"judge": lambda: torch.zeros(1)}),
    Case(
        "FeedbackOptimizeNoise",
        "sampler of another kind",
        "no sampler of core's kind.*Connect KSampler Select",
        {"sampler": lambda: torch.zeros(1)},
    ),
    Case("FeedbackBestOfN", "budget below one run", "less than one run.*Raise it", {"budget": 1}),
    Case("FeedbackBestOfN", "VAE of another model", "16 channels.*VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackBestOfN", "picture for noise", "makes none.*RandomNoise", {"noise": lambda: torch.zeros(1)}),
    Case("FeedbackBestOfN", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case(
        "FeedbackBestOfN",
        "sampler that cannot pause",
        "'dpm_adaptive' cannot be stopped.*Choose another",
        {"sampler": lambda: comfy.samplers.ksampler("dpm_adaptive")},
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
    Case("FeedbackRegionMask", "mask for pictures", "connect the IMAGE output", {"images": lambda: torch.zeros(8, 8)}),
    Case("FeedbackReferenceGuidance", "nothing to see", "nothing to look at.*Connect", {"liked": None}),
    Case("FeedbackReferenceGuidance", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackReferenceGuidance", "picture for feedback", "no feedback.*Connect", {"feedback": NoGradient}),
    Case("FeedbackReferenceGuidance", "nothing rated", "Give some pictures stars", {"feedback": lambda: NOTHING_RATED}),
    Case(
        "FeedbackReferenceGuidance", "mask for pictures", "at least one picture", {"liked": lambda: torch.zeros(8, 8)}
    ),
    Case("FeedbackReferenceGuidance", "end before start", "below end_percent", {"start_percent": 0.7}),
    Case("FeedbackSuggest", "nothing of that kind", "is not suggested.*Copy the names", {"accept": "more: cats"}),
    Case("FeedbackRefineRegion", "mask of another", "connect the mask that", {"mask": lambda: torch.ones(1, 8, 8)}),
    Case("FeedbackRefineRegion", "VAE of another model", "Connect the VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackRefineRegion", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackRefineRegion", "comment without CLIP", "no text encoder.*Connect", {"comment": "no text"}),
    Case("FeedbackRefineRegion", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case("FeedbackRefineRegion", "steering without a reward", "no reward.*Connect", {"guidance": 1.0}),
    Case(
        "FeedbackRefineRegion",
        "prompt of another model",
        "connect the CLIP that belongs",
        {"positive": lambda: tiny_models.conditioning("sdxl")},
    ),
    Case("FeedbackExportLora", "nothing to export", "Connect a LoRA or choose a file", {"lora": None}),
    Case("FeedbackExportLora", "LoRA of another program", "not named as", {"lora": lambda: {"a.b": torch.zeros(1)}}),
    Case("FeedbackExportLora", "model of another kind", "this model is a Flux", {"model": tiny_models.flux}),
    Case("FeedbackExportLora", "name of a folder", "is no file name: use letters", {"name": "a/b"}),
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
    Case(
        "FeedbackReinforceLora",
        "no prompts",
        "no prompts.*write one a line",
        {"prompts": {"prompts": "written here", "text": ""}},
    ),
    Case("FeedbackReinforceLora", "name with a folder", "no file name.*use letters", {"name": "../up"}),
    Case("FeedbackReinforceLora", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackReinforceLora", "checkpoint without CLIP", "no text encoder.*Connect", {"clip": None}),
    Case(
        "FeedbackReinforceLora",
        "picture for a reward",
        "no reward.*Connect",
        {"scored_by": lambda: {"scored_by": "a reward", "reward": torch.zeros(1)}},
    ),
    Case("FeedbackAutoTrain", "name with a folder", "no file name.*use letters", {"name": "../up"}),
    Case("FeedbackAutoTrain", "VAE of another model", "Connect the VAE", {"vae": lambda: tiny_models.vae(1, 16)}),
    Case("FeedbackAutoTrain", "checkpoint without VAE", "no VAE.*Load VAE", {"vae": None}),
    Case("FeedbackAutoTrain", "picture for feedback", "no feedback.*Connect", {"feedback": lambda: torch.zeros(1)}),
    Case(
        "FeedbackAutoTrain",
        "no reward to decide",
        "no reward.*Connect",
        {"decided_by": {"decided_by": "a reward"}, "reward": None},
    ),
    Case(
        "FeedbackAutoTrain",
        "pairs among the ratings",
        "collection of their own.*another name",
        {"decided_by": {"decided_by": "people", "votes": 30, "collection": "nobody rated this"}},
    ),
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
    Case("FeedbackCombineRewards", "half a schedule", "from where to where.*such as", {"active": "0.5"}),
    Case("FeedbackCombineRewards", "schedule that ends early", "such as 0-1", {"active": "0.5-0.2"}),
    Case("FeedbackCombineRewards", "parts of the run too many", "2 parts.*take some away", {"active": "0-1, 0-1"}),
    Case(
        "FeedbackCombineRewards",
        "minimum without a scale",
        "connect some pictures as reference",
        {"rewards": lambda: {"a": brightness(), "b": ColourReward("warmth")}, "how": "minimum"},
    ),
    Case(
        "FeedbackCombineRewards",
        "reference pictures all alike",
        "alike.*pictures that differ",
        {"reference": lambda: torch.zeros(2, 8, 8, 3)},
    ),
    Case("FeedbackMaskReward", "empty mask", "mask is empty: paint", {"mask": lambda: torch.zeros(1, 8, 8)}),
    Case("FeedbackMaskReward", "picture for a reward", "no reward.*Connect", {"reward": lambda: torch.zeros(1)}),
    Case("FeedbackMaskReward", "latent for a mask", "no MASK.*Connect", {"mask": lambda: LATENTS}),
    Case(
        "FeedbackColorReward",
        "words for a palette",
        "write 1 to 16 colours",
        {"property": "nearness to a palette", "palette": "sea and sand"},
    ),
    Case("FeedbackWatermarkPenalty", "taste as detector", "no watermark detector.*Connect", {"trained": brightness}),
    Case("FeedbackWatermarkPenalty", "no picture", "at least one picture", {"images": lambda: torch.zeros(0, 8, 8, 3)}),
    Case("FeedbackTrainWatermarkDetector", "nothing connected", "connect images, or name", {"images": None}),
    Case(
        "FeedbackTrainWatermarkDetector",
        "too few pictures",
        "too few.*at least 8",
        {"images": lambda: torch.rand(7, 64, 64, 3)},
    ),
    Case(
        "FeedbackTrainWatermarkDetector",
        "collection that is not there",
        "no picture in the collection",
        {"images": None, "collection": "nobody filled this"},
    ),
    Case("FeedbackClassifierReward", "model that is gone", "There is no .gone.*put the model's folder there"),
    Case("FeedbackClassifierReward", "path outside", "There is no", {"model": {"model": "../../etc", "label": "x"}}),
    Case(
        "FeedbackClassifierReward",
        "no model at all",
        "no image classifier.*Put the folder",
        {"model": {"model": "put a model into models/rewards"}},
    ),
    Case("FeedbackTextReward", "no wish", "The wish is empty: write", {"wish": " "}),
    Case("FeedbackTextReward", "wish that is its own opposite", "for the same: write", {"opposite": "bright"}),
    Case(
        "FeedbackTextReward",
        "checkpoint without CLIP",
        "no text encoder.*Load CLIP",
        {"model": lambda: tiny_joint.connected(clip=None)},
    ),
    Case(
        "FeedbackTextReward",
        "CLIP of another model",
        "16 numbers, but clip holds.*trained with it",
        {"model": lambda: tiny_joint.connected(clip_vision=tiny_models.clip_vision())},
    ),
    Case(
        "FeedbackTextReward",
        "no image encoder",
        "no image encoder|joint space",
        {"model": lambda: tiny_joint.connected(clip_vision=None)},
    ),
    Case(
        "FeedbackTextReward",
        "folder that is gone",
        "There is no .gone",
        {"model": {"model": "a CLIP or SigLIP of models/rewards", "folder": "gone"}},
    ),
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


NOTHING_TO_GET_WRONG = {"FeedbackDemoModel"}
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
