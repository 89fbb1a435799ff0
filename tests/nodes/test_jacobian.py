"""A slope carried through the denoiser, on a tiny random model of each architecture, in inference mode as in a run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_apg import APG

from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.nodes import jacobian
from feedback_loop.nodes.denoiser import WrongConnectionError, process_of
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.tests.nodes import tiny_models

KINDS = sorted(tiny_models.MODELS)


def with_momentum(model: Any) -> Any:
    """Core's Adaptive Projected Guidance, which remembers the steps before in a pre-CFG function."""
    return APG.execute(model, 0.5, 3.0, -0.6).args[0]


class Warmth(Reward):
    """Mean of red less blue, in units steep enough that every step is at the cap."""

    name = "warmth"

    def score(self, images, prompts, embed):
        return 1000 * (images[:, 0] - images[:, 2]).mean(dim=(1, 2))


class Step:
    """One step of a run, looked at from inside by `look`, which is called in a post-CFG hook."""

    def __init__(
        self,
        kind: str,
        look: Callable[[Step], None],
        cfg: float = 2.0,
        batch: int = 2,
        patched: bool = False,
        model: Any = None,
    ) -> None:
        self.model, self.args, self.look = model or tiny_models.MODELS[kind](), {}, look
        if patched:
            jacobian.keep_outputs(self.model)
            self.model = with_momentum(self.model)
        self.model.set_model_sampler_post_cfg_function(self.keep)
        noise = torch.randn(tiny_models.latent_shape(kind, batch), generator=torch.Generator().manual_seed(3))
        sides = [tiny_models.conditioning(kind, seed) for seed in (1, 2)]
        sampler = comfy.samplers.KSampler(self.model, 2, self.model.load_device, "euler", "simple", 1.0, {})
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(*sides)
        guider.set_cfg(cfg)
        sampler_object = comfy.samplers.sampler_object("euler")
        guider.sample(noise, torch.zeros_like(noise), sampler_object, sampler.sigmas[1:], disable_pbar=True, seed=0)

    def keep(self, args: dict[str, Any]) -> torch.Tensor:
        if not self.args:
            self.args = args
            self.look(self)
        return args["denoised"]

    @property
    def scale(self) -> torch.Tensor:
        """s^2/a, by which what is carried exceeds the Jacobian times the slope."""
        process, sigma = process_of(self.model), self.args["sigma"]
        return (process.s(sigma) ** 2 / process.a(sigma)).reshape(-1, *(1,) * (self.args["input"].ndim - 1))

    def random(self, seed: int) -> torch.Tensor:
        return torch.randn(self.args["input"].shape, generator=torch.Generator().manual_seed(seed))

    def carry(self, method: str, slope: torch.Tensor) -> torch.Tensor:
        carry = jacobian.transport_of(method, self.args, process_of(self.model))
        assert carry is not None
        with torch.inference_mode(False):
            return carry(slope.clone())

    def derivative(self, along: torch.Tensor, distance: float) -> torch.Tensor:
        """Central difference of the model's own estimate, for each sample times `along`."""
        x = self.args["input"]
        forth, back = (
            jacobian.evaluated(self.args["model"], [self.args["cond"], self.args["uncond"]], self.args, x + s * along)
            for s in (distance, -distance)
        )
        return (forth - back) / (2 * distance)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_full_gradient_is_that_of_finite_differences(kind, cfg, inference_mode):
    """For any direction v: <J^T g, v> = <g, J v>, and J v is a central difference of the estimate as the run makes it,
    with classifier-free guidance."""
    found = []

    def look(step: Step) -> None:
        slope, along = step.random(5), step.random(7)
        carried, moved = step.carry("full", slope) / step.scale, step.derivative(along, 1e-2)
        size = slope.flatten(1).norm(dim=1) * moved.flatten(1).norm(dim=1)
        found.append(((carried * along).flatten(1).sum(1) - (slope * moved).flatten(1).sum(1)) / size)
        assert (moved.flatten(1).norm(dim=1) > 0.1).all(), "an estimate that hardly depends on x would show nothing"

    Step(kind, look, cfg)
    assert found[0].abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_difference_is_the_derivative_along_the_slope(kind, inference_mode):
    """(D(x + d g) - D(x)) / d with d = .01 |x| / |g| against a central difference half as wide. A one-sided
    difference errs in the order of d: a hundredth of x, times how much the network bends."""
    off = []

    def look(step: Step) -> None:
        slope = step.random(5)
        distance = 0.005 * float(step.args["input"].square().mean().sqrt() / slope.square().mean().sqrt())
        expected = step.scale * step.derivative(slope, distance)
        carried = step.carry("difference", slope)
        off.append((carried - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1))

    Step(kind, look)
    assert off[0].max() < 5e-2


