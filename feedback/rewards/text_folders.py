"""Whole CLIP and SigLIP models, PickScore among them, from folders in Hugging Face's layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import RewardError
from .folders import PREPROCESSOR, checked_config, first_line, folder_id, load_network, read_json, unreadable
from .networks import NetworkEncoder, preprocess_of
from .text import SHARPNESS, ImageNetwork, TextNetwork

KINDS = ("clip", "siglip")
LARGEST_TOKENIZER = 64 * 2**20
END = "</s>"  # what SigLIP's texts end in and are filled up with
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class JointModel:
    """Both halves of a model.

    scale: its factor between cosines and logits; pads: whether texts are filled up to `longest` tokens (SigLIP).
    """

    images: NetworkEncoder
    texts: TextNetwork
    tokens: Any
    scale: float
    pads: bool
    longest: int

    def embed(self, texts: Sequence[str], network: nn.Module | None = None) -> Tensor:
        """Texts -> (N,F) on the text network's device; network: a copy of it to run instead."""
        network = network or self.texts
        device = next(network.parameters()).device
        rows = []
        # one by one: a text must not depend on how long the others are
        for text in texts:
            padding: Any = "max_length" if self.pads else False
            said = _plain(text) if self.pads else text
            read = self.tokens(said, padding=padding, truncation=True, max_length=self.longest, return_tensors="pt")
            rows.append(network(read["input_ids"].to(device), None))
        return torch.cat(rows)


def is_joint(folder: Path) -> bool:
    """Whether the folder holds a whole CLIP or SigLIP."""
    return checked_config(folder).get("model_type") in KINDS


def load_joint(folder: Path) -> JointModel:
    """Raises RewardError for a folder of another kind, damaged or without its tokenizer."""
    from transformers import AutoModel

    kind = checked_config(folder).get("model_type")
    if kind not in KINDS:
        raise RewardError(f"{folder.name} is no whole CLIP or SigLIP model but '{str(kind)[:60]}': choose another.")
    tokens = _tokenizer(folder)
    model = load_network(folder, AutoModel)
    config = model.config
    longest = int(config.text_config.max_position_embeddings)
    if len(tokens) > config.text_config.vocab_size:
        raise RewardError(f"The tokenizer in {folder.name} knows more words than its model: they are not of one model.")
    settings = read_json(folder / PREPROCESSOR, needed=False)
    preprocess = preprocess_of(settings, int(config.vision_config.image_size), folder.name)
    images = NetworkEncoder(folder_id(folder), ImageNetwork(model), preprocess, _run)
    scale = float(model.logit_scale.exp()) if hasattr(model, "logit_scale") else SHARPNESS
    return JointModel(images, TextNetwork(model), tokens, scale, kind == "siglip", longest)


def _run(network: nn.Module, pixels: Tensor) -> Tensor:
    return network(pixels)


def _tokenizer(folder: Path) -> Any:
    """transformers' own tokenizer of the folder; no code of the folder's is run."""
    from transformers import AutoTokenizer

    there = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not there:
        raise RewardError(f"{folder.name} has no tokenizer.json: copy it, and tokenizer_config.json, from the source.")
    if any(file.stat().st_size > LARGEST_TOKENIZER for file in [*folder.glob("*.json"), *there]):
        raise RewardError(f"A file of the tokenizer in {folder.name} is larger than any is: copy it again.")
    settings = read_json(folder / "tokenizer_config.json", needed=False)
    try:
        try:
            # a folder on this disk, and nothing else: local_files_only
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # nosec B615
        except ImportError:
            return _from_json(folder, settings)
    except Exception as error:  # noqa: BLE001  (tokenizers raises no class of its own)
        if type(error) is not Exception and not isinstance(error, unreadable()):
            raise
        raise RewardError(
            f"The tokenizer in {folder.name} can't be read ({first_line(error)}). Copy tokenizer.json and "
            "tokenizer_config.json from the model's source again."
        ) from error


def _from_json(folder: Path, settings: dict[str, Any]) -> Any:
    """From tokenizer.json alone: transformers reads SigLIP's with packages that ComfyUI does not bring."""
    from transformers import PreTrainedTokenizerFast

    special = {name: settings.get(name) for name in ("pad_token", "eos_token", "unk_token")}
    # a token stands there as a text, or as an object that holds it
    named = {name: value.get("content") if isinstance(value, dict) else value for name, value in special.items()}
    known = {name: value for name, value in named.items() if isinstance(value, str)}
    file = str(folder / "tokenizer.json")
    known.setdefault("pad_token", END)
    return PreTrainedTokenizerFast(tokenizer_file=file, **known)


def _plain(text: str) -> str:
    """As SigLIP's texts were prepared for its training: small letters, no punctuation, single blanks."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())
