"""What training will take, before it starts: counted on one picture, and refused in a sentence where it cannot fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor

from ..training.loop import estimates
from ..training.objectives import Batch, Objective
from .checkpointing import checkpointed_blocks
from .policy import Policy

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

BYTES_PER_WEIGHT = 4 * 6
"""float32: the weight, its gradient, Adam's two moments, the moving average, and the old view."""

HEADROOM = 1.15
"""Passing buffers and what the allocator cannot use; measured peaks lay within this."""


class NotEnoughMemoryError(RuntimeError):
    """Training could not even start; the message says what to lower."""


@dataclass(frozen=True)
class Need:
    """Bytes: of the adapter with all that is kept of each of its weights, of one loss's graph, and what is free now."""

    adapter: int
    graph: int
    free: int

    def parts(self, losses: int) -> int:
        """In how many parts a batch of `losses` has to be worked off. Raises NotEnoughMemoryError when none will do."""
        room = self.free / HEADROOM - self.adapter
        if self.graph > room:
            raise NotEnoughMemoryError(self.refusal())
        at_once = max(1, min(losses, int(room // max(self.graph, 1))))
        return -(-losses // at_once)

    def text(self) -> str:
        return (
            f"needs about {_size(self.adapter)} for the adapter and {_size(self.graph)} a loss; "
            f"{_size(self.free)} is free"
        )

    def refusal(self) -> str:
        return (
            f"Training {self.text()}, so not even one picture fits. Turn gradient_checkpointing on, lower the rank, "
            "train on smaller pictures, or choose fewer layers; closing other programs that use the device helps, too."
        )


def need_of(policy: Policy, objective: Objective, batch: Batch) -> Need:
    """Counts on one loss of the batch what its graph keeps, that of a decoder and a reward behind the network included.

    Raises NotEnoughMemoryError as soon as that is too much.
    """
    weights = sum(p.numel() for p in policy.parameters()) * BYTES_PER_WEIGHT
    free = int(comfy.model_management.get_free_memory(policy.device))
    count = _Count(int(free / HEADROOM) - weights)
    try:
        graph = count.of(policy, objective, batch.part(0, objective.pictures))
    except (_TooMuch, torch.OutOfMemoryError):
        graph = None
    finally:
        count.held.clear()
    if graph is None:  # outside the except block, whose traceback keeps the tensors alive
        raise NotEnoughMemoryError(Need(weights, max(count.kept, free), free).refusal())
    return Need(weights, graph, free)


class _TooMuch(Exception):
    pass


def check_room(model: ModelPatcher, sizes: Sequence[tuple[int, int]]) -> None:
    """sizes: (width, height) of all rated pictures. Raises NotEnoughMemoryError before one of them is read where they
    cannot be held as bytes beside each other, or their latents on the model's device."""
    form = model.model.latent_format
    side = getattr(form, "spacial_downscale_ratio", 8)
    pixels = sum(width * height for width, height in sizes)
    latents = 4 * form.latent_channels * pixels // side**2
    on_host = int(comfy.model_management.get_free_memory(torch.device("cpu")))
    on_device = int(comfy.model_management.get_free_memory(model.load_device))
    if HEADROOM * 3 * pixels <= on_host and HEADROOM * latents <= on_device:
        return
    raise NotEnoughMemoryError(
        f"The {len(sizes)} rated pictures take {_size(3 * pixels)} of memory, of which {_size(on_host)} is free, and "
        f"their latents {_size(latents)} of the model's device, where {_size(on_device)} is free. Pick fewer in "
        "Collect feedback (a collection, a rater, a time), or close other programs."
    )


def _nothing(_: Any) -> Any:
    return None


class _Count:
    """Bytes that a loss keeps for its backward pass; the network's weights, which are there anyway, are not counted.

    Those of a decoder and a reward are, since they come on top of what is free now. A checkpointed block counts with
    what goes into it, and the largest one once with what it keeps inside.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.kept, self.largest, self._inside = limit, 0, 0, -1
        self.held: dict[int, Tensor] = {}

    def of(self, policy: Policy, objective: Objective, batch: Batch) -> int:
        network = policy.inner.diffusion_model
        for weight in network.parameters():
            if type(weight) in (Tensor, torch.nn.Parameter):
                self.held[weight.untyped_storage().data_ptr()] = weight
        with ExitStack() as stack, torch.autograd.graph.saved_tensors_hooks(self._saved, _nothing):
            for block in checkpointed_blocks(network):
                stack.enter_context(block.plainly(self._enter, self._leave))
            objective.losses(estimates(policy, objective, batch), batch)
        return self.kept + self.largest

    def _saved(self, tensor: Tensor) -> None:
        if self._inside >= 0:
            self._inside += tensor.untyped_storage().nbytes() if tensor.requires_grad else 0
        else:
            self._hold(tensor)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.held:
            self.held[storage.data_ptr()] = tensor
            self.kept += storage.nbytes()
        if self.kept + self.largest > self.limit:
            raise _TooMuch

    def _enter(self, inputs: Iterable[Any]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                self._hold(value)
        self._inside = 0

    def _leave(self) -> None:
        self.largest, self._inside = max(self.largest, self._inside), -1


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MB"
