"""Pictures with scores, as a trainer needs them: from the store, or rolled out afresh and scored by a reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..feedback.records import Feedback, RatedImage
from ..feedback.rewards.base import Reward
from ..training.objectives import Objective
from ..training.sources import Example, NoPreferenceError, standardise
from .denoiser import WrongConnectionError, gradients
from .learning import measured
from .sampling import Conditioning, rollout

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..feedback.store import FeedbackStore


@dataclass(frozen=True)
class Pictures:
    """images: one (H, W, 3) in 0..1 for each prompt and score; scores of one source, on one scale."""

    images: Sequence[Tensor]
    prompts: Sequence[str]
    scores: Sequence[float]

    def size(self) -> tuple[int, int]:
        """(width, height) that most of the pictures have, in whole latents of 8 pixels."""
        (height, width), _ = Counter(tuple(image.shape[:2]) for image in self.images).most_common(1)[0]
        return width // 8 * 8, height // 8 * 8


@dataclass(frozen=True)
class Sampling:
    """How more pictures are made; the fields are the KSampler node's."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    seed: int


def rated_pictures(kept: FeedbackStore, feedback: Feedback) -> Pictures:
    """Every rated picture of which the prompt is known, with the mean of its raters' values.

    Raises NoPreferenceError when there are fewer than two.
    """
    ratings: dict[str, list[RatedImage]] = {}
    for rating in kept.rated(feedback):
        if rating.prompt is not None:
            ratings.setdefault(rating.image_id, []).append(rating)
    if len(ratings) < 2:
        where = f"the collection '{feedback.collection}'" if feedback.collection else "the feedback"
        raise NoPreferenceError(
            f"There are {len(ratings)} rated pictures with a known prompt in {where}: rate at least two, better 50 or "
            "more. Feedback Capture records the prompt by itself, or takes it from its input."
        )
    images = [torch.tensor(kept.image_pixels(image_id)).float() / 255 for image_id in ratings]
    values = [sum(r.weight * r.value for r in given) / sum(r.weight for r in given) for given in ratings.values()]
    return Pictures(images, [str(given[0].prompt) for given in ratings.values()], values)


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
    """Latents (C, *spatial) in model space on the model's device, in the order of the pictures; normal tensors."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        sizes.setdefault(tuple(image.shape), []).append(index)
    latents: dict[int, Tensor] = {}
    for rows in sizes.values():
        encoded = encode(vae, torch.stack([images[i] for i in rows]))
        latents |= dict(zip(rows, model.model.process_latent_in(encoded.float()), strict=True))
    with gradients():
        return [latents[i].to(model.load_device).clone() for i in range(len(images))]


def encode(vae: Any, images: Tensor) -> Tensor:
    """(N, H, W, 3) -> latents; a VAE for video would take a batch for a film, so it gets one picture at a time."""
    if vae.latent_dim == 2:
        return vae.encode(images)
    return torch.cat([vae.encode(image[None]) for image in images])


def examples(pictures: Sequence[Pictures], latents: Sequence[Tensor], objective: Objective) -> list[Example]:
    """Examples with the objective's labels; each source of scores is standardised by itself."""
    z = torch.cat([standardise(torch.tensor(source.scores), source.prompts) for source in pictures])
    prompts = [prompt for source in pictures for prompt in source.prompts]
    labels = objective.labels(z).tolist()
    return [Example(*row) for row in zip(latents, prompts, labels, strict=True)]
