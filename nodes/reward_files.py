"""Rewards in models/feedback_rewards: names made safe, nothing overwritten, nothing outside the folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths

from ..feedback.rewards.base import Reward, RewardError
from ..feedback.rewards.files import load_reward, save_reward
from .compat import REWARDS_FOLDER
from .encoder import encoder_from

SUFFIX = ".safetensors"
LONGEST = 100
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def safe_name(name: str) -> str:
    """The name as a file name without its ending: letters, digits, blank, dot, dash and underscore remain.

    Raises RewardError when nothing is left of it, and for names that Windows keeps for devices.
    """
    bare = name.strip().removesuffix(SUFFIX)
    safe = re.sub(r"[^\w .-]", "_", bare, flags=re.ASCII).strip(" .")[:LONGEST].rstrip(" .")
    if not safe.strip("_") or safe.split(".")[0].lower() in DEVICES:
        raise RewardError(f"'{name[:40]}' is no name for a file: use letters or digits, such as 'my taste'.")
    return safe


def folder() -> Path:
    return Path(folder_paths.get_folder_paths(REWARDS_FOLDER)[0])


def save(reward: Reward, name: str) -> str:
    """The name of the new file; a number is added to a name that is taken."""
    safe, number = safe_name(name), 1
    while True:
        file = safe + (f"_{number}" if number > 1 else "") + SUFFIX
        try:
            save_reward(reward, inside(folder() / file))
        except FileExistsError:
            number += 1
        else:
            return file


def inside(path: Path) -> Path:
    """The path, if it lies in one of the folders for rewards once links are followed; else RewardError."""
    real = path.resolve()
    if not any(real.is_relative_to(Path(root).resolve()) for root in folder_paths.get_folder_paths(REWARDS_FOLDER)):
        raise RewardError(f"'{path.name}' lies outside of the folder for rewards ({folder()}). Move it there.")
    return path


def found(name: str) -> Path:
    """Where a reward of that name is. Raises RewardError when it is gone."""
    path = folder_paths.get_full_path(REWARDS_FOLDER, name)
    if path is None:
        raise RewardError(
            f"There is no reward '{name[:80]}' in {folder()}: save one with Save reward, or choose another."
        )
    return inside(Path(path))


def fingerprint(name: str) -> str:
    """Changes whenever the file does."""
    state = found(name).stat()
    return f"{state.st_mtime_ns} {state.st_size}"


def load(name: str, clip_vision: Any | None = None) -> Reward:
    """The reward, with the encoder of a CLIP_VISION where one is connected."""
    encoders = [] if clip_vision is None else [encoder_from(clip_vision)]
    return load_reward(found(name), encoders)
