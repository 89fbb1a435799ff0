"""What the cells of bench/training.py share: a place of their own for files, the demo model, stars, time and memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import all_on_cpu  # noqa: F401  (before ComfyUI)
import comfy.utils
import folder_paths
import numpy as np
import rows
import torch
from torch import Tensor

from feedback_loop.demo import judge as judging
from feedback_loop.demo import loop, measure, rater
from feedback_loop.feedback.made import Generation
from feedback_loop.feedback.records import Rating
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import compat, demo
from feedback_loop.nodes.examples import encode_prompts
from feedback_loop.nodes.sampling import rollout

SIZE = 64
RATER = "scripted"
HOW = {k: loop.SAMPLING[k] for k in ("steps", "cfg", "sampler_name", "scheduler")}
NODE_HOW = {"sampling_steps": HOW["steps"]} | {k: HOW[k] for k in ("cfg", "sampler_name", "scheduler")}


def settle(folder: Path) -> FeedbackStore:
    """Everything that the nodes write goes below `folder`, in place of what an earlier run left there; its store."""
    for name in ("user", "loras"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    folder_paths.set_user_directory(str(folder / "user"))
    folder_paths.folder_names_and_paths["loras"] = ([str(folder / "loras")], {".safetensors"})
    return compat.store()


def own(folder: Path, *cell: object) -> Path:
    """A cell's own folder: others may be running beside it."""
    return folder / rows.slug("|".join(map(str, cell)))


def once(file: Path, make: Callable[[], Tensor]) -> Tensor:
    """What the file holds; made first where it is not there, whole or not at all."""
    if not file.exists():
        begun = file.with_suffix(f".{os.getpid()}")
        torch.save(make(), begun)
        begun.replace(file)
    return torch.load(file, weights_only=True)


def draw(model: Any, prompts: list[measure.Prompt]) -> Tensor:
    """(N, 3, H, W): a picture of each prompt from its own seed, as the demo's KSampler makes it."""
    _, clip, vae, _ = demo.load_demo_model()
    conds = encode_prompts(clip, [p.text for p in prompts])
    positives, seeds = [conds[p.text] for p in prompts], [p.seed for p in prompts]
    return rollout(model, positives, conds[""], vae, seeds, *HOW.values(), SIZE, SIZE, batch_size=16).images.clone()


def rate(kept: FeedbackStore, collection: str, count: int, seed: int, drawn: Path, most: int) -> list[str]:
    """`count` plain pictures, four of each prompt, with the scripted rater's noisy stars; their prompts.

    With a larger count, up to `most`, the first ones are the same and so are their stars. drawn: a file that keeps the
    pictures for the next call.
    """
    prompts = loop.prompts(-(-most // loop.PER_PROMPT), seed=1000 + seed)
    each = [measure.Prompt(p.text, p.words, p.seed + i) for p in prompts for i in range(loop.PER_PROMPT)][:most]
    images, each = once(drawn, lambda: draw(demo.load_demo_model()[0], each))[:count], each[:count]
    utility = rater.utility(judging.look(judging.load(), images), [p.words for p in each])
    stars = rater.stars(utility, np.random.default_rng(2026 + seed))
    for image, prompt, star in zip(images.movedim(1, -1), each, stars.tolist(), strict=True):
        pixels = (image.clamp(0, 1) * 255).round().byte().numpy()
        made = Generation(prompt=prompt.text, seed=str(prompt.seed))
        kept.add_rating(Rating(kept.add_image(pixels, made, collection), star, RATER))
    return list(dict.fromkeys(p.text for p in each))


@dataclass
class Clock:
    """Seconds of this process's CPU and of the wall, at each step of a bar of `total` steps."""

    total: int
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def tick(self) -> None:
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())

    def images_per_second(self, batch: int, skip: int = 3) -> dict[str, float]:
        """By the fastest step, the least disturbed by other work; in the first ones torch prepares itself."""
        return {
            name: batch / float(np.diff(stamps[skip:]).min())
            for name, stamps in (("images_per_cpu_s", self.cpu), ("images_per_s", self.wall))
        }


@contextmanager
def every_step(total: int) -> Iterator[Clock]:
    """Listens to ComfyUI's progress bars, which tell the steps of its own trainer and of ours alike."""
    clock = Clock(total)

    def hook(value: int, of: int, preview: Any = None, **rest: Any) -> None:
        if of == total:
            clock.tick()

    comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = 0.0
    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        yield clock
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


class Peak:
    """The most memory that the process held since this was made, over what it held then, in MB (Linux)."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def megabytes(self) -> float:
        return (_status("VmHWM") - self.before) / 1024


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found.group(1))


def tell(found: dict[str, Any]) -> None:
    """The last line of a cell, which bench/training.py reads."""
    print(json.dumps(found), flush=True)


def one_thread() -> None:
    torch.set_num_threads(1)
