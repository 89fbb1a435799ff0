"""Low-rank adapters on a network, and its views: theta (adapter on), old (a copy that lags), ref (adapter off)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .low_rank import Kronecker, LowRank, Part, row_norms
from .objectives import View

if TYPE_CHECKING:
    from peft import PeftConfig

Layers = Literal["all", "linear", "attention"]
LAYERS: tuple[Layers, ...] = ("all", "linear", "attention")

ATTENTION = {"to_q", "to_k", "to_v", "to_out", "qkv", "proj", "attn", "attn1", "attn2", "attention"}


AdapterKind = Literal["LoRA", "rsLoRA", "DoRA", "LoKr"]
KINDS: tuple[AdapterKind, ...] = ("LoRA", "rsLoRA", "DoRA", "LoKr")
"""LoRA (Hu et al. 2021, 2106.09685); rsLoRA, scaled by alpha / sqrt(rank) (2312.03732); DoRA, which learns the size of
each output by itself (2402.09353); LoKr, a Kronecker product, whose file is the smallest (2309.14859)."""


class Adapters:
    """PEFT adapters in the linear and convolution layers of `network`, changed in place; at start they add exactly 0.

    layers: "all", "linear" (no convolutions), "attention" (projections of attention only), or patterns of paths as a
    shell has them, such as "*attn2*, *ff*". also: paths that get one whatever `layers` says. injected: told of the
    adapters whenever new ones were put into the network, theta's at the start and old's when it begins to follow.
    Raises ValueError when the network has no such layer.
    """

    def __init__(
        self,
        network: nn.Module,
        rank: int,
        seed: int,
        alpha: float | None = None,
        layers: str = "all",
        kind: AdapterKind = "LoRA",
        also: Collection[str] = (),
        injected: Callable[[Adapters], None] = lambda adapters: None,
    ):
        self._injected, self.followed = injected, -1
        self.network, self.rank, self.alpha = network, rank, float(rank if alpha is None else alpha)
        self.kind: AdapterKind = kind
        chosen = {*target_layers(network, layers), *also}
        self._targets = [path for path in target_layers(network, "all") if path in chosen and self._fits(path)]
        if not self._targets:
            raise ValueError(f"{type(network).__name__} has no {layers} layer that a {kind} could be added to.")
        self._inject("theta")
        self._start(seed)

    def _fits(self, path: str) -> bool:
        return self.kind != "LoKr" or not isinstance(self.network.get_submodule(path), nn.Conv3d)

    def _inject(self, name: View) -> None:
        from peft import inject_adapter_in_model

        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
            inject_adapter_in_model(self._config(), self.network, name)
        del self.network.peft_config  # or PEFT warns of it when the second adapter comes
        self.layers: list[Any] = [self.network.get_submodule(path) for path in self._targets]
        for parameter in self.parameters(name):
            parameter.data = parameter.data.float()  # steps of 1e-4 are lost in half precision
        self._injected(self)

    def _config(self) -> PeftConfig:
        from peft import LoKrConfig, LoraConfig

        exactly = "|".join(re.escape(path) for path in self._targets)  # PEFT takes a list for suffixes, too
        if self.kind == "LoKr":
            return LoKrConfig(r=self.rank, alpha=self.alpha, target_modules=exactly)  # type: ignore[arg-type]
        more = {"use_rslora": self.kind == "rsLoRA", "use_dora": self.kind == "DoRA"}
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=exactly, **more)  # type: ignore[arg-type]

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            named = _named(layer, "theta")
            zero = "lora_B" if "lora_B" in named else next(iter(named))
            for name, parameter in named.items():
                if name == zero:
                    parameter.zero_()
                elif name != MAGNITUDE:
                    start = torch.empty(parameter.shape)
                    nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
                    parameter.copy_(start)

    def parameters(self, view: View = "theta") -> list[nn.Parameter]:
        """Those of every layer, in the order of the network's layers; for a LoRA down and up."""
        return [parameter for layer in self.layers for parameter in _named(layer, view).values()]

    @property
    def has_old(self) -> bool:
        return bool(_named(self.layers[0], "old"))

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
    def follow(self, decay: float, at: int = -1) -> None:
        """old = decay * old + (1 - decay) * theta; the first call makes old a copy of theta.

        at: the step before which this is, where it may be asked for twice, by a run that was put down in between: the
        second time nothing changes.
        """
        if at == self.followed >= 0 and self.has_old:
            return
        self.followed = at
        if not self.has_old:
            self._inject("old")
            for layer in self.layers:
                layer.set_adapter("theta")
            decay = 0.0
        for old, theta in zip(self.parameters("old"), self.parameters(), strict=True):
            old.requires_grad_(False)
            old.lerp_(theta, 1 - decay)

    @torch.no_grad()
    def low_rank(self, values: Sequence[Tensor] | None = None) -> dict[str, Part]:
        """Layer path -> what is added to it, on the CPU. values: in the order of `parameters`, instead of theta's."""
        flat = iter(self.parameters() if values is None else values)
        found = {}
        for path, layer in zip(self._targets, self.layers, strict=True):
            found[path] = self._part(layer, {name: next(flat) for name in _named(layer, "theta")})
        return found

    def _part(self, layer: Any, values: Mapping[str, Tensor]) -> Part:
        own = {name: value.detach().float().cpu().clone() for name, value in values.items()}
        if self.kind == "LoKr":
            return _kronecker(own, layer.scaling["theta"], layer.get_base_layer().weight.shape)
        part = LowRank(own["lora_A"], own["lora_B"], layer.scaling["theta"] * self.rank)
        if self.kind != "DoRA":
            return part
        weight = layer.get_base_layer().weight.detach().float().cpu()
        # PEFT divides by the norm of the changed weight, file formats by that of the weight as it was
        magnitude = own[MAGNITUDE].flatten() * row_norms(weight) / row_norms(weight + part.added())
        return replace(part, magnitude=magnitude.reshape(-1, *(1,) * (weight.ndim - 1)))

    @torch.no_grad()
    def load(self, layers: Mapping[str, LowRank]) -> None:
        """Starts theta at a LoRA that is there already. Raises ValueError for a layer or a rank that does not fit."""
        if self.kind == "LoKr":
            raise ValueError("A LoKr can't go on from a LoRA file: choose LoRA, rsLoRA or DoRA as the adapter.")
        if left := set(layers) - set(self._targets):
            raise ValueError(f"The LoRA changes {len(left)} layers that this model has not, such as {sorted(left)[0]}.")
        for path, layer in zip(self._targets, self.layers, strict=True):
            named = _named(layer, "theta")
            if path in layers:
                alpha = layer.scaling["theta"] * self.rank
                part = layers[path].widened(self.rank, alpha, named["lora_A"])
                named["lora_A"].copy_(part.down)
                named["lora_B"].copy_(part.up)
                if MAGNITUDE in named:
                    weight = layer.get_base_layer().weight.detach().float().cpu() + part.added()
                    named[MAGNITUDE].copy_(row_norms(weight).reshape(named[MAGNITUDE].shape))


