"""MODEL -> a trainable twin: it shares every weight with the user's model, and owns a LoRA and the graph through it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ..training.adapters import AdapterKind, Adapters
from ..training.low_rank import LowRank
from ..training.objectives import View
from ..training.sources import SigmaAt, log_normal, logit_normal
from .checkpointing import checkpoint_blocks
from .denoiser import WrongConnectionError, alias, gradients, process_of, training_kernels
from .quantised import check_weights, is_quantised, make_dense
from .sampling import Conditioning

Precision = Literal["auto", "bf16", "fp32"]

CONDITIONS = 64
"""Prompts whose conditions a policy keeps on its device; those asked for the longest ago are made again."""


@dataclass(frozen=True)
class Setup:
    """How an adapter is put on, beside its rank.

    kind, layers: see training.adapters.Adapters. precision: what the network computes in; the adapter itself is always
    float32. checkpointing: blocks are computed again in the backward pass instead of kept. existing: a LoRA to go on
    from, by layer.
    """

    kind: AdapterKind = "LoRA"
    layers: str = "all"
    precision: Precision = "auto"
    checkpointing: bool = False
    existing: Mapping[str, LowRank] | None = None


class Guided(NamedTuple):
    """A condition that is guided by CFG: `negative + scale * (positive - negative)` of the clean estimates."""

    positive: Conditioning
    negative: Conditioning
    scale: float
    prompt: str = ""


class Policy:
    """`denoise` is ComfyUI's own `apply_model` on the twin; conditions are CONDITIONING of one prompt each, or Guided.

    Made by `trainable`. Attributes: adapters, process (the forward process), sigma_at, device, inner (the twin), model
    (the MODEL that it is the twin of).
    """

    def __init__(self, model: comfy.model_patcher.ModelPatcher, rank: int, seed: int, setup: Setup = Setup()) -> None:
        self.model, self.process = model, process_of(model)
        self.sigma_at = sigma_sampler(model.get_model_object("model_sampling"))
        self.device = model.load_device
        self.inner = twin_of(model.model, setup.precision)
        if setup.kind == "DoRA" and is_quantised(self.inner.diffusion_model):
            raise WrongConnectionError(
                "DoRA learns the sizes of the weights themselves, and this MODEL's weights are quantised: choose LoRA, "
                "rsLoRA or LoKr as the adapter, or load the model's fp16, bf16 or fp32 file."
            )
        known = setup.existing or {}
        network = self.inner.diffusion_model
        self.adapters = Adapters(network, rank, seed, None, setup.layers, setup.kind, known, _cast_adapters)
        self.adapters.load(known) if known else None
        if setup.checkpointing:
            checkpoint_blocks(self.inner.diffusion_model)
        self._options = model.model_options.get("transformer_options", {})
        self._conds: OrderedDict[tuple[int, tuple[int, ...]], tuple[Conditioning, dict[str, Any]]] = OrderedDict()

    def denoise(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        """Clean estimates of x (B, C, *spatial) in model space at sigma (B,), under one condition a picture."""
        if not isinstance(cond[0], Guided):
            return self._denoise(x, sigma, cond)
        positive = self._denoise(x, sigma, [c.positive for c in cond])
        if all(c.scale == 1 for c in cond):
            return positive
        negative = self._denoise(x, sigma, [c.negative for c in cond])
        scale = torch.tensor([c.scale for c in cond], device=x.device).reshape(-1, *(1,) * (x.ndim - 1))
        return negative + scale * (positive - negative)

    def _denoise(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        conds = [self._model_conds(c, tuple(x.shape[1:])) for c in cond]
        groups = concatenable(conds)
        if len(groups) == 1:
            return self._apply(x, sigma, conds)
        parts = [self._apply(x[rows], sigma[rows], [conds[i] for i in rows]) for rows in groups]
        order = torch.tensor([i for rows in groups for i in rows], device=x.device).argsort()
        return torch.cat(parts)[order]

    def stock(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The estimates of the MODEL's own network, for one prompt; no gradient passes."""
        return _applied(
            self.model.model, self._options, x, sigma, [self._model_conds(cond, tuple(x.shape[1:]))] * len(x)
        )

    def view(self, name: View) -> AbstractContextManager[None]:
        return self.adapters.view(name)

    def parameters(self) -> list[nn.Parameter]:
        return self.adapters.parameters()

    def on_model(self) -> comfy.model_patcher.ModelPatcher:
        """The MODEL for ComfyUI's samplers, with the network in the view that is on; good for as long as the policy."""
        rolled = self.model.clone()
        before = rolled.model_options.get("model_function_wrapper")

        def twin(x: Tensor, t: Tensor, **c: Any) -> Tensor:
            return self.inner.apply_model(x, t, **c)

        def apply(_: Any, args: dict[str, Any]) -> Tensor:
            return before(twin, args) if before is not None else twin(args["input"], args["timestep"], **args["c"])

        rolled.set_model_unet_function_wrapper(apply)
        return rolled

    def _apply(self, x: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor:
        return _applied(self.inner, self._options, x, sigma, conds)

    def _model_conds(self, cond: Conditioning, shape: tuple[int, ...]) -> dict[str, Any]:
        """What the model makes of a prompt at a latent size; the prompt is kept with it, so that its id stays taken."""
        key = (id(cond), shape)
        if key not in self._conds:
            self._conds[key] = (cond, model_conds(self.inner, cond, shape, self.device))
        self._conds.move_to_end(key)
        if len(self._conds) > CONDITIONS:
            self._conds.popitem(last=False)
        return self._conds[key][1]


def _applied(
    model: comfy.model_base.BaseModel, options: dict[str, Any], x: Tensor, sigma: Tensor, conds: list[dict[str, Any]]
) -> Tensor:
    options = options | {"cond_or_uncond": [0], "sigmas": sigma}
    return model.apply_model(x, sigma, transformer_options=options, **comfy.samplers.cond_cat(conds))


@contextmanager
def trainable(
    model: comfy.model_patcher.ModelPatcher, rank: int, seed: int, setup: Setup = Setup()
) -> Iterator[Policy]:
    """A policy on the MODEL's weights as they are, its LoRAs included; gradients are on inside the block.

    Raises WrongConnectionError for a model that cannot be trained; the user's model is left as it was.
    """
    model = loaded(model)
    with gradients(), training_kernels():
        yield Policy(model, rank, seed, setup)


def loaded(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """The model, whole on its device, or the same without DynamicVRAM, whose weights come and go during a pass."""
    if model.is_dynamic():
        try:
            model = model.clone(disable_dynamic=True)
        except RuntimeError as error:
            raise WrongConnectionError(
                "This MODEL's weights are streamed (DynamicVRAM) and its loader cannot give them any other way. "
                "Load it with a core loader, or start ComfyUI with --disable-dynamic-vram."
            ) from error
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return model


def twin_of(model: comfy.model_base.BaseModel, precision: Precision = "auto") -> comfy.model_base.BaseModel:
    """A copy that shares all weights: its network can be wrapped and trained, and the original never notices.

    auto: half-precision networks compute in bfloat16, whose range needs no loss scaling, where the device is good at
    it. Weights that ComfyUI quantised are read in that precision. Raises WrongConnectionError for other such weights.
    """
    network = model.diffusion_model
    check_weights(network)
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.current_patcher = None  # type: ignore[assignment]
    twin.diffusion_model = _keeping_inputs(make_dense(alias(network)))
    twin.model_sampling = alias(model.model_sampling)
    own, wanted = model.get_dtype_inference(), torch.float32
    if precision == "bf16" or (precision == "auto" and own != torch.float32):
        half = precision == "bf16" or comfy.model_management.should_use_bf16(model.device)
        wanted = torch.bfloat16 if half else torch.float32
    if wanted != own or own != torch.float32:
        _compute_in(twin, wanted)
    return twin


def _keeping_inputs(network: nn.Module) -> nn.Module:
    """Flux and its kin add to the residual in place after a norm has saved it for the backward pass: give it a copy."""
    if not isinstance(network, UNetModel):
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))
    return network


