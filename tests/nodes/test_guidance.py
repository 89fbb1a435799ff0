"""FeedbackRewardGuidance on tiny models of ComfyUI's own classes, with its own samplers, as a prompt would run it."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import pytest
import torch

from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.feedback.rewards.combine import CombinedReward
from feedback_loop.feedback.rewards.taste import TasteReward
from feedback_loop.feedback.rewards.watermark import Detector, WatermarkPenalty
from feedback_loop.guidance.gradient import LATENT, GuidanceError
from feedback_loop.guidance.watch import curve, statistics
from feedback_loop.nodes.denoiser import WrongConnectionError, process_of
from feedback_loop.nodes.encoder import encoder_from
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.pull import RewardGuidance, latent_mask, pictures_at_once
from feedback_loop.tests.nodes import tiny_models


class Brightness(Reward):
    """Mean of the picture, in units steep enough that every step is at the cap."""

    name = "brightness"

    def __init__(self, scale=1000.0):
        self.scale = scale

    def score(self, images, prompts, embed):
        return self.scale * images.mean(dim=(1, 2, 3))


def guide(model, reward=None, vae=None, strength=1.0, **options):
    channels = model.get_model_object("latent_format").latent_channels
    return FeedbackRewardGuidance.execute(
        model, reward or Brightness(), vae or tiny_models.vae(channels=channels), strength, **options
    ).args[0]


def sample(model, kind="sd15", sampler="euler", steps=4, cfg=2.0, batch=1, size=8, seed=0, noise=None):
    channels = tiny_models.CHANNELS[kind]
    latent = torch.zeros(batch, channels, size, size)
    if noise is None:
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    positive, negative = tiny_models.conditioning(kind, 1), tiny_models.conditioning(kind, 2)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "normal", positive, negative, latent, disable_pbar=True, seed=seed
    )


@pytest.fixture(scope="module")
def sd15_and_vae():
    """One of each for the many samplers; made in inference mode, as a loader node would."""
    with torch.inference_mode():
        return tiny_models.sd15(), tiny_models.vae()


def brightness(model, vae, latents):
    return vae.decode(latents.clone()).mean(dim=(1, 2, 3))


QUICK = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_3m_sde", "uni_pc", "lcm", "ddim", "res_multistep")


@pytest.mark.parametrize(
    "sampler",
    [s if s in QUICK else pytest.param(s, marks=pytest.mark.long) for s in comfy.samplers.KSampler.SAMPLERS],
)
def test_guidance_that_is_off_leaves_every_sampler_bit_equal(sampler, sd15_and_vae, inference_mode):
    """Three ways to be off: strength 0 (no hook at all), a mask of zeros (every step is made and multiplied by 0), and
    an interval that begins after the last step that is long enough to steer."""
    model, vae, run = *sd15_and_vae, {"sampler": sampler, "steps": 2, "size": 4, "cfg": 1.0}
    plain = sample(model, **run)
    assert torch.equal(sample(guide(model, vae=vae, strength=0.0), **run), plain)
    assert torch.equal(sample(guide(model, vae=vae, mask=torch.zeros(1, 64, 64)), **run), plain)
    assert torch.equal(sample(guide(model, vae=vae, start_percent=0.999), **run), plain)


@pytest.mark.parametrize("kind", ["sd15", "sd15 v", "sdxl", "sd3", "flux"])
def test_one_path_guides_every_kind_of_model(kind, inference_mode):
    """The final pictures get brighter, for eps, v and flow models alike, from weights that are inference tensors."""
    name = kind.split()[0]
    model = tiny_models.sd15(prediction="v") if kind == "sd15 v" else tiny_models.MODELS[name]()
    vae = tiny_models.vae(channels=tiny_models.CHANNELS[name])
    assert next(vae.first_stage_model.parameters()).is_inference()
    plain, guided = sample(model, name, batch=2, steps=6), sample(guide(model, vae=vae), name, batch=2, steps=6)
    assert guided.isfinite().all() and (guided != plain).flatten(1).any(dim=1).all()
    assert (brightness(model, vae, guided) > brightness(model, vae, plain)).all()


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_guidance_reaches_the_picture_through_every_stock_sampler(sampler, sd15_and_vae, inference_mode):
    model, vae, run = *sd15_and_vae, {"sampler": sampler, "steps": 4, "size": 4}
    plain, guided = (sample(m, **run) for m in (model, guide(model, vae=vae)))
    assert guided.isfinite().all()
    assert (brightness(model, vae, guided) > brightness(model, vae, plain)).all()


def test_more_strength_moves_further(inference_mode):
    model, vae = tiny_models.sd15(), tiny_models.vae()
    light = [brightness(model, vae, sample(guide(model, vae=vae, strength=s), steps=6)).item() for s in (0, 0.5, 1, 2)]
    assert light == sorted(light) and light[0] < light[-1]


def test_the_users_model_is_left_as_it_was(inference_mode):
    model = tiny_models.sd15()
    before = sample(model)
    guided = guide(model)
    sample(guided)
    assert guided is not model and "sampler_post_cfg_function" not in model.model_options
    assert not model.get_additional_models()
    assert torch.equal(sample(model), before)


def hooks(model):
    return [f for f in model.model_options["sampler_post_cfg_function"] if isinstance(f, RewardGuidance)]


def test_guidance_nodes_in_a_row_share_one_trust_region(inference_mode):
    """Twice the same reward goes exactly as far as once, and the first node's output stays a model with one reward."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    once = guide(model, vae=vae)
    twice = guide(once, vae=vae)
    assert [len(hook.pulls) for hook in hooks(once)] == [1] and [len(hook.pulls) for hook in hooks(twice)] == [2]
    torch.testing.assert_close(sample(twice), sample(once), rtol=1e-4, atol=1e-4)


