"""The same prompts and seeds with two models: the pictures, and everything that is measured of them in pairs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..feedback import evaluation
from ..feedback.blind import Tally
from ..feedback.drift import drift
from ..feedback.evaluation import FEW_PROMPTS, Interval
from ..feedback.rewards.base import Reward
from ..feedback.rewards.text import PreferenceReward, TextEncoder
from .denoiser import WrongConnectionError
from .encoder import ClipVisionEncoder, encoder_from
from .learning import AT_ONCE, measured
from .sampling import Conditioning
from .text_tower import joint_width, mismatch, text_tower

THUMBNAIL = 8  # pixels a side that stand for a picture's features where no image encoder is at hand
ALIGNMENT = "alignment"
DIVERSITY = "diversity"
ONE_SIDED = 0.025
"""How often the alarm may take chance for a fall: what a 95 % interval leaves on one side."""


class EvaluationError(ValueError):
    """An evaluation that cannot be made as asked; the message says what to do."""


@dataclass(frozen=True)
class Comparison:
    """What the judge says of B against A over the same prompts and seeds; each interval holds 95 %."""

    pairs: int
    prompts: int
    win_rate: Interval
    gain: Interval
    reward_a: float
    reward_b: float
    diversity_a: float
    diversity_b: float


@dataclass(frozen=True)
class Watched:
    """Another number of the same pictures, higher is better: its means, and B less A. win_rate: where each picture has
    a number of its own."""

    a: float
    b: float
    change: Interval
    win_rate: Interval | None = None


@dataclass(frozen=True)
class Drawn:
    """Pictures (N, 3, H, W) of A and of B, latents of A as the LATENT socket holds them, of these prompts and seeds."""

    rows: Sequence[str]
    seeds: Sequence[int]
    a: Tensor
    b: Tensor
    latents: Tensor
    conds: dict[str, Conditioning] = field(default_factory=dict)

    def name(self) -> str:
        """The same for the same pictures."""
        digest = hashlib.sha256(repr((list(self.rows), list(self.seeds))).encode())
        for images in (self.a, self.b):
            digest.update((images.clamp(0, 1) * 255).byte().cpu().numpy().tobytes())
        return f"evaluation {digest.hexdigest()[:32]}"


@dataclass(frozen=True)
class Evaluation:
    """All that is known. rewards: of A's and B's pictures. watched: by name, what must not fall while the reward rises.

    drift: of B in standard deviations of A. gap: see `prediction_gap`, None where it can't be told. votes: of people,
    None where nobody is asked. notes: what could not be measured and why.
    """

    drawn: Drawn
    judge: str
    rewards: tuple[Sequence[float], Sequence[float]]
    result: Comparison
    watched: dict[str, Watched]
    drift: dict[str, Interval]
    gap: Interval | None = None
    votes: Tally | None = None
    notes: tuple[str, ...] = ()

    @property
    def alarm(self) -> str:
        """What speaks for a reward that is being hacked, in words, or "".

        The reward's rise has to be beyond its interval. What falls against it is tested by Holm's procedure, so that
        one of all that is watched falls by chance in one evaluation of 40 at most, however much is watched.
        """
        if not self.result.gain.low > 0:
            return ""
        fallen = self._fallen()
        if not fallen:
            return ""
        return (
            f"Alarm: the judge's reward rises by {self.result.gain.value:.3g} while {'; '.join(fallen)}. "
            "B may please the judge without being better: look at the pictures, and ask people."
        )

    def _fallen(self) -> list[str]:
        """What surely fell of what is watched, and whether people prefer A, in words."""
        rows = self.drawn.rows
        freedom = len(set(rows) if clusters_of(rows) else rows) - 1
        words = [
            f"{name} falls by {-one.change.value:.3g} (95 % interval {-one.change.high:.3g} to {-one.change.low:.3g})"
            for name, one in self.watched.items()
        ]
        chances = [evaluation.chance_of_no_fall(one.change, freedom) for one in self.watched.values()]
        if self.votes is not None and self.votes.votes:
            words.append(f"people prefer A in {1 - self.votes.win_rate.value:.0%} of {self.votes.votes} blind votes")
            chances.append(evaluation.chance_of_no_minority(self.votes.win_rate))
        return [word for word, sure in zip(words, evaluation.holm(chances, ONE_SIDED), strict=True) if sure]


def split_prompts(text: str) -> list[str]:
    """One prompt a line, each once. Raises EvaluationError when there is none."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise EvaluationError("There is no prompt to evaluate on: write at least one into 'prompts', one a line.")
    return prompts


