"""The policy over a diffusers pipeline: its network frozen, a LoRA in it, and D as the objectives see it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapters
from .low_rank import Part
from .objectives import View
from .pipeline import Pipeline

Told = Mapping[str, Tensor]
"""What the network is told of one prompt: tensors by name, without a batch's axis."""


class PipelinePolicy:
    """`denoise` is the pipeline's own network; conditions are what `Pipeline.encode_text` gave.

    layers: see training.adapters.Adapters; only the adapter is trained. half: the network computes in bfloat16, the
    adapter is kept in float32. Attributes: adapters, process, sigma_at, device.
    """

    def __init__(self, pipeline: Pipeline, rank: int, seed: int, layers: str = "all", half: bool = False) -> None:
        self.pipeline, self.network, self.half = pipeline, pipeline.network, half
        self.process, self.sigma_at = pipeline.noise.process, pipeline.noise.sigma_at
        self.adapters = Adapters(self.network, rank, seed, None, layers)
        self.device: torch.device = next(self.network.parameters()).device

    def denoise(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        """Clean estimates of x (B, C, H, W) in model space at sigma (B,), under one condition a picture."""
        noise, dtype = self.pipeline.noise, self.network.dtype
        seen, timestep = noise.asked(x, sigma)
        told = {name: torch.stack([c[name] for c in cond]).to(x.device, dtype) for name in cond[0]}
        with self._precision(x):
            output = self.pipeline.family.predict(self.network, seen.to(dtype), timestep, told)
        return noise.denoised(output.float(), x, sigma)

    def _precision(self, x: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(x.device.type, torch.bfloat16) if self.half else nullcontext()

    def view(self, name: View) -> AbstractContextManager[None]:
        return self.adapters.view(name)

    def parameters(self) -> list[nn.Parameter]:
        return self.adapters.parameters()

    def names(self, layers: Mapping[str, Part]) -> dict[str, str]:
        """Layer path -> its name in a LoRA file."""
        return {path: self.pipeline.family.layer(path) for path in layers}


def mark_of(network: nn.Module) -> str:
    """Some of the weights as a hash, before an adapter is added: a run goes on only with the same model."""
    digest, weights = hashlib.sha256(), list(network.parameters())
    for weight in weights[:: max(1, len(weights) // 16)]:
        digest.update(weight.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()
