"""Where the versions of an automatically trained LoRA lie, and the model with one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.utils
import folder_paths

from ..feedback.records import Feedback
from ..training import runs
from ..training.lora_files import LoraFileError
from ..training.versions import Version
from .compat import data_directory
from .training_run import checked_name, with_lora

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def folder_of(name: str) -> Path:
    """Where the list of versions lies. Raises ValueError for a name that is no plain file name."""
    return data_directory() / "auto_train" / checked_name(name)


def with_version(model: ModelPatcher, version: Version | None) -> ModelPatcher:
    """The model with the version's LoRA; None: as it is. Raises LoraFileError for a file that is not what it was."""
    if version is None:
        return model
    path = folder_paths.get_full_path("loras", version.file)
    if path is None:
        raise LoraFileError(
            f"{version.file}, which is version {version.number}, is gone from models/loras. Put it back, or choose "
            "another version in this node's list."
        )
    if runs.digest(Path(path)) != version.digest:
        raise LoraFileError(
            f"{version.file}, which is version {version.number}, was changed since it was trained. Put the file back "
            "as it was, or choose another version in this node's list."
        )
    try:
        return with_lora(model, comfy.utils.load_torch_file(path, safe_load=True))
    except LoraFileError as error:
        raise LoraFileError(
            f"{version.file}, which is version {version.number}, was trained on another kind of model. Connect that "
            "one, or write another name into this node."
        ) from error


def to_json(feedback: Feedback) -> dict[str, Any]:
    """The query as JSON; `from_json` makes the same of it."""
    return {name: _plain(value) for name, value in asdict(feedback).items()}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else list(value) if isinstance(value, tuple) else value


def from_json(told: Mapping[str, Any]) -> Feedback:
    times = {name: datetime.fromisoformat(told[name]) for name in ("since", "until") if told[name] is not None}
    texts = {name: tuple(told[name]) for name in ("raters", "kinds")}
    return Feedback(**{**told, **times, **texts})
