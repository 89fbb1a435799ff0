"""PPO learns from what the network alone makes: whatever stands around a MODEL is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.reference import FeedbackReferenceGuidance
from feedback_loop.nodes.rollouts import check_plain_guidance
from feedback_loop.tests.nodes import tiny_models

pytestmark = pytest.mark.usefixtures("inference_mode")


def looking(model: Any) -> Any:
    liked = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    return FeedbackReferenceGuidance.execute(model, tiny_models.vae(), 0.8, 0.0, 0.6, liked=liked).args[0]


def cached(node: Any) -> Any:
    return lambda model: node.execute(model, 0.2, 0.15, 0.95, False).args[0]


def wrapped(model: Any) -> Any:
    def half_scale(apply_model: Any, args: dict[str, Any]) -> Any:
        return apply_model(args["input"], args["timestep"], **args["c"]) / 2

    model = model.clone()
    model.set_model_unet_function_wrapper(half_scale)
    return model


def in_options(model: Any) -> Any:
    model = model.clone()
    wrappers = {WrappersMP.APPLY_MODEL: {"somebodys_cache": [lambda run, *args, **named: run(*args, **named)]}}
    model.model_options.setdefault("transformer_options", {})["wrappers"] = wrappers
    return model


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (cached(EasyCacheNode), "easycache"),
        (cached(LazyCacheNode), "lazycache"),
        (looking, "feedback_loop_references"),
        (wrapped, "wrapped"),
        (in_options, "somebodys_cache"),
    ],
    ids=["EasyCache", "LazyCache", "references", "function wrapper", "options"],
)
def test_what_changes_the_prediction_is_refused_by_name(change: Any, name: str) -> None:
    with pytest.raises(WrongConnectionError, match=rf"{name}.*connect the plain model, or choose NFT or AWM"):
        check_plain_guidance(change(tiny_models.sd15()))


def test_a_plain_model_and_a_compiled_one_are_taken() -> None:
    model = tiny_models.sd15()
    check_plain_guidance(model)
    compiled = model.clone()
    compiled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda run, *args, **named: run(*args))
    check_plain_guidance(compiled)
