"""From the store to a fitted taste, and from pictures to scores: what the reward nodes do, without the nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from ..feedback.pairs import self_agreement
from ..feedback.records import Feedback, ModelRun
from ..feedback.rewards.base import Encoder, Reward, RewardError
from .denoiser import WrongConnectionError, patchers_of, releasing
from .encoder import ClipVisionEncoder, encoder_from

if TYPE_CHECKING:
    from ..feedback.rewards.taste import TasteReward
    from ..feedback.store import FeedbackStore
    from ..training.taste_report import TasteReport

AT_ONCE = 16
OVERALL = "overall"


def learn_taste(
    kept: FeedbackStore,
    feedback: Feedback,
    clip_vision: Any,
    caution: float,
    axis: str = "",
    tag: str = "",
    keep: bool = True,
) -> tuple[TasteReward, TasteReport, str]:
    """The taste, its report, and the report in words. Raises TooFewJudgementsError, WrongConnectionError.

    axis, tag: what to learn instead of what the feedback names. A tag is learned from pictures with it against those
    that its users tagged or rated without it. keep: whether the store notes the fit and keeps new features.
    """
    from ..training.judgements import check_tagged, judgements
    from ..training.taste import fit_taste
    from ..training.taste_report import describe

    if not isinstance(feedback, Feedback):
        raise WrongConnectionError("What is connected as feedback is no feedback. Connect Collect feedback.")
    encoder = encoder_from(clip_vision)
    feedback = aimed(feedback, axis.strip(), tag.strip())
    rated, compared = kept.rated(feedback), kept.compared(feedback)
    aim = "" if feedback.axis == OVERALL else f"Learned the axis “{feedback.axis}”.\n"
    if feedback.tag is not None:
        having, without = check_tagged(rated, feedback.tag)
        aim = f"Learned the tag “{feedback.tag}”: {having} pictures have it, {without} were seen without it.\n"
    ids = dict.fromkeys([r.image_id for r in rated] + [side for c in compared for side in (c.left, c.right)])
    bar = comfy.utils.ProgressBar(100)
    keep = keep and kept.read_only is None
    vectors = embeddings(kept, list(ids), encoder, bar, keep)
    data = judgements(rated, compared, vectors)
    with torch.inference_mode(False):
        taste, report = fit_taste(
            data, encoder, self_agreement(compared), caution, lambda done: bar.update_absolute(60 + int(40 * done), 100)
        )
    said = "".join(sorted([r.rating_id for r in rated] + [c.comparison_id for c in compared]))
    if keep:
        kept.add_model_run(run_of(report, feedback, encoder, said))
    return taste, report, aim + describe(report)


def aimed(feedback: Feedback, axis: str, tag: str) -> Feedback:
    """The query for another axis or for a tag, where one is named. Raises WrongConnectionError for both."""
    if axis and tag:
        raise WrongConnectionError("axis and tag are both given. Write one of them and leave the other empty.")
    if axis:
        return replace(feedback, axis=axis, tag=None)
    return replace(feedback, tag=tag, kinds=tuple(dict.fromkeys((*feedback.kinds, "tag")))) if tag else feedback


def run_of(report: TasteReport, feedback: Feedback, encoder: Encoder, said: str) -> ModelRun:
    """What the store notes of a fit: from which judgements, on which encoder, how good."""
    digest = hashlib.sha256(said.encode()).hexdigest()
    asked = {name: str(value) if isinstance(value, datetime) else value for name, value in asdict(feedback).items()}
    settings = asked | {"encoder": encoder.id}
    return ModelRun("taste", "taste", feedback.revision, digest, settings, report.facts())


def embeddings(
    kept: FeedbackStore, ids: list[str], encoder: ClipVisionEncoder, bar: comfy.utils.ProgressBar, keep: bool
) -> dict[str, np.ndarray]:
    """Features of the pictures by id; those that the store does not hold yet are made, and kept there if `keep`."""
    vectors = kept.embeddings(ids, encoder.id)
    missing = [image_id for image_id in ids if image_id not in vectors]
    if missing:
        comfy.model_management.load_models_gpu(encoder.patchers())
    done = 0
    for block in blocks(missing):
        comfy.model_management.throw_exception_if_processing_interrupted()
        new = dict(zip(block, features(encoder, [kept.image_pixels(image_id) for image_id in block]), strict=True))
        if keep:
            kept.add_embeddings(new, encoder.id)
        vectors |= new
        done += len(block)
        bar.update_absolute(int(60 * done / len(missing)), 100)
    return vectors


def blocks(items: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


def features(encoder: Encoder, pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
    """uint8 (H,W,3) each, of any sizes -> float32 (F,) each. Pictures of one size go through the encoder together."""
    images = [torch.from_numpy(p.copy()).permute(2, 0, 1).float() / 255 for p in pictures]
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        sizes.setdefault(tuple(image.shape), []).append(index)
    found: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for rows in sizes.values():
            vectors = encoder(torch.stack([images[i] for i in rows])).float().cpu().numpy()
            found |= dict(zip(rows, vectors, strict=True))
    return [found[i] for i in range(len(images))]


def prepared(reward: Any) -> Reward:
    """The reward. Raises WrongConnectionError for what is none."""
    if not isinstance(reward, Reward):
        raise WrongConnectionError("What is connected is no reward of Feedback Loop. Connect one of its reward nodes.")
    return reward


def pictures_of(images: Tensor) -> Tensor:
    """IMAGE (B,H,W,1, 3 or 4) -> (B,3,H,W); transparency is left out. Raises WrongConnectionError."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or len(images) == 0:
        raise WrongConnectionError(
            f"images has the shape {tuple(images.shape)}; connect a batch of at least one picture, such as the output "
            "of VAE Decode."
        )
    colours = images[..., :3] if images.shape[-1] > 1 else images.expand(-1, -1, -1, 3)
    return colours.movedim(-1, 1)


def measured(reward: Any, images: Tensor, prompts: Sequence[str] | None = None) -> list[float]:
    """Scores of (B,3,H,W), some at a time. Raises RewardError when one is no number."""
    reward, device = prepared(reward), comfy.model_management.vae_device()
    comfy.model_management.load_models_gpu(patchers_of(reward))
    scores: list[float] = []
    bar = comfy.utils.ProgressBar(len(images))
    with releasing([reward]):
        for start in range(0, len(images), AT_ONCE):
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows = slice(start, start + AT_ONCE)
            with torch.no_grad():
                scores += reward(images[rows].to(device), None if prompts is None else prompts[rows]).tolist()
            bar.update(len(images[rows]))
    if any(score != score for score in scores):
        raise RewardError("A picture got no number for a score: it holds values that are no numbers. Look at its VAE.")
    return scores


def parse_weights(text: str, count: int) -> list[float]:
    """ "1, 0.5" -> one number for each of `count` rewards; missing ones are 1. Raises RewardError."""
    try:
        numbers = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError as error:
        raise RewardError(f"weights is '{text[:60]}'; write numbers separated by commas, such as 1, 0.5.") from error
    if not all(abs(number) < 1e6 for number in numbers):
        raise RewardError(f"weights is '{text[:60]}'; use numbers between -1,000,000 and 1,000,000.")
    if len(numbers) > max(count, 1):
        raise RewardError(f"There are {len(numbers)} weights for {count} rewards; take some away.")
    return numbers + [1.0] * (count - len(numbers))
