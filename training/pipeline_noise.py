"""How a diffusers pipeline adds noise, and what its network's prediction says of the clean picture.

Latents are scaled as ComfyUI scales them, `x = x0 + sigma * n` or `x = (1 - sigma) * x0 + sigma * n`, so that a LoRA
is trained on the same noise levels, and the objectives of the pack see the same D, as in ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..diffusion.process import Process, per_sample
from .sources import logit_normal

LEAST_SIGNAL = 4.8973451890853435e-08
"""What ComfyUI makes of a last alpha_bar of 0, whose sigma would be infinite."""


class Noise(Protocol):
    """The law of one pipeline; sigma: (B,) in what follows."""

    @property
    def process(self) -> Process: ...

    def sigma_at(self, u: Tensor) -> Tensor:
        """Uniform numbers (B,) in 0..1 -> noise levels as in training."""
        ...

    def asked(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(what the network is shown of x, the timesteps (B,))."""
        ...

    def denoised(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean estimate D that the network's output means."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """(steps + 1,) falling noise levels of a run, the last 0."""
        ...


@dataclass(frozen=True)
class Discrete:
    """Networks that predict the noise (eps) or v at one of many timesteps. table: (T,) sigma of each, rising."""

    process: Process
    table: Tensor

    def sigma_at(self, u: Tensor) -> Tensor:
        return self.table[(u * len(self.table)).long().clamp_max(len(self.table) - 1)]

    def asked(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        distance = sigma.log()[:, None] - self.table.to(sigma.device).log()
        return x / per_sample(sigma.square() + 1, x).sqrt(), distance.abs().argmin(dim=1)

    def denoised(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = per_sample(sigma, x)
        if self.process.kind == "eps":
            return x - sigma * output
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()

    def sigmas(self, steps: int) -> Tensor:
        count = len(self.table)
        chosen = (count - torch.arange(steps) * count / steps).round().long() - 1
        return torch.cat([self.table[chosen], torch.zeros(1)])


@dataclass(frozen=True)
class Flow:
    """Networks that predict the velocity n - x0; shift: how far their times are moved towards the noise."""

    process: Process
    shift: float
    timesteps: int

    def sigma_at(self, u: Tensor) -> Tensor:
        return self._shifted(logit_normal(u))

    def asked(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return x, sigma * self.timesteps

    def denoised(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return x - per_sample(sigma, x) * output

    def sigmas(self, steps: int) -> Tensor:
        return self._shifted(torch.linspace(1, 0, steps + 1))

    def _shifted(self, time: Tensor) -> Tensor:
        return self.shift * time / (1 + (self.shift - 1) * time)


class UnknownNoise(ValueError):
    """A scheduler whose noise is not known here; the message names it."""


def noise_of(scheduler: Any) -> Noise:
    """The law behind a diffusers scheduler, whichever sampler it is. Raises UnknownNoise, with its name."""
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith("FlowMatch"):
        if config.get("use_dynamic_shifting"):
            raise UnknownNoise(f"{name} with use_dynamic_shifting moves its times by the size of the picture")
        return Flow(Process("flow"), float(config.get("shift", 1.0)), int(config["num_train_timesteps"]))
    kind = {"epsilon": "eps", "v_prediction": "v"}.get(config.get("prediction_type"))
    signal = getattr(scheduler, "alphas_cumprod", None)
    if kind is None or signal is None:
        raise UnknownNoise(f"{name} with the prediction type {config.get('prediction_type')!r}")
    signal = signal.double().clamp_min(LEAST_SIGNAL)
    return Discrete(Process(kind), ((1 - signal) / signal).sqrt().float())  # type: ignore[arg-type]