@pytest.mark.parametrize("method", ["difference", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_through_the_model_steers_every_kind_of_model(kind, method, inference_mode):
    """From inference tensors; afterwards ComfyUI is as it was, and another run without guidance is the same."""
    model = tiny_models.MODELS[kind]()
    vae = tiny_models.vae(channels=tiny_models.CHANNELS[kind])
    guided = FeedbackRewardGuidance.execute(model, Warmth(), vae, 1.0, gradient=method).args[0]
    plain, steered, again = (run(m, kind) for m in (model, guided, model))
    assert torch.equal(plain, again) and steered.isfinite().all()
    assert (steered != plain).flatten(1).any(dim=1).all()
    assert torch.is_inference_mode_enabled() and not comfy.model_management.in_training


def run(model: Any, kind: str, steps: int = 2) -> torch.Tensor:
    noise = torch.randn(tiny_models.latent_shape(kind, 2), generator=torch.Generator().manual_seed(0))
    sides = [tiny_models.conditioning(kind, seed) for seed in (1, 2)]
    return comfy.sample.sample(
        model, noise, steps, 2.0, "euler", "simple", *sides, torch.zeros_like(noise), disable_pbar=True, seed=0
    )


@pytest.mark.parametrize("first", ["APG", "guidance"])
@pytest.mark.parametrize("method", ["difference", "full"])
def test_a_function_that_remembers_steps_sees_each_step_once(method, first, inference_mode):
    """All is computed, and the mask lets nothing of it through: bit for bit the run of APG alone, whose momentum would
    be another after a second call in a step. Without the mask the pictures are steered."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    expected = run(with_momentum(model), "sd15", 4)
    assert not torch.equal(expected, run(model, "sd15", 4))

    def steered(mask: torch.Tensor | None) -> torch.Tensor:
        def guide(one: Any) -> Any:
            return FeedbackRewardGuidance.execute(one, Warmth(), vae, 1.0, gradient=method, mask=mask).args[0]

        return run(guide(with_momentum(model)) if first == "APG" else with_momentum(guide(model)), "sd15", 4)

    assert torch.equal(steered(torch.zeros(1, 64, 64)), expected)
    assert not torch.allclose(steered(None), expected, atol=1e-3)


def test_the_difference_is_that_of_the_models_own_estimate_whatever_was_added_to_it(inference_mode):
    """With APG on the model the slope is carried as without it: what APG adds is taken as fixed."""
    carried = []

    def look(step: Step) -> None:
        carried.append(step.carry("difference", step.random(5)))

    for patched in (False, True):
        Step("sd15", look, patched=patched)
    torch.testing.assert_close(carried[0], carried[1], rtol=1e-3, atol=1e-3)


def crowding(model: Any, room: int) -> list[int]:
    """The network has room for so many rows while a graph is kept; the rows that it is then asked for."""
    asked = []

    def crowded(module, given):
        if torch.is_grad_enabled():
            asked.append(len(given[0]))
            if len(given[0]) > room:
                raise comfy.model_management.OOM_EXCEPTION("too many")

    model.model.diffusion_model.register_forward_pre_hook(crowded)
    return asked


@pytest.mark.parametrize("kind", ["sd15", pytest.param("flux", marks=pytest.mark.long)])
def test_a_full_gradient_that_ran_out_of_memory_in_a_batch_failed(kind, caplog, inference_mode):
    """Four pictures with both sides are eight rows; with room for two, neither four nor two fit, so one picture goes at
    a time, and what is carried is the same."""
    carried = []

    def look(step: Step) -> None:
        carried.append(step.carry("full", step.random(5)))

    Step(kind, look, batch=4)
    model = tiny_models.MODELS[kind]()
    asked = crowding(model, 2)
    Step(kind, look, batch=4, model=model)
    assert "4 pictures at once do not fit" in caplog.text and "2 pictures at once do not fit" in caplog.text
    assert asked.count(2) >= 4
    torch.testing.assert_close(carried[0], carried[1], rtol=1e-3, atol=1e-3)


def test_a_run_remembers_how_many_graphs_fit_and_the_next_tries_anew(caplog, inference_mode):
    """Two pictures do not fit, one does: one warning a run, however many steps it has."""
    model = tiny_models.sd15()
    crowding(model, 2)
    guided = FeedbackRewardGuidance.execute(model, Warmth(), tiny_models.vae(), 1.0, gradient="full").args[0]
    for runs in (1, 2):
        assert run(guided, "sd15", 3).isfinite().all()
        assert caplog.text.count("2 pictures at once do not fit") == runs


def test_as_many_graphs_go_through_the_model_as_free_memory_is_planned_for(monkeypatch, inference_mode):
    """Two and a half pictures' worth is free, so of three pictures two go at once, then one: four rows and two."""
    model = tiny_models.sd15()
    asked = crowding(model, 6)

    def look(step: Step) -> None:
        free = 2.5 * jacobian.GRAPH_MEMORY * step.args["model"].memory_required([2, *step.args["input"].shape[1:]])
        monkeypatch.setattr(
            comfy.model_management, "get_free_memory", lambda device=None, both=False: (free, free) if both else free
        )
        step.carry("full", step.random(5))

    Step("sd15", look, batch=3, model=model)
    assert sorted(set(asked)) == [2, 4]


def test_a_full_gradient_of_one_picture_that_does_not_fit_is_refused_with_what_to_do(monkeypatch, inference_mode):
    model = FeedbackRewardGuidance.execute(
        tiny_models.sd15(), Warmth(), tiny_models.vae(), 1.0, decoder="full", gradient="full"
    ).args[0]
    monkeypatch.setattr(jacobian, "GRAPH_MEMORY", 1e15)
    with pytest.raises(WrongConnectionError, match="GiB are free. Set `gradient` to difference or fast"):
        run(model, "sd15")


def test_quantised_weights_are_refused_for_the_full_gradient_alone():
    class Quantised(torch.Tensor):
        """Stands for a tensor of comfy-kitchen or GGUF, which are subclasses as this is."""

    weight = torch.nn.Parameter(torch.ones(2).as_subclass(Quantised), requires_grad=False)
    network = torch.nn.Module()
    network.register_parameter("weight", weight)
    model: Any = SimpleNamespace(model=SimpleNamespace(diffusion_model=network))
    for method in ("fast", "difference"):
        jacobian.check_method(method, model)
    with pytest.raises(WrongConnectionError, match="quantised .*Quantised.*Or set `gradient` to difference or fast"):
        jacobian.check_method("full", model)


def test_an_unknown_gradient_is_named():
    with pytest.raises(WrongConnectionError, match="Unknown gradient 'slow'. Choose one of: fast, difference, full"):
        jacobian.check_method("slow", tiny_models.sd15())
