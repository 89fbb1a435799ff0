"""Whether two rewards are the same one: a name says too little, for a taste that was fitted again keeps it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from .base import Reward, RewardError
from .combine import Scale


def identity(reward: Reward) -> str:
    """`name <16 hex digits>`: the digits change with the reward's class, weights, settings and image encoders.

    Of a reward that cannot be saved it is its plain attributes (numbers, words, tensors, tuples of such) and the
    rewards that it is made of.
    """
    found = hashlib.sha256()
    _add(found, reward)
    return f"{reward.name} {found.hexdigest()[:16]}"


def _add(found: Any, value: Any) -> None:
    """Every part with its type, so that none runs into the next."""
    if isinstance(value, Reward):
        _add(found, f"{type(value).__module__}.{type(value).__qualname__} {value.name}")
        _add(found, tuple(encoder.id for encoder in value.encoders))
        for name, part in sorted(_parts(value).items()):
            _add(found, name)
            _add(found, part)
    elif isinstance(value, Tensor):
        _add(found, f"{value.dtype} {tuple(value.shape)}")
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, tuple):
        _add(found, f"of {len(value)}")
        for part in value:
            _add(found, part)
    else:
        text = repr(value).encode()
        found.update(f"{len(text)}:".encode() + text)


def _parts(reward: Reward) -> dict[str, Any]:
    try:
        tensors, settings = reward.state()
    except RewardError:
        return {name: value for name, value in vars(reward).items() if _is_plain(value)}
    return {**tensors, "settings": json.dumps(settings, sort_keys=True, default=str)}


def _is_plain(value: Any) -> bool:
    """Lists and dictionaries are not: a reward may note in them what it was asked."""
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (Reward, Tensor, bool, int, float, str, Scale))
