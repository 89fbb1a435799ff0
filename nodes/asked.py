"""How often a sampler asks the model on its way, found out without asking it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

KNOWN = ("comfy.k_diffusion.sampling", "comfy.extra_samplers.uni_pc")
"""Where core's samplers stand whose questions depend on nothing but the schedule: not dpm_adaptive and dpm_fast."""


def asked_by(
    function: Callable[..., Tensor],
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    options: dict[str, Any],
) -> list[int] | None:
    """Evaluations of the denoiser until each step's estimate is known, from 0 before the first to those of the whole
    run: len(sigmas) numbers. function, model and the rest: as KSAMPLER calls a sampler. None where only a run can tell:
    for samplers that are not core's, and for CFG++, which wants more of the model than its estimate.

    The sampler runs over one latent pixel with an estimate of zero.
    """
    if getattr(function, "__module__", "") not in KNOWN or getattr(function, "__name__", "").endswith("_cfg_pp"):
        return None
    stub, at = _Counted(model), {}

    def on_step(info: dict[str, Any]) -> None:
        at[info["i"] + 1] = stub.calls

    pixel = x[(slice(0, 1), slice(None), *(slice(0, 1) for _ in x.shape[2:]))].clone()
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        function(stub, pixel, sigmas.clone(), extra_args=dict(extra_args), callback=on_step, disable=True, **options)
    return filled(at, len(sigmas) - 1, stub.calls)


def filled(at: Mapping[int, int], steps: int, whole: int) -> list[int]:
    """Evaluations until the end of 0, 1, ... `steps` steps, where `at` knows some; what nobody knows costs it all."""
    return [0, *(at.get(step, whole) for step in range(1, steps)), whole]


class _Counted:
    def __init__(self, model: Any) -> None:
        self._model, self.calls = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        self.calls += 1
        return torch.zeros_like(x)
