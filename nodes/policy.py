"""MODEL -> a trainable twin: it shares every weight with the user's model, and owns a LoRA and the graph through it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

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

from ..training.adapters import Adapters, Layers
from ..training.objectives import View
from ..training.sources import SigmaAt, log_normal, logit_normal
from .denoiser import WrongConnectionError, alias, gradients, process_of
from .sampling import Conditioning


class Policy:
    """`denoise` is ComfyUI's own `apply_model` on the twin; conditions are CONDITIONING of one prompt each.

    Made by `trainable`. Attributes: adapters, process (the forward process), sigma_at, device, inner (the twin).
    """

    def __init__(self, model: comfy.model_patcher.ModelPatcher, rank: int, seed: int, layers: Layers = "all") -> None:
        self.process = process_of(model)
        self.sigma_at = sigma_sampler(model.get_model_object("model_sampling"))
        self.device = model.load_device
        self.inner = twin_of(model.model)
        self.adapters = Adapters(self.inner.diffusion_model, rank, seed, layers=layers)
        _cast_adapters(self.adapters)
        self._options = model.model_options.get("transformer_options", {})
        self._conds: dict[tuple[int, tuple[int, ...]], tuple[Conditioning, dict[str, Any]]] = {}

    def denoise(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        """Clean estimates of x (B, C, *spatial) in model space at sigma (B,), under one CONDITIONING a picture."""
        conds = [self._model_conds(c, tuple(x.shape[1:])) for c in cond]
        groups = concatenable(conds)
        if len(groups) == 1:
            return self._apply(x, sigma, conds)
        parts = [self._apply(x[rows], sigma[rows], [conds[i] for i in rows]) for rows in groups]
        order = torch.tensor([i for rows in groups for i in rows], device=x.device).argsort()
        return torch.cat(parts)[order]

    def view(self, name: View) -> AbstractContextManager[None]:
        return self.adapters.view(name)

    def parameters(self) -> list[nn.Parameter]:
        return self.adapters.parameters()

    def _apply(self, x: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor:
        options = self._options | {"cond_or_uncond": [0], "sigmas": sigma}
        joined = comfy.samplers.cond_cat(conds)
        return self.inner.apply_model(x, sigma, transformer_options=options, **joined)

    def _model_conds(self, cond: Conditioning, shape: tuple[int, ...]) -> dict[str, Any]:
        """What the model makes of a prompt at a latent size; the prompt is kept with it, so that its id stays taken."""
        key = (id(cond), shape)
        if key not in self._conds:
            self._conds[key] = (cond, model_conds(self.inner, cond, shape, self.device))
        return self._conds[key][1]


@contextmanager
def trainable(
    model: comfy.model_patcher.ModelPatcher, rank: int, seed: int, layers: Layers = "all"
) -> Iterator[Policy]:
    """A policy on the MODEL's weights as they are, its LoRAs included; gradients are on inside the block.

    Raises WrongConnectionError for a model that cannot be trained; the user's model is left as it was.
    """
    model = loaded(model)
    before = comfy.model_management.in_training
    with gradients():
        try:
            comfy.model_management.in_training = True  # comfy-kitchen's kernels have no backward pass
            yield Policy(model, rank, seed, layers)
        finally:
            comfy.model_management.in_training = before


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


def twin_of(model: comfy.model_base.BaseModel) -> comfy.model_base.BaseModel:
    """A copy that shares all weights: its network can be wrapped and trained, and the original never notices.

    Half-precision networks compute in bfloat16, whose range needs no loss scaling. Raises WrongConnectionError for
    quantised weights.
    """
    network = model.diffusion_model
    check_weights(network)
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.current_patcher = None  # type: ignore[assignment]
    twin.diffusion_model = _keeping_inputs(alias(network))
    twin.model_sampling = alias(model.model_sampling)
    if model.get_dtype_inference() != torch.float32:
        _compute_in(twin, torch.bfloat16 if comfy.model_management.should_use_bf16(model.device) else torch.float32)
    return twin


def check_weights(network: nn.Module) -> None:
    """Raises WrongConnectionError when a weight is not a plain tensor."""
    for name, weight in network.named_parameters():
        if type(weight) not in (Tensor, nn.Parameter):
            raise WrongConnectionError(
                f"This MODEL's weights are quantised ({name} is a {type(weight).__name__}) and pass no gradient. "
                "Load the model's fp16, bf16 or fp32 file for training; the LoRA then works on the quantised one too."
            )


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
    for layer in adapters.layers:
        if layer.get_base_layer().weight.dtype == torch.float32:
            continue
        layer.cast_input_dtype_enabled = False
        for part in (layer.lora_A, layer.lora_B):
            part["theta"] = _casting(part["theta"])


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