MAGNITUDE = "lora_magnitude_vector"


def _named(layer: Any, view: View) -> dict[str, nn.Parameter]:
    """The layer's parameters of a view by PEFT's names, in its order; none where there is no such view yet."""
    found = {}
    for name in (*layer.adapter_layer_names, MAGNITUDE):
        held = getattr(layer, name, None)
        if held is not None and view in held:
            found[name] = held[view] if isinstance(held[view], nn.Parameter) else held[view].weight
    return found


def _kronecker(own: Mapping[str, Tensor], scaling: float, shape: torch.Size) -> Kronecker:
    """Both factors written out: loaders differ in how they scale a factor that is a product itself."""
    w1 = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
    w2 = own["lokr_w2"] if "lokr_w2" in own else own["lokr_w2_a"] @ own["lokr_w2_b"]
    sizes = (shape[0] // w1.shape[0], shape[1] // w1.shape[1])
    return Kronecker(w1 * scaling, w2.reshape(*sizes, *shape[2:]))


def _show(layer: Any, name: View) -> None:
    if name == "ref":
        layer.enable_adapters(False)
    else:
        layer.set_adapter(name, inference_mode=True)


def target_layers(network: nn.Module, layers: str) -> list[str]:
    """Paths of the linear and ungrouped convolution layers that `layers` names, see `Adapters`."""
    every = {path: module for path, module in network.named_modules() if _can_be_adapted(module)}
    if layers == "all":
        return list(every)
    linear = [path for path, module in every.items() if isinstance(module, nn.Linear)]
    if layers == "linear":
        return linear
    if layers == "attention":
        return [path for path in linear if ATTENTION & set(path.split("."))]
    patterns = [pattern.strip() for pattern in layers.split(",") if pattern.strip()]
    return [path for path in every if any(fnmatchcase(path, pattern) for pattern in patterns)]


def _can_be_adapted(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_convolution(module)


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

    @contextmanager
    def shown(self, values: Sequence[Tensor] | None = None) -> Iterator[None]:
        """The parameters hold the average inside the block, and afterwards what they held before, bit for bit.

        values: what they hold instead of the average.
        """
        with torch.no_grad():
            kept = [p.detach().clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, list(self.values if values is None else values))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, kept)
