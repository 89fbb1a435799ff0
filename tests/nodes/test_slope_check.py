"""Before a gradient through the denoiser is followed: a wrong one, and one through streamed weights, is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from feedback_loop.nodes import gradient_check, slope_check
from feedback_loop.nodes import quantised as quantised_weights
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.noise import GRADIENT, ZERO_ORDER
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.test_architectures import Half, NoBackward
from feedback_loop.tests.nodes.test_jacobian import Warmth, run
from feedback_loop.tests.nodes.test_noise import Run
from feedback_loop.tests.nodes.tiny_quantised import quantised

pytestmark = pytest.mark.usefixtures("inference_mode")


def guided(model: Any, method: str, kind: str = "sd15") -> Any:
    vae = tiny_models.vae(channels=tiny_models.CHANNELS[kind])
    return FeedbackRewardGuidance.execute(model, Warmth(), vae, 1.0, gradient=method).args[0]


def bent(model: Any, bend: Any = Half.apply) -> Any:
    model.model.diffusion_model.out.register_forward_hook(lambda *a: bend(a[2]))
    return model


@pytest.mark.parametrize(
    ("bend", "says"),
    [(Half.apply, "by the backward pass and .* by finite differences"), (NoBackward.apply, "a backward pass .* fails")],
)
def test_a_network_that_nobody_tried_is_tried_before_guidance_follows_its_gradient(bend, says, monkeypatch):
    """Half the slope would have steered without a word. Without a backward pass the same model is steered."""
    monkeypatch.setattr(gradient_check, "TESTED", ())
    message = rf"(?s)MODEL \(SD15\) can't be trusted: .*{says}.*Set `gradient` to difference or fast"
    with pytest.raises(WrongConnectionError, match=message):
        run(guided(bent(tiny_models.sd15(), bend), "full"), "sd15")
    assert run(guided(bent(tiny_models.sd15(), bend), "difference"), "sd15").isfinite().all()


@pytest.mark.parametrize("kind", ["sd15", "flux", "wan"])
def test_a_right_gradient_passes_and_is_tried_once_a_run(kind, monkeypatch):
    """Wan's latents have a frame axis. The pictures are those of a model that needed no trial."""
    expected = run(guided(tiny_models.MODELS[kind](), "full", kind), kind)
    monkeypatch.setattr(gradient_check, "TESTED", ())
    tried, real = [], slope_check._disagreement
    monkeypatch.setattr(slope_check, "_disagreement", lambda *given: tried.append(given[2].shape) or real(*given))
    steered = guided(tiny_models.MODELS[kind](), "full", kind)
    assert torch.equal(run(steered, kind), expected) and len(tried) == 1
    run(steered, kind)
    assert len(tried) == 2 and tried[0][0] == 1


def test_quantised_weights_whose_gradient_is_wrong_are_refused(monkeypatch):
    """A way back that reads another weight than the way there."""
    wrong = quantised_weights.DenseLinear.dense
    monkeypatch.setattr(
        quantised_weights._ByDense, "backward", lambda ctx, g: (g @ wrong(ctx.layer, g).roll(1, 0), None)
    )
    with pytest.raises(WrongConnectionError, match=r"MODEL \(Flux\) can't be trusted: .*finite differences"):
        run(guided(quantised("flux"), "full", "flux"), "flux")


def test_optimising_noise_tries_a_network_that_nobody_tried(monkeypatch):
    monkeypatch.setattr(gradient_check, "TESTED", ())
    asked = Run("sd15")
    asked.optimise(iterations=1)
    bent(asked.model)
    with pytest.raises(WrongConnectionError, match="can't be trusted: .*Set `method` to zero-order"):
        asked.optimise(iterations=1, method=GRADIENT)
    asked.optimise(iterations=1, method=ZERO_ORDER, pairs=1)


class Streamed(tiny_models.comfy.model_patcher.ModelPatcher):
    """As ComfyUI's patcher under DynamicVRAM answers; nothing is streamed on a CPU."""

    def is_dynamic(self) -> bool:
        return True


def moved(model: Any) -> None:
    layer = model.diffusion_model.out[2]
    layer.weight = torch.nn.Parameter(layer.weight.to("meta"), requires_grad=False)


def streamed(model: Any) -> None:
    model.diffusion_model.out[2]._v = object()


def of_another_patcher(model: Any) -> None:
    own = model.current_patcher
    model.current_patcher = Streamed(model, own.load_device, own.offload_device)


@pytest.mark.parametrize(
    ("happens", "says"),
    [(moved, r"not all on cpu \(out.2.weight\)"), (streamed, "streamed"), (of_another_patcher, "streamed")],
)
def test_weights_that_come_and_go_are_refused_for_the_full_gradient(happens, says):
    """They leave once the step's own pass is through, as ComfyUI's do; the way back would read something else."""
    model = guided(tiny_models.sd15(), "full")
    model.model_options["sampler_post_cfg_function"].insert(0, lambda args: happens(args["model"]) or args["denoised"])
    with pytest.raises(WrongConnectionError, match=rf"\(SD15\).*{says}.*Set `gradient` to difference or fast"):
        run(model, "sd15")


def test_weights_that_come_and_go_are_refused_for_optimising_noise_by_the_gradient():
    asked = Run("sd15")
    streamed(asked.model.model)
    with pytest.raises(WrongConnectionError, match="streamed.*Set `method` to zero-order"):
        asked.optimise(iterations=1)
