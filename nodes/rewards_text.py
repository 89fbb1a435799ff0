"""FeedbackTextReward: a wish in words, preferences for a prompt, or an aesthetic head as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ..feedback.rewards.aesthetic import AestheticReward, load_head
from ..feedback.rewards.base import Reward, RewardError
from ..feedback.rewards.image_reward import ImageReward, load_image_reward
from ..feedback.rewards.text import PreferenceReward, TextEncoder, TextTower, directional
from ..feedback.rewards.text_folders import JointModel, load_joint
from . import reward_folders
from .compat import REWARD, io
from .denoiser import WrongConnectionError
from .encoder import ManagedNetwork, encoder_from
from .text_tower import joint_width, mismatch, text_tower

CATEGORY = "feedback/reward"
CONNECTED = "the connected CLIP and CLIP Vision"
FOLDER = "a CLIP or SigLIP of models/rewards"
HEAD = "an aesthetic head of models/rewards"
IMAGE_REWARD = "an ImageReward of models/rewards"
OPPOSITE, PROMPT = "wish against opposite", "fit to the prompt"


def connected(clip: Any, clip_vision: Any, wish: str, opposite: str, enough: float) -> Reward:
    """Words through ComfyUI's own CLIP and CLIP_VISION. Raises WrongConnectionError, RewardError."""
    encoder = encoder_from(clip_vision)
    tower = text_tower(clip, joint_width(clip_vision))
    reward = directional(encoder, tower, wish, opposite, enough=enough)
    comfy.model_management.load_models_gpu(encoder.patchers())
    reward.warning = mismatch(encoder, tower)
    return reward


def from_folder(name: str, judges: str, wish: str, opposite: str, enough: float) -> Reward:
    """Words through a whole model of models/rewards. Raises RewardError."""
    model = load_joint(reward_folders.folder_of(name))
    encoder, tower = ManagedNetwork(model.images), _tower(model)
    if judges == PROMPT:
        return PreferenceReward(encoder, TextEncoder(tower), wish.strip(), f"{name}: fit to the prompt", model.scale)
    return directional(encoder, tower, wish, opposite, model.scale, enough)


def _tower(model: JointModel) -> TextTower:
    """Loads the text half only while new texts are read. A function, so that copying a reward does not copy weights."""
    device = comfy.model_management.text_encoder_device()
    offload = comfy.model_management.text_encoder_offload_device()
    patcher = comfy.model_patcher.ModelPatcher(model.texts, device, offload)

    def embed(texts: Sequence[str]) -> Tensor:
        comfy.model_management.load_models_gpu([patcher])
        with torch.no_grad():
            return model.embed(texts).cpu()

    return embed


def head(name: str, clip_vision: Any) -> Reward:
    """Raises RewardError, WrongConnectionError."""
    width = joint_width(clip_vision) if clip_vision is not None else 0
    encoder = encoder_from(clip_vision)
    weight, bias = load_head(reward_folders.head_of(name))
    if len(weight) != width:
        raise WrongConnectionError(
            f"'{name}' reads {len(weight)} numbers, but the image encoder's joint space has {width}. Connect the "
            "CLIP_VISION that it was made for: CLIP ViT-L/14 for LAION's heads (768)."
        )
    return AestheticReward(encoder, weight, bias, name.removesuffix(".safetensors"))


def image_reward(name: str, prompt: str) -> Reward:
    """Raises RewardError."""
    model = load_image_reward(reward_folders.image_reward_of(name))
    encoder = ManagedNetwork(model.images)

    # a function, so that copying a reward does not copy weights
    def read(tokens: Tensor, prompts: Sequence[str]) -> Tensor:
        return model.read(tokens, prompts, encoder.network())

    return ImageReward(encoder, read, prompt, name)


