"""What a training node shows while it works: its progress, its curves, and samples of what the LoRA makes by now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..training.following import History
from ..training.loop import Step
from .plots import beneath, grid, line_plot

Samples = Callable[[], tuple[Tensor, list[str]]]
"""Makes pictures with the weights as they are: IMAGE (B, H, W, 3) and a label for each."""

SECONDS = 2.0
"""Between two pictures of the curves: drawing takes hundredths of one."""


class Live:
    """To be called after each step; raises ComfyUI's interrupt. samples: made every `every` steps, 0 never."""

    def __init__(self, title: str, steps: int, samples: Samples | None = None, every: int = 0) -> None:
        self.title, self.samples, self.every = title, samples, every if samples is not None else 0
        self.bar = comfy.utils.ProgressBar(steps)
        self.made: list[tuple[int, Tensor, list[str]]] = []
        self._drawn = float("-inf")

    def __call__(self, step: Step, history: History) -> None:
        if self.every and step.done % self.every == 0:
            self.sample(step.done)
        self.bar.update_absolute(step.done, preview=self._preview(history))
        comfy.model_management.throw_exception_if_processing_interrupted()

    def sample(self, step: int) -> None:
        """Makes samples now; the first and the last ones are kept."""
        if self.samples is not None:
            with quietly():
                images, labels = self.samples()
            self.made = [*self.made[:1], (step, images.cpu(), [f"step {step}: {label}" for label in labels])]

    def picture(self, history: History) -> Tensor:
        """Curves above samples of the start and of now, IMAGE (1, H, W, 3)."""
        parts = [line_plot(curves_of(history), self.title)]
        if self.made:
            images = torch.cat([images for _, images, _ in self.made])
            labels = [label for _, _, some in self.made for label in some]
            parts.append(grid(images, len(self.made[0][1]), labels))
        return beneath(parts)

    def _preview(self, history: History) -> tuple[str, Image.Image, int] | None:
        if time.monotonic() - self._drawn < SECONDS:
            return None
        self._drawn = time.monotonic()
        pixels = (self.picture(history)[0].clamp(0, 1) * 255).byte().numpy()
        return "JPEG", Image.fromarray(pixels), max(pixels.shape[:2])


def curves_of(history: History) -> dict[str, list[float]]:
    """Series of one length each: the smoothed loss, and what was checked, held until the next check."""
    curves = {"loss": smoothed(history.losses)}
    if history.checks and not history.epochs:  # with epochs they are minus the reward, which is drawn itself
        held = np.interp(np.arange(1, len(history.losses) + 1), *np.array(history.checks).T)
        curves["held-out loss"] = held.tolist()
    for name in [key for key in (history.epochs[0] if history.epochs else {}) if key not in ("number", "step")]:
        curves[name] = _stretched([epoch[name][0] for epoch in history.epochs], len(history.losses))
    return curves


def smoothed(values: list[float], share: float = 0.05) -> list[float]:
    """Mean over the last `share` of all steps up to each: single steps see other pictures at other noise."""
    width = max(1, round(share * len(values)))
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist() if values else []


def _stretched(values: list[float], length: int) -> list[float]:
    if not values or length == 0:
        return []
    return np.interp(np.linspace(0, len(values) - 1, length), np.arange(len(values)), values).tolist()


@contextmanager
def quietly() -> Iterator[None]:
    """No progress of what happens inside: the bar belongs to the training."""
    hook = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(None)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)


@contextmanager
def unseen() -> Iterator[None]:
    """Progress without previews of what happens inside: whoever is to judge it blindly may be watching."""
    hook = comfy.utils.PROGRESS_BAR_HOOK

    def without_preview(value: int, total: int, preview: object = None, **more: object) -> None:
        if hook is not None:
            hook(value, total, None, **more)

    comfy.utils.set_progress_bar_global_hook(without_preview)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
