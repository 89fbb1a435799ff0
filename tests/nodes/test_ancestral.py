"""The pack's ancestral step against ComfyUI's ancestral samplers in float64: a whole run, both forms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from feedback_loop.diffusion.process import Process
from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.tests.nodes import tiny_models

MEAN, VARIANCE = 0.7, 1.3
FORMS = {
    "eps": ("sd15", k_diffusion.sample_euler_ancestral, [9.0, 4.0, 1.5, 0.5, 0.0]),
    "flow": ("sd3", k_diffusion.sample_euler_ancestral_RF, [0.95, 0.8, 0.5, 0.2, 0.0]),
}


class Ideal:
    """The ideal denoiser of pictures ~ N(MEAN, VARIANCE), as samplers are given a model; noise levels are `patcher`'s.

    x = a x0 + s n has the posterior mean (v a x + s^2 m) / (v a^2 + s^2).
    """

    def __init__(self, patcher: Any, process: Process) -> None:
        self.process = process
        self.inner_model = SimpleNamespace(inner_model=patcher.model, model_patcher=patcher)

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        s = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        a = 1 - s if self.process.kind == "flow" else torch.ones_like(s)
        return (VARIANCE * a * x + s**2 * MEAN) / (VARIANCE * a**2 + s**2)


def draws(shape: torch.Size) -> Any:
    generator = torch.Generator().manual_seed(5)
    return lambda sigma, following: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("eta", [1.0, 0.6])
@pytest.mark.parametrize("kind", list(FORMS))
def test_a_run_of_our_steps_is_a_run_of_comfyuis_sampler_to_the_last_digits(kind: str, eta: float) -> None:
    """The same noise in both: what differs is rounding. 2e-15 is nine units in the last place of 1."""
    name, sampler, levels = FORMS[kind]
    process, sigmas = Process(kind), torch.tensor(levels, dtype=torch.float64)  # type: ignore[arg-type]
    model = Ideal(tiny_models.MODELS[name](), process)
    x = sigmas[0] * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = sampler(model, x, sigmas, disable=True, eta=eta, noise_sampler=draws(x.shape))
    ours, draw = x, draws(x.shape)
    for now, after in zip(sigmas, sigmas[1:], strict=False):
        step = ancestral_step(process, now, after, eta)
        denoised = model(ours, now.expand(len(x)))
        ours = step.take(ours, denoised, draw(now, after)) if step.noise else step.mean(ours, denoised)
    assert theirs.dtype == torch.float64 and not torch.allclose(theirs, x)
    assert (ours - theirs).abs().max() < 2e-15 * theirs.abs().max().clamp_min(1)