def text_reward(model: dict[str, Any], wish: str, opposite: str, enough: float) -> Reward:
    """The reward that the choice `model` of the node stands for."""
    if model["model"] == CONNECTED:
        return connected(model.get("clip"), model.get("clip_vision"), wish, opposite, enough)
    chosen = str(model.get("folder") or model.get("head") or "")
    if chosen in ("", reward_folders.NONE):
        raise RewardError(
            "There is no such model in models/rewards. Put the folder of a CLIP, a SigLIP or an ImageReward there, or "
            "an aesthetic head as .safetensors, and refresh the page; or connect CLIP and CLIP_VISION."
        )
    if model["model"] == IMAGE_REWARD:
        return image_reward(chosen, wish)
    if model["model"] == HEAD:
        return head(chosen, model.get("clip_vision"))
    return from_folder(chosen, str(model.get("judges", OPPOSITE)), wish, opposite, enough)


def _options() -> list[io.DynamicCombo.Option]:
    vision = io.ClipVision.Input("clip_vision", tooltip="A CLIP image encoder, such as ViT-L/14 from Load CLIP Vision.")
    clip = io.Clip.Input(
        "clip", tooltip="The text encoder that was trained with it: clip_l for ViT-L, SDXL's clip_g for bigG."
    )
    none = [reward_folders.NONE]
    folder = io.Combo.Input(
        "folder",
        options=reward_folders.joint_models() or none,
        tooltip="A folder of models/rewards with a whole CLIP or SigLIP in Hugging Face's layout, such as PickScore.",
    )
    judges = io.Combo.Input(
        "judges",
        options=[OPPOSITE, PROMPT],
        tooltip="Wish against opposite: which of the two texts a picture is closer to. Fit to the prompt: how a "
        "preference model such as PickScore ranks pictures for the wish as their prompt.",
    )
    heads = io.Combo.Input(
        "head",
        options=reward_folders.heads() or none,
        tooltip="A .safetensors file of models/rewards with linear layers over CLIP's image embedding, such as LAION's "
        "improved aesthetic predictor. Wish and opposite don't matter to it.",
    )
    judge = io.Combo.Input(
        "folder",
        options=reward_folders.image_rewards() or none,
        tooltip="A folder of models/rewards with ImageReward: its weights as model.safetensors, med_config.json, and "
        "vocab.txt of bert-base-uncased. The wish is the prompt that pictures are judged for.",
    )
    return [
        io.DynamicCombo.Option(CONNECTED, [clip, vision]),
        io.DynamicCombo.Option(FOLDER, [folder, judges]),
        io.DynamicCombo.Option(HEAD, [heads, vision]),
        io.DynamicCombo.Option(IMAGE_REWARD, [judge]),
    ]


class FeedbackTextReward(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackTextReward",
            display_name="Text reward",
            category=CATEGORY,
            description=(
                "Rewards pictures that are closer to a wish in words than to its opposite, as CLIP or SigLIP sees "
                "them. Also preference models such as PickScore and ImageReward, and aesthetic heads."
            ),
            search_aliases=[
                "clip score",
                "clip guidance",
                "siglip",
                "pickscore",
                "imagereward",
                "aesthetic score",
                "wish",
                "prompt",
            ],
            inputs=[
                io.String.Input(
                    "wish",
                    multiline=True,
                    default="",
                    tooltip="What pictures should be like, in a few words, such as: a bright, airy photograph.",
                ),
                io.String.Input(
                    "opposite",
                    multiline=True,
                    default="",
                    tooltip="What they should not be like, in the same manner of speaking: a dark, cramped photograph. "
                    "Empty compares with any picture, which pulls less surely.",
                ),
                io.DynamicCombo.Input(
                    "model", options=_options(), tooltip="Whose eyes the words are compared with pictures through."
                ),
                io.Float.Input(
                    "enough",
                    default=10.0,
                    min=-50.0,
                    max=100.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Log-odds of wish against opposite at which the pull ends. Real pictures seldom differ by "
                    "more than 10; beyond it only the encoder's mistakes are left to gain.",
                ),
            ],
            outputs=[REWARD.Output("reward", tooltip="Higher for pictures that are closer to the wish.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model: Any = None, **inputs: object) -> str:
        return reward_folders.fingerprint(model, inputs)

    @classmethod
    def execute(cls, wish, opposite, model, enough=10.0) -> io.NodeOutput:
        return io.NodeOutput(text_reward(model, wish, opposite, enough))


NODES: list[type[io.ComfyNode]] = [FeedbackTextReward]
