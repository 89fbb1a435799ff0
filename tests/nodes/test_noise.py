"""FeedbackOptimizeNoise through ComfyUI's own guiders and samplers, on tiny models of its own classes."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch
from comfy_extras.nodes_apg import APG
from nodes import ControlNetApplyAdvanced

from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.nodes import decoder, network_parts, noise_run
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.noise import GRADIENT, LIKELY, ZERO_ORDER, FeedbackOptimizeNoise
from feedback_loop.nodes.sampling import stacked
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.tests.nodes.test_guidance_companions import controlnet

SEED = 5
LATER = ("sd15", "sdxl", "flux")


class Brightness(Reward):
    name = "brightness"

    def score(self, images, prompts, embed):
        return 100 * images.mean(dim=(1, 2, 3))


class Counted(Brightness):
    """The same in whole numbers, without a gradient."""

    name, differentiable = "counted light", False

    def score(self, images, prompts, embed):
        return super().score(images, prompts, embed).mul(100).round() / 100


def model_of(kind):
    return tiny_models.sd15(prediction="v") if kind == "sd15 v" else tiny_models.MODELS[kind]()


class Run:
    """The inputs of one optimisation, and the stock node on the same ones."""

    def __init__(self, kind="sd15", sampler="euler", steps=2, batch=1, size=4, cfg=1.0, model=None):
        self.name = kind.split()[0]
        self.model, self.vae = model or model_of(kind), tiny_models.vae(channels=tiny_models.CHANNELS[self.name])
        self.guider = comfy.samplers.CFGGuider(self.model)
        self.guider.set_conds(tiny_models.conditioning(self.name, 1), tiny_models.conditioning(self.name, 2))
        self.guider.set_cfg(cfg)
        self.sampler = comfy.samplers.sampler_object(sampler)
        sampling = self.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "sgm_uniform", steps)
        self.latent = {"samples": torch.zeros(batch, tiny_models.CHANNELS[self.name], size, size)}

    def plain(self, noise=None):
        noise = noise or custom.Noise_RandomNoise(SEED)
        made = custom.SamplerCustomAdvanced.execute(noise, self.guider, self.sampler, self.sigmas, self.latent)
        return made.args[0]["samples"]

    def optimise(self, reward=None, noise=None, iterations=5, **inputs):
        """(best_noise, latent, image, curve, report)"""
        noise = noise or custom.Noise_RandomNoise(SEED)
        made = FeedbackOptimizeNoise.execute(
            noise,
            self.guider,
            self.sampler,
            self.sigmas,
            self.latent,
            reward or Brightness(),
            self.vae,
            iterations=iterations,
            **inputs,
        )
        best, latent, *rest = made.args
        return best, latent["samples"], *rest

    def light(self, latents):
        return Brightness()(self.vae.decode(latents.clone()).movedim(-1, 1))


@pytest.mark.parametrize("kind", ["sd15 v", "sd3", *(pytest.param(k, marks=pytest.mark.long) for k in LATER)])
def test_the_gradient_makes_pictures_brighter_on_every_kind_of_model(kind, inference_mode):
    """The noise that comes out makes, in the stock node, the picture that comes out, bit for bit."""
    run = Run(kind, batch=2)
    best, latent, image, curve, report = run.optimise()
    assert (run.light(latent) > run.light(run.plain())).all()
    assert torch.equal(run.plain(best), latent) and best.seed == SEED
    assert image.shape[0] == 2 and curve.shape[-1] == 3 and "5 iterations" in report


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_zero_order_needs_no_gradient(kind, inference_mode):
    run = Run(kind, steps=1)
    best, latent, *_ = run.optimise(Counted(), method=ZERO_ORDER, iterations=5, pairs=4)
    assert (run.light(latent) > run.light(run.plain())).all()
    assert torch.equal(run.plain(best), latent)


def with_momentum(run):
    """Core's Adaptive Projected Guidance, whose pre-CFG function remembers the steps before."""
    run.guider = comfy.samplers.CFGGuider(APG.execute(run.model, 1.0, 0.0, -0.6).args[0])
    run.guider.set_conds(tiny_models.conditioning(run.name, 1), tiny_models.conditioning(run.name, 2))
    run.guider.set_cfg(4.0)
    return run


