"""FeedbackRewardSteering around ComfyUI's own samplers, on tiny models of its own classes."""

from __future__ import annotations

import itertools

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.k_diffusion import sampling as k_diffusion
from comfy_extras.nodes_custom_sampler import SamplerSASolver

from feedback_loop.diffusion.process import Process
from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.nodes import particle_run
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.starts import fresh_noise, noise_sampler_of, seeds_of
from feedback_loop.nodes.steering import KEEP_GUIDANCE, STOCHASTIC, WEIGH_BACK, FeedbackRewardSteering
from feedback_loop.tests.nodes import tiny_models

SEED = 5


class Brightness(Reward):
    """Counted in steps of a grey level: a reward without any gradient."""

    name, differentiable = "brightness", False

    def score(self, images, prompts, embed):
        return (images.mean(dim=(1, 2, 3)) * 2550).round() / 10


@pytest.fixture(scope="module")
def parts():
    """Model and VAE, made in inference mode as loader nodes would."""
    with torch.inference_mode():
        return tiny_models.sd15(), tiny_models.vae()


def steer(name, vae, options=None, reward=None, particles=3, strength=1.0, **inputs):
    sampler = comfy.samplers.ksampler(name, options or {})
    return FeedbackRewardSteering.execute(sampler, reward or Brightness(), vae, particles, strength, **inputs).args[0]


SMALL = {"size": 4, "steps": 5, "cfg": 1.0}


def sample(
    model, sampler, kind="sd15", batch=1, steps=5, cfg=2.0, size=8, seed=SEED, latent=None, noise=None, **options
):
    if latent is None:
        latent = torch.zeros(batch, tiny_models.CHANNELS[kind], size, size)
    noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    positive, negative = tiny_models.conditioning(kind, 1), tiny_models.conditioning(kind, 2)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=seed, **options
    )


def brightness(vae, latents):
    return Brightness()(vae.decode(latents.clone()).movedim(-1, 1))


QUICK = ("euler_ancestral", "dpmpp_3m_sde", "dpmpp_sde", "lcm", "er_sde", "sa_solver")
"""One of each family: without memory, with two steps of memory, with two calls a step, with all noise anew, and with
more in memory than estimates."""
EACH = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in STOCHASTIC]
)


def same(name, one, other):
    """Bit for bit; but the SA solver's products of matrices are rounded as the size of the batch will have it."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4) if name.startswith("sa_solver") else torch.equal(one, other)


@EACH
def test_without_a_choice_the_particles_are_plain_runs_of_their_own_seeds(name, parts, inference_mode):
    """Looks that never come leave N independent runs: bit for bit those of the plain sampler with the seeds of
    `seeds_of`, the first of which is the user's, sorted by reward."""
    model, vae = parts
    steered = sample(model, steer(name, vae, keep="all", every=100, strength=1e-6), **SMALL)
    plain = [sample(model, comfy.samplers.ksampler(name), seed=seed, **SMALL) for seed in seeds_of(SEED, 3)]
    plain.sort(key=lambda x: -brightness(vae, x).item())
    assert all(same(name, one, other[0]) for one, other in zip(steered, plain, strict=True))


@EACH
def test_a_resampled_particle_goes_on_as_its_ancestor_would_have(name, parts, inference_mode, monkeypatch):
    """All particles draw the same noise on the way here and differ in their start alone. Once all have been resampled
    from one of them (at a huge strength all weight is the best one's), they are copies of it to the end: bit for bit
    that start's plain run, history of multistep samplers included."""
    model, vae = parts
    monkeypatch.setattr(
        particle_run, "noise_sampler_of", lambda name, x, sigmas, seed: noise_sampler_of(name, x, sigmas, SEED)
    )
    steered = sample(model, steer(name, vae, keep="all", every=1, strength=1e6, damping=0), **SMALL)
    assert same(name, steered[0], steered[1]) and same(name, steered[0], steered[2])
    starts = [fresh_noise(torch.zeros(1, 4, 4, 4), s) for s in seeds_of(SEED, 3)]
    plain = [sample(model, comfy.samplers.ksampler(name), noise=noise, **SMALL) for noise in starts]
    assert any(same(name, steered[0], one[0]) for one in plain)


KINDS = [("sd15", "sum"), ("sd15", "svdd"), ("sd15 v", "difference")]