def test_other_peoples_post_cfg_functions_stay_in_place(inference_mode):
    model, calls = tiny_models.sd15(), []
    model.set_model_sampler_post_cfg_function(lambda args: calls.append(1) or args["denoised"])
    sample(guide(guide(model)))
    assert len(calls) == 4


def call(model, x, sigma):
    """The hook as cfg_function calls it."""
    args = {"denoised": x, "sigma": sigma, "model": model.model}
    result = hooks(model)[0](args)
    return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_step_in_inference_mode_is_finite_and_as_long_as_the_trust_region(dtype, inference_mode):
    """At sigma 1, V = 1/2: the root mean square of the step is tau * sqrt(1/2), to the rounding of the type."""
    model = guide(tiny_models.sd15())
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert x.is_inference()
    step = (call(model, x, torch.ones(2)) - x).float()
    assert step.isfinite().all()
    assert step.square().mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([LATENT.tau * 0.5**0.5] * 2, rel=1e-2)
    assert torch.is_inference_mode_enabled()


def test_a_reward_of_less_reach_goes_less_far_and_its_stride_is_told_as_that_of_any_other(inference_mode):
    """Reach .5: half the step; the watch is told the stride of full reach, tau."""
    reward = Brightness()
    reward.reach = 0.5
    model = guide(tiny_models.sd15(), reward)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    step = call(model, x, torch.ones(2)) - x
    expected = 0.5 * LATENT.tau * 0.5**0.5
    assert step.square().mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([expected] * 2, rel=1e-2)
    (look,) = hooks(model)[0].pulls[0].sight.watch.looks
    assert look.stride.tolist() == pytest.approx([LATENT.tau] * 2, rel=1e-2)


INTERRUPT = comfy.model_management.InterruptProcessingException


class Stopping(Brightness):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def score(self, images, prompts, embed):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, INTERRUPT])
def test_an_exception_in_the_reward_leaks_no_mode_and_the_next_run_is_as_before(error, inference_mode):
    model, vae = tiny_models.sd15(), tiny_models.vae()
    before = sample(guide(model, vae=vae))
    with pytest.raises(error):
        sample(guide(model, Stopping(error()), vae))
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.equal(sample(guide(model, vae=vae)), before)


def test_a_step_that_is_broken_off_leaves_no_pictures_behind(inference_mode):
    """The second step's reward is asked of the first two of three pictures, then the run is stopped."""

    class Stopped(Hungry):
        def score(self, images, prompts, embed):
            scores = super().score(images, prompts, embed)
            if len(self.asked) > 5:
                raise INTERRUPT
            return scores

    model = guide(tiny_models.sd15(), Stopped())
    with pytest.raises(INTERRUPT):
        sample(model, batch=3)
    sight = hooks(model)[0].pulls[0].sight
    assert sight.watch.looks and not sight._images and not sight._scores


def test_what_is_shown_of_a_step_is_its_share_of_the_run(inference_mode):
    """Heun's two evaluations a step are no two steps; shares grow from 0 to at most 1."""
    model = guide(tiny_models.sd15())
    sample(model, sampler="heun", steps=4)
    looks = hooks(model)[0].pulls[0].sight.watch.looks
    shares = [share for share, *_ in curve(looks)]
    assert len(shares) < len(looks) and shares == sorted(set(shares)) and 0 <= shares[0] < shares[-1] <= 1


