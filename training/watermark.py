"""Trains the watermark detector of feedback.rewards.watermark on synthetic overlays alone, and measures it."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..feedback.rewards.watermark import Detector, Network
from .overlays import TRAINED, Family, mark

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates of one training run."""

    steps: int = 20000
    pairs: int = 20  # pictures a step, each once clean and once marked
    lr: float = 3e-3
    weight_decay: float = 0.02
    cell_weight: float = 1.0  # of the loss on where the mark is
    seed: int = 0
    minutes: float | None = None  # on a busy machine: the schedule ends after this time at the latest
    hardness: float = 0.0  # of the first steps (see `batch`); a detector that is trained already starts at 1


@dataclass
class Pool:
    """Clean pictures and marks of one size: (N,S,S,3) and (M,S,S), uint8."""

    pictures: np.ndarray
    marks: np.ndarray


def draw_marks(
    count: int, size: int, rng: np.random.Generator, fonts: Sequence[Path] = (), families: dict[str, Family] = TRAINED
) -> np.ndarray:
    """(count, size, size) uint8, the families in turn."""
    chosen = list(families.values())
    return np.stack([mark(chosen[i % len(chosen)], size, rng, fonts) for i in range(count)])


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return (low + (high - low) * torch.rand(n, generator=generator)).view(n, 1, 1, 1)


def _some(n: int, chance: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(n, generator=generator) < chance).float().view(n, 1, 1, 1)