@pytest.mark.parametrize(("kind", "method"), [*KINDS, ("sd3", "difference"), ("flux", "max")])
def test_every_method_raises_a_reward_without_gradient_on_every_kind_of_model(kind, method, inference_mode):
    name = kind.split()[0]
    model = tiny_models.sd15(prediction="v") if kind == "sd15 v" else tiny_models.MODELS[name]()
    vae = tiny_models.vae(channels=tiny_models.CHANNELS[name])
    plain = sample(model, comfy.samplers.ksampler("euler_ancestral"), name, batch=2)
    steered = sample(
        model, steer("euler_ancestral", vae, particles=4, method=method, strength=5.0, every=1), name, batch=2
    )
    assert steered.shape == plain.shape and steered.isfinite().all()
    assert brightness(vae, steered).mean() > brightness(vae, plain).mean()


@pytest.mark.parametrize("off", [{"particles": 1}, {"strength": 0.0}])
def test_one_particle_or_strength_0_is_the_plain_sampler_itself(off, parts):
    sampler = comfy.samplers.ksampler("euler_ancestral")
    inputs = {"particles": 4, "strength": 10.0} | off
    assert FeedbackRewardSteering.execute(sampler, Brightness(), parts[1], **inputs).args[0] is sampler


def test_each_picture_of_a_batch_is_steered_for_itself(parts, inference_mode):
    """`all` gives the best of each picture first, in the pictures' order, then the second best: best is its head."""
    model, vae = parts
    everything = sample(model, steer("euler_ancestral", vae, keep="all", every=2), batch=2)
    best = sample(model, steer("euler_ancestral", vae, keep="best", every=2), batch=2)
    assert len(everything) == 6 and torch.equal(everything[:2], best)
    scores = brightness(vae, everything).reshape(3, 2)
    assert (scores[:-1] >= scores[1:]).all()
    drawn = sample(model, steer("euler_ancestral", vae, keep="drawn", every=2), batch=2)
    assert all(any(torch.equal(one, other) for other in everything) for one in drawn)


def test_the_same_seed_gives_the_same_pictures(parts, inference_mode):
    model, vae = parts
    first, again = (sample(model, steer("dpmpp_2m_sde", vae, every=1)) for _ in range(2))
    other = sample(model, steer("dpmpp_2m_sde", vae, every=1), seed=SEED + 1)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_a_mask_keeps_stays(parts, inference_mode):
    model, vae = parts
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    steered = sample(model, steer("euler_ancestral", vae, every=1), latent=latent, noise_mask=mask)
    torch.testing.assert_close(steered[..., :4], latent[..., :4], rtol=1e-4, atol=1e-4)
    assert (steered[..., 4:] - latent[..., 4:]).abs().min() > 0


def test_a_latent_that_is_given_with_its_noise_starts_all_particles_alike(parts, inference_mode):
    """The second half of a run that began elsewhere: no noise is added, so every particle starts from that latent, and
    the noise on the way tells them apart."""
    model, vae = parts
    latent = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    everything = sample(
        model, steer("euler_ancestral", vae, keep="all", every=100), latent=latent, noise=torch.zeros_like(latent)
    )
    plain = sample(model, comfy.samplers.ksampler("euler_ancestral"), latent=latent, noise=torch.zeros_like(latent))
    assert any(torch.equal(one, plain[0]) for one in everything) and len(everything.unique(dim=0)) == 3


