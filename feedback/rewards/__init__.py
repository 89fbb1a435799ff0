"""Rewards: what people like, as functions of pictures."""

from .base import Encoder, Reward, RewardError, embed_once

__all__ = ["Encoder", "Reward", "RewardError", "embed_once"]
