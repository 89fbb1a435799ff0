"""Gradient checkpointing block by block: a block's activations are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(network: nn.Module) -> int:
    """Each block of the network keeps its input alone from now on; returns how many there are."""
    found = list(blocks(network))
    for block in found:
        block.forward = Checkpointed(block.forward)
    return len(found)


def checkpointed_blocks(network: nn.Module) -> list[Checkpointed]:
    return [block.forward for block in blocks(network) if isinstance(block.forward, Checkpointed)]


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """A UNet's residual and transformer blocks, else the members of the network's own lists of modules."""
    for module in network.modules():
        if isinstance(module, (ResBlock, BasicTransformerBlock)):
            yield module
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from (member for member in child if _is_block(member))


def _is_block(module: nn.Module) -> bool:
    """Whether it is large enough to be worth it, and no UNet's stage, whose parts are blocks themselves."""
    inner = list(module.modules())
    if any(isinstance(part, (ResBlock, BasicTransformerBlock)) for part in inner):
        return False
    return sum(isinstance(part, nn.Linear) for part in inner) >= 2


class Checkpointed:
    """A block's forward pass, whose graph is made when the backward pass needs it."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._watch: tuple[Callable[[Iterable[Any]], None], Callable[[], None]] | None = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self._watch is not None:
            self._watch[0]([*inputs, *named.values()])
            result = self._forward(*inputs, **named)
            self._watch[1]()
            return result
        if not torch.is_grad_enabled():
            return self._forward(*inputs, **named)
        return checkpoint(self._on_copies, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

    def _on_copies(self, *inputs: Any, **named: Any) -> Any:
        # some networks add to their input in place, which would be added again the second time
        return self._forward(*map(_copy, inputs), **{name: _copy(value) for name, value in named.items()})

    @contextmanager
    def plainly(self, enter: Callable[[Iterable[Any]], None], leave: Callable[[], None]) -> Iterator[None]:
        """Without checkpointing inside the block; enter is told what goes in, leave is called at its end."""
        self._watch = (enter, leave)
        try:
            yield
        finally:
            self._watch = None


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value
