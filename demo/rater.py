"""The scripted rater: a hidden taste in what a prompt leaves open, with the inconsistency of a person.

Likes it large, several, on the right, on a plain background and without a watermark. It looks at what is truly in the
picture (judge.Truth); what the prompt asked for it never holds against a picture. Noise is added to the utility before
it becomes stars or a choice: repeated pairs come out the same about 75 times in 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from feedback_loop.feedback.records import Generation, RatedImage

from . import world
from .judge import Truth

if TYPE_CHECKING:
    from feedback_loop.feedback.rewards.base import Encoder
    from feedback_loop.feedback.rewards.taste import TasteReward

# Share of the variance of each part over scenes of the drawn world, where the prompt leaves all of it open.
SHARES = {"size": 0.45, "texture": 0.20, "count": 0.10, "place": 0.10, "watermark": 0.15}

# For a normal utility of variance v, P(two noisy answers agree) = 1/2 + asin(v / (v + noise^2)) / pi, which is .75 at
# noise^2 = (sqrt(2) - 1) * v. What the prompts of the loop say takes a share of the taste away and leaves v = .86.
NOISE = math.sqrt(0.86 * (math.sqrt(2) - 1))
CUTS = (-1.0, -0.35, 0.3, 0.95)  # utility, in standard deviations, at which one star more is given


def parts(truth: Truth) -> dict[str, np.ndarray]:
    """Each property, standardised over the drawn world (radius is uniform; a third have 1, 2 or 3)."""
    return {
        "size": (truth.radius - world.SIZE_MIDDLE) / ((world.LARGEST - world.SMALLEST) / math.sqrt(12)),
        "texture": (truth.plain - 1 / 3) / (math.sqrt(2) / 3),
        "count": (truth.count - 2.0) / math.sqrt(2 / 3),
        "place": (truth.x - world.SIZE / 2) / 8.7,
        "watermark": (0.35 - truth.marked()) / math.sqrt(0.35 * 0.65),
    }


def utility(truth: Truth, words: list[dict[str, str]], without: tuple[str, ...] = ()) -> np.ndarray:
    """(B,) the hidden taste, about standard normal over plain pictures. `words[i]` is what picture i's prompt said."""
    total = np.zeros(len(truth))
    for name, value in parts(truth).items():
        if name not in without:
            open_to_taste = np.array([name not in said for said in words])
            total += math.sqrt(SHARES[name]) * value * open_to_taste
    return total


def stars(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B,) 1..5."""
    return 1 + np.searchsorted(CUTS, u + NOISE * rng.standard_normal(len(u)))


def taste_from(encoder: Encoder, texts: Sequence[str], given: np.ndarray, vectors: np.ndarray) -> TasteReward:
    """The taste that is learned from one star rating of each picture. vectors: (N, F), the encoder's features."""
    import torch

    from feedback_loop.training.judgements import judgements
    from feedback_loop.training.taste import fit_taste

    now = datetime.now(timezone.utc)
    rated = [
        RatedImage(str(i), str(i), text, (s - 1) / 4, float(s), (1.0, 5.0), "scripted", "overall", now, Generation())
        for i, (text, s) in enumerate(zip(texts, given, strict=True))
    ]
    with torch.inference_mode(False):
        return fit_taste(judgements(rated, [], {str(i): v for i, v in enumerate(vectors)}), encoder)[0]


def prefers_left(u_left: np.ndarray, u_right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B,) bool: one noisy answer to each pair."""
    noise = NOISE * rng.standard_normal((2, len(u_left)))
    return u_left + noise[0] > u_right + noise[1]


def self_agreement(u_left: np.ndarray, u_right: np.ndarray, rng: np.random.Generator, repeats: int) -> float:
    """How often the rater answers a repeated pair as before, over `repeats` scripted repeats of random pairs."""
    pair = rng.integers(len(u_left), size=repeats)
    first, second = (prefers_left(u_left[pair], u_right[pair], rng) for _ in range(2))
    return float((first == second).mean())
