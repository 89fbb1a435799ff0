"""Watermark scores of stored pictures: a small detector looks at them on a thread beside the run and the server.

What is captured is looked at by itself. Pictures from before the pack or from data sets are many and may never be asked
for, so they wait until somebody filters by the score.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..feedback.checks import NotFound
from ..feedback.engines import DatabaseReadOnly, DatabaseUnusable
from ..feedback.media import BadPicture
from .compat import store, tell_pages

if TYPE_CHECKING:
    from ..feedback.rewards.watermark import WatermarkPenalty
    from ..feedback.store import FeedbackStore

LOG = logging.getLogger("feedback_loop")

EVENT = "feedback_loop.watermarks"
AT_ONCE = 8  # pictures between two writes and two signs of progress
EVERYTHING = 10_000_000
BREATHERS = 3  # while a run goes on: so many times as long as a picture took is left to it
SIDE = 1024  # pixels: of larger pictures, squares of 2, 3 ... pixels are averaged until the short side is near this


@dataclass(frozen=True)
class Looked:
    """How far it is: pictures looked at since there was nothing to do, and pictures that wait."""

    done: int
    left: int


def run_goes_on() -> bool:
    """Whether ComfyUI has prompts to execute."""
    from server import PromptServer

    server: Any = getattr(PromptServer, "instance", None)
    return server is not None and server.prompt_queue.get_tasks_remaining() > 0


def score(detector: WatermarkPenalty, pixels: np.ndarray) -> float:
    """How surely a watermark is in the picture, uint8 (H, W, 3): 0 to 1."""
    from PIL import Image

    times = max(1, min(pixels.shape[:2]) // SIDE)
    shrunk = np.array(Image.fromarray(pixels).reduce(times))
    with torch.inference_mode():
        image = torch.from_numpy(shrunk).permute(2, 0, 1)[None].float() / 255
        return detector.probability(image).item()


class Looker:
    """Takes pictures and gives them scores, one after the other, on a thread that begins with the first.

    tell: sends an event to every page. busy: whether a run goes on, to which most of the time is left then.
    """

    def __init__(
        self,
        store: Callable[[], FeedbackStore],
        tell: Callable[[str, dict[str, Any]], None],
        busy: Callable[[], bool] = run_goes_on,
    ) -> None:
        self._store, self._tell, self._busy = store, tell, busy
        self._change = threading.Condition()
        self._waiting: dict[str, None] = {}  # in this order
        self._unreadable: set[str] = set()
        self._done = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def look_at(self, ids: Iterable[str]) -> None:
        """Returns at once; the pictures are looked at before all others that wait."""
        with self._change:
            self._waiting = {**dict.fromkeys(ids), **self._waiting}
            self._begin()

    def look_at_all(self) -> Looked:
        """Lets every stored picture that has no score wait for one, the newest first. Reads the store."""
        found = self._store().without_watermark_score(EVERYTHING)
        with self._change:
            self._waiting.update((id_, None) for id_ in found if id_ not in self._unreadable)
            self._begin()
            return self._looked()

    def finished(self, seconds: float) -> bool:
        """Waits until nothing waits any more, so long at most; whether that is so."""
        with self._change:
            return self._change.wait_for(lambda: not self._waiting, seconds)

    def stop(self) -> None:
        """Ends the thread; what waits has no score and is found by `look_at_all` the next time."""
        self._stopped.set()
        with self._change:
            self._waiting.clear()
            self._change.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(10)

    def _begin(self) -> None:
        if self._waiting and (self._thread is None or not self._thread.is_alive()):
            self._stopped.clear()
            self._thread = threading.Thread(target=self._work, name="feedback-watermarks", daemon=True)
            self._thread.start()
        self._change.notify_all()

    def _work(self) -> None:
        from ..feedback.rewards.watermark import WatermarkPenalty

        detector = WatermarkPenalty()
        while ids := self._next():
            try:
                self._keep({id_: value for id_ in ids if (value := self._look(detector, id_)) is not None})
            except (DatabaseUnusable, DatabaseReadOnly) as error:
                LOG.warning("Pictures were not looked at for watermarks. %s", error)
                ids = list(self._waiting)
            self._over(ids)

    def _next(self) -> list[str]:
        """The next few; empty when it shall end."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._stopped.is_set())
            return list(self._waiting)[:AT_ONCE]

    def _look(self, detector: WatermarkPenalty, image_id: str) -> float | None:
        """The score, or None where there is nothing to look at."""
        began = time.monotonic()
        try:
            return score(detector, self._store().image_pixels(image_id))
        except (NotFound, FileNotFoundError, BadPicture) as error:
            LOG.debug("Picture %s was not looked at for watermarks: %s", image_id, error)
            self._unreadable.add(image_id)
            return None
        finally:
            if self._busy():
                self._stopped.wait(BREATHERS * (time.monotonic() - began))

    def _keep(self, scores: dict[str, float]) -> None:
        try:
            self._store().add_watermark_scores(scores)
        except NotFound:  # a picture was deleted meanwhile
            for id_, value in scores.items():
                with suppress(NotFound):
                    self._store().add_watermark_scores({id_: value})

    def _over(self, ids: list[str]) -> None:
        with self._change:
            before = len(self._waiting)
            for id_ in ids:
                self._waiting.pop(id_, None)
            self._done += before - len(self._waiting)
            looked = self._looked()
            if not self._waiting:
                self._done = 0
            self._change.notify_all()
        self._tell(EVENT, asdict(looked))

    def _looked(self) -> Looked:
        return Looked(self._done, len(self._waiting))


LOOKER = Looker(store, tell_pages)
"""The one of this ComfyUI."""

atexit.register(LOOKER.stop)
