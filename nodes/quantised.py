"""Quantised weights in a trainable twin: linear layers that read them in the network's precision, both ways.

ComfyUI's own layers for fp8_scaled and its kin quantise what goes in as well, whose gradient is that of another
function. Here a weight is dequantised when it is needed, again for the backward pass, so that none is kept dense.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy.ops import CastWeightBiasOp
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from .denoiser import WrongConnectionError


class DenseLinear(nn.Linear):
    """A linear layer over the weight of another, quantised or not, which it shares; its parameters stay as they are."""

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.functions = list(getattr(layer, "weight_function", ()))
        self.pre_quant_scale = getattr(layer, "pre_quant_scale", None)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        if self.pre_quant_scale is not None:
            input = input * self.pre_quant_scale.to(input)
        return _ByDense.apply(input, self)

    def dense(self, like: Tensor) -> Tensor:
        """The weight (out, in) in the precision of `like`."""
        weight = self.weight.to(device=like.device, dtype=like.dtype)
        if isinstance(weight, QuantizedTensor):
            weight = weight.dequantize()
        for function in self.functions:  # of LoRAs that are not part of the weight
            weight = function(weight)
        return weight


class _ByDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: DenseLinear) -> Tensor:  # noqa: A002
        ctx.layer = layer
        made = F.linear(input, layer.dense(input), None if layer.bias is None else layer.bias.to(input))
        # Flux adds to what its layers give in place, which torch forbids for a view that a Function of ours made.
        return made.clone() if made._is_view() else made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense(grads[0]), None


def is_quantised(network: nn.Module) -> bool:
    return any(isinstance(weight, QuantizedTensor) for weight in network.parameters())


def make_dense(network: nn.Module) -> nn.Module:
    """The network, with a DenseLinear for each linear layer that is quantised or no torch layer; in place."""
    for path, module in list(network.named_modules()):
        if _is_linear(module):
            parent, _, name = path.rpartition(".")
            network.get_submodule(parent)._modules[name] = DenseLinear(module)
    return network


def _is_linear(module: nn.Module) -> bool:
    """ComfyUI's layer of mixed precision is none of torch's, whether its own weight is quantised or not."""
    has_weight = isinstance(module, CastWeightBiasOp) and isinstance(getattr(module, "weight", None), Tensor)
    if not has_weight or module.weight.ndim != 2 or not hasattr(module, "in_features"):
        return False
    return not isinstance(module, nn.Linear) or isinstance(module.weight, QuantizedTensor)


def check_weights(network: nn.Module) -> None:
    """Raises WrongConnectionError for a weight that is neither plain nor quantised by ComfyUI in a linear layer."""
    for path, module in network.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            plain = type(weight) in (Tensor, nn.Parameter)
            if not plain and not (isinstance(weight, QuantizedTensor) and _can_be_dense(module)):
                raise WrongConnectionError(
                    f"This MODEL's weights are quantised ({path}.{name} is a {type(weight).__name__}) and pass no "
                    "gradient. Load the model's fp16, bf16 or fp32 file for training; the LoRA then works on the "
                    "quantised one too."
                )


def _can_be_dense(module: nn.Module) -> bool:
    return isinstance(module, DenseLinear) or _is_linear(module)
