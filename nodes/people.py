"""People as a reward: an epoch's pictures are put before them, and training waits until they have answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
import numpy as np
from torch import Tensor

from ..feedback.records import Generation
from ..training.runs import write_whole

if TYPE_CHECKING:
    from ..feedback.store import FeedbackStore

SECONDS = 1.0
"""Between two looks at the store; Cancel works as fast."""


class NobodyAnsweredError(RuntimeError):
    """The time was up; what was rated is kept, and the run can be gone on with."""


def pixels_of(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) in 0..1 -> uint8 (N, H, W, 3), as the store takes them."""
    return (images.movedim(1, -1).clamp(0, 1) * 255).round().byte().cpu().numpy()


def asked_once(
    kept: Callable[[], FeedbackStore], collection: str, folder: Path, images: Tensor, prompts: Sequence[str], drawn: str
) -> list[str]:
    """The pictures' ids in the store, where they are put once; `folder` keeps which are those of this drawing."""
    note = folder / f"asked-{drawn}.json"
    if note.exists():
        return json.loads(note.read_text(encoding="utf-8"))["ids"]
    made = [(picture, Generation(prompt=prompt)) for picture, prompt in zip(pixels_of(images), prompts, strict=True)]
    ids = kept().add_images(made, collection)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps({"ids": ids}))
    return ids


class People:
    """Scores are the means of the ratings that an epoch's pictures get in a collection, 0 to 1.

    folder: where it is kept which pictures of the collection are which, so that a run that was cancelled while it
    waited asks for the same ones again; drawn: the mark of pictures that were drawn once and kept. hours: how long an
    epoch waits.
    """

    def __init__(self, kept: Callable[[], FeedbackStore], collection: str, folder: Path, hours: float) -> None:
        self.kept, self.collection, self.folder, self.hours = kept, collection, folder, hours

    def __call__(self, images: Tensor, prompts: Sequence[str], drawn: str) -> list[float]:
        ids = asked_once(self.kept, self.collection, self.folder, images, prompts, drawn)
        bar, end = comfy.utils.ProgressBar(len(ids)), time.monotonic() + 3600 * self.hours
        while True:
            comfy.model_management.throw_exception_if_processing_interrupted()
            scores = self._ratings(ids)
            bar.update_absolute(len(scores))
            if len(scores) == len(ids):
                return [scores[i] for i in ids]
            if time.monotonic() > end:
                raise NobodyAnsweredError(
                    f"{len(scores)} of {len(ids)} pictures in the collection '{self.collection}' were rated within "
                    f"{self.hours:g} hours. Rate the others in the sidebar, then run this node again: it goes on here."
                )
            time.sleep(SECONDS)

    def _ratings(self, ids: Sequence[str]) -> dict[str, float]:
        kept, asked = self.kept(), set(ids)
        found: dict[str, list[float]] = {}
        for rating in kept.rated(kept.feedback(self.collection)):
            if rating.image_id in asked:
                found.setdefault(rating.image_id, []).append(rating.value)
        return {image_id: sum(values) / len(values) for image_id, values in found.items()}
