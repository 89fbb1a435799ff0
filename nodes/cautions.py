"""What a trainer's report warns of: a reward that is hardly worth following, an objective that blurs a fast model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..feedback.rewards.base import Reward

FEW_STEPS = 8
"""A model that is sampled in so few steps without guidance is a distilled one (Turbo, LCM, Lightning, Schnell)."""

FORWARD = ("SFT", "NFT", "AWM")
"""Objectives on noised pictures, which teach a model the mean of what it could have drawn."""


def of_rewards(rewards: Iterable[Any]) -> list[str]:
    """What the rewards say of themselves, as a taste does that ranks fewer than 60 % of held-out pairs right."""
    said = (f"{r.name}: {r.warning}" for r in rewards if isinstance(r, Reward) and r.warning)
    return list(dict.fromkeys(said))


def of_few_steps(objective: str, cfg: float, steps: int) -> list[str]:
    if objective not in FORWARD or cfg > 1 or steps > FEW_STEPS:
        return []
    return [
        f"{steps} steps at cfg {cfg:g} look like a distilled model (Turbo, LCM, Lightning), whose pictures {objective} "
        "blurs. PPO in Reinforce LoRA learns on the sampler's own steps instead."
    ]
