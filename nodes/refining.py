"""Making a part of a picture anew: the crop, the runs, the order of the candidates, the paste, and the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..feedback import media, refinements
from ..feedback.records import Generation
from ..feedback.refinements import Candidate, Round
from ..guidance import regions
from ..guidance.regions import Crop
from ..guidance.text import Said
from .compat import store
from .decoder import check_vae, decoder_of
from .examples import encode
from .guidance import Pull, add_guidance, check_reward
from .learning import measured, prepared
from .recording import collection_name, generation_of, pictures_of, record
from .sampling import check_prompts, decode, picture_noise
from .text import INSIDE, encoder_of, known_prompt, rid, steered, words_of_both

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

AT_ONCE = 4  # candidates in one batch; fewer where memory is short
INSTEAD, ADDED = "the prompt there", "added to the prompt"
REWARD_PADDING = 0.25  # of the extent of the mask, shown to the reward around it
LARGE = (comfy.model_base.SDXL, comfy.model_base.SD3, comfy.model_base.Flux)


@dataclass(frozen=True)
class Plan:
    """How every picture of one run of the node is refined."""

    model: ModelPatcher
    positive: Any
    negative: Any
    vae: Any
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float
    candidates: int
    reward: Any = None
    comment: str = ""
    collection: str = ""
    inpaint: str = "differential"
    context: float = 0.5
    size: int = 0
    zoom: float = 1.0
    feather: float = 6.0
    guidance: float = 0.0
    comment_is: str = INSTEAD

    @classmethod
    def of(cls, hidden: Any, given: dict[str, Any]) -> Plan:
        """From the node's inputs, with the comment in the conditioning. Raises WrongConnectionError, GuidanceError."""
        clip, prompt = given.pop("clip", None), given.pop("prompt", "")
        plan = cls(**given)
        check_vae(plan.vae, plan.model)
        if plan.reward is not None:
            prepared(plan.reward)
        if plan.guidance > 0:
            check_reward(plan.reward)
        if plan.comment.strip():
            plan = _told(plan, clip, prompt, hidden)
        check_prompts(plan.model, (plan.positive, plan.negative))
        return replace(plan, collection=collection_name(plan.collection) if plan.collection.strip() else "")

    def settings(self) -> dict[str, Any]:
        """What is noted of a round."""
        kept = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "inpaint", "context", "zoom")
        return {name: getattr(self, name) if name != "seed" else str(self.seed) for name in kept}


def _told(plan: Plan, clip: Any, prompt: str, hidden: Any) -> Plan:
    """With what the comment wants in the positive prompt, and both turned against what it does not want."""
    encode_text, said = encoder_of(clip), [Said(plan.comment.strip())]
    wanted, positive = said[0].phrase(wanted=True), plan.positive
    if wanted and plan.comment_is == ADDED:
        positive = steered(encode_text, positive, known_prompt(prompt, hidden), said, 1.0, INSIDE)
    elif wanted:
        # what stands beside the text (areas, control, guidance) stays
        [[tokens, own], *_] = encode_text(wanted)
        positive = [[tokens, {**settings, **own}] for _, settings in positive[:1]]
    words = words_of_both(wanted if wanted and plan.comment_is == INSTEAD else prompt, hidden)
    positive, negative = rid(encode_text, (positive, plan.negative), words, said, 1.0, INSIDE)
    return replace(plan, positive=positive, negative=negative)


@dataclass(frozen=True)
class Refined:
    """pictures: (N, H, W, C), the best first; scores in the same order, None without a reward."""

    pictures: Tensor
    seeds: tuple[int, ...]
    scores: tuple[float | None, ...]
    mask: Tensor

    def summary(self) -> str:
        best = self.scores[0]
        given = "" if best is None else f", the best scores {best:+.3f}"
        return f"{len(self.pictures)} candidates{given}"


