"""Fine-tunes the watermark detector on somebody's own pictures: they are its clean ones, marks are laid on by code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ..feedback.rewards.base import RewardError
from ..feedback.rewards.watermark import Detector, load_detector, log_odds
from . import backdrops, overlays
from .watermark import Pool, Recipe, draw_marks, measures, train

FEWEST = 8
SIZES = (64, 128)
TESTED = 96  # pixels of the crops that are tested on: a size that was not trained on, looked at in one view
SUSPECT = 4.0  # log-odds above which a picture is thought to be marked: 1 in 50 unmarked photographs, 1 in 3 marked


@dataclass(frozen=True)
class OwnRecipe:
    """What a run on own pictures takes. tested: held-out crops a family, each clean and marked."""

    steps: int = 600
    lr: float = 5e-4
    seed: int = 0
    crops: dict[int, int] = field(default_factory=lambda: {64: 500, 128: 160})
    marks: dict[int, int] = field(default_factory=lambda: {64: 420, 128: 210})
    own: float = 0.75  # share of own pictures among the clean ones; the rest keeps what was known before
    tested: int = 80


@dataclass(frozen=True)
class OwnReport:
    """rows: (family, whether it was trained on, AUROC before, after, TPR at 1 % FPR before, after)."""

    pictures: int
    held_out: int
    suspects: int
    rows: tuple[tuple[str, bool, float, float, float, float], ...]
    tested: int

    @property
    def unseen(self) -> tuple[float, float]:
        """Mean AUROC before and after over the families that were never trained on."""
        chosen = [row for row in self.rows if not row[1]]
        return float(np.mean([row[2] for row in chosen])), float(np.mean([row[3] for row in chosen]))

    @property
    def better(self) -> bool:
        return self.unseen[1] >= self.unseen[0]


Told = Callable[[float], None]
"""Is told the share that is done, 0..1; raises to stop."""


def learn(
    pictures: Sequence[np.ndarray], recipe: OwnRecipe, told: Told, start: Detector | None = None
) -> tuple[Detector, OwnReport]:
    """pictures: (H,W,3) uint8 each, of any sizes, without marks -> the detector, and what it does on held-out ones.

    A fifth of the pictures, chosen by their content, is only tested on. Where the families that were never trained on
    are found no better than before, the detector that it started from comes back. Raises RewardError for too few
    pictures.
    """
    own, kept = split(pictures)
    start, rng = start or load_detector(), np.random.default_rng(recipe.seed)
    pools = [(1.0, pool(own, size, recipe, rng)) for size in SIZES]
    told(0.1)
    plan = Recipe(steps=recipe.steps, lr=recipe.lr, seed=recipe.seed, hardness=1.0)
    tuned = train(pools, plan, lambda step, *_: told(0.1 + 0.75 * (step + 1) / recipe.steps), start)
    rows = compared(start, tuned, kept, recipe, told)
    suspects = sum(suspected(start, picture) for picture in pictures)
    report = OwnReport(len(own), len(kept), suspects, rows, recipe.tested)
    return (tuned if report.better else start), report


def split(pictures: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(to train on, to test on): four fifths and one, by a hash of their pixels; copies count once."""
    by_hash = {hashlib.sha256(np.ascontiguousarray(p).tobytes()).hexdigest(): p for p in pictures}
    if len(by_hash) < FEWEST:
        raise RewardError(
            f"{len(by_hash)} different pictures are too few to train a detector on: give at least {FEWEST}, better 50, "
            "without watermarks."
        )
    ordered = [by_hash[key] for key in sorted(by_hash)]
    held_out = max(2, len(ordered) // 5)
    return ordered[held_out:], ordered[:held_out]


def crop(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of at least half the picture's shorter side, mirrored at random, (size, size, 3) uint8."""
    shorter = min(picture.shape[:2])
    side = int(rng.integers(max(1, shorter // 2), shorter + 1))
    top, left = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
    square = Image.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side, :3]))
    scaled = np.asarray(square.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC))
    return scaled[:, ::-1] if rng.random() < 0.5 else scaled


def pool(own: Sequence[np.ndarray], size: int, recipe: OwnRecipe, rng: np.random.Generator) -> Pool:
    """Crops of own pictures among pictures made by code, a fifth with a look-alike; and marks to lay on them."""
    clean = []
    for _ in range(recipe.crops[size]):
        mine = rng.random() < recipe.own
        picture = crop(own[int(rng.integers(len(own)))], size, rng) if mine else backdrops.backdrop(size, rng)
        clean.append(backdrops.add_look_alike(picture, rng) if rng.random() < 0.2 else picture)
    return Pool(np.stack(clean), draw_marks(recipe.marks[size], size, rng))


def laid(pictures: np.ndarray, family: overlays.Family, rng: np.random.Generator) -> np.ndarray:
    """Each picture (N,S,S,3) with a mark of the family: white on dark and black on bright ones, alpha .15-.7."""
    out = []
    for picture in pictures:
        ink = [255.0] * 3 if picture.mean() < 150 else [0.0] * 3
        cover = overlays.mark(family, picture.shape[0], rng)
        out.append(overlays.lay(picture, cover, float(rng.uniform(0.15, 0.7)), ink))
    return np.stack(out)


def compared(
    before: Detector, after: Detector, kept: Sequence[np.ndarray], recipe: OwnRecipe, told: Told
) -> tuple[tuple[str, bool, float, float, float, float], ...]:
    """Both detectors on crops of the held-out pictures, family by family."""
    rng = np.random.default_rng(recipe.seed + 1)
    clean = np.stack([crop(kept[i % len(kept)], TESTED, rng) for i in range(recipe.tested)])
    negative, rows = [_scores(d, clean) for d in (before, after)], []
    families = overlays.HELD_OUT | overlays.TRAINED
    for number, (name, family) in enumerate(families.items(), 1):
        marked = laid(clean, family, rng)
        was, now = (measures(_scores(d, marked), n) for d, n in zip((before, after), negative, strict=True))
        shares = was["tpr_at_1_fpr"], now["tpr_at_1_fpr"]
        rows.append((name.replace("_", " "), name in overlays.TRAINED, was["auroc"], now["auroc"], *shares))
        told(0.85 + 0.15 * number / len(families))
    return tuple(rows)


def suspected(detector: Detector, picture: np.ndarray) -> bool:
    return bool(_scores(detector, picture[None, ..., :3])[0] > SUSPECT)


def _scores(detector: Detector, pictures: np.ndarray) -> np.ndarray:
    """(N,H,W,3) uint8 -> log-odds (N,)."""
    with torch.no_grad():
        blocks = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).split(20)
        return torch.cat([log_odds(detector, block.float() / 255) for block in blocks]).numpy()


def describe(report: OwnReport) -> str:
    """The report in words, and a line for each family."""
    before, after = report.unseen
    head = [
        f"Trained on {report.pictures} of your pictures, tested on {report.held_out} others: crops of these, clean and "
        f"marked, {report.tested} each a family of marks.",
        f"Of a clean and a marked crop the marked one scores higher in {100 * after:.0f} % for families that were "
        f"never trained on ({100 * before:.0f} % before). Guessing gives 50 %.",
    ]
    if not report.better:
        head.append("That is no better than before, so the detector comes out as it went in.")
    if report.suspects:
        head.append(
            f"{report.suspects} of your pictures look marked already (one in fifty does without being so). Leave out "
            "those that are: what is on all pictures is learned to be no mark."
        )
    lines = [
        f"{name}{'' if trained else ' (never trained on)'}: {100 * was:.0f} % -> {100 * now:.0f} %; found at one false "
        f"alarm in a hundred: {100 * share_was:.0f} % -> {100 * share_now:.0f} %"
        for name, trained, was, now, share_was, share_now in report.rows
    ]
    return "\n".join([*head, *lines])
