"""The one place that names ComfyUI's versioned node interface, our socket types and the places we keep things."""

from __future__ import annotations

import os
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import ComfyExtension, io, ui

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

__all__ = [
    "FEEDBACK",
    "REWARD",
    "REWARDS_FOLDER",
    "ComfyExtension",
    "io",
    "register_folders",
    "store",
    "tell_pages",
    "ui",
]

FEEDBACK = io.Custom("FEEDBACK")
"""A query over what people said, at a revision: feedback.records.Feedback."""

REWARD = io.Custom("REWARD")
"""Images to scores, higher is better: feedback.rewards.base.Reward."""

REWARDS_FOLDER = "feedback_rewards"
"""Name, for folder_paths, of the folder that rewards are saved to and loaded from: models/feedback_rewards."""

_store_lock = threading.Lock()


def data_directory() -> Path:
    """Where feedback lives: not reachable over HTTP, and not in the pack's folder, which updates wipe."""
    return Path(folder_paths.get_system_user_directory("feedback_loop"))


def store() -> FeedbackStore:
    """The process's one store, opened at the first call; raises the store's own errors when it cannot be opened."""
    with _store_lock:
        return _open_store()


@cache
def _open_store() -> FeedbackStore:
    from ..feedback.store import FeedbackStore

    directory = data_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(
            f"Feedback Loop cannot create its data folder {directory} ({error.strerror}). Make that folder writable, "
            "or start ComfyUI with another --user-directory."
        ) from error
    url = os.environ.get("FEEDBACK_LOOP_DATABASE_URL") or f"sqlite:///{directory / 'feedback.sqlite3'}"
    return FeedbackStore(url, directory / "media")


def tell_pages(event: str, data: dict[str, Any]) -> None:
    """Sends an event to every open page, from any thread; without ComfyUI's server there are none."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data)


def register_folders() -> None:
    """Makes models/feedback_rewards known to ComfyUI, beside whatever a user's extra_model_paths.yaml names."""
    default = Path(folder_paths.models_dir) / REWARDS_FOLDER
    folder_paths.add_model_folder_path(REWARDS_FOLDER, str(default), is_default=True)
    folders, _ = folder_paths.folder_names_and_paths[REWARDS_FOLDER]
    folder_paths.folder_names_and_paths[REWARDS_FOLDER] = (folders, {".safetensors"})
