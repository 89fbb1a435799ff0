"""Several runs of the same picture side by side: each with its own noise, the first of them the plain run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

STRIDE = 0x61C8864680B583EB
"""Odd and large, so that the runs of one seed are none of those of the seeds around it."""

NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def seeds_of(seed: int | None, count: int) -> list[int]:
    """A seed for each run; the first is the given one."""
    first = 0 if seed is None else seed
    return [first, *((first + k * STRIDE) % 2**63 for k in range(1, count))]


def fresh_noise(like: Tensor, seed: int) -> Tensor:
    """What ComfyUI's random noise of this seed is, on the device and in the type of `like`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(like.shape, dtype=torch.float32, generator=generator, device="cpu")
    return noise.to(like)


def noises_of(noise: Tensor, seeds: list[int]) -> list[Tensor]:
    """The given noise, and fresh noise for every further seed. A run that is given none (the second half of a run
    that was begun elsewhere) starts all alike."""
    if torch.count_nonzero(noise) == 0:
        return [noise] * len(seeds)
    return [noise, *(fresh_noise(noise, seed) for seed in seeds[1:])]


def started(model: Any, sigmas: Tensor, noise: Tensor) -> Tensor:
    """x at the first sigma, as KSAMPLER makes it from noise. model: what it hands to the sampler function."""
    guider = model.inner_model
    full = comfy.samplers.Sampler().max_denoise(guider, sigmas)
    return guider.inner_model.model_sampling.noise_scaling(sigmas[0], noise, model.latent_image, full)


def noise_sampler_of(name: str, x: Tensor, sigmas: Tensor, seed: int | None) -> NoiseSampler:
    """What the sampler `name` would make for itself from this seed, for x (B, C, *spatial)."""
    if name.startswith("dpmpp") and "_sde" in name:
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        return k_diffusion.BrownianTreeNoiseSampler(x, low, high, seed=seed, cpu=not name.endswith("_gpu"))
    return k_diffusion.default_noise_sampler(x, seed=seed)


def name_of(sampler: Any) -> str:
    """The name of a core sampler as KSampler Select shows it, or of another's function."""
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_").removesuffix("_function")


def is_core(sampler: Any, name: str) -> bool:
    """Whether a SAMPLER is core's own function of this name, and nobody's variation of it."""
    function = getattr(sampler, "sampler_function", None)
    return function is not None and function is getattr(k_diffusion, f"sample_{name}", None)
