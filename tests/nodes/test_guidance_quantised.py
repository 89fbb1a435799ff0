"""Reward guidance on models whose weights are quantised: as ComfyUI loads fp8_scaled files, and as GGUF loaders do.

Guidance asks a model of that kind for estimates as any sampler does; only the full gradient has to pass through its
weights.
"""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.noise import ZERO_ORDER
from feedback_loop.nodes.quantised import is_quantised
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.test_jacobian import Step, Warmth, run
from feedback_loop.tests.nodes.test_noise import Run, slopes_of
from feedback_loop.tests.nodes.tiny_quantised import quantised


class Blocks(torch.Tensor):
    """Whole numbers -127..127 of weights in blocks of eight, each with a scale: a weight as GGUF's Q8_0 holds it."""

    scales: Tensor


class BlockLinear(nn.Module):
    """Dequantises its weight whenever it is asked, as the layers of GGUF loaders do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        blocks = layer.weight.detach().reshape(len(layer.weight), -1, 8)
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        weight = (blocks / scales).round().to(torch.int8).as_subclass(Blocks)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), layer.bias
        self.scales = scales

    def forward(self, x: Tensor) -> Tensor:
        whole = self.weight.as_subclass(torch.Tensor) * self.scales
        return F.linear(x, whole.reshape(len(whole), -1).to(x), self.bias)


def in_blocks(kind: str) -> comfy.model_patcher.ModelPatcher:
    model = tiny_models.MODELS[kind]()
    network = model.model.diffusion_model
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and ("block" in path or "layers." in path) and module.in_features % 8 == 0:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, BlockLinear(module))
    assert any(isinstance(module, BlockLinear) for module in network.modules())
    return model


MADE = {"fp8_scaled": quantised, "blocks": in_blocks}
CASES = [
    ("fp8_scaled", "sd15"),
    ("fp8_scaled", "flux"),
    ("fp8_scaled", "zimage"),
    ("blocks", "sd15"),
    ("blocks", "flux"),
    ("blocks", "zimage"),
]


def guided(model: Any, kind: str, method: str = "fast", strength: float = 1.0) -> Any:
    vae = tiny_models.vae(channels=tiny_models.CHANNELS[kind])
    return FeedbackRewardGuidance.execute(model, Warmth(), vae, strength, gradient=method).args[0]


def warmth(kind: str, latents: Tensor) -> Tensor:
    shown = tiny_models.vae(channels=tiny_models.CHANNELS[kind]).decode(latents.clone()).movedim(-1, 1)
    return Warmth()(shown)


@pytest.mark.parametrize("method", ["fast", "difference"])
@pytest.mark.parametrize(("made", "kind"), CASES)
def test_a_quantised_model_is_guided_and_left_as_it_was(made, kind, method, inference_mode):
    """The pictures get warmer; strength 0 and a run afterwards are bit for bit the plain ones."""
    model = MADE[made](kind)
    plain, steered, again = (run(one, kind, 4) for one in (model, guided(model, kind, method), model))
    assert torch.equal(plain, again) and torch.equal(run(guided(model, kind, method, 0.0), kind, 4), plain)
    assert steered.isfinite().all() and (warmth(kind, steered) > warmth(kind, plain)).all()


@pytest.mark.parametrize(("made", "kind"), CASES)
def test_the_forward_difference_through_quantised_weights_is_the_derivative_along_the_slope(made, kind, inference_mode):
    """As on full precision: against a central difference half as wide."""
    off = []

    def look(step: Step) -> None:
        slope = step.random(5)
        distance = 0.005 * float(step.args["input"].square().mean().sqrt() / slope.square().mean().sqrt())
        expected = step.scale * step.derivative(slope, distance)
        carried = step.carry("difference", slope)
        off.append((carried - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1))

    Step(kind, look, model=MADE[made](kind))
    assert off[0].max() < 5e-2


@pytest.mark.parametrize("kind", ["sd15", "flux", "zimage"])
def test_the_full_gradient_through_fp8_scaled_weights_is_that_of_finite_differences(kind, inference_mode):
    """<J^T g, v> = <g, J v>, as on full precision."""
    found = []

    def look(step: Step) -> None:
        slope, along = step.random(5), step.random(7)
        carried, moved = step.carry("full", slope) / step.scale, step.derivative(along, 1e-2)
        size = slope.flatten(1).norm(dim=1) * moved.flatten(1).norm(dim=1)
        found.append(((carried * along).flatten(1).sum(1) - (slope * moved).flatten(1).sum(1)) / size)

    model = quantised(kind)
    assert is_quantised(model.model.diffusion_model)
    Step(kind, look, model=model)
    assert found[0].abs().max() < 2e-3


def test_the_full_gradient_through_weights_of_another_make_is_refused_by_name(inference_mode):
    with pytest.raises(WrongConnectionError, match="is a Blocks.*Or set `gradient` to difference or fast"):
        guided(in_blocks("sd15"), "sd15", "full")


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_noise_is_optimised_through_fp8_scaled_weights_by_the_slope_of_finite_differences(kind, inference_mode):
    slope, expected = slopes_of(Run(kind, cfg=2.0, model=quantised(kind)))
    assert slope == pytest.approx(expected, rel=0.02) and abs(expected) > 1e-3


def test_noise_is_not_optimised_through_weights_of_another_make(inference_mode):
    run = Run("flux", steps=1, model=in_blocks("flux"))
    with pytest.raises(WrongConnectionError, match="is a Blocks.*Or set `method` to zero-order"):
        run.optimise()
    assert run.optimise(iterations=1, pairs=1, method=ZERO_ORDER)[1].isfinite().all()
