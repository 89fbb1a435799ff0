"""Whether a gradient through a running model can be trusted, asked before anything follows a wrong slope.

Its weights have to stay where they are until the way back, and the way back has to be the gradient of the way there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from .denoiser import WrongConnectionError, gradients, training_kernels
from .gradient_check import SAME, SIDE, TOLERANCE, central_difference, is_trusted
from .policy import normal_cond, twin_of
from .quantised import is_quantised

SHARES = (1e-2, 1e-3)
"""How far x is moved along its slope, as shares of its length; a network bends more over a long way, and a short one
loses more to rounding."""


def check_whole(model: comfy.model_base.BaseModel, device: torch.device, instead: str) -> None:
    """Raises WrongConnectionError for weights that are streamed or lie elsewhere than on the device that computes: they
    come for one layer's pass and are gone, or another's, by the way back. instead: a sentence that says what to do."""
    patcher, network = getattr(model, "current_patcher", None), model.diffusion_model
    streamed = patcher is not None and patcher.is_dynamic()
    streamed = streamed or any("_v" in vars(module) for module in network.modules())
    elsewhere = [name for name, weight in network.named_parameters() if weight.device != device]
    if not streamed and not elsewhere:
        return
    why = (
        "streamed to the device while it computes (DynamicVRAM)"
        if streamed
        else f"not all on {device} ({elsewhere[0]})"
    )
    raise WrongConnectionError(
        f"A gradient through this MODEL ({_name(model)}) is not possible: its weights are {why}. {instead} Or start "
        "ComfyUI with --disable-dynamic-vram on a device that holds the whole model."
    )


def check_slope(
    model: comfy.model_base.BaseModel, cond: Mapping[str, Any], x: Tensor, sigma: Tensor, instead: str
) -> None:
    """Raises WrongConnectionError, with the model's name, where its backward pass is not its gradient.

    Asked only of architectures that the pack's tests do not know and of quantised weights, on a corner of one picture,
    in float32: N^T g, where N is the Jacobian of the network's part of the estimate D and g random, against a central
    difference of <g, D> along it, which has to be the length of N^T g.
    cond: one of a running step, without its ControlNet and area. x (B, C, *spatial), sigma (B,): noisy latents.
    """
    network = model.diffusion_model
    if is_trusted(network):
        return
    try:
        with gradients(), training_kernels():
            corner, level = x[:1, ..., :SIDE, :SIDE].clone().float().contiguous(), sigma[:1].clone()
            entries = _entries(cond, corner)
            wrong = _disagreement(twin_of(model, "fp32"), entries, corner, level)
            if is_quantised(network):
                wrong = wrong or _another_function(model, entries, corner, level)
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, TypeError) as error:  # an operation without a backward pass, or not for such weights
        raise WrongConnectionError(_refusal(model, f"a backward pass through it fails ({error})", instead)) from error
    if wrong:
        raise WrongConnectionError(_refusal(model, wrong, instead))


def _name(model: comfy.model_base.BaseModel) -> str:
    return type(model.model_config).__name__


def _refusal(model: comfy.model_base.BaseModel, why: str, instead: str) -> str:
    return f"A gradient through this MODEL ({_name(model)}) can't be trusted: {why}. {instead}"


def _entries(cond: Mapping[str, Any], corner: Tensor) -> dict[str, Any]:
    """What `apply_model` takes for a corner: what has the latent's size is cut as ComfyUI cuts it for an area."""
    area = (*corner.shape[2:], *(0,) * (corner.ndim - 2))
    return {
        name: normal_cond(value.process_cond(batch_size=1, area=area), corner.device)
        for name, value in cond["model_conds"].items()
    }


def _estimate(model: comfy.model_base.BaseModel, entries: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
    options = {"cond_or_uncond": [0], "sigmas": sigma}
    return model.apply_model(x, sigma, transformer_options=options, **comfy.samplers.cond_cat([entries]))


def _disagreement(twin: comfy.model_base.BaseModel, entries: dict[str, Any], x: Tensor, sigma: Tensor) -> str:
    """What is wrong with the gradient at x, in words, or "". x is as before afterwards."""
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x) / x.numel() ** 0.5
    x = x.requires_grad_()

    def value() -> Tensor:
        # without the share of x that goes past the network: beside it a wrong slope of the network would not be seen
        past = twin.model_sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
        return ((_estimate(twin, entries, x, sigma) - past).double() * weights).sum()

    (slope,) = torch.autograd.grad(value(), x)
    length = float(slope.double().norm())
    if not 0 < length < float("inf"):
        return "no gradient reaches the latents" if length == 0 else "its gradient is no number"
    far = float(x.detach().norm())
    slopes = [central_difference(value, [x], [slope / length], share * far) for share in SHARES]
    if any(abs(found - length) <= TOLERANCE * length for found in slopes):
        return ""
    return f"its gradient is {length:.3g} by the backward pass and {slopes[0]:.3g} by finite differences"


@torch.no_grad()
def _another_function(model: comfy.model_base.BaseModel, entries: dict[str, Any], x: Tensor, sigma: Tensor) -> str:
    """Whether quantised weights, read for a gradient, predict something else than the MODEL does; "" if they don't."""
    own, twin = (_estimate(one, entries, x.detach(), sigma) for one in (model, twin_of(model)))
    off = float((twin - own).norm() / (own - x).norm().clamp_min(1e-12))
    return "" if off <= SAME else f"its weights, read for a gradient, give other predictions (off by {off:.0%})"
