"""Inputs that several nodes have: declared once, so that they look and behave alike wherever they stand."""

from __future__ import annotations

from typing import Any

from .compat import io
from .decoder import SIZES

ESTIMATES = "How estimates become pictures for the reward, as in Reward guidance."


def share_input(name: str, default: float, tooltip: str, **more: Any) -> io.Float.Input:
    """A share of a run: 0 is its beginning, 1 its end."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **more)


def decoder_input(tooltip: str = ESTIMATES, **more: Any) -> io.Combo.Input:
    """Which decoder shows latents to a reward: one of SIZES."""
    return io.Combo.Input("decoder", options=list(SIZES), default="auto", advanced=True, tooltip=tooltip, **more)
