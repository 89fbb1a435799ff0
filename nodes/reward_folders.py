"""Models for rewards in models/rewards: folders in Hugging Face's layout, and aesthetic heads as single files."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import folder_paths

from ..feedback.rewards.base import RewardError
from ..feedback.rewards.classifier import labels_of
from ..feedback.rewards.folders import CONFIG
from ..feedback.rewards.image_reward import MED
from ..feedback.rewards.text_folders import is_joint

FOLDER = "rewards"
NONE = "put a model into models/rewards"
"""What a list offers when it would be empty, which ComfyUI can't show."""


def register() -> None:
    """Makes models/rewards known to ComfyUI, beside what extra_model_paths.yaml names."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
    folders, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (folders, set(suffixes) | {".safetensors", ".json"})


def _files() -> list[PurePosixPath]:
    if FOLDER not in folder_paths.folder_names_and_paths:
        register()
    try:
        names = folder_paths.get_filename_list(FOLDER)
    except FileNotFoundError:
        # ComfyUI keeps lists by their folders' dates, and stumbles over a folder that was taken away since
        folder_paths.filename_list_cache.pop(FOLDER, None)
        names = folder_paths.get_filename_list(FOLDER)
    return [PurePosixPath(name.replace("\\", "/")) for name in names]


def model_folders() -> list[str]:
    """Names of the folders that hold a config.json, relative to models/rewards."""
    return sorted({str(file.parent) for file in _files() if file.name == CONFIG and str(file.parent) != "."})


def image_rewards() -> list[str]:
    """Names of the folders that hold ImageReward, which has a configuration of another name."""
    return sorted({str(file.parent) for file in _files() if file.name == MED and str(file.parent) != "."})


def heads() -> list[str]:
    """Names of the safetensors files that lie in no model's folder."""
    inner = {PurePosixPath(name) for name in [*model_folders(), *image_rewards()]}
    return sorted(str(file) for file in _files() if file.suffix == ".safetensors" and not inner & set(file.parents))


def classifiers() -> dict[str, list[str]]:
    """Folder -> labels, of those that hold an image classifier."""
    found = {}
    for name in model_folders():
        labels = _known(_labels, name)
        if labels:
            found[name] = list(labels)
    return found


def joint_models() -> list[str]:
    """Folders that hold a whole CLIP or SigLIP."""
    return [name for name in model_folders() if _known(_joint, name)]


def _known(ask: Callable[[Path, int], tuple[str, ...]], name: str) -> tuple[str, ...]:
    """What a folder holds, read again when its config.json changes; nothing for one that can't be read."""
    try:
        folder = folder_of(name)
        return ask(folder, (folder / CONFIG).stat().st_mtime_ns)
    except (RewardError, OSError):
        return ()  # lists leave it out; whoever names it all the same is told why


@lru_cache(maxsize=256)
def _labels(folder: Path, changed: int) -> tuple[str, ...]:
    return tuple(labels_of(folder))


@lru_cache(maxsize=256)
def _joint(folder: Path, changed: int) -> tuple[str, ...]:
    return ("joint",) if is_joint(folder) else ()


def folder_of(name: str) -> Path:
    """Where a model's folder is. Raises RewardError when it is gone or lies elsewhere."""
    return _found(f"{name}/{CONFIG}", name).parent


def image_reward_of(name: str) -> Path:
    """Where a folder with ImageReward is. Raises RewardError when it is gone or lies elsewhere."""
    return _found(f"{name}/{MED}", name).parent


def head_of(name: str) -> Path:
    """Where a head's file is. Raises RewardError when it is gone or lies elsewhere."""
    return _found(name, name)


def _found(file: str, name: str) -> Path:
    roots = [Path(root).resolve() for root in folder_paths.get_folder_paths(FOLDER)]
    if name in [*model_folders(), *image_rewards(), *heads()]:
        path = folder_paths.get_full_path(FOLDER, file)
        if path is not None and any(Path(path).resolve().is_relative_to(root) for root in roots):
            return Path(path)
    raise RewardError(
        f"There is no '{name[:80]}' in {roots[0]}: put the model's folder there, with config.json and "
        "model.safetensors, or choose another."
    )


def fingerprint(*chosen: Any) -> str:
    """Changes whenever files of a model do that a node's inputs name; empty where they name none."""
    names = set(_texts(chosen))
    files = [file for file in _files() if {str(file), str(file.parent)} & names]
    states = [Path(path).stat() for file in files if (path := folder_paths.get_full_path(FOLDER, str(file)))]
    return " ".join(f"{state.st_mtime_ns} {state.st_size}" for state in states)


def _texts(chosen: Any) -> list[str]:
    if isinstance(chosen, dict):
        chosen = list(chosen.values())
    if isinstance(chosen, list | tuple):
        return [text for value in chosen for text in _texts(value)]
    return [chosen] if isinstance(chosen, str) else []
