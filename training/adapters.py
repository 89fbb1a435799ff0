"""Low-rank adapters on a network, and its views: theta (adapter on), old (a copy that lags), ref (adapter off)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from .objectives import View

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

Layers = Literal["all", "linear", "attention"]
LAYERS: tuple[Layers, ...] = ("all", "linear", "attention")

ATTENTION = {"to_q", "to_k", "to_v", "to_out", "qkv", "proj", "attn", "attn1", "attn2", "attention"}


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to one layer: alpha / rank * up @ down, shaped like the layer's weight.

    down: (rank, in, *kernel), up: (out, rank, *ones).
    """

    down: Tensor
    up: Tensor
    alpha: float


class Adapters:
    """PEFT LoRA in the linear and convolution layers of `network`, changed in place; at start they add exactly 0.

    layers: "all", "linear" (no convolutions), "attention" (projections of attention only).
    Raises ValueError when the network has no such layer.
    """

    def __init__(self, network: nn.Module, rank: int, seed: int, alpha: float | None = None, layers: Layers = "all"):
        self.network, self.rank, self.alpha = network, rank, float(rank if alpha is None else alpha)
        self._targets = target_layers(network, layers)
        if not self._targets:
            raise ValueError(f"{type(network).__name__} has no {layers} layer that a LoRA could be added to.")
        self._inject("theta")
        self._start(seed)

    def _inject(self, name: View) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        exactly = "|".join(re.escape(path) for path in self._targets)  # PEFT takes a list for suffixes, too
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=exactly)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
            inject_adapter_in_model(config, self.network, name)
        del self.network.peft_config  # or PEFT warns of it when the second adapter comes
        for path in self._targets:
            layer = self.network.get_submodule(path)
            for part in (layer.lora_A, layer.lora_B):
                part[name].float()  # type: ignore[operator]  # steps of 1e-4 are lost in half precision
        self.layers: list[LoraLayer] = [self.network.get_submodule(path) for path in self._targets]  # type: ignore[misc]

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for down, up in zip(self.parameters()[::2], self.parameters()[1::2], strict=True):
            start = torch.empty(down.shape)
            nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
            down.copy_(start)
            up.zero_()

    def parameters(self, view: View = "theta") -> list[nn.Parameter]:
        """down and up of every layer, in the order of the network's layers."""
        return [part[view].weight for layer in self.layers for part in (layer.lora_A, layer.lora_B)]  # type: ignore[misc]

    @contextmanager
    def view(self, name: View) -> Iterator[None]:
        """The network as `name` inside the block, as theta again after it; only theta is trained."""
        if name == "theta":
            yield
            return
        try:
            for layer in self.layers:
                _show(layer, name)
            yield
        finally:
            for layer in self.layers:
                layer.enable_adapters(True)
                layer.set_adapter("theta")

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """old = decay * old + (1 - decay) * theta; the first call makes old a copy of theta."""
        if "old" not in self.layers[0].lora_A:
            self._inject("old")
            for layer in self.layers:
                layer.set_adapter("theta")
            decay = 0.0
        for old, theta in zip(self.parameters("old"), self.parameters(), strict=True):
            old.requires_grad_(False)
            old.lerp_(theta, 1 - decay)

    @torch.no_grad()
    def low_rank(self, values: Sequence[Tensor] | None = None) -> dict[str, LowRank]:
        """Layer path -> its part of the LoRA, on the CPU. values: in the order of `parameters`, instead of theta's."""
        flat = iter(self.parameters() if values is None else values)
        copied = (value.detach().float().cpu().clone() for value in flat)
        return {
            path: LowRank(down, next(copied), self.alpha) for path, down in zip(self._targets, copied, strict=False)
        }


def _show(layer: LoraLayer, name: View) -> None:
    if name == "ref":
        layer.enable_adapters(False)
    else:
        layer.set_adapter(name, inference_mode=True)


def target_layers(network: nn.Module, layers: Layers) -> list[str]:
    """Paths of the linear and ungrouped convolution layers that `layers` names."""
    found = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear) or (layers == "all" and _is_convolution(module)):
            if layers != "attention" or ATTENTION & set(path.split(".")):
                found.append(path)
    return found


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1


class MovingAverage:
    """Exponential moving average of parameters: what is saved and shown instead of the last, noisier step.

    The decay grows to `decay` as (1 + n) / (10 + n), so that the start, where the adapter is 0, is soon forgotten.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float = 0.99):
        self.parameters, self.decay, self.steps = list(parameters), decay, 0
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimiser step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)
