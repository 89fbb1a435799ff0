"""Whole runs with ComfyUI's own samplers, many prompts at once.

A batch of different prompts costs what a batch of one prompt costs, and each picture is what a KSampler node would
make of its prompt and seed alone: no picture depends on which others share its batch.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from .decoder import check_vae
from .denoiser import WrongConnectionError

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

Conditioning = list[Any]
"""ComfyUI's CONDITIONING: a list of [tensor (1, tokens, width), settings]."""

BATCHED_MODELS = (
    comfy.model_base.BaseModel,
    comfy.model_base.SDXL,
    comfy.model_base.SD3,
    comfy.model_base.Flux,
)
"""Models whose conditioning is tested to be one row for each picture. Others fold it into one number (Lumina's token
count) or one list (Qwen's), so there only pictures of the same prompt share a batch."""

ALONE = ("dpm_adaptive", "dpm_adaptive_function", "sample_dpm_adaptive")
"""Samplers that choose their steps by the error of the whole batch, so that pictures would disturb each other: by name,
and by the function of a SAMPLER."""


class Rollout(NamedTuple):
    """latents: (N, C, *spatial) as the LATENT socket holds them; images: (N, 3, H, W) float32 in 0..1; both on the
    device that ComfyUI keeps results on, in the order of the prompts."""

    latents: Tensor
    images: Tensor


@torch.no_grad()
def rollout(
    model: ModelPatcher,
    positives: Sequence[Conditioning],
    negative: Conditioning,
    vae: VAE,
    seeds: Sequence[int],
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    width: int,
    height: int,
    batch_size: int = 8,
) -> Rollout:
    """Picture i is a whole run from `positives[i]` and `seeds[i]`, equal to the stock KSampler's and VAE Decode's.

    At most `batch_size` pictures are sampled at a time, fewer when memory runs out. Shows progress and previews, stops
    at ComfyUI's interrupt. Raises WrongConnectionError for inputs that do not fit together.
    """
    check_vae(vae, model)
    sampled = sample(model, positives, negative, seeds, steps, cfg, sampler_name, scheduler, width, height, batch_size)
    return Rollout(sampled, decode(vae, sampled))


@torch.no_grad()
def sample(
    model: ModelPatcher,
    positives: Sequence[Conditioning],
    negative: Conditioning,
    seeds: Sequence[int],
    steps: int,
    cfg: float,
    sampler_name: str | comfy.samplers.KSAMPLER,
    scheduler: str | Tensor,
    width: int,
    height: int,
    batch_size: int = 8,
) -> Tensor:
    """`rollout` without its decoding: latents (N, C, *spatial); by names, or by a SAMPLER and SIGMAS in their place."""
    _check(model, positives, negative, seeds)
    empty = _empty_latent(model, width, height)
    show = _Progress(model, steps, len(seeds))
    finished: dict[int, Tensor] = {}

    def run(rows: list[int]) -> None:
        positive = stacked([positives[i] for i in rows])
        own = [seeds[i] for i in rows]
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in own])
        latents = _run(
            model, noise, positive, negative, own, steps, cfg, sampler_name, scheduler, empty, show.callback(rows)
        )
        finished.update(zip(rows, latents.split(1), strict=True))

    name = sampler_name if isinstance(sampler_name, str) else sampler_name.sampler_function.__name__
    largest = 1 if name in ALONE else batch_size
    keys = [picture_key(model, positive) for positive in positives]
    _in_batches(batches(keys, largest), run)
    return torch.cat([finished[i] for i in range(len(seeds))])


def decode(vae: VAE, latents: Tensor) -> Tensor:
    """Latents as sampled -> (N, 3, H, W) float32 in 0..1, by the same call as the VAE Decode node."""
    pixels = vae.decode(latents)
    if pixels.ndim == 5:  # video models: a picture is a film of one frame
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
    return pixels.movedim(-1, 1).float()


