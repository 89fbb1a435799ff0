"""Inputs that several nodes have: declared once, so that they look and behave alike wherever they stand."""

from __future__ import annotations

from typing import Any

import comfy.samplers

from .compat import io
from .decoder import SIZES

ESTIMATES = "How estimates become pictures for the reward, as in Reward guidance."


def share_input(name: str, default: float, tooltip: str, **more: Any) -> io.Float.Input:
    """A share of a run: 0 is its beginning, 1 its end."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **more)


def decoder_input(tooltip: str = ESTIMATES, **more: Any) -> io.Combo.Input:
    """Which decoder shows latents to a reward: one of SIZES."""
    return io.Combo.Input("decoder", options=list(SIZES), default="auto", advanced=True, tooltip=tooltip, **more)


def seed_input(tooltip: str, changes: bool = False) -> io.Int.Input:
    """A seed as in KSampler. changes: whether the page draws another one after each run, unless it is told not to."""
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=changes, tooltip=tooltip)


def sampling_inputs(of: str, steps: str = "sampling_steps", scheduler: str = "normal") -> list[io.Input]:
    """KSampler's steps, cfg, sampler_name and scheduler. of: what is sampled so. steps: that input's name. scheduler:
    the one that is chosen at first."""
    samplers, schedulers = comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_NAMES
    return [
        io.Int.Input(steps, default=20, min=1, max=1000, tooltip=f"Sampling steps of {of}, as in KSampler."),
        io.Float.Input(
            "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="CFG scale: what you usually sample with."
        ),
        io.Combo.Input("sampler_name", options=samplers, default="euler", tooltip=f"Sampler of {of}, as in KSampler."),
        io.Combo.Input("scheduler", options=schedulers, default=scheduler, tooltip="Its noise schedule."),
    ]


def denoise_input(tooltip: str) -> io.Float.Input:
    """How much of the picture is noised first, 1 all of it, as in KSampler."""
    return io.Float.Input("denoise", default=1.0, min=0.05, max=1.0, step=0.01, tooltip=tooltip)
