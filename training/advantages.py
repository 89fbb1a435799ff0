"""Rewards of pictures -> advantages: how much better each is than what its prompt usually gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OWN_SPREAD = 16
"""A prompt with this many pictures is measured by its own spread, one with fewer by that of all prompts together."""

OWN_MEAN = 4
"""A picture of a prompt with fewer is compared with the other pictures alone: its own would weigh too much."""

EQUAL = 1e-6
"""Rewards that differ by less than this share of their size are the same reward with other rounding."""


def advantages(
    rewards: Tensor, prompts: Sequence[str], win_rate: bool = False, expected: Tensor | None = None
) -> Tensor:
    """Rewards (N,) and their prompts -> advantages (N,) of mean about 0 and spread about 1; 0 where nothing is learned.

    A prompt's own mean is subtracted, and its spread divided by, which counts for at least a tenth of that of all.
    win_rate: which share of the prompt's other pictures each beats, instead of the reward, which a few outliers may
    rule. expected: (N,) what the reward of a picture of that prompt was expected to be, used where there is one alone.
    Prompts whose pictures all have the same reward give 0. Raises ValueError for rewards that are no numbers.
    """
    rewards = rewards.double()
    if not rewards.isfinite().all():
        raise ValueError("A reward is not a number; look at the picture it was asked about, and at the reward.")
    floor = EQUAL * float(rewards.abs().max().clamp_min(1e-12)) if len(rewards) else 0.0
    if len(rewards) < 2 or float(rewards.max() - rewards.min()) <= floor:
        return torch.zeros(len(rewards))
    groups = _groups(prompts)
    centred = torch.zeros_like(rewards)
    for rows in groups.values():
        if len(rows) == 1:
            centred[rows] = _alone(rewards, rows[0], win_rate, expected)
        elif float(rewards[rows].max() - rewards[rows].min()) > floor:
            centred[rows] = _centred(_win_rates(rewards[rows]) if win_rate else rewards[rows])
    return _divided(centred, groups).float()


def _groups(prompts: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        found.setdefault(prompt, []).append(index)
    return found


def _alone(rewards: Tensor, row: int, win_rate: bool, expected: Tensor | None) -> Tensor:
    """A picture without another of its prompt: against what was expected of it, or against all other pictures."""
    if win_rate:
        return (_win_rates(rewards) - 0.5)[row]
    if expected is not None:
        return rewards[row] - expected[row]
    return rewards[row] - (rewards.sum() - rewards[row]) / (len(rewards) - 1)


def _centred(values: Tensor) -> Tensor:
    if len(values) < OWN_MEAN:
        return values - (values.sum() - values) / (len(values) - 1)
    return values - values.mean()


def _win_rates(own: Tensor) -> Tensor:
    """Pref-GRPO's (2508.20751): the share of the group's other pictures that a picture beats, ties half."""
    wins = (own[:, None] > own[None]).double() + 0.5 * (own[:, None] == own[None]).double()
    return (wins.sum(1) - 0.5) / (len(own) - 1)


def _divided(centred: Tensor, groups: dict[str, list[int]]) -> Tensor:
    overall = centred.square().mean().sqrt()
    if not overall:
        return centred
    divided = centred / overall
    for rows in groups.values():
        if len(rows) >= OWN_SPREAD:
            divided[rows] = centred[rows] / centred[rows].std(correction=0).clamp_min(0.1 * overall)
    return divided