SAMPLERS = [("sd15", name) for name in ("euler", "euler_ancestral", "lcm", "heun")]


@pytest.mark.parametrize(
    ("kind", "sampler"), [*SAMPLERS, ("sd3", "euler_ancestral"), ("sd3", "lcm"), ("flux", "euler")]
)
def test_the_gradient_is_that_of_finite_differences_through_the_whole_run(kind, sampler, inference_mode):
    """Two steps of the sampler, CFG 2, the VAE and the reward: the slope along a random direction e against
    (r(z + h e) - r(z - h e)) / 2h of plain runs, within 2 %, which the rounding of float32 leaves.
    Pixels are not clipped here: a clipped one keeps its gradient on purpose, but has no finite difference."""
    slope, expected = slopes_of(Run(kind, sampler, cfg=2.0))
    assert slope == pytest.approx(expected, rel=0.02) and abs(expected) > 1e-3


def test_the_gradient_is_right_where_others_remember_steps(inference_mode):
    """Momentum mixes the guidance of three steps. A way back that asked its function again, last step first, would
    give it another past, and a slope of another sign."""
    slope, expected = slopes_of(with_momentum(Run("sd15", steps=3)))
    assert slope == pytest.approx(expected, rel=0.02) and abs(expected) > 1e-3


def test_a_controlnets_parts_are_there_on_the_way_back_too(inference_mode):
    """The network takes them out of their lists while it uses them, and runs twice: the slope is that of a graph which
    is kept as a whole. Finite differences would see that the ControlNet's answer depends on x, which is held fixed."""
    run = Run("sd15", cfg=2.0, size=8)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    sides = [tiny_models.conditioning("sd15", seed) for seed in (1, 2)]
    run.guider.set_conds(*ControlNetApplyAdvanced().apply_controlnet(*sides, controlnet(), hint, 1.0, 0.0, 1.0))
    twice = slopes_of(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            network_parts, "checkpoint", lambda function, *given, use_reentrant, **named: function(*given, **named)
        )
        kept = slopes_of(run)
    assert twice[0] == pytest.approx(kept[0], rel=1e-4) and abs(kept[0]) > 1e-3


def slopes_of(run):
    """Of the reward in the starting noise along one direction: by the gradient, and by finite differences."""
    found = []
    real = noise_run._Optimising.look

    def look(self, z, wanted):
        seen = real(self, z, wanted)
        if wanted:
            e = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
            e = e * (seen.slope.norm() / e.norm()) + seen.slope
            e = e / e.norm()
            ends = [self.score(self.plain(z + h * e)) for h in (0.01, -0.01)]
            found.append((float((seen.slope * e).sum()), float((ends[0] - ends[1]) / 0.02)))
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_run._Optimising, "look", look)
        patch.setattr(decoder, "_clipped", lambda images: images)
        run.optimise(iterations=1)
    return found[0]


@pytest.mark.parametrize("stay", list(LIKELY))
@pytest.mark.parametrize("method", [GRADIENT, ZERO_ORDER])
def test_no_iteration_is_the_stock_node_bit_for_bit(method, stay, inference_mode):
    run = Run("sd15", "euler_ancestral")
    best, latent, *_ = run.optimise(iterations=0, method=method, stay=stay)
    assert torch.equal(latent, run.plain())
    assert torch.equal(best.generate_noise(run.latent), custom.Noise_RandomNoise(SEED).generate_noise(run.latent))


