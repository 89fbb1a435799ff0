"""Pictures of the model in training, with what its objective needs of the way they were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ..diffusion.process import Process
from ..diffusion.stochastic import AncestralStep, ancestral_step
from .denoiser import WrongConnectionError
from .policy import Policy
from .sampling import Conditioning, batches, picture_key, sample

UNCHANGED = ("torch.compile",)
"""Keys of ComfyUI's wrappers around a model that leave its results as they are."""


@dataclass(frozen=True)
class How:
    """How pictures are rolled out. sampler, sigmas: as the sockets of these names hold them."""

    cfg: float
    sampler: comfy.samplers.KSAMPLER
    sigmas: Tensor
    width: int
    height: int
    at_once: int = 8


def how_to_sample(
    model: Any, cfg: float, steps: int, sampler_name: str, scheduler: str, size: tuple[int, int],
    sampler: comfy.samplers.KSAMPLER | None = None, sigmas: Tensor | None = None,
) -> How:  # fmt: skip
    """By names as in a KSampler node, or by what is connected instead."""
    own = comfy.samplers.sampler_object(sampler_name)
    if sigmas is None:
        chosen = comfy.samplers.KSampler(model, steps, model.load_device, sampler_name, scheduler, 1.0)
        return How(cfg, own if sampler is None else sampler, chosen.sigmas, *size)
    return How(cfg, own if sampler is None else sampler, sigmas, *size)


@dataclass
class Rolled:
    """latents: (N, C, *spatial) as the LATENT socket holds them; taken: what was recorded, with a row for each."""

    latents: Tensor
    taken: dict[str, Tensor]


Recorder = Callable[[comfy.samplers.KSAMPLER, list[dict[str, Tensor]]], comfy.samplers.KSAMPLER]
"""A sampler -> one that does the same and appends what is to be recorded of each batch to the list."""


@torch.no_grad()
def roll(
    policy: Policy,
    positives: Sequence[Conditioning],
    negative: Conditioning,
    seeds: Sequence[int],
    how: How,
    recorder: Recorder | None = None,
) -> Rolled:
    """Picture i is a whole run from positives[i] and seeds[i] by the policy as it is."""
    model, size = policy.on_model(), (how.width, how.height)
    found: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
    for rows in batches([picture_key(model, positive) for positive in positives], how.at_once):
        seen: list[dict[str, Tensor]] = []
        sampler = how.sampler if recorder is None else recorder(how.sampler, seen)
        latents = sample(
            model, [positives[i] for i in rows], negative, [seeds[i] for i in rows], len(how.sigmas) - 1, how.cfg,
            sampler, how.sigmas, *size, batch_size=len(rows),
        )  # fmt: skip
        taken = {name: torch.cat([part[name] for part in seen]) for name in (seen[0] if seen else ())}
        for place, row in enumerate(rows):
            found[row] = (latents[place], {name: value[place] for name, value in taken.items()})
    names = found[0][1]
    return Rolled(
        torch.stack([found[i][0] for i in range(len(seeds))]),
        {name: torch.stack([found[i][1][name] for i in range(len(seeds))]) for name in names},
    )


def record_steps(process: Process, window: range, eta: float) -> Recorder:
    """The ancestral step of the pack in place of the sampler: `eta` inside the window of steps, without noise outside.

    Records of each picture, for the W steps of the window: x and after (W, C, *spatial), sigma, keep, drift, spread and
    log_prob (W,), of the clean estimates that CFG gave.
    """

    def recorder(sampler: comfy.samplers.KSAMPLER, seen: list[dict[str, Tensor]]) -> comfy.samplers.KSAMPLER:
        def sample_in_window(
            model: Any,
            x: Tensor,
            sigmas: Tensor,
            extra_args: dict[str, Any] | None = None,
            callback: Any = None,
            disable: Any = None,
            noise_sampler: Any = None,
        ) -> Tensor:
            extra = extra_args or {}
            draw = noise_sampler or k_diffusion.default_noise_sampler(x, seed=extra.get("seed"))
            taken = []
            for i in range(len(sigmas) - 1):
                denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra)
                if callback is not None:
                    callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
                step = ancestral_step(process, sigmas[i], sigmas[i + 1], eta if i in window else 0.0)
                after = step.take(x, denoised, draw(sigmas[i], sigmas[i + 1]) if step.noise else torch.zeros_like(x))
                if i in window:
                    taken.append(_record(step, float(sigmas[i]), x, denoised, after))
                x = after
            seen.append({name: torch.stack([part[name] for part in taken], dim=1) for name in taken[0]})
            return x

        return comfy.samplers.KSAMPLER(sample_in_window)

    return recorder


