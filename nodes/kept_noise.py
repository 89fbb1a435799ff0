"""A NOISE that is the outcome of a search: the same numbers again for latents of the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoiser import WrongConnectionError


class KeptNoise:
    """seed: for what a sampler draws on its way, which belongs to the picture as much. noise: (B, C, *spatial)."""

    def __init__(self, seed: int, noise: Tensor) -> None:
        self.seed, self._noise = seed, noise.detach().to("cpu", torch.float32)

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        latent = input_latent["samples"]
        if latent.shape != self._noise.shape:
            raise WrongConnectionError(
                f"This noise was found for latents of shape {tuple(self._noise.shape)}, but these are "
                f"{tuple(latent.shape)}. Connect latents of the same size and number of pictures, or search again."
            )
        return self._noise.to(latent.dtype).clone()


def check_noise(noise: Any) -> Any:
    """What is connected as NOISE. Raises WrongConnectionError."""
    if not (hasattr(noise, "generate_noise") and hasattr(noise, "seed")):
        raise WrongConnectionError(
            "What is connected as noise makes none. Connect RandomNoise, or the noise of a search."
        )
    return noise