def test_the_noise_stays_as_white_as_it_was(inference_mode):
    run = Run(steps=1, size=8)
    for stay in LIKELY:
        best = run.optimise(iterations=4, stay=stay)[0]
        assert best.generate_noise(run.latent).var().item() == pytest.approx(1, abs=0.35)


def test_guiders_and_patches_of_others_take_part(inference_mode):
    """A guider of another class and a post-CFG function: both are asked in the runs with a gradient too."""
    run, calls = Run(cfg=2.0), []
    run.model.set_model_sampler_post_cfg_function(
        lambda args: calls.append(torch.is_grad_enabled()) or args["denoised"]
    )
    guider = custom.Guider_DualCFG(run.model)
    conds = [tiny_models.conditioning("sd15", seed) for seed in (1, 2, 3)]
    guider.set_conds(*conds)
    guider.set_cfg(2.0, 1.5)
    run.guider = guider
    best, latent, *_ = run.optimise()
    assert run.light(latent) > run.light(run.plain()) and True in calls and False in calls


def test_what_a_mask_keeps_stays(inference_mode):
    run = Run(size=8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    kept = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    run.latent = {"samples": kept, "noise_mask": mask}
    best, latent, *_ = run.optimise()
    torch.testing.assert_close(latent[..., :4], kept[..., :4], rtol=1e-4, atol=1e-4)
    assert torch.equal(run.plain(best), latent)


def test_the_guider_and_the_model_are_left_as_they_were(inference_mode):
    run = Run()
    before = run.plain()
    run.optimise()
    assert torch.equal(run.plain(), before)
    assert torch.is_inference_mode_enabled() and not comfy.model_management.in_training


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_an_exception_leaks_no_mode_and_the_next_run_is_as_before(error, inference_mode):
    class Failing(Brightness):
        def score(self, images, prompts, embed):
            raise error()

    run = Run()
    before = run.plain()
    with pytest.raises(error):
        run.optimise(Failing())
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert not comfy.model_management.in_training
    assert torch.equal(run.plain(), before)


def test_an_interrupt_is_taken_at_the_next_step(inference_mode):
    class Interrupting(Brightness):
        def score(self, images, prompts, embed):
            comfy.model_management.interrupt_current_processing(True)
            return super().score(images, prompts, embed)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        Run().optimise(Interrupting())
    assert not comfy.model_management.processing_interrupted()


def test_what_is_kept_is_what_the_judge_likes_and_a_fall_is_said(inference_mode):
    """The judge likes it dark: the start is kept, and the report says that the judge fell."""

    class Darkness(Brightness):
        name = "darkness"

        def score(self, images, prompts, embed):
            return -super().score(images, prompts, embed)

    run = Run()
    _, latent, _, _, report = run.optimise(judge=Darkness())
    assert torch.equal(latent, run.plain())
    assert "darkness fell while brightness was optimised" in report


class Hungry(Brightness):
    """A network whose graph fits into memory for `most` pictures."""

    def __init__(self, most=2):
        super().__init__()
        self.most, type(self).asked = most, []  # of the class: a run asks a copy

    def score(self, images, prompts, embed):
        if torch.is_grad_enabled():
            self.asked.append(len(images))
            if len(images) > self.most:
                raise comfy.model_management.OOM_EXCEPTION("too many")
        return super().score(images, prompts, embed)


def test_a_batch_is_optimised_in_parts_when_a_rewards_own_graph_does_not_fit(caplog, inference_mode):
    """Five do not fit, so two go at a time from then on, with the noise that the sampler draws for all five: the same
    pictures, and each iteration counted once. The next run tries anew."""
    run, reward = Run("sd15", "euler_ancestral", batch=5), Hungry()
    whole = run.optimise(iterations=2)[1]
    best, latent, _, _, report = run.optimise(reward, iterations=2)
    torch.testing.assert_close(latent, whole, rtol=1e-3, atol=1e-3)
    assert torch.equal(run.plain(best), latent) and "in 2 iterations" in report
    assert reward.asked == [5, 2, 2, 1, 2, 2, 1]
    assert "5 pictures at once do not fit" in caplog.text
    run.optimise(reward, iterations=1)
    assert reward.asked.count(5) == 2


@pytest.mark.parametrize("kind", ["sd15", *(pytest.param(k, marks=pytest.mark.long) for k in ("sdxl", "sd3", "flux"))])
def test_a_batch_is_optimised_in_parts_when_the_models_own_graph_does_not_fit(kind, caplog, inference_mode):
    """The pictures have prompts and negatives of their own, two sides in one pass: three pictures are six rows, of
    which the network has room for four while a graph is kept. In parts each picture stays with its own prompt."""
    run = Run(kind, batch=3, cfg=2.0)
    sides = [[tiny_models.conditioning(run.name, seed) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6))]
    run.guider.set_conds(*(stacked(side) for side in sides))
    whole = run.optimise(iterations=2)[1]
    asked, network = [], run.model.model.diffusion_model

    def crowded(module, given):
        asked.append(len(given[0]))
        if torch.is_grad_enabled() and len(given[0]) > 4:
            raise comfy.model_management.OOM_EXCEPTION("too many")

    hook = network.register_forward_pre_hook(crowded)
    found = run.optimise(iterations=2)[1]
    hook.remove()
    assert 2 in asked and "3 pictures at once do not fit" in caplog.text
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)