def refined(plan: Plan, image: Tensor, mask: Tensor) -> Refined:
    """image (1, H, W, C) with the part under mask (H, W) made anew `plan.candidates` times.

    Raises RegionError for an empty mask.
    """
    picture = image[..., :3].movedim(-1, 1).float()
    side = plan.size or liked_size(plan.model, picture.shape[-2:])
    crop = regions.crop_around(mask, plan.context, side, plan.zoom, multiple=latent_multiple(plan.vae))
    seeds = [(plan.seed + i) % 2**64 for i in range(plan.candidates)]
    parts = sampled_parts(
        plan, crop.take(picture), regions.fitted(crop_mask(crop, mask)[None], *crop_size(crop)), seeds
    )
    pasted = pasted_back(crop, picture, parts, mask, plan.feather)
    pictures = pasted.movedim(1, -1).to(image)
    if image.shape[-1] > 3:
        pictures = torch.cat([pictures, image[..., 3:].expand(len(pictures), -1, -1, -1)], dim=-1)
    # what is outside is taken from the input itself, whatever its type
    pictures = torch.where((mask > 0)[None, ..., None], pictures, image)
    return ordered(plan, pictures, seeds, mask)


def ordered(plan: Plan, pictures: Tensor, seeds: Sequence[int], mask: Tensor) -> Refined:
    if plan.reward is None:
        return Refined(pictures, tuple(seeds), (None,) * len(seeds), mask)
    images = pictures[..., :3].movedim(-1, 1)
    scores = regions.scored_inside(lambda part: measured(plan.reward, part), images, mask, REWARD_PADDING)
    order = regions.ranked(scores)
    places = torch.tensor(order)
    return Refined(pictures[places], tuple(seeds[i] for i in order), tuple(scores[i] for i in order), mask)


def liked_size(model: ModelPatcher, size: Sequence[int]) -> int:
    """The side at which a model was trained, or the picture's own where that is smaller."""
    large = isinstance(model.model, LARGE) or model.get_model_object("latent_format").latent_channels >= 16
    return min(1024 if large else 512, max(size))


def latent_multiple(vae: Any) -> int:
    """Pixels that a side of a crop must be a multiple of: two latents, which is one patch of a transformer."""
    ratio = vae.spacial_compression_decode() if hasattr(vae, "spacial_compression_decode") else 8
    return 2 * int(ratio)