def test_guidance_on_the_model_goes_on_and_its_weight_can_be_taken_back(parts, inference_mode, monkeypatch):
    """Guidance that pushes nothing is weighed back with a ratio of 1: the same choice bit for bit. One that pushes
    gives weights that differ by exactly the sum of its steps' log ratios."""
    model, vae = parts

    class Light(Brightness):
        differentiable = True

        def score(self, images, prompts, embed):
            return 100 * images.mean(dim=(1, 2, 3))

    still = FeedbackRewardGuidance.execute(model, Light(), vae, 1.0, mask=torch.zeros(1, 64, 64)).args[0]
    for one in (KEEP_GUIDANCE, WEIGH_BACK):
        found = sample(still, steer("euler_ancestral", vae, every=1, with_guidance=one))
        assert torch.equal(found, sample(model, steer("euler_ancestral", vae, every=1)))
    ratios, weights = [], []
    real, tell = particle_run.Particles.correct, particle_run.report
    monkeypatch.setattr(particle_run.Particles, "correct", lambda p, r: ratios.append(r.clone()) or real(p, r))
    monkeypatch.setattr(particle_run, "report", lambda plan, p, *a: weights.append(p.log_weights) or tell(plan, p, *a))
    moved = FeedbackRewardGuidance.execute(model, Light(), vae, 1.0).args[0]
    monkeypatch.setattr(particle_run.Steered, "due", lambda steered, sigma: False)
    sample(moved, steer("euler_ancestral", vae, strength=1e-9, with_guidance=WEIGH_BACK), size=4)
    assert len(ratios) >= 3 and all(ratio.isfinite().all() and (ratio != 0).all() for ratio in ratios)
    torch.testing.assert_close(weights[0], sum(ratios).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_ancestral_step_is_that_of_comfyuis_sampler(kind, eta, inference_mode):
    """Each x that euler_ancestral makes is `take` of the x, the estimate and the noise before it."""
    model, steps, noises = tiny_models.MODELS[kind](), [], []
    sampler = comfy.samplers.ksampler("euler_ancestral", {"eta": eta})

    def recorded(model, x, sigmas, extra_args, callback, disable, **options):
        draw = k_diffusion.default_noise_sampler(x, seed=1)
        noise = lambda s, t: noises.append(draw(s, t)) or noises[-1]  # noqa: E731
        keep = lambda info: steps.append((info["sigma"], info["x"], info["denoised"]))  # noqa: E731
        return sampler.sampler_function(model, x, sigmas, extra_args, keep, disable, noise_sampler=noise, **options)

    sample(model, comfy.samplers.KSAMPLER(recorded, sampler.extra_options), kind)
    process = Process("flow" if kind == "sd3" else "eps")
    for (sigma, x, denoised), (following, after, _), n in zip(steps, steps[1:], noises, strict=False):
        made = ancestral_step(process, sigma, following, eta).take(x, denoised, n)
        torch.testing.assert_close(made, after, rtol=1e-4, atol=1e-4)
    assert len(steps) == 5 and len(list(itertools.pairwise(steps))) == 4


def test_previews_and_progress_are_those_of_one_run(parts, inference_mode):
    """One callback a step, with one estimate for each picture; the last one carries the pictures that are given out."""
    model, vae = parts
    seen = []
    result = sample(
        model,
        steer("euler_ancestral", vae, every=1),
        batch=2,
        callback=lambda step, x0, x, total: seen.append((step, total, tuple(x0.shape), x0)),
    )
    assert [(step, total, shape) for step, total, shape, _ in seen] == [(i, 5, (2, 4, 8, 8)) for i in range(5)]
    shown = model.model.process_latent_out(seen[-1][-1])
    torch.testing.assert_close(shown, result)


def test_an_interrupt_in_a_look_stops_the_run_and_the_next_one_is_as_before(parts, inference_mode):
    model, vae = parts

    class Interrupting(Brightness):
        def score(self, images, prompts, embed):
            comfy.model_management.interrupt_current_processing(True)
            return super().score(images, prompts, embed)

    before = sample(model, steer("euler_ancestral", vae, every=1))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, steer("euler_ancestral", vae, every=1, reward=Interrupting()))
    assert not comfy.model_management.processing_interrupted() and torch.is_inference_mode_enabled()
    assert torch.equal(sample(model, steer("euler_ancestral", vae, every=1)), before)


def test_the_report_says_what_happened(parts, inference_mode, caplog):
    """Five steps of three particles are 15 evaluations, however many pictures share a call."""
    model, vae = parts
    with caplog.at_level("INFO"):
        sample(model, steer("euler_ancestral", vae, every=1), batch=2)
    assert "3 particles a picture with euler_ancestral, 15 denoiser evaluations" in caplog.text
    assert "log Z" in caplog.text and "Effective number" in caplog.text and "starts are left" in caplog.text


def test_networks_of_the_reward_and_the_vae_are_loaded_beside_the_model(parts, inference_mode):
    from feedback_loop.feedback.rewards.watermark import Detector, WatermarkPenalty

    model, vae = parts
    reward = WatermarkPenalty(detector=Detector().eval())
    found = []

    class Looking(Brightness):
        encoders = reward.encoders

        def networks(self):
            return reward.networks()

        def score(self, images, prompts, embed):
            found.append([loaded.model.model for loaded in comfy.model_management.current_loaded_models])
            return super().score(images, prompts, embed)

    sample(model, steer("euler_ancestral", vae, every=1, reward=Looking()))
    for loaded in found:
        assert model.model in loaded and vae.first_stage_model in loaded and reward.detector in loaded