@pytest.mark.parametrize("measure", ["sharpness", "contrast"])
def test_a_reward_for_detail_is_refused_a_preview(measure):
    for reward in (ColourReward(measure), CombinedReward([Brightness(), ColourReward(measure)], [1.0, 0.5])):
        with pytest.raises(WrongConnectionError, match=f"A preview shows colours alone.*{measure}"):
            guide(tiny_models.sd15(), reward, decoder="preview")
    guide(tiny_models.sd15(), ColourReward("brightness"), decoder="preview")


def test_an_interrupt_is_taken_at_the_next_step(inference_mode):
    model = guide(tiny_models.sd15())
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        call(model, torch.zeros(1, 4, 8, 8), torch.ones(1))
    assert not comfy.model_management.processing_interrupted()


def test_a_gradient_that_is_not_finite_makes_no_step_and_a_warning(caplog, inference_mode):
    class Infinite(Brightness):
        def score(self, images, prompts, embed):
            return images.mean(dim=(1, 2, 3)) * float("inf")

    model = tiny_models.sd15()
    plain = sample(model)
    assert torch.equal(sample(guide(model, Infinite())), plain)
    assert "not finite" in caplog.text


def test_a_batch_of_four_is_four_singles(inference_mode):
    """Each picture has its own noise; nothing of the batch enters a picture's step. Convolutions of other batch sizes
    round differently, so the bound is that of float32 over six steps."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    guided = guide(model, vae=vae)
    together = sample(guided, batch=4, steps=6, noise=noise)
    for i in range(4):
        torch.testing.assert_close(
            sample(guided, steps=6, noise=noise[i : i + 1])[0], together[i], rtol=1e-3, atol=1e-3
        )


def test_a_batch_is_guided_in_parts_when_memory_is_short(monkeypatch, inference_mode):
    """The tiny VAE's graph for a picture of 8x8 latents is planned at 3 * 2178 * 64 * 64 * 4 bytes; with free memory
    for two and a half, two go at once, and the result is the same."""
    model = guide(tiny_models.sd15())
    x = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = call(model, x, torch.ones(5))
    one = 3 * 2178 * 8 * 8 * 64 * 4
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args: 2.5 * one)
    assert pictures_at_once(x, hooks(model)[0].pulls) == 2
    torch.testing.assert_close(call(model, x, torch.ones(5)), whole, rtol=1e-5, atol=1e-5)


class Hungry(Brightness):
    """A network whose graph fits into memory for two pictures."""

    def __init__(self, most=2):
        super().__init__()
        self.most, type(self).asked = most, []  # of the class: a run asks a copy

    def score(self, images, prompts, embed):
        self.asked.append(len(images))
        if len(images) > self.most:
            raise comfy.model_management.OOM_EXCEPTION("too many")
        return super().score(images, prompts, embed)


def test_a_batch_is_guided_in_parts_when_a_rewards_own_graph_does_not_fit(caplog, inference_mode):
    """Five do not fit, so two go at a time, in the next step at once; a run afterwards tries anew. Each picture is
    seen once a step."""
    reward, vae = Hungry(), tiny_models.vae()
    model, run = guide(tiny_models.sd15(), reward, vae), {"batch": 5, "steps": 4}
    expected = sample(guide(tiny_models.sd15(), vae=vae), **run)
    torch.testing.assert_close(sample(model, **run), expected, rtol=1e-3, atol=1e-3)
    assert reward.asked[:4] == [5, 2, 2, 1] and set(reward.asked[4:]) == {2, 1}
    assert all(len(look.reward) == 5 for look in hooks(model)[0].pulls[0].sight.watch.looks)
    assert "5 pictures at once do not fit" in caplog.text
    sample(model, **run)
    assert reward.asked.count(5) == 2


def test_a_picture_that_does_not_fit_into_memory_alone_is_an_error(inference_mode):
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        sample(guide(tiny_models.sd15(), Hungry(most=0)), batch=2)


def test_the_interval_is_a_share_of_the_run(inference_mode):
    """percent_to_sigma puts 50 % of SD1.5's schedule near sigma 1.6."""
    sigma = tiny_models.sd15().get_model_object("model_sampling").percent_to_sigma(0.5)
    x = torch.zeros(1, 4, 8, 8)
    first, second = guide(tiny_models.sd15(), end_percent=0.5), guide(tiny_models.sd15(), start_percent=0.5)
    above, below = torch.tensor([sigma * 1.1]), torch.tensor([sigma / 1.1])
    assert not torch.equal(call(first, x, above), x) and torch.equal(call(first, x, below), x)
    assert torch.equal(call(second, x, above), x) and not torch.equal(call(second, x, below), x)


