"""Whether a network's backward pass is the gradient of its forward pass: against finite differences, before a run.

Some of ComfyUI's networks write into tensors that a backward pass needs, and some kernels have none, so an architecture
that the pack's tests do not know is tried on a small latent when a training begins, and refused by name if it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ..training.objectives import Batch
from .denoiser import WrongConnectionError
from .policy import Guided, Policy
from .quantised import is_quantised

TESTED = ("UNetModel", "OpenAISignatureMMDITWrapper", "Flux", "QwenImageTransformer2DModel", "NextDiT", "WanModel")
"""Classes of networks whose gradients the pack's tests hold against finite differences: docs/architectures.md."""

SIDE = 16  # latent pixels a side of what is tried
STEPS = (2e-2, 2e-3)
"""How far the adapter is moved along its gradient; a large network bends more, a small step loses more to rounding."""

TOLERANCE = 0.05
SAME = 0.5


def is_trusted(network: nn.Module) -> bool:
    """Whether the pack's tests know the gradient of networks of this class, and its weights are plain ones."""
    return type(network).__name__ in TESTED and not is_quantised(network)


def check_gradients(policy: Policy, batch: Batch) -> None:
    """Raises WrongConnectionError, with the model's name, where training would follow a wrong gradient."""
    network = policy.inner.diffusion_model
    if is_trusted(network):
        return
    name = type(policy.model.model.model_config).__name__
    x = batch.x[:1, ..., :SIDE, :SIDE].contiguous()
    try:
        with computing_in(policy, torch.float32):  # half precision would hide a small difference
            wrong = disagreement(policy, x, batch.sigma[:1], batch.cond[:1])
        if is_quantised(network):
            wrong = wrong or another_function(policy, x, batch.sigma[:1], batch.cond)
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, TypeError) as error:  # an operation without a backward pass, or not for such weights
        raise WrongConnectionError(_refusal(name, f"a backward pass through it fails ({error})")) from error
    if wrong:
        raise WrongConnectionError(_refusal(name, wrong))


def _refusal(name: str, why: str) -> str:
    return (
        f"This MODEL ({name}) can't be trained here: {why}. Take the fp16, bf16 or fp32 file of one of the models in "
        "docs/architectures.md."
    )


@contextmanager
def computing_in(policy: Policy, dtype: torch.dtype) -> Iterator[None]:
    """The network computes in this precision inside the block."""
    inner, before = policy.inner, policy.inner.manual_cast_dtype
    try:
        if inner.get_dtype_inference() != dtype:
            inner.manual_cast_dtype = dtype  # type: ignore[assignment]
        yield
    finally:
        inner.manual_cast_dtype = before


def disagreement(policy: Policy, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> str:
    """What is wrong with the gradient at x, in words, or "". The adapter is as before afterwards."""
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device) / x.numel() ** 0.5

    def value() -> Tensor:
        return (policy.denoise(x, sigma, cond).double() * weights).sum()

    parameters = policy.parameters()
    found = torch.autograd.grad(value(), parameters, allow_unused=True)
    gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    length = float(torch.stack([g.double().norm() for g in gradient]).norm())
    if not length > 0:
        return "no gradient reaches the adapter" if length == 0 else "its gradient is no number"
    unit = [g / length for g in gradient]
    slopes = [central_difference(value, parameters, unit, h) for h in STEPS]
    if any(abs(slope - length) <= TOLERANCE * length for slope in slopes):
        return ""
    return f"its gradient is {length:.3g} by the backward pass and {slopes[0]:.3g} by finite differences"


@torch.no_grad()
def another_function(policy: Policy, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> str:
    """Whether the twin, whose weights are read differently, predicts something else than the MODEL; "" if it doesn't.

    In the MODEL's own precision. Quantising what goes into each layer, as the MODEL may do, changes predictions a
    little; weights that are read wrongly leave nothing of them.
    """
    positive = cond[0].positive if isinstance(cond[0], Guided) else cond[0]
    with policy.view("ref"), computing_in(policy, policy.model.model.get_dtype_inference()):
        twin = policy.denoise(x, sigma, [positive])
    own = policy.stock(x, sigma, positive)
    off = float((twin - own).norm() / (own - x).norm().clamp_min(1e-12))
    return "" if off <= SAME else f"its weights, read for training, give other predictions (off by {off:.0%})"


@torch.no_grad()
def central_difference(
    value: Callable[[], Tensor], parameters: Sequence[Tensor], unit: Sequence[Tensor], h: float
) -> float:
    """(value(p + h u) - value(p - h u)) / 2h; the parameters are as before afterwards, bit for bit."""
    kept, values = [p.clone() for p in parameters], []
    try:
        for sign in (1, -1):
            for p, k, u in zip(parameters, kept, unit, strict=True):
                p.copy_(k + sign * h * u)
            values.append(float(value()))
    finally:
        for p, k in zip(parameters, kept, strict=True):
            p.copy_(k)
    return (values[0] - values[1]) / (2 * h)
