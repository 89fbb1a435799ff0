"""The demo model and its judge for bench/refine.py, and the figures that all of its parts report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "demo"))
import pack  # noqa: E402, F401

sys.path.remove(str(ROOT / "demo"))

from feedback_loop.demo import judge as judging  # noqa: E402
from feedback_loop.demo import world  # noqa: E402
from feedback_loop.feedback import evaluation  # noqa: E402

STEPS, CFG, SAMPLER, SCHEDULER = 20, 2.0, "euler", "sgm_uniform"
BATCH = 50
CANDIDATES = 4


@dataclass(frozen=True)
class Prompt:
    text: str
    words: dict[str, str]
    seed: int


@dataclass(frozen=True)
class Plain:
    """What was asked for, how it is encoded, the pictures (N, 3, 64, 64), and what the judge sees in them."""

    asked: list[Prompt]
    conds: list[Any]
    negative: Any
    seeds: list[int]
    images: torch.Tensor
    truth: judging.Truth


class Demo:
    """The demo model in this process, and its judge."""

    def __init__(self) -> None:
        from feedback_loop.nodes.demo import load_demo_model

        with torch.inference_mode():
            self.model, self.clip, self.vae, _ = load_demo_model()
        self.judge = judging.load()
        self._plain: dict[Any, Plain] = {}

    def encode(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def make(self, positives: Sequence[Any], negatives: Any, seeds: Sequence[int], model: Any = None) -> torch.Tensor:
        """(N, 3, 64, 64) in 0..1."""
        from feedback_loop.nodes.sampling import rollout

        with torch.inference_mode():
            made = rollout(
                model or self.model,
                positives,
                negatives,
                self.vae,
                seeds,
                STEPS,
                CFG,
                SAMPLER,
                SCHEDULER,
                64,
                64,
                BATCH,
            )
        return made.images.clone()

    def plain(self, count: int, seed: int, attribute: str) -> Plain:
        """Pictures of prompts that leave an attribute open; made once, for all that is compared with them."""
        key = (count, seed, attribute)
        if key not in self._plain:
            asked = prompts(count, seed, (attribute,))
            conds, negative, seeds = [self.encode(p.text) for p in asked], self.encode(""), [p.seed for p in asked]
            images = self.make(conds, negative, seeds)
            self._plain[key] = Plain(asked, conds, negative, seeds, images, self.look(images))
        return self._plain[key]

    def look(self, images: torch.Tensor) -> judging.Truth:
        return judging.look(self.judge, images)


def prompts(count: int, seed: int, leave_open: tuple[str, ...] = ()) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    made: list[Prompt] = []
    for _ in range(count):
        text, told = world.prompt(rng, leave_open)
        made.append(Prompt(text, told, int(rng.integers(2**48))))
    return made


def share(hits: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in evaluation.wilson(float(hits.sum()), len(hits))]


def mean(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in evaluation.mean_interval(values)]


def kept(asked: Sequence[Prompt], plain: judging.Truth, after: judging.Truth, but: str) -> np.ndarray:
    """Of each picture's other words that were true, the share that is still true; pictures without any are left out."""
    shares = []
    for i, prompt in enumerate(asked):
        held = [(a, w) for a, w in prompt.words.items() if a != but and plain.holds(a, w)[i]]
        if held:
            shares.append(np.mean([after.holds(a, w)[i] for a, w in held]))
    return np.array(shares)


class Report:
    """The rows of a run: {part: {row: figures}}. In a file, a run that was cut goes on after its last whole row."""

    def __init__(self, path: Path | None, pictures: int) -> None:
        self.path, self.pictures = path, pictures
        self.parts: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
        if self.parts.setdefault("pictures", pictures) != pictures:
            raise SystemExit(f"{path} is of {self.parts['pictures']} pictures, not {pictures}: name another file.")

    def row(self, part: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        rows = self.parts.setdefault(part, {})
        if name not in rows:
            rows[name] = measure()
            if self.path is not None:
                self.path.write_text(json.dumps(self.parts, indent=1) + "\n")
        print(f"{part}, {name}: {rows[name]}", flush=True)
