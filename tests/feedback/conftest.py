"""A store in a temporary folder, and pictures to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from feedback_loop.feedback.store import FeedbackStore


def picture(seed: int = 0, size: int = 16, channels: int = 3) -> np.ndarray:
    """Noise (size, size + 3, channels), uint8: another seed, other pixels."""
    return np.random.default_rng(seed).integers(0, 256, (size, size + 3, channels), dtype=np.uint8)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[], FeedbackStore]]:
    """Opens the same database again and again; all are closed at the end."""
    opened: list[FeedbackStore] = []

    def opening() -> FeedbackStore:
        opened.append(FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", tmp_path / "media"))
        return opened[-1]

    yield opening
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], FeedbackStore]) -> FeedbackStore:
    return open_store()