def batches(keys: Sequence[Any], size: int) -> list[list[int]]:
    """Indices in batches of at most `size`; those of one batch have equal keys (prompts that can be stacked)."""
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def stacked(conds: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of one `signature` as one whose tensors hold a row for each: (B, tokens, width)."""
    return [
        [_joined([e[0] for e in same]), _joined_settings([e[1] for e in same])] for same in zip(*conds, strict=True)
    ]


def signature(cond: Conditioning) -> tuple[Any, ...]:
    """Equal for conditionings that `stacked` may join: shapes of tensors, values of numbers, all else by identity."""
    return tuple((_mark(entry[0]), tuple((k, _mark(v)) for k, v in sorted(entry[1].items()))) for entry in cond)


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim > 0:
        return ("rows", tuple(value.shape), value.dtype)
    if value is None or isinstance(value, (bool, int, float, str)):
        return (type(value), value)
    if isinstance(value, (tuple, list)) and not any(isinstance(v, (Tensor, dict, list)) for v in value):
        return tuple(_mark(v) for v in value)
    return id(value)


def _joined_settings(settings: list[dict[str, Any]]) -> dict[str, Any]:
    first = settings[0]
    return {k: _joined([s[k] for s in settings]) if _is_rows(v) else v for k, v in first.items()}


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _joined(rows: list[Tensor | None]) -> Tensor | None:
    # a run of one picture sees only the first row of a conditioning that has several
    return torch.cat([row[:1] for row in rows if row is not None]) if rows[0] is not None else None


def picture_key(model: ModelPatcher, positive: Conditioning) -> Any:
    return signature(positive) if type(model.model) in BATCHED_MODELS else id(positive)


def _empty_latent(model: ModelPatcher, width: int, height: int) -> Tensor:
    """What an Empty Latent Image node and a KSampler node would start from; (1, C, *spatial)."""
    management = comfy.model_management
    device, dtype = management.intermediate_device(), management.intermediate_dtype()
    empty = torch.zeros((1, 4, height // 8, width // 8), device=device, dtype=dtype)
    return comfy.sample.fix_empty_latent_channels(model, empty, 8)


def _run(
    model: ModelPatcher,
    noise: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    seeds: list[int],
    steps: int,
    cfg: float,
    sampler_name: str | comfy.samplers.KSAMPLER,
    scheduler: str | Tensor,
    empty: Tensor,
    callback: Callable[..., None],
) -> Tensor:
    sampler = comfy.samplers.sampler_object(sampler_name) if isinstance(sampler_name, str) else sampler_name
    if not isinstance(scheduler, Tensor):
        levels = comfy.samplers.KSampler(model, steps, model.load_device, str(sampler_name), scheduler, 1.0)
        scheduler = levels.sigmas
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        picture_noise(sampler, seeds),
        scheduler,
        positive,
        negative,
        empty.expand(noise.shape),
        callback=callback,
        disable_pbar=True,
        seed=seeds[0],
    )


def picture_noise(sampler: comfy.samplers.KSAMPLER, seeds: list[int]) -> comfy.samplers.KSAMPLER:
    """The same sampler, drawing the noise that it adds on the way for each picture from that picture's own seed.

    Samplers that add none stay as they are.
    """
    function = sampler.sampler_function
    if len(seeds) == 1 or "noise_sampler" not in inspect.signature(function).parameters:
        return sampler

    def sample_with_own_noise(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        noise_sampler = _noise_sampler(function.__name__, x, sigmas, seeds)
        return function(model, x, sigmas, noise_sampler=noise_sampler, **options)

    return comfy.samplers.KSAMPLER(sample_with_own_noise, sampler.extra_options, sampler.inpaint_options)


def _noise_sampler(name: str, x: Tensor, sigmas: Tensor, seeds: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """What the sampler `name` would make for itself, one for each seed."""
    if name.startswith("sample_dpmpp") and "_sde" in name:
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        return k_diffusion.BrownianTreeNoiseSampler(x, low, high, seed=seeds, cpu=not name.endswith("_gpu"))
    each = [k_diffusion.default_noise_sampler(x[:1], seed=seed) for seed in seeds]
    return lambda sigma, sigma_next: torch.cat([draw(sigma, sigma_next) for draw in each])


def _in_batches(planned: list[list[int]], run: Callable[[list[int]], None]) -> None:
    """Runs batch after batch; one that does not fit into memory is cut in two, until it is a single picture."""
    waiting = planned[::-1]
    while waiting:
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows = waiting.pop()
        try:
            run(rows)
            continue
        except comfy.model_management.OOM_EXCEPTION:
            if len(rows) == 1:
                raise
        # outside the except block, whose traceback keeps the batch's tensors alive
        logging.warning("Feedback Loop: %d pictures at once do not fit into memory; going on with fewer.", len(rows))
        comfy.model_management.soft_empty_cache()
        half = len(rows) // 2
        waiting += [rows[half:], rows[:half]]


class _Progress:
    """One progress bar with previews for all batches of a rollout."""

    def __init__(self, model: ModelPatcher, steps: int, pictures: int) -> None:
        self.bar = comfy.utils.ProgressBar(steps * pictures)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.steps = steps
        self.done = 0

    def callback(self, rows: list[int]) -> Callable[..., None]:
        start, self.done = self.done, self.done + self.steps * len(rows)

        def show(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            preview = self.previewer.decode_latent_to_preview_image("JPEG", x0) if self.previewer else None
            share = min((step + 1) / max(total, 1), 1.0)
            self.bar.update_absolute(start + round(share * self.steps * len(rows)), preview=preview)

        return show


def _check(
    model: ModelPatcher, positives: Sequence[Conditioning], negative: Conditioning, seeds: Sequence[int]
) -> None:
    if not positives or len(positives) != len(seeds):
        raise WrongConnectionError(
            f"There are {len(positives)} prompts for {len(seeds)} seeds: each picture needs one prompt and one seed."
        )
    check_prompts(model, (*positives, negative))


def check_prompts(model: ModelPatcher, conds: Iterable[Conditioning]) -> None:
    """Raises WrongConnectionError for a prompt without conditioning, or of another width than the model reads."""
    config = model.model.model_config.unet_config
    wanted = config.get("context_dim") or config.get("context_in_dim")
    for cond in conds:
        if not cond:
            raise WrongConnectionError(
                "A prompt without any conditioning cannot be sampled: encode it with the model's CLIP."
            )
        width = cond[0][0].shape[-1]
        if isinstance(wanted, int) and width != wanted:
            raise WrongConnectionError(
                f"The prompts were encoded {width} numbers wide, but this MODEL reads {wanted}: connect the CLIP that "
                "belongs to the model."
            )