def test_nearly_pure_noise_and_a_decided_picture_are_left_alone(inference_mode):
    """Sigma 15 and .1 for eps; for a flow the sigma whose noise-to-signal is 15 is 15/16."""
    x = torch.zeros(1, 4, 8, 8)
    eps = guide(tiny_models.sd15())
    assert torch.equal(call(eps, x, torch.tensor([15.5])), x) and torch.equal(call(eps, x, torch.tensor([0.05])), x)
    flow, x = guide(tiny_models.sd3()), torch.zeros(1, 16, 8, 8)
    assert torch.equal(call(flow, x, torch.tensor([0.95])), x) and torch.equal(call(flow, x, torch.tensor([1.0])), x)
    assert not torch.equal(call(flow, x, torch.tensor([0.9])), x)


def test_a_shift_set_after_the_guidance_node_counts():
    """The process and the interval are read when the model runs: a node further down may patch its sampling."""
    model = guide(tiny_models.sd15())
    model.add_object_patch("model_sampling", tiny_models.sd15(prediction="v").model.model_sampling)
    assert process_of(model).kind == "v"


def test_a_latent_with_a_frame_axis_is_guided_like_one_without(inference_mode):
    """Qwen-Image and Wan hold a picture as a video of one frame."""
    model = guide(tiny_models.sd15())
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(call(model, x.unsqueeze(2), torch.ones(1)), call(model, x, torch.ones(1)).unsqueeze(2))


def test_video_is_refused_when_it_runs(inference_mode):
    with pytest.raises(WrongConnectionError, match="video of 3 frames"):
        call(guide(tiny_models.sd15()), torch.zeros(1, 4, 3, 8, 8), torch.ones(1))


def test_a_mask_limits_where_the_picture_changes(inference_mode):
    model = tiny_models.sd15()
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    x = torch.zeros(2, 4, 8, 8)
    step = call(guide(model, mask=mask), x, torch.ones(2))
    assert (step[..., :4] != 0).all() and torch.equal(step[..., 4:], x[..., 4:])


def test_masks_are_averaged_to_the_latents_size_and_the_last_serves_the_rest():
    """A mask white in 3 of each 4 pixels is .75 in the latent; two masks for three pictures: the second twice."""
    mask = torch.ones(2, 16, 16)
    mask[0, ::2, ::2] = 0
    mask[1] = 0.25
    fitted = latent_mask(mask, torch.zeros(3, 4, 2, 2))
    assert fitted.shape == (3, 1, 2, 2)
    assert fitted.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.75, 0.25, 0.25])
    assert latent_mask(mask, torch.zeros(3, 4, 1, 2, 2)).shape == (3, 1, 1, 2, 2)


def test_comfyuis_memory_management_sees_the_vae_and_the_rewards_networks(inference_mode):
    reward, vae = WatermarkPenalty(detector=Detector().eval()), tiny_models.vae()
    model = guide(guide(tiny_models.sd15(), reward, vae), vae=vae)
    managed = [patcher.model for patcher in model.get_additional_models()]
    assert len(managed) == 2 and vae.first_stage_model in managed and reward.detector in managed
    sample(model)
    loaded = [loaded.model.model for loaded in comfy.model_management.current_loaded_models]
    assert vae.first_stage_model in loaded and reward.detector in loaded


def test_memory_for_the_graph_is_planned_beside_the_models_own(monkeypatch, inference_mode):
    """The plan with guidance is larger by the graph of one picture, within the model's own rounding."""
    asked = []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda m, **k: asked.append(k.get("memory_required")) or load(m, **k)
    )
    model = tiny_models.sd15()
    sample(model)
    guided = guide(model)
    sample(guided)
    assert asked[1] - asked[0] == pytest.approx(hooks(guided)[0].memory_for((1, 4, 8, 8)), rel=1e-3)