def _compute_in(model: comfy.model_base.BaseModel, dtype: torch.dtype) -> None:
    model.manual_cast_dtype = dtype
    for module in model.diffusion_model.modules():
        if isinstance(module, comfy.ops.CastWeightBiasOp):
            module.comfy_cast_weights = True


def _cast_adapters(adapters: Adapters) -> None:
    """Lets the adapter's float32 weights follow the network's precision, as ComfyUI's own layers do."""
    if adapters.kind == "LoKr":
        return  # computes its float32 product with the input cast up
    for layer in adapters.layers:
        layer.cast_input_dtype_enabled = False
        for part in (layer.lora_A, layer.lora_B):
            for view in part:
                part[view] = _casting(part[view])


def _casting(layer: Any) -> nn.Module:
    """PEFT makes linear layers of torch's own class and convolutions of the network's."""
    if type(layer) is nn.Linear:
        cast = comfy.ops.manual_cast.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        cast.weight = layer.weight
        return cast
    layer.comfy_cast_weights = True
    return layer


def sigma_sampler(sampling: Any) -> SigmaAt:
    """The distribution of noise levels that such a model is trained on, by its own schedule or shift."""
    law = comfy.model_sampling
    if isinstance(sampling, law.CONST):
        scale = float(getattr(sampling, "multiplier", 1.0))
        return lambda u: sampling.sigma(logit_normal(u) * scale)
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    if isinstance(sampling, law.ModelSamplingContinuousEDM):
        return lambda u: log_normal(u).clamp(low, high)
    with torch.inference_mode(False):
        table = sampling.sigmas.detach().clone().cpu()
    return lambda u: table[(u * len(table)).long().clamp_max(len(table) - 1)]


def model_conds(
    model: comfy.model_base.BaseModel, cond: Conditioning, shape: tuple[int, ...], device: torch.device
) -> dict[str, Any]:
    """CONDITIONING of one prompt -> what `apply_model` takes for one latent of this shape (C, *spatial)."""
    noise = torch.zeros((1, *shape), device=device)
    converted = comfy.sampler_helpers.convert_cond(cond[:1])
    comfy.samplers.encode_model_conds(model.extra_conds, converted, noise, device, "positive")
    processed = converted[0]["model_conds"].items()
    return {name: normal_cond(value.process_cond(batch_size=1, area=None), device) for name, value in processed}


def normal_cond(value: Any, device: torch.device) -> Any:
    """The same COND with tensors that may take part in a graph."""
    content = value.cond
    if isinstance(content, Tensor):
        return value._copy_with(content.to(device).clone())
    if isinstance(content, list):
        return value._copy_with([c.to(device).clone() if isinstance(c, Tensor) else c for c in content])
    return value


def concatenable(conds: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices in groups that the model can take in one batch, by ComfyUI's own rule (text lengths, options)."""
    groups: list[list[int]] = []
    fits: Callable[[dict, dict], bool] = comfy.samplers.cond_equal_size
    for index, cond in enumerate(conds):
        group = next((g for g in groups if fits(conds[g[0]], cond)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return groups