def _inks(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """(N,3,1,1): mostly white on dark and black on bright pictures, as people choose them; sometimes any colour."""
    n = len(pictures)
    bright = pictures.mean(dim=(1, 2, 3), keepdim=True) > _uniform(n, 0.3, 0.75, generator)
    usual = torch.where(bright, _uniform(n, 0, 0.15, generator), _uniform(n, 0.85, 1, generator)).expand(n, 3, 1, 1)
    coloured = torch.rand(n, 3, generator=generator).view(n, 3, 1, 1)
    return torch.where(_some(n, 0.15, generator) > 0, coloured, usual)


def _worn(cover: Tensor, generator: torch.Generator) -> Tensor:
    """Marks partly gone, as in a picture whose guidance has begun to remove them; a third of them."""
    n, size = len(cover), cover.shape[-1]
    field = F.interpolate(torch.rand(n, 1, 3, 3, generator=generator), size=(size, size), mode="bicubic")
    kept = (field.clamp(0, 1) * 1.6).clamp(0.15, 1)
    return torch.where(_some(n, 0.33, generator) > 0, cover * kept, cover)


def apply_marks(pictures: Tensor, cover: Tensor, faintest: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """pictures (N,3,S,S), cover (N,1,S,S), both in 0..1 -> marked pictures and the opacity laid on, (N,1,S,S)."""
    weight = _worn(cover, generator) * _uniform(len(pictures), faintest, 0.7, generator)
    return pictures + (_inks(pictures, generator) - pictures) * weight, weight


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one width a picture; sigma (N,1,1,1) in pixels."""
    n, channels, size, _ = images.shape
    reach = torch.arange(-6, 7, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (reach / sigma.view(n, 1).clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(images.reshape(1, n * channels, size, size), (6, 6, 6, 6), mode="replicate")
    flat = F.conv2d(flat, kernel.view(n * channels, 1, 1, 13), groups=n * channels)
    return F.conv2d(flat, kernel.view(n * channels, 1, 13, 1), groups=n * channels).view(n, channels, size, size)


def look_denoised(pairs: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Makes half (at amount 1) of the pictures look like clean images predicted from noise: blurred, mixed, noisy.

    A penalty is asked about such pictures while sampling; a detector that never saw them answers at random there, and
    its gradient paints patterns instead of removing them. pairs: (N,6,S,S), the clean and the marked version of a
    picture, which get the same blur and noise, so that only the mark tells them apart.
    """
    n, size = len(pairs), pairs.shape[-1]
    other = pairs[torch.randperm(n, generator=generator)]
    share = _some(n, 0.2 * amount, generator) * _uniform(n, 0.05, 0.35, generator)
    pairs, soft = pairs * (1 - share) + other.flip(3) * share, _some(n, 0.45 * amount, generator).flatten() > 0
    if soft.any():
        widths = _uniform(n, 0.4, 2.6, generator)[soft] * size / 64
        pairs = pairs.index_put((soft,), _blurred(pairs[soft], widths))
    coarse = torch.randn(n, 3, size // 8, size // 8, generator=generator)
    patches = F.interpolate(coarse, size=(size, size), mode="bicubic") * _uniform(n, 0, 0.12, generator)
    grain = torch.randn(n, 3, size, size, generator=generator) * _uniform(n, 0, 0.05, generator)
    noise = patches * _some(n, 0.3 * amount, generator) + grain * _some(n, 0.4 * amount, generator)
    return pairs + noise.repeat(1, 2, 1, 1)


def recompressed(images: Tensor, rng: np.random.Generator, chance: float = 0.25) -> Tensor:
    """Sends some of the pictures through JPEG or WebP, quality 50-95."""
    out = images.clone()
    for i in np.flatnonzero(rng.random(len(images)) < chance):
        buffer = io.BytesIO()
        picture = Image.fromarray((images[i].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
        picture.save(buffer, ("JPEG", "WEBP")[rng.integers(2)], quality=int(rng.integers(50, 96)))
        out[i] = _tensor(np.asarray(Image.open(buffer).convert("RGB"))[None])[0]
    return out


def _resampled(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop of at least 80 %, scaled back: marks cut at the edge and other heights of letters. All alike."""
    size = images.shape[-1]
    side = int(size * rng.uniform(0.8, 1.0))
    top, left = rng.integers(0, size - side + 1, 2)
    crop = images[..., top : top + side, left : left + side]
    return F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


def batch(
    pool: Pool, pairs: int, hardness: float, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Clean and marked versions of `pairs` pictures: images (2N,3,S,S), and the mark's opacity in each, (2N,1,S,S).

    hardness 0: plain marks on sharp pictures; 1: down to opacity .15, and half of the pictures as predicted from noise.
    A detector that starts with hard ones does not leave chance for many hundred steps.
    """
    clean = _tensor(pool.pictures[rng.integers(len(pool.pictures), size=pairs)])
    if rng.random() < 0.5:
        clean = clean.flip(3)
    clean = (clean * _uniform(pairs, 0.7, 1.3, generator) + _uniform(pairs, -0.15, 0.15, generator)).clamp(0, 1)
    cover = torch.from_numpy(pool.marks[rng.integers(len(pool.marks), size=pairs)])[:, None].float() / 255
    if rng.random() < 0.3:
        cover = cover.roll(tuple(rng.integers(0, cover.shape[-1], 2)), dims=(2, 3))
    marked, weight = apply_marks(clean, cover, 0.45 - 0.3 * hardness, generator)
    both = torch.cat([clean, marked, weight], dim=1)
    if rng.random() < 0.6:
        both = _resampled(both, rng)
    seen = look_denoised(both[:, :6], hardness, generator).clamp(0, 1)
    images = recompressed(torch.cat([seen[:, :3], seen[:, 3:]]), rng, 0.25 * hardness)
    return images, torch.cat([torch.zeros_like(weight), both[:, 6:]])


def loss(detector: nn.Module, images: Tensor, weight: Tensor, cell_weight: float) -> Tensor:
    """Cross-entropy of the picture's logit and of each cell's (is there a mark, and where), and of the order in a pair.

    The first half of the images are the clean versions of the second; that the marked one scores higher is easy to
    learn, since all else in the two is alike, and it shows the way to the rest.
    """
    logits, cells = detector(images)
    where = (F.max_pool2d(weight, 8)[:, 0] > 0.1).float()
    there = (weight.amax(dim=(1, 2, 3)) > 0.1).float()  # a crop may have cut the mark off
    clean, marked = logits.chunk(2)
    order = (F.softplus(clean - marked) * there.chunk(2)[1]).mean()
    picture = F.binary_cross_entropy_with_logits(logits, there)
    return picture + order + cell_weight * F.binary_cross_entropy_with_logits(cells, where)


def averaged(model: torch.optim.swa_utils.AveragedModel) -> Any:
    """The averaged weights as a frozen detector of its own."""
    return copy.deepcopy(model.module).eval().requires_grad_(False)


OnStep = Callable[[int, float, Callable[[], Any]], None]


def _ignore(step: int, loss: float, detector: Callable[[], Any]) -> None:
    pass


def train(
    pools: Sequence[tuple[float, Pool]], recipe: Recipe, on_step: OnStep = _ignore, start: Detector | None = None
) -> Detector:
    """`train_network` for the detector that the pack guides by."""
    return train_network(Detector, pools, recipe, on_step, start)


def train_network(
    make: Callable[[], N],
    pools: Sequence[tuple[float, Pool]],
    recipe: Recipe,
    on_step: OnStep = _ignore,
    start: N | None = None,
) -> N:
    """pools: (share of the steps, pool), one for each size of picture; larger ones take smaller batches.

    Seeded. on_step is told the step, its loss, and how to get the detector with the averaged weights so far. start: a
    detector to go on from.
    """
    torch.manual_seed(recipe.seed)
    generator, rng = torch.Generator().manual_seed(recipe.seed), np.random.default_rng(recipe.seed)
    detector = make().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # faster on a CPU
    if start is not None:
        detector.load_state_dict(start.state_dict())
    optimiser = torch.optim.AdamW(detector.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    shares = np.array([share for share, _ in pools])
    average = torch.optim.swa_utils.AveragedModel(
        detector, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    began, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        optimiser.param_groups[0]["lr"] = recipe.lr * min(1, 10 * done + 1e-3, 0.5 * (1 + math.cos(math.pi * done)))
        pool = pools[rng.choice(len(pools), p=shares / shares.sum())][1]
        pairs = max(6, recipe.pairs * 64**2 // pool.pictures.shape[1] ** 2)
        images, weight = batch(pool, pairs, min(1.0, recipe.hardness + 1.6 * done), rng, generator)
        value = loss(detector, images.contiguous(memory_format=torch.channels_last), weight, recipe.cell_weight)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 2.0)
        optimiser.step()
        average.update_parameters(detector)
        on_step(step, value.item(), lambda: averaged(average))
        step += 1
        done = max(step / recipe.steps, (time.monotonic() - began) / (60 * (recipe.minutes or math.inf)))
    return averaged(average)


def save_detector(detector: Network, path: Path) -> None:
    """Half precision, safetensors."""
    from safetensors.torch import save_file

    state = {k: v.half().contiguous() for k, v in detector.state_dict().items() if "num_batches" not in k}
    save_file(state, path, metadata={"format": "pt", "made_by": "feedback_loop training/watermark.py"})


# --- measuring -------------------------------------------------------------------------------------------------------


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(a marked picture scores above a clean one), ties half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    n, m = len(positive), len(negative)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Mean precision over the marked pictures, at equal numbers of both kinds."""
    score = np.concatenate([positive, negative])
    found = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])[np.argsort(-score, kind="stable")]
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float(precision[found > 0].mean())


def true_rate(positive: np.ndarray, negative: np.ndarray, false_rate: float = 0.01) -> float:
    """Share of the marked pictures above the threshold that `false_rate` of the clean ones exceed."""
    return float((positive > np.quantile(negative, 1 - false_rate)).mean())


def measures(positive: np.ndarray, negative: np.ndarray) -> dict[str, float]:
    """AUROC, average precision and true positives at 1 % false ones."""
    return {
        "auroc": auroc(positive, negative),
        "ap": average_precision(positive, negative),
        "tpr_at_1_fpr": true_rate(positive, negative),
    }