def pairs_of(prompts: Sequence[str], seeds: int, first: int) -> tuple[list[str], list[int]]:
    """Each prompt `seeds` times, and a seed for each picture: all different, so that the pairs are independent."""
    rows = [prompt for prompt in prompts for _ in range(seeds)]
    return rows, [(first + index) % 2**64 for index in range(len(rows))]


def clusters_of(rows: Sequence[str]) -> Sequence[str] | None:
    """What intervals count: prompts where there are enough, and so they speak for prompts like these; with fewer they
    could say next to nothing that way, and are about these prompts alone."""
    return rows if len(set(rows)) >= FEW_PROMPTS else None


def compare(a: Sequence[float], b: Sequence[float], rows: Sequence[str], diversity: Sequence[float]) -> Comparison:
    """Rewards of the same prompts (`rows`) and seeds under A and under B, in the same order; see `clusters_of`."""
    clusters = clusters_of(rows)
    return Comparison(
        len(rows),
        len(set(rows)),
        evaluation.paired_win_rate(a, b, clusters),
        evaluation.paired_difference(a, b, clusters),
        fmean(a),
        fmean(b),
        *diversity,
    )


def watched_scores(a: Sequence[float], b: Sequence[float], rows: Sequence[str]) -> Watched:
    result = compare(a, b, rows, (math.nan, math.nan))
    return Watched(result.reward_a, result.reward_b, result.gain, result.win_rate)


def features(images: Tensor, encoder: ClipVisionEncoder | None) -> Tensor:
    """(N, 3, H, W) -> (N, F): the encoder's, or where there is none the pixels of a thumbnail."""
    if encoder is None:
        return torch.nn.functional.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)
    comfy.model_management.load_models_gpu(encoder.patchers())
    with torch.no_grad():
        return torch.cat([encoder(part).float().cpu() for part in images.split(AT_ONCE)])


def eye_of(clip_vision: Any | None, judge: Reward) -> ClipVisionEncoder | None:
    """What tells pictures apart: the CLIP_VISION that was connected, else the judge's own encoder."""
    if clip_vision is not None:
        return encoder_from(clip_vision)
    return next((encoder for encoder in judge.encoders if isinstance(encoder, ClipVisionEncoder)), None)


def aligning(clip: Any, clip_vision: Any | None, own: Any | None) -> tuple[Reward | None, str]:
    """(how well pictures fit their prompts in the joint space of both encoders, "") or (None, why that can't be told).

    own: the CLIP that was connected for this alone, which has to fit; the model's own does so only for some models.
    Raises WrongConnectionError.
    """
    if clip_vision is None:
        if own is not None:
            raise WrongConnectionError("alignment_clip is connected, but no encoder: connect its CLIP Vision model.")
        return None, "Prompt alignment was not measured: connect the CLIP Vision model of a CLIP as encoder."
    try:
        encoder = encoder_from(clip_vision)
        tower = text_tower(clip if own is None else own, joint_width(clip_vision))
        comfy.model_management.load_models_gpu(encoder.patchers())
        wrong = mismatch(encoder, tower)
    except WrongConnectionError as error:
        if own is not None:
            raise
        return None, f"Prompt alignment was not measured: {error} It can be connected as alignment_clip."
    if wrong:
        return None, f"Prompt alignment was not measured: {wrong}"
    return PreferenceReward(encoder, TextEncoder(tower), "", ALIGNMENT), ""


def evaluated(
    drawn: Drawn, judge: Reward, second: Reward | None, alignment: Reward | None, eye: ClipVisionEncoder | None
) -> Evaluation:
    """Every measure that needs pictures alone."""
    rows, sides = drawn.rows, (drawn.a, drawn.b)
    a, b = (measured(judge, images, rows) for images in sides)
    watched = {}
    for name, reward in (("the second judge", second), ("prompt alignment", alignment)):
        if reward is not None:
            scores = [measured(reward, images, rows) for images in sides]
            watched[name] = watched_scores(scores[0], scores[1], rows)
    seen = [features(images, eye) for images in sides]
    diversity = [evaluation.diversity(one, rows) for one in seen]
    change = evaluation.diversity_difference(seen[0], seen[1], rows, clusters_of(rows) or range(len(rows)))
    watched[DIVERSITY] = Watched(diversity[0], diversity[1], change)
    result = compare(a, b, rows, diversity)
    return Evaluation(drawn, judge.name, (a, b), result, watched, drift(drawn.a, drawn.b, clusters_of(rows)))