def test_each_part_of_a_batch_has_its_own_picture_for_a_controlnet(monkeypatch, inference_mode):
    """Memory is planned for one picture at a time; each has a hint of its own."""
    run = Run("sd15", cfg=2.0, size=8, batch=3)
    hint = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    sides = [tiny_models.conditioning("sd15", seed) for seed in (1, 2)]
    run.guider.set_conds(*ControlNetApplyAdvanced().apply_controlnet(*sides, controlnet(), hint, 1.0, 0.0, 1.0))
    whole = run.optimise(iterations=2)[1]
    monkeypatch.setattr(noise_run, "pictures_at_once", lambda *args: 1)
    torch.testing.assert_close(run.optimise(iterations=2)[1], whole, rtol=1e-3, atol=1e-3)


def test_a_picture_that_does_not_fit_into_memory_alone_is_an_error(inference_mode):
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        Run(batch=2).optimise(Hungry(most=0))
    assert torch.is_inference_mode_enabled() and not comfy.model_management.in_training


def test_as_many_graphs_are_kept_as_free_memory_is_planned_for(monkeypatch, inference_mode):
    """The tiny VAE's graph for 4x4 latents is planned at 3 * 2178 * 32 * 32 * 4 bytes; free are two and a half. That of
    the network, which is smaller in real models, is left out."""
    run, reward = Run(batch=5), Hungry(most=5)
    monkeypatch.setattr(noise_run, "GRAPH_MEMORY", 0)
    free = 2.5 * 3 * 2178 * 32 * 32 * 4
    monkeypatch.setattr(
        comfy.model_management, "get_free_memory", lambda device=None, both=False: (free, free) if both else free
    )
    run.optimise(reward, iterations=1)
    assert reward.asked == [2, 2, 1]


def test_memory_is_checked_before_a_graph_is_made(inference_mode, monkeypatch):
    run = Run()
    monkeypatch.setattr(noise_run, "GRAPH_MEMORY", 1e12)
    with pytest.raises(WrongConnectionError, match="GiB are free. Set `method` to zero-order"):
        run.optimise()


def test_a_sampler_that_passes_no_gradient_is_refused(inference_mode):
    with pytest.raises(WrongConnectionError, match="passes no gradient.*Choose euler"):
        Run(sampler="res_multistep").optimise()


def test_a_reward_without_a_gradient_is_refused_for_the_gradient_alone(inference_mode):
    with pytest.raises(WrongConnectionError, match="'counted light' has no gradient. Set `method` to zero-order"):
        Run().optimise(Counted())
