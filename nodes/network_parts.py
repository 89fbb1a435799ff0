"""A model whose network keeps little for a way back: nothing of a pass but its input, of some pictures at a time."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_management
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def checkpointed(model: comfy.model_base.BaseModel, at_once: int) -> None:
    """Makes the model keep nothing of a pass through its network but the input: the rest is made again on the way back.

    The network alone: functions of others around it may remember steps, as the momentum of APG does, and the way back
    goes through the steps in reverse, so each of them is to see a step once. For the same reason the network alone is
    asked about at_once pictures at a time: the sampler, whose noise is drawn for the whole batch, never notices.
    """
    network = model._apply_model

    def applied(options: dict[str, Any], given: dict[str, Any]) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        # the network takes a ControlNet's parts out of their lists while it uses them
        return network(transformer_options=options, **{name: _lists_copied(value) for name, value in given.items()})

    def answer(
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **others: Any,
    ) -> Tensor:
        options = dict(transformer_options or {})
        sides = len(options.get("cond_or_uncond") or [None])
        given = {"x": x, "t": t, "c_concat": c_concat, "c_crossattn": c_crossattn, "control": control, **others}
        found = []
        for rows in _parts(len(x), sides, at_once):
            part = given if len(rows) == len(x) else {k: _taken(v, rows.to(x.device), len(x)) for k, v in given.items()}
            made = checkpoint(applied, options, part, use_reentrant=False)
            assert isinstance(made, Tensor)  # tells types, guards nothing # nosec B101
            found.append(made.unflatten(0, (sides, -1)))
        return torch.cat(found, dim=1).flatten(0, 1)

    model._apply_model = answer


def _parts(rows: int, sides: int, at_once: int) -> list[Tensor]:
    """Rows of a batch that holds its pictures once for each side (prompt, negative), some pictures at a time."""
    return [part.flatten() for part in torch.arange(rows).reshape(sides, -1).split(at_once, dim=1)]


def _taken(value: Any, rows: Tensor, of: int) -> Any:
    """These rows of every tensor that has `of` of them, in dictionaries and lists too; all else as it is."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != of:
            return value
        taken = value[rows.to(value.device)]
        # what a ControlNet adds is of a class that the network may not write over
        return taken if type(taken) is type(value) else taken.as_subclass(type(value))
    if isinstance(value, dict):
        return {name: _taken(one, rows, of) for name, one in value.items()}
    return [_taken(one, rows, of) for one in value] if isinstance(value, list) else value


def _lists_copied(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: list(one) if isinstance(one, list) else one for key, one in value.items()}
