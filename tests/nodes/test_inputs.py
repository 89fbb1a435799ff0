"""Inputs that several nodes have are the stock sampler's: the same choices, limits and starting values everywhere."""

from __future__ import annotations

import importlib
from typing import Any

import nodes as comfy_nodes
import pytest

STEPS = ("steps", "sampling_steps")
NODES = [
    ("refine", "FeedbackRefineRegion"),
    ("reinforce", "FeedbackReinforceLora"),
    ("evaluate", "FeedbackEvaluate"),
]


def inputs_of(module: str, node: str) -> dict[str, Any]:
    schema = getattr(importlib.import_module(f"feedback_loop.nodes.{module}"), node).define_schema()
    return {one.id: one for one in schema.inputs}


@pytest.mark.parametrize(("module", "node"), NODES)
def test_what_is_called_as_in_ksampler_takes_what_ksampler_takes(module: str, node: str) -> None:
    stock, own = comfy_nodes.KSampler.INPUT_TYPES()["required"], inputs_of(module, node)
    assert list(own["sampler_name"].options) == list(stock["sampler_name"][0])
    assert list(own["scheduler"].options) == list(stock["scheduler"][0])
    assert (own["cfg"].min, own["cfg"].max, own["cfg"].step) == (0.0, 100.0, 0.1)
    assert own["seed"].min == 0 and own["seed"].max >= 2**63 - 1


@pytest.mark.parametrize(("module", "node"), NODES)
def test_the_sampling_inputs_start_alike_in_every_node(module: str, node: str) -> None:
    own = inputs_of(module, node)
    steps = next(own[name] for name in (STEPS if "sampling_steps" not in own else STEPS[::-1]) if name in own)
    assert (steps.default, steps.min, steps.max) == (20, 1, 1000)
    assert own["cfg"].default == 7.0 and own["sampler_name"].default == "euler"