NOT_STOCHASTIC = sorted(set(comfy.samplers.SAMPLER_NAMES) - set(STOCHASTIC))


@pytest.mark.parametrize("name", NOT_STOCHASTIC)
def test_samplers_that_cannot_be_steered_are_refused_by_name(name, parts):
    sampler = comfy.samplers.sampler_object(name)
    with pytest.raises(
        WrongConnectionError, match="cannot be steered by particles: .* Choose euler_ancestral"
    ) as found:
        FeedbackRewardSteering.execute(sampler, Brightness(), parts[1], 4, 1.0)
    adaptive, plus = name in ("dpm_fast", "dpm_adaptive"), name.endswith("_cfg_pp")
    reason = "chooses its steps" if adaptive else "unguided estimate" if plus else "draws no noise on the way"
    assert reason in str(found.value)


@pytest.mark.parametrize(
    "name",
    [
        name if name in (*QUICK, "euler", "res_multistep", "uni_pc") else pytest.param(name, marks=pytest.mark.long)
        for name in comfy.samplers.SAMPLER_NAMES
    ],
)
def test_stochastic_samplers_such_as_er_sde_were_said_to_draw_no_noise(name, parts, inference_mode):
    """Of the same start with two seeds, samplers that draw noise make two pictures, and the others the same one. All
    that do are steered but CFG++."""
    noise = fresh_noise(torch.zeros(1, 4, 4, 4), 0)
    one, other = (
        sample(parts[0], comfy.samplers.sampler_object(name), noise=noise, seed=seed, **SMALL) for seed in (1, 2)
    )
    draws = not torch.equal(one, other)
    assert draws == (name in STOCHASTIC) or (draws and name.endswith("_cfg_pp"))


def test_an_sa_solver_without_noise_in_any_step_is_refused(parts, inference_mode):
    silent = SamplerSASolver.execute(parts[0], 0.0, 0.2, 0.8, 1.0, 3, 4, False, False).args[0]
    steered = FeedbackRewardSteering.execute(silent, Brightness(), parts[1], 2, 1.0).args[0]
    with pytest.raises(WrongConnectionError, match="draws no noise at any of these steps.*Set eta above 0"):
        sample(parts[0], steered, **SMALL)


def test_a_sampler_of_somebody_elses_is_refused_with_the_reason(parts):
    def sample_er_sde(*args, **kwargs):
        return k_diffusion.sample_er_sde(*args, **kwargs)

    sampler = comfy.samplers.KSAMPLER(sample_er_sde)
    with pytest.raises(WrongConnectionError, match="'er_sde' cannot be steered .* no sampler of ComfyUI's own"):
        FeedbackRewardSteering.execute(sampler, Brightness(), parts[1], 4, 1.0)


@pytest.mark.parametrize("option", ["eta", "s_noise"])
def test_a_stochastic_sampler_that_was_made_deterministic_is_refused(option, parts):
    with pytest.raises(WrongConnectionError, match=f"{option} is 0.*Set {option} to 1"):
        steer("euler_ancestral", parts[1], {option: 0.0})


def test_particles_around_particles_are_refused(parts):
    once = steer("euler_ancestral", parts[1])
    with pytest.raises(WrongConnectionError, match="around it already"):
        FeedbackRewardSteering.execute(once, Brightness(), parts[1], 4, 1.0)


def test_weighing_back_needs_the_sampler_with_a_known_density(parts):
    with pytest.raises(WrongConnectionError, match="Choose euler_ancestral"):
        steer("dpmpp_2m_sde", parts[1], with_guidance=WEIGH_BACK)


def test_what_is_no_reward_is_refused(parts):
    with pytest.raises(WrongConnectionError, match="no reward of this pack"):
        steer("euler_ancestral", parts[1], reward=lambda images: images)


def test_the_vae_of_another_model_is_refused_when_the_run_begins(parts, inference_mode):
    with pytest.raises(WrongConnectionError, match="VAE that belongs to the model"):
        sample(parts[0], steer("euler_ancestral", tiny_models.vae(channels=16)))
