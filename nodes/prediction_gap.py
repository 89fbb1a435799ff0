"""How far two models' predictions are apart: KL to the base up to a factor, in the weighting that training uses."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..diffusion.process import Process
from ..feedback.evaluation import Interval, mean_interval
from ..training.objectives import squared_error
from ..training.sources import timestep_weight
from .denoiser import process_of
from .policy import sigma_sampler
from .sampling import Conditioning, batches, picture_key, stacked

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

LEVELS = 4
"""Noise levels that each picture is seen at, one from each quarter of those that the model is trained on."""

GUIDING = ("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function")


@torch.no_grad()
def prediction_gap(
    a: ModelPatcher,
    b: ModelPatcher,
    latents: Tensor,
    positives: Sequence[Conditioning],
    clusters: Sequence[Hashable] | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Interval | None:
    """Mean of weight(sigma) * mean (D_b - D_a)^2 over noised pictures of A, which the trainers' `kl` is a factor of.

    latents: (N, C, *spatial) as the LATENT socket holds them, of these prompts. Only what the networks predict counts,
    without CFG and without what else guides a run. None for models of two kinds, whose latents mean different things.
    """
    process = process_of(a)
    if type(a.model) is not type(b.model) or process_of(b) != process:
        return None
    x, sigma = noised(a, process, latents, seed)
    weight = process.kappa(sigma) * timestep_weight(process, sigma)
    parts = batches([picture_key(a, positive) for positive in positives], batch_size)
    bar = comfy.utils.ProgressBar(2 * len(positives))
    seen = []
    for model in (a, b):  # one after the other: two LoRAs on one base would change places for every batch
        estimates = torch.empty_like(x)
        for rows in parts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            estimates[:, rows] = predicted(model, x[:, rows], sigma[:, rows], stacked([positives[i] for i in rows]))
            bar.update(len(rows))
        seen.append(estimates)
    off = squared_error(seen[1].flatten(0, 1), seen[0].flatten(0, 1), weight.flatten())
    return mean_interval(off.view_as(sigma).mean(0), clusters)


def noised(model: ModelPatcher, process: Process, latents: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(LEVELS, N, C, *spatial) in model space and sigma (LEVELS, N), on the CPU; the same for each model of a kind."""
    clean = model.model.process_latent_in(latents.float()).cpu()
    generator = torch.Generator().manual_seed(seed)
    u = (torch.arange(LEVELS)[:, None] + torch.rand(LEVELS, len(clean), generator=generator)) / LEVELS
    sigma_at = sigma_sampler(model.get_model_object("model_sampling"))
    sigma = sigma_at(u.flatten().clamp(1e-6, 1 - 1e-6)).float().cpu().view_as(u)
    x = [process.noise(clean, torch.randn(clean.shape, generator=generator), level) for level in sigma]
    return torch.stack(x), sigma


def predicted(model: ModelPatcher, x: Tensor, sigma: Tensor, positive: Conditioning) -> Tensor:
    """Clean estimates like x (levels, B, C, *spatial), by a run of ComfyUI's that looks and takes no step."""
    found: list[Tensor] = []

    def look(denoise: Any, start: Tensor, _: Tensor, extra_args: dict[str, Any] | None = None, **__: Any) -> Tensor:
        for noisy, level in zip(x.to(start.device), sigma.to(start.device), strict=True):
            found.append(denoise(noisy, level, **(extra_args or {})).float().cpu())
        return start

    plain = model.clone()
    for name in GUIDING:
        plain.model_options.pop(name, None)
    levels = torch.cat([sigma.flatten().unique().flip(0), torch.zeros(1)])
    empty = torch.zeros_like(x[0])
    comfy.sample.sample_custom(
        plain, empty, 1.0, comfy.samplers.KSAMPLER(look), levels, positive, positive, empty, disable_pbar=True, seed=0
    )
    return torch.stack(found)
