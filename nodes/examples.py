"""Pictures with scores, as a trainer needs them: from the store, or rolled out afresh and scored by a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor

from ..feedback.records import ComparedImages, Feedback, RatedImage
from ..feedback.rewards.base import Reward
from ..training.labels import Preference
from ..training.pictures import Pictures
from ..training.sources import NoPreferenceError
from .denoiser import WrongConnectionError, gradients
from .learning import AT_ONCE, measured
from .sampling import Conditioning, rollout

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..feedback.store import FeedbackStore


@dataclass(frozen=True)
class Sampling:
    """How more pictures are made; the fields are the KSampler node's."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    seed: int


def rated_pictures(
    kept: FeedbackStore, feedback: Feedback, check: Callable[[Sequence[tuple[int, int]]], None] | None = None
) -> Pictures:
    """Every rated or compared picture of which the prompt is known, as bytes, with the mean of its raters' values.

    check: is told their sizes, (width, height), before one is read, and may raise. Raises NoPreferenceError when there
    are fewer than two.
    """
    ratings: dict[str, list[RatedImage]] = {}
    prompts: dict[str, str] = {}
    for rating in kept.rated(feedback):
        if rating.prompt is not None:
            ratings.setdefault(rating.image_id, []).append(rating)
            prompts[rating.image_id] = rating.prompt
    compared = [c for c in kept.compared(feedback) if c.left_prompt is not None and c.right_prompt is not None]
    compared = [c for c in compared if c.winner in ("left", "right")]
    for c in compared:
        prompts |= {c.left: str(c.left_prompt), c.right: str(c.right_prompt)}
    if len(prompts) < 2:
        where = f"the collection '{feedback.collection}'" if feedback.collection else "the feedback"
        raise NoPreferenceError(
            f"There are {len(prompts)} rated pictures with a known prompt in {where}: rate at least two, better 50 or "
            "more. Feedback Capture records the prompt by itself, or takes it from its input."
        )
    if check is not None:
        check([(found.width, found.height) for found in map(kept.image, prompts)])
    images = [torch.tensor(kept.image_pixels(image_id)) for image_id in prompts]
    scores = [_mean(ratings.get(image_id, [])) for image_id in prompts]
    return Pictures(images, list(prompts.values()), scores, _preferences(compared, list(prompts)))


def _mean(given: Sequence[RatedImage]) -> float:
    weight = sum(r.weight for r in given)
    return sum(r.weight * r.value for r in given) / weight if weight else math.nan


def _preferences(compared: Sequence[ComparedImages], ids: Sequence[str]) -> list[Preference]:
    """What was chosen and what not, by the pictures' places; a strength says how clear it was."""
    place = {image_id: index for index, image_id in enumerate(ids)}
    found = []
    for c in compared:
        left, right = place[c.left], place[c.right]
        weight = c.weight * (1.0 if c.strength is None else max(c.strength, 0.05))
        found.append(Preference(left, right, weight) if c.winner == "left" else Preference(right, left, weight))
    return found


def scored_pictures(
    model: ModelPatcher,
    vae: Any,
    conds: dict[str, Conditioning],
    like: Pictures,
    reward: Reward,
    count: int,
    how: Sampling,
) -> Pictures:
    """`count` new pictures of the prompts of `like`, in turn, by the model as it is, scored by the reward."""
    distinct = list(dict.fromkeys(like.prompts))
    prompts = [distinct[i % len(distinct)] for i in range(count)]
    seeds = [(how.seed + i) % 2**64 for i in range(count)]
    made = rollout(
        model, [conds[p] for p in prompts], conds[""], vae, seeds, how.steps, how.cfg, how.sampler_name, how.scheduler,
        *like.size(),
    )  # fmt: skip
    return Pictures(list(made.images.movedim(1, -1)), prompts, measured(reward, made.images, prompts))


def encode_prompts(clip: Any, prompts: Sequence[str]) -> dict[str, Conditioning]:
    """Each distinct prompt, and the empty one, through the text encoder once.

    Raises WrongConnectionError for a checkpoint's missing CLIP.
    """
    if clip is None:
        raise WrongConnectionError(
            "There is no text encoder in what is connected as `clip`. Connect one from Load CLIP, or a checkpoint that "
            "holds one."
        )
    return {p: clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in dict.fromkeys((*prompts, ""))}


def encode_pictures(model: ModelPatcher, vae: Any, images: Sequence[Tensor]) -> list[Tensor]:
    """Latents (C, *spatial) in model space on the model's device, in the order of the pictures; normal tensors.

    images: (H, W, 3) each, in 0..1 or as bytes; some at a time go through the VAE.
    """
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        sizes.setdefault(tuple(image.shape), []).append(index)
    latents: dict[int, Tensor] = {}
    for rows in (some[k : k + AT_ONCE] for some in sizes.values() for k in range(0, len(some), AT_ONCE)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        encoded = encode(vae, torch.stack([_shares(images[i]) for i in rows]))
        latents |= dict(zip(rows, model.model.process_latent_in(encoded.float()), strict=True))
    with gradients():
        return [latents[i].to(model.load_device).clone() for i in range(len(images))]


def _shares(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float() / 255


def encode(vae: Any, images: Tensor) -> Tensor:
    """(N, H, W, 3) -> latents; a VAE for video would take a batch for a film, so it gets one picture at a time."""
    if vae.latent_dim == 2:
        return vae.encode(images)
    return torch.cat([vae.encode(image[None]) for image in images])