def test_after_a_run_no_copy_holds_on_to_the_weights(inference_mode):
    """An alias would keep the VAE's memory taken on the GPU after ComfyUI has unloaded it."""
    vision = encoder_from(tiny_models.clip_vision())
    width = vision(torch.rand(1, 3, 32, 32)).shape[1]
    parts = {"centre": torch.zeros(width), "scale": torch.ones(width), "weight": torch.ones(width)}
    taste = TasteReward(vision, parts | {"root": torch.zeros(width, 1)})
    model = guide(guide(tiny_models.sd15(), WatermarkPenalty(detector=Detector().eval())), taste)
    sample(model)
    copies = [copy for pull in hooks(model)[0].pulls for copy in (pull.normal, pull.decoder._network)]
    assert all(copy._copy is None for copy in [*copies, vision._network])


@pytest.mark.usefixtures("every_step_shown")
def test_progress_is_that_of_the_plain_run(monkeypatch, inference_mode):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **kwargs: seen.append(args[:2]))
    sample(guide(tiny_models.sd15()))
    assert seen == []


def test_a_reward_without_a_gradient_is_refused_at_once():
    class Counted(Brightness):
        name, differentiable = "counted stars", False

    with pytest.raises(GuidanceError, match="'counted stars' has no gradient"):
        guide(tiny_models.sd15(), Counted())


def test_a_reward_that_hides_that_it_has_no_gradient_is_refused_when_it_runs(inference_mode):
    class Detached(Brightness):
        def score(self, images, prompts, embed):
            return super().score(images, prompts, embed).detach()

    with pytest.raises(GuidanceError, match="no gradient"):
        sample(guide(tiny_models.sd15(), Detached()))


def test_something_else_than_a_reward_is_refused():
    with pytest.raises(WrongConnectionError, match="no reward of this pack"):
        FeedbackRewardGuidance.execute(tiny_models.sd15(), lambda images: images, tiny_models.vae(), 1.0)


def test_a_start_after_the_end_is_refused():
    with pytest.raises(WrongConnectionError, match=r"start_percent \(0.8\)"):
        guide(tiny_models.sd15(), start_percent=0.8, end_percent=0.2)


def test_wrong_connections_are_refused_even_when_guidance_is_off():
    with pytest.raises(WrongConnectionError, match="Connect the VAE that belongs to the model"):
        guide(tiny_models.sd3(), vae=tiny_models.vae(), strength=0.0)


def test_every_input_explains_itself():
    schema = FeedbackRewardGuidance.GET_SCHEMA()
    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])


def test_what_a_run_does_is_seen_step_by_step_and_judged_at_its_end(monkeypatch, inference_mode):
    """A second reward that is the first one's negative falls as the first is pushed up: the pages are told."""
    told = []
    monkeypatch.setattr("feedback_loop.nodes.sight.tell_pages", lambda event, data: told.append(data))
    model, vae = tiny_models.sd15(), tiny_models.vae()
    plain = vae.decode(sample(model, batch=4, steps=6).clone())
    guided = guide(model, vae=vae, strength=3.0, judge=Brightness(-1.0), plain=plain)
    hooks(guided)[0].pulls[0].sight.node = "7"
    sample(guided, batch=4, steps=6)
    steps = [one for one in told if not one["done"]]
    assert len(steps) == len(steps[-1]["curve"]) > 2 and all(one["preview"] for one in steps)
    first, last = steps[-1]["curve"][0], steps[-1]["curve"][-1]
    assert last[2] > first[2] and first[1] <= first[2] <= first[3]
    assert told[-1]["done"] and "The second reward is" in " ".join(told[-1]["problems"])
    assert not any(one["problems"] for one in steps) and [one["done"] for one in told].count(True) == 1


@pytest.mark.parametrize(
    "options", [{"decoder": "half"}, {"end_percent": 0.5}, {"decoder": "half", "end_percent": 0.5}]
)
def test_pictures_that_are_hardly_steered_are_like_plain_ones_however_they_were_looked_at(options, inference_mode):
    """An estimate of half the size has more detail to a pixel, one from the middle of a run has less: what is compared
    with plain pictures is what came out, decoded as they were. Strength .01 makes steps of .006 standard deviations."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    plain = vae.decode(sample(model, batch=3, steps=6, size=32).clone())
    guided = guide(model, vae=vae, strength=0.01, plain=plain, **options)
    made = vae.decode(sample(guided, batch=3, steps=6, size=32).clone()).movedim(-1, 1)
    watch = hooks(guided)[0].pulls[0].sight.watch
    assert not watch.problems()
    for name, expected in statistics(made).items():
        torch.testing.assert_close(watch.made[name], expected, rtol=1e-4, atol=1e-4)


def test_latents_that_still_hold_noise_are_not_taken_for_pictures(inference_mode):
    """The first half of a run that goes on in another sampler node: what came out shows nothing yet."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    plain = vae.decode(sample(model, batch=2, steps=4).clone())
    guided = guide(model, vae=vae, plain=plain)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 6)[:4]
    latent, noise = torch.zeros(2, 4, 8, 8), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = comfy.samplers.sampler_object("euler")
    sides = [tiny_models.conditioning("sd15", seed) for seed in (1, 2)]
    comfy.sample.sample_custom(guided, noise, 2.0, sampler, sigmas, *sides, latent, disable_pbar=True, seed=0)
    watch = hooks(guided)[0].pulls[0].sight.watch
    assert watch.looks and not watch.made


