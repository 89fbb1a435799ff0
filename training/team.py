"""Several processes that train one LoRA: who does what, and what they tell each other. One alone is a team too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .loop import Policy, gradients, in_parts, measured
from .objectives import Batch, Objective
from .runs import Run

AT_ONCE = 64 * 2**20
"""Numbers that are shared in one go."""

Named = Mapping[str, Tensor]


class Team:
    """The processes that torchrun started, through accelerate. cpu: they stay on the CPU, whatever else is there.

    rank: the number of this one, from 0; size: how many there are. Whatever adds tensors up has to be called by all.
    """

    def __init__(self, cpu: bool = False) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=cpu)
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Which of `count` things this process works out: every `size`-th."""
        return range(self.rank, count, self.size)

    def block(self, count: int) -> range:
        """The same as things that lie side by side: one of `size` parts of about equal length."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the device that the tensor is on."""
        if self.size == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.device), reduction="sum").to(tensor.device)  # type: ignore

    def agreed(self, mine: bool) -> bool:
        """Whether any of them says yes."""
        return bool(self.sum(torch.tensor(int(mine))))

    def told(self, mine: str) -> str:
        """What the first of them has to say that has to say something, known to all; "" where nobody has."""
        text, lengths = mine.encode(), torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(text)
        lengths = self.sum(lengths).tolist()
        speaker = next((rank for rank, length in enumerate(lengths) if length), None)
        if speaker is None:
            return ""
        letters = torch.zeros(lengths[speaker], dtype=torch.int64)
        if speaker == self.rank:
            letters += torch.tensor(list(text))
        return bytes(self.sum(letters).tolist()).decode()

    def wait(self) -> None:
        """Returns once all have come here."""
        self.accelerator.wait_for_everyone()

    def shared(
        self, count: int, names: Sequence[str], make: Callable[[int], Named | None]
    ) -> list[dict[str, Tensor] | None]:
        """What `make` gives for 0..count-1, each made by one process and then known to all; float32 on the CPU.

        names: of the tensors that it gives. None stays None. Nothing is rounded on the way: zeros are added.
        """
        own = {index: make(index) for index in self.mine(count)}
        told = [{name: value.detach().float().cpu() for name, value in (own[i] or {}).items()} for i in own]
        known: dict[int, dict[str, Tensor]] = dict(zip(own, told, strict=True))
        columns = [self._column({i: named[name] for i, named in known.items() if named}, count) for name in names]
        rows = zip(*columns, strict=True)
        return [None if any(t is None for t in row) else dict(zip(names, row, strict=True)) for row in rows]

    def _column(self, own: Mapping[int, Tensor], count: int) -> list[Tensor | None]:
        shapes = torch.zeros(count, 8, dtype=torch.int64)  # the number of dimensions and then each of them
        for index, tensor in own.items():
            shapes[index, : tensor.ndim + 1] = torch.tensor([tensor.ndim, *tensor.shape])
        kinds: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(self.sum(shapes).tolist()):
            if row[0]:
                kinds.setdefault(tuple(row[1 : row[0] + 1]), []).append(index)
        found: list[Tensor | None] = [None] * count
        for shape, rows in kinds.items():
            each = max(1, AT_ONCE // math.prod(shape))
            for start in range(0, len(rows), each):
                for index, tensor in self._shared_rows(own, shape, rows[start : start + each]):
                    found[index] = tensor
        return found

    def _shared_rows(
        self, own: Mapping[int, Tensor], shape: tuple[int, ...], rows: list[int]
    ) -> list[tuple[int, Tensor]]:
        block = torch.zeros(len(rows), *shape)
        for place, index in enumerate(rows):
            if index in own:
                block[place] = own[index]
        return list(zip(rows, self.sum(block), strict=True))

    def gradients(
        self, policy: Policy, objective: Objective, batch: Batch, optimizer: torch.optim.Optimizer, parts: int = 1
    ) -> tuple[float, int]:
        """The gradient of the whole batch's mean loss, each process working off its share of it; see loop.gradients."""
        if self.size == 1:
            return gradients(policy, objective, batch, optimizer, parts)
        losses = len(batch) // objective.pictures
        rows, of = self.block(losses), float(losses)
        # with fewer losses than processes some work one off that counts nothing, so that all go the same way
        own, of = (rows, of) if rows else (range(1), math.inf)
        mine = batch.part(own.start * objective.pictures, own.stop * objective.pictures)
        numbers, parts = in_parts(lambda n: measured(policy, objective, mine, n), parts, len(own))
        if numbers is not None:
            whole = torch.zeros(losses, dtype=numbers.dtype, device=numbers.device)
            if rows:
                whole[rows.start : rows.stop] = numbers
            mine = replace(mine, measured=self.sum(whole))
        loss, parts = gradients(policy, objective, mine, optimizer, parts, of)
        return self._add_up(policy.parameters(), loss), parts

    @torch.no_grad()
    def _add_up(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Every parameter gets the sum of all its gradients; the sum of the losses comes back."""
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([*(g.flatten() for g in own), own[0].new_tensor([loss])]))
        start = 0
        for parameter, gradient in zip(parameters, own, strict=True):
            parameter.grad = flat[start : start + gradient.numel()].reshape(gradient.shape)
            start += gradient.numel()
        return float(flat[-1])


@dataclass
class SharedRun(Run):
    """A run whose checkpoints all processes read, and the first one writes."""

    writes: bool = True

    def save(
        self, step: int, tensors: Mapping[str, Named], about: Mapping[str, object], best: bool = False
    ) -> Path:  # fmt: skip
        if self.writes:
            return super().save(step, tensors, about, best)
        self._last_step, self._last_time = step, time.monotonic()
        return self.folder / f"step-{step:06}"