def crop_mask(crop: Crop, mask: Tensor) -> Tensor:
    return mask[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def crop_size(crop: Crop) -> tuple[int, int]:
    return crop.to_height, crop.to_width


def pasted_back(crop: Crop, picture: Tensor, parts: Tensor, mask: Tensor, feather: float) -> Tensor:
    """picture (1, 3, H, W) with each of parts (N, 3, h, w) in the place of the crop; (N, 3, H, W)."""
    soft = regions.feathered((mask > 0).float()[None], feather) * mask
    weight = soft[:, None].to(parts.device)
    old = picture[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].to(parts.device)
    inside = crop_mask(crop, mask)[None, None].to(parts.device)
    new = torch.cat([regions.matched(crop.put(part[None]), old, inside) for part in parts])
    return crop.paste(picture.to(parts.device).expand(len(parts), -1, -1, -1), new, weight)


def sampled_parts(plan: Plan, part: Tensor, mask: Tensor, seeds: Sequence[int]) -> Tensor:
    """part (1, 3, h, w) made anew under mask (1, h, w), once for each seed; (N, 3, h, w) in 0..1.

    Stops at ComfyUI's interrupt; fewer at once where memory is short.
    """
    model = prepared_model(plan, mask)
    latent = encode(plan.vae, part.movedim(1, -1))
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    positive, negative = inpainting(plan, part, mask)
    bar = comfy.utils.ProgressBar(plan.steps * len(seeds))
    made: list[Tensor] = []
    waiting = [list(seeds[i : i + AT_ONCE]) for i in range(0, len(seeds), AT_ONCE)][::-1]
    while waiting:
        some = waiting.pop()
        try:
            made.append(_run(plan, model, latent, mask, positive, negative, some, bar))
            continue
        except comfy.model_management.OOM_EXCEPTION:
            if len(some) == 1:
                raise
        comfy.model_management.soft_empty_cache()
        waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
    return decode(plan.vae, torch.cat(made))


def _run(
    plan: Plan,
    model: ModelPatcher,
    latent: Tensor,
    mask: Tensor,
    positive: Any,
    negative: Any,
    seeds: list[int],
    bar: comfy.utils.ProgressBar,
) -> Tensor:
    def show(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(len(seeds))

    comfy.model_management.throw_exception_if_processing_interrupted()
    noise = torch.cat([comfy.sample.prepare_noise(latent, seed) for seed in seeds])
    schedule = comfy.samplers.KSampler(
        model, plan.steps, model.load_device, plan.sampler_name, plan.scheduler, plan.denoise, model.model_options
    )
    sampler = picture_noise(comfy.samplers.sampler_object(plan.sampler_name), seeds)
    start = latent.expand(len(seeds), *latent.shape[1:])
    return comfy.sample.sample_custom(
        model, noise, plan.cfg, sampler, schedule.sigmas, positive, negative, start,
        noise_mask=mask, callback=show, disable_pbar=True, seed=seeds[0],
    )  # fmt: skip


def prepared_model(plan: Plan, mask: Tensor) -> ModelPatcher:
    """With differential diffusion and the reward's pull on the place, as far as they are asked for."""
    model = plan.model
    if plan.inpaint == "differential" and "denoise_mask_function" not in model.model_options:
        model = model.clone()
        model.set_model_denoise_mask_function(freed)
    if plan.guidance > 0:
        pull = Pull(plan.reward, decoder_of(plan.vae, model, "auto"), plan.guidance, mask=mask)
        model = add_guidance(model, pull)
    return model


def freed(sigma: Tensor, denoise_mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """The mask at this step of differential diffusion, by the model's own time."""
    sampling, sigmas = extra_options["model"].inner_model.model_sampling, extra_options["sigmas"]
    last = sigmas[-1].clamp(min=float(sampling.sigma_min))
    first, last, here = (float(sampling.timestep(one)) for one in (sigmas[0], last, sigma[0]))
    return regions.progressive(denoise_mask, (here - last) / max(first - last, 1e-9))


def inpainting(plan: Plan, part: Tensor, mask: Tensor) -> tuple[Any, Any]:
    """(positive, negative) with what a model made for inpainting wants to see; other models do not look at it."""
    if not takes_masked_pictures(plan.model):
        return plan.positive, plan.negative
    hidden = (part - 0.5) * (1 - mask.round())[:, None] + 0.5
    seen = {"concat_latent_image": encode(plan.vae, hidden.movedim(1, -1)), "concat_mask": mask[:, None]}
    both = [[[tokens, {**settings, **seen}] for tokens, settings in cond] for cond in (plan.positive, plan.negative)]
    return both[0], both[1]


def takes_masked_pictures(model: ModelPatcher) -> bool:
    """Whether the model reads the masked picture beside the noise (SD inpainting models, Flux Fill)."""
    if model.model.concat_keys:
        return True
    config = model.model.model_config.unet_config
    return int(config.get("in_channels", 0)) > int(config.get("out_channels", config.get("in_channels", 0)))


def stored_rounds(hidden: Any, plan: Plan, images: Tensor, results: Sequence[Refined]) -> list[str]:
    """The ids of the rounds, one for each picture; the parents are recorded where they are not known yet."""
    generation = Generation() if hidden is None else generation_of(hidden, {})
    ids: list[str] = []
    for pixels, result in zip(pictures_of(images), results, strict=True):
        parent = known_or_recorded(pixels, plan.collection)
        made = [replace(generation, seed=str(seed)) for seed in result.seeds]
        candidates = store().add_images(zip(pictures_of(result.pictures), made, strict=True), plan.collection)
        ids.append(_recorded(plan, parent, candidates, result))
    return ids


def known_or_recorded(pixels: Any, collection: str) -> str:
    """The id of a picture with these pixels; one that is not known is recorded in the collection."""
    hash_ = media.pixel_hash(pixels)
    if (found := store().ask(lambda c: refinements.known_as(c, hash_))) is not None:
        return found
    return record([pixels], Generation(), collection, None)[0]


def _recorded(plan: Plan, parent: str, candidates: Sequence[str], result: Refined) -> str:
    """One row for a picture, also where two seeds gave the same pixels, or one gave the parent's."""
    scores = dict(zip(reversed(candidates), reversed(result.scores), strict=True))
    kept = [Candidate(id_, scores[id_]) for id_ in dict.fromkeys(candidates)]
    mask = media.encode_png((result.mask * 255).round().byte().cpu().numpy())
    marks = store().marks([parent])[parent].regions
    labels = tuple(dict.fromkeys(one.label for one in marks))
    made = Round(parent, plan.comment.strip(), tuple(kept), labels, mask, plan.settings())
    return store().note(lambda c: refinements.add(c, made))