def test_a_reward_of_parts_with_spans_steers_in_their_span_alone(inference_mode):
    """The part that counts until the middle of the run leaves the second half of the steps as they are."""
    whole, half = CombinedReward([Brightness()], [1.0]), CombinedReward([Brightness()], [1.0], spans=[(0.0, 0.5)])
    model, vae = tiny_models.sd15(), tiny_models.vae()
    looks = []
    for reward in (whole, half):
        guided = guide(model, reward, vae)
        sight = hooks(guided)[0].pulls[0].sight
        monitored, end = [], sight.end
        object.__setattr__(
            sight, "end", lambda *given, w=sight, m=monitored, e=end: (m.append(len(w.watch.looks)), e(*given))
        )
        sample(guided, steps=8)
        looks += monitored
    assert 0 < looks[1] < looks[0]


@pytest.mark.parametrize("mode", ["optimise", "exact"])
def test_a_flat_reward_is_said_to_do_nothing_in_either_mode(mode, caplog, inference_mode):
    """A slope that is 0, and one that is not: the reward of a brightness changes by far more than its negligible."""
    vae = tiny_models.vae()
    sample(guide(tiny_models.sd15(), Brightness(0.0), vae, mode=mode))
    assert "guidance did next to nothing" in caplog.text
    caplog.clear()
    sample(guide(tiny_models.sd15(), Brightness(), vae, mode=mode))
    assert "next to nothing" not in caplog.text


def test_exact_mode_at_temperature_zero_is_the_plain_model(inference_mode):
    model = tiny_models.sd15()
    assert guide(model, mode="exact", inverse_temperature=0.0) is model


class Broken(Brightness):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def score(self, images, prompts, embed):
        raise self.error


def judged_by(error, vae):
    model = tiny_models.sd15()
    plain = vae.decode(sample(model).clone())
    guided = guide(model, vae=vae, judge=Broken(error), plain=plain)
    hooks(guided)[0].pulls[0].sight.node = "7"
    return guided


def test_a_judge_that_breaks_does_not_cost_the_pictures(monkeypatch, caplog, inference_mode):
    """They are those of the same run without a judge, bit for bit; the pages and the log say what went wrong."""
    told, vae = [], tiny_models.vae()
    monkeypatch.setattr("feedback_loop.nodes.sight.tell_pages", lambda event, data: told.append(data))
    guided = judged_by(RuntimeError("out of order"), vae)
    assert torch.equal(sample(guided), sample(guide(tiny_models.sd15(), vae=vae)))
    assert told[-1]["done"] and told[-1]["problems"] == ["This run could not be judged: out of order"]
    assert "could not be judged: out of order" in caplog.text
    copies = [copy for pull in hooks(guided)[0].pulls for copy in (pull.normal, pull.decoder._network)]
    assert all(copy._copy is None for copy in copies), "everything is let go of"


def test_an_interrupt_while_a_run_is_judged_is_taken(inference_mode):
    with pytest.raises(INTERRUPT):
        sample(judged_by(INTERRUPT(), tiny_models.vae()))


def test_a_judge_is_not_asked_of_a_run_that_was_stopped(caplog, inference_mode):
    """The run's own interrupt comes out, and nothing is said about it."""
    stopped = judged_by(RuntimeError("asked"), tiny_models.vae())
    stopped.set_model_sampler_post_cfg_function(lambda args: (_ for _ in ()).throw(INTERRUPT()))
    with pytest.raises(INTERRUPT):
        sample(stopped)
    assert not hooks(stopped)[0].pulls[0].sight.watch.made and "could not be judged" not in caplog.text


def test_a_run_without_a_steered_step_says_so(caplog, inference_mode):
    sample(guide(tiny_models.sd15(), start_percent=0.999), steps=2)
    assert "No step was steered" in caplog.text