def _record(step: AncestralStep, sigma: float, x: Tensor, denoised: Tensor, after: Tensor) -> dict[str, Tensor]:
    ones = torch.ones(len(x), device=x.device)
    numbers = {"sigma": sigma, "keep": step.keep, "drift": step.pull, "spread": step.noise}
    log_prob = step.log_probability(x, denoised, after) / x[0].numel()
    told = {"x": x.clone(), "after": after.clone(), "log_prob": log_prob}
    return told | {name: value * ones for name, value in numbers.items()}


def record_last(sampler: comfy.samplers.KSAMPLER, seen: list[dict[str, Tensor]]) -> comfy.samplers.KSAMPLER:
    """Records x and sigma of the last step that the sampler takes."""
    function = sampler.sampler_function

    @wraps(function)  # whose signature says whether it takes each picture's own noise
    def sample_and_record(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        shown, last = options.pop("callback", None), {}

        def callback(told: dict[str, Any]) -> None:
            last.update(x=told["x"].clone(), sigma=told["sigma"] * told["x"].new_ones(len(told["x"])))
            if shown is not None:
                shown(told)

        result = function(model, x, sigmas, callback=callback, **options)
        if not last:
            raise WrongConnectionError("This sampler does not tell its steps, which DRaFT needs: choose euler.")
        seen.append(last)
        return result

    return comfy.samplers.KSAMPLER(sample_and_record, sampler.extra_options, sampler.inpaint_options)


def window_of(steps: int, number: int, size: int, seed: int) -> range:
    """`size` steps in a row of the first half of a run, others in each epoch; never the last, which has no noise.

    Raises WrongConnectionError for a run that is too short.
    """
    last = max(steps // 2, min(size, steps - 1))
    if steps < 2:
        raise WrongConnectionError("PPO learns from the steps that add noise, so it needs two sampling steps or more.")
    size = min(size, last)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    start = int(torch.randint(last - size + 1, (1,), generator=generator))
    return range(start, start + size)


def check_plain_guidance(model: Any) -> None:
    """Raises WrongConnectionError where something changes the model's result: PPO's ratios are of the network itself
    under plain CFG."""
    options = model.model_options
    changed = ("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function")
    if any(options.get(name) for name in changed):
        raise WrongConnectionError(
            "This MODEL's guidance is changed (by reward guidance, a rescaled CFG or the like), and the steps of such "
            "a run can't be learned from: connect the plain model, or choose NFT or AWM."
        )
    around = [_named(options["model_function_wrapper"])] if options.get("model_function_wrapper") else []
    for wrappers in (model.wrappers, options.get("transformer_options", {}).get("wrappers", {})):
        for by_key in wrappers.values():
            around += [key or _named(each[0]) for key, each in by_key.items() if each and key not in UNCHANGED]
    if around:
        names = ", ".join(dict.fromkeys(around))
        raise WrongConnectionError(
            f"Something stands around this MODEL when it samples ({names}), such as a cache of steps or a node that "
            "lets it look at other pictures. What it makes then is not what the network alone would, so its steps "
            "can't be learned from: connect the plain model, or choose NFT or AWM."
        )


def _named(wrapper: Any) -> str:
    return getattr(wrapper, "__qualname__", type(wrapper).__name__).split(".")[0]
