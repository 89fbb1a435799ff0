"""What a trainer's report warns of: a reward that is hardly worth following, an objective that blurs a fast model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..feedback.rewards.base import Reward
from ..training.distributed_options import RATE, RATES

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


def of_fast_pairs(objective: str, rate: float) -> list[str]:
    """DPO's and KTO's losses are steep where the model is as it was; at the others' rate they leave it at once."""
    own = RATES.get(objective.lower())
    if own is None or rate < RATE:
        return []
    return [
        f"A learning rate of {rate:g} is {rate / own:.0f} times {objective}'s own, {own:g}, which a learning_rate of 0 "
        "takes: right for a tiny model, and too fast for any other."
    ]
