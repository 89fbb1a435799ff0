"""How many pictures go at a time where memory is short, found out once and remembered for the rest of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import comfy.model_management

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Fitting:
    """who: works on the pictures, for the warning. most: so many fit; None while all that were tried did."""

    who: str
    most: int | None = None

    def run(self, work: Callable[[int], T], planned: Callable[[], int]) -> T:
        """What `work` gives with `planned()` pictures at once, or with half as many for as often as they do not fit.

        Raises ComfyUI's OOM_EXCEPTION where not even one does.
        """
        while True:
            at_once = planned() if self.most is None else min(planned(), self.most)
            try:
                return work(at_once)
            except comfy.model_management.OOM_EXCEPTION:
                if at_once == 1:
                    raise
            # outside the except block, whose traceback keeps the graph alive
            log.warning("%s: %d pictures at once do not fit into memory; going on with fewer.", self.who, at_once)
            comfy.model_management.soft_empty_cache()
            self.most = at_once // 2
