"""A store, LoRAs and runs in a folder of a test's own, in the place of the user's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import folder_paths
import pytest

from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import training_run


def own_store(folder: Path, patch: pytest.MonkeyPatch, *modules: ModuleType) -> FeedbackStore:
    """modules: those that ask for the store by themselves, beside training_run, which always does. Close it."""
    opened = FeedbackStore(f"sqlite:///{folder / 'feedback.sqlite3'}", folder / "media")
    for module in (training_run, *modules):
        patch.setattr(module, "store", lambda: opened)
    patch.setattr(training_run, "data_directory", lambda: folder)
    patch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder / "loras")], {".safetensors"}))
    (folder / "loras").mkdir(exist_ok=True)
    return opened
