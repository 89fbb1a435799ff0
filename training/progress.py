"""How far a run is: everything that the next step depends on, so that it can be put down and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .adapters import Adapters, MovingAverage

Tensors = dict[str, dict[str, Tensor]]


@dataclass
class Progress:
    """The state of a run: AdamW's moments, the moving average, the step, and what accidents changed.

    step: finished so far. lr_scale: halved each time the loss was no number. parts: a batch is worked off in so many.
    adapters: where there is an old view to be kept as well.
    """

    parameters: Sequence[nn.Parameter]
    average: MovingAverage
    adapters: Adapters | None = None
    step: int = 0
    lr_scale: float = 1.0
    parts: int = 1
    setbacks: int = 0
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        # an adapter is hundreds of small tensors: on a CPU a step of one kernel takes a fifth of one of many
        fused = all(p.device.type == "cpu" for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=0.0, fused=fused or None)

    def tensors(self) -> Tensors:
        """Copies on the CPU by group: theta, average, adam_m, adam_v and old, each by the parameter's number."""
        groups = {"theta": self.parameters, "average": self.average.values}
        moments = [self.optimizer.state.get(p, {}) for p in self.parameters]
        if all(moments):
            groups["adam_m"] = [m["exp_avg"] for m in moments]
            groups["adam_v"] = [m["exp_avg_sq"] for m in moments]
        if self.adapters is not None and self.adapters.has_old:
            groups["old"] = self.adapters.parameters("old")
        return {name: _numbered(values) for name, values in groups.items()}

    def is_finite(self) -> bool:
        """Whether every weight of theta and of the moving average is a number: only then their sum is one."""
        weights = [p.detach().flatten() for p in (*self.parameters, *self.average.values)]
        return bool(torch.cat(weights).sum().isfinite())

    def numbers(self) -> dict[str, float]:
        """The rest of the state, as JSON."""
        state = self.optimizer.state.get(self.parameters[0], {})
        return {
            "step": self.step,
            "lr_scale": self.lr_scale,
            "parts": self.parts,
            "setbacks": self.setbacks,
            "average_steps": self.average.steps,
            "adam_steps": float(state["step"]) if state else 0.0,
            "followed": -1 if self.adapters is None else self.adapters.followed,
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, float]) -> None:
        """The reverse of `tensors` and `numbers`. Raises ValueError for those of another model or rank."""
        _fill(self.parameters, tensors["theta"])
        _fill(self.average.values, tensors["average"])
        self.average.steps = int(numbers["average_steps"])
        self.step, self.parts = int(numbers["step"]), int(numbers["parts"])
        self.lr_scale, self.setbacks = float(numbers["lr_scale"]), int(numbers["setbacks"])
        self._restore_moments(tensors, float(numbers["adam_steps"]))
        if "old" in tensors and self.adapters is not None:
            self.adapters.follow(0.0)
            _fill(self.adapters.parameters("old"), tensors["old"])
        if self.adapters is not None:
            self.adapters.followed = int(numbers.get("followed", -1))

    def _restore_moments(self, tensors: Mapping[str, Mapping[str, Tensor]], steps: float) -> None:
        self.optimizer.state.clear()
        if "adam_m" not in tensors:
            return
        for index, parameter in enumerate(self.parameters):
            self.optimizer.state[parameter] = {
                "step": torch.tensor(steps),
                "exp_avg": tensors["adam_m"][_name(index)].to(parameter, copy=True),
                "exp_avg_sq": tensors["adam_v"][_name(index)].to(parameter, copy=True),
            }


def _name(index: int) -> str:
    return f"{index:05}"


def _numbered(values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {_name(i): value.detach().cpu().clone() for i, value in enumerate(values)}


def _fill(targets: Sequence[Tensor], values: Mapping[str, Tensor]) -> None:
    shapes = [tuple(target.shape) for target in targets]
    if shapes != [tuple(value.shape) for _, value in sorted(values.items())]:
        raise ValueError("This checkpoint is of another model, rank or kind of adapter: start under another name.")
    for index, target in enumerate(targets):
        target.copy_(values[_name(index)])
