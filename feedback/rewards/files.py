"""Rewards on disk: one safetensors file with the weights and, as JSON in its header, what they are."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .aesthetic import AestheticReward
from .base import Encoder, Reward, RewardError
from .colour import ColourReward
from .hues import PaletteReward
from .taste import TasteReward
from .text import TextReward
from .watermark import WatermarkPenalty

KINDS: dict[str, type[Reward]] = {
    kind.kind: kind
    for kind in (TasteReward, ColourReward, PaletteReward, WatermarkPenalty, TextReward, AestheticReward)
}
HEADER = "feedback_loop.reward"
FORMAT = 1


def save_reward(reward: Reward, path: Path) -> None:
    """Writes a new file, all of it or nothing. Raises FileExistsError, or RewardError for one that can't be saved."""
    from safetensors.torch import save

    tensors, settings = reward.state()
    header = {"format": FORMAT, "kind": reward.kind, "settings": settings}
    # safetensors refuses a file without tensors
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()} or {"none": torch.zeros(1)}
    content = save(tensors, metadata={HEADER: json.dumps(header, allow_nan=False)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename this fails when the name is taken meanwhile
    finally:
        os.unlink(draft)


def read_header(path: Path) -> dict[str, Any]:
    """What the file says of its reward. Raises RewardError when it holds none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
    except (SafetensorError, KeyError, json.JSONDecodeError, RecursionError) as error:
        raise RewardError(
            f"{path.name} holds no reward of Feedback Loop. Choose a file that Save reward wrote."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or str(header.get("kind")) not in KINDS:
        raise RewardError(f"{path.name} was written by another version of Feedback Loop: update the pack.")
    return header


def load_reward(path: Path, encoders: Sequence[Encoder] = ()) -> Reward:
    """The reward in a file. Raises RewardError when it is damaged or needs an encoder that is not among `encoders`."""
    from safetensors.torch import load_file

    header = read_header(path)
    tensors = load_file(path)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise RewardError(f"{path.name} has weights that are no numbers: it is damaged; fit the reward again.")
    try:
        return KINDS[header["kind"]].from_state(tensors, header["settings"], encoders)
    except RewardError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RewardError(f"{path.name} lacks part of its settings: it is damaged; save the reward again.") from error
