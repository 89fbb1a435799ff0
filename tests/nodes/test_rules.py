"""FeedbackRule on a tiny model of ComfyUI's own classes: each action, picture by picture, with ComfyUI's samplers."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch
from comfy_extras.nodes_apg import APG

from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.rewards.watermark import Detector, WatermarkPenalty
from feedback_loop.nodes import ruled as ruled_module
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.noise import FeedbackOptimizeNoise
from feedback_loop.nodes.pull import RewardGuidance
from feedback_loop.nodes.ruled import Rules
from feedback_loop.nodes.rules import FeedbackRule
from feedback_loop.nodes.search import FeedbackBestOfN
from feedback_loop.nodes.steering import FeedbackRewardSteering
from feedback_loop.tests.nodes import tiny_models


class Order(Reward):
    """Says of the pictures of a batch, one after the other, what it was told to; without a gradient."""

    name, differentiable = "order", False

    def __init__(self, *scores: float) -> None:
        self.scores, self.asked = scores, 0

    def __deepcopy__(self, memo: Any) -> Order:
        return self

    def score(self, images, prompts, embed):
        found = [self.scores[(self.asked + i) % len(self.scores)] for i in range(len(images))]
        self.asked += len(images)
        return torch.tensor(found)


class Brightness(Reward):
    name = "brightness"

    def score(self, images, prompts, embed):
        return 1000 * images.mean(dim=(1, 2, 3))


def ruled(model: Any, reward: Reward, action: str, threshold: float = 0.0, **options: Any) -> Any:
    settings = {"compare": "below", "threshold": threshold, "action": action, "start_percent": 0.0, "end_percent": 1.0}
    return FeedbackRule.execute(model, reward, tiny_models.vae(), **settings | options).args[0]


def run(model: Any, sampler: str = "euler", steps: int = 6, cfg: float = 2.0, batch: int = 2, mask: Any = None) -> Any:
    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    positive, negative = tiny_models.conditioning("sd15", 1), tiny_models.conditioning("sd15", 2)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "normal", positive, negative, torch.zeros_like(noise),
        noise_mask=mask, disable_pbar=True, seed=7,
    )  # fmt: skip


@pytest.mark.parametrize("action", ["boost guidance", "step back", "stop"])
def test_a_rule_that_never_fires_changes_no_bit(action, inference_mode):
    model = tiny_models.sd15()
    assert torch.equal(run(ruled(model, Order(1.0), action)), run(model))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_only_the_pictures_that_meet_the_condition_are_changed(sampler, inference_mode):
    """The second picture of each pair is below the threshold; the first stays what it is without the rule."""
    model = tiny_models.sd15()
    plain = run(model, sampler)
    for action in ("step back", "stop", "switch conditioning"):
        other = tiny_models.conditioning("sd15", 9)
        changed = run(ruled(model, Order(1.0, -1.0), action, conditioning=other), sampler)
        assert torch.equal(changed[0], plain[0]), action
        assert not torch.allclose(changed[1], plain[1], atol=1e-3) and changed.isfinite().all(), action


def test_a_stopped_picture_is_the_estimate_at_that_step(inference_mode):
    """Stopped at the first step: the result is that step's clean estimate, which one Euler step to 0 gives too."""
    model = tiny_models.sd15()
    stopped = run(ruled(model, Order(-1.0), "stop"))
    estimates = []
    seen = model.clone()
    seen.set_model_sampler_post_cfg_function(
        lambda args: estimates.append(args["denoised"].clone()) or args["denoised"]
    )
    run(seen)
    torch.testing.assert_close(stopped, model.model.process_latent_out(estimates[0]), rtol=1e-4, atol=1e-4)


def test_switching_at_the_first_step_is_the_other_prompts_run(inference_mode):
    model, other = tiny_models.sd15(), tiny_models.conditioning("sd15", 9)
    switched = run(ruled(model, Order(-1.0), "switch conditioning", conditioning=other))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    negative = tiny_models.conditioning("sd15", 2)
    expected = comfy.sample.sample(
        model, noise, 6, 2.0, "euler", "normal", other, negative, torch.zeros_like(noise), disable_pbar=True, seed=7
    )
    torch.testing.assert_close(switched, expected, rtol=1e-4, atol=1e-4)


def test_a_picture_that_steps_back_goes_on_from_its_estimate_and_ends_once_the_rule_is_content(inference_mode):
    """Twice below the threshold and then above it: two rounds more, and the steps of each are counted."""
    model, steps = tiny_models.sd15(), []
    counted = model.clone()
    counted.set_model_sampler_post_cfg_function(lambda args: steps.append(float(args["sigma"][0])) or args["denoised"])
    run(ruled(counted, Order(-1.0), "step back", amount=2.0, times=2, start_percent=0.4), batch=1)
    falls = [i for i in range(1, len(steps)) if steps[i] > steps[i - 1]]
    assert len(steps) > 6 and 1 <= len(falls) <= 2, "each round begins at a noisier step than the one before ended"


class Second(Reward):
    """Of two pictures: below the threshold is the second, and once it has been asked `first_pass` times both are."""

    name, differentiable = "second", False

    def __init__(self, first_pass: int) -> None:
        self.first_pass, self.asked = first_pass, 0

    def __deepcopy__(self, memo: Any) -> Second:
        return self

    def score(self, images, prompts, embed):
        places = [self.asked + i for i in range(len(images))]
        self.asked += len(images)
        return torch.tensor([1.0 if place % 2 == 0 and place < self.first_pass else -1.0 for place in places])


def test_a_picture_that_was_not_sent_back_is_left_alone_while_another_runs_again(inference_mode):
    """The rule looks at both in every step from .4 on, as often as a rule that never fires. In the second run, which
    the first picture only goes along with, it would be sent back as well."""
    model, never = tiny_models.sd15(), Order(1.0)
    plain = run(ruled(model, never, "step back", amount=3.0, start_percent=0.4))
    later = Second(never.asked)
    changed = run(ruled(model, later, "step back", amount=3.0, start_percent=0.4))
    assert later.asked > never.asked, "the second picture ran again, and both were seen"
    assert torch.equal(changed[0], plain[0]) and not torch.equal(changed[1], plain[1])


@pytest.mark.parametrize("fires", [1, 5])
def test_a_function_that_remembers_steps_sees_each_step_once_while_the_prompt_is_switched(fires, inference_mode):
    """Core's Adaptive Projected Guidance keeps a running average in a pre-CFG function: it is asked once a step, in
    whichever step the rule fires, and the picture that is not switched stays bit for bit the same."""
    calls, model = [], APG.execute(tiny_models.sd15(), 0.5, 3.0, -0.6).args[0]
    apg = model.model_options["sampler_pre_cfg_function"][-1]
    model.model_options["sampler_pre_cfg_function"] = [lambda args: calls.append(float(args["sigma"][0])) or apg(args)]
    plain = run(model)
    calls.clear()
    other = tiny_models.conditioning("sd15", 9)
    switching = ruled(model, Order(*[1.0] * (2 * fires - 1), -1.0), "switch conditioning", conditioning=other)
    changed = run(switching)
    assert len(calls) == 6 == len(set(calls))
    assert torch.equal(changed[0], plain[0]) and not torch.allclose(changed[1], plain[1], atol=1e-3)


def test_a_boost_multiplies_reward_guidance_from_then_on(inference_mode):
    model, vae = tiny_models.sd15(), tiny_models.vae()

    def light(m: Any) -> torch.Tensor:
        return vae.decode(run(m).clone()).mean(dim=(1, 2, 3))

    guided = FeedbackRewardGuidance.execute(model, Brightness(), vae, 0.5).args[0]
    boosted = ruled(guided, Order(1.0, -1.0), "boost guidance", amount=3.0)
    off = ruled(guided, Order(-1.0), "boost guidance", amount=0.0)
    assert light(boosted)[1] > light(guided)[1] and light(boosted)[0] == light(guided)[0]
    torch.testing.assert_close(run(off), run(model), rtol=1e-4, atol=1e-4)


def test_a_boost_that_fires_again_and_again_pushed_further_than_is_safe(inference_mode, caplog):
    """Strength 1 makes steps of .6 standard deviations of what is open; however often it is boosted, they stay below
    the .7 that the watching holds to be safe, and it says nothing."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    guided = FeedbackRewardGuidance.execute(model, Brightness(), vae, 1.0).args[0]
    plain = run(guided, steps=8)
    boosted = run(ruled(guided, Order(-1.0), "boost guidance", amount=100.0, times=100), steps=8)
    assert "Lower the strength" not in caplog.text and not torch.allclose(boosted, plain, atol=1e-3)


def test_a_boost_leaves_steps_that_are_long_already_as_they_are(inference_mode, caplog):
    """Strength 3 makes steps of 1.8, 2.6 times what is safe: boosted it is the same run, and that is said as before."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    guided = FeedbackRewardGuidance.execute(model, Brightness(), vae, 3.0).args[0]
    boosted = ruled(guided, Order(-1.0), "boost guidance", amount=3.0)
    torch.testing.assert_close(run(boosted, steps=8), run(guided, steps=8), rtol=1e-4, atol=1e-4)
    assert caplog.text.count("The steps were 2.6 times") == 2


def test_a_boost_without_guidance_to_boost_says_that_it_changes_nothing(inference_mode, caplog):
    """When it runs: the guidance node may stand further down, and strength 0 takes it away."""
    model, vae = tiny_models.sd15(), tiny_models.vae()
    boosting = ruled(model, Order(1.0), "boost guidance")
    run(FeedbackRewardGuidance.execute(boosting, Brightness(), vae, 1.0).args[0])
    assert "this model has none" not in caplog.text
    run(FeedbackRewardGuidance.execute(boosting, Brightness(), vae, 0.0).args[0])
    assert "A rule boosts guidance, but this model has none, so it changes nothing" in caplog.text


def test_a_run_with_rounds_is_judged_once_whichever_node_stands_first(inference_mode, caplog):
    """A picture steps back twice, so that the sampler runs three times: of the whole run the end is told once."""
    model, vae = tiny_models.sd15(), tiny_models.vae()

    def guide(one: Any) -> Any:
        return FeedbackRewardGuidance.execute(one, Brightness(), vae, 3.0).args[0]

    caplog.set_level("INFO")
    for made in (guide(ruled(model, Order(-1.0), "step back", times=2)),
                 ruled(guide(model), Order(-1.0), "step back", times=2)):  # fmt: skip
        caplog.clear()
        run(made, batch=1)
        assert caplog.text.count("The steps were") == 1 and caplog.text.count("stepped back") == 2


def test_rules_stack_and_stand_before_guidance_in_whatever_order_the_nodes_are_wired(inference_mode):
    model, vae = tiny_models.sd15(), tiny_models.vae()
    first = ruled(ruled(FeedbackRewardGuidance.execute(model, Brightness(), vae, 1.0).args[0], Order(1.0), "stop"),
                  Order(1.0), "step back")  # fmt: skip
    second = FeedbackRewardGuidance.execute(ruled(model, Order(1.0), "stop"), Brightness(), vae, 1.0).args[0]
    for made, count in ((first, 2), (second, 1)):
        hooks = made.model_options["sampler_post_cfg_function"]
        assert [type(hook) for hook in hooks] == [Rules, RewardGuidance] and len(hooks[0].judged) == count
    assert "sampler_post_cfg_function" not in model.model_options


def test_inpainting_keeps_what_is_outside_of_the_mask_when_a_picture_steps_back(inference_mode):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    model = ruled(tiny_models.sd15(), Order(-1.0), "step back")
    made = run(model, mask=mask)
    assert made[..., 4:].abs().max() < 1e-4 and made[..., :4].abs().max() > 1e-2


def test_nothing_of_a_run_is_left_for_the_next(inference_mode):
    model = ruled(tiny_models.sd15(), Order(-1.0), "stop")
    first = run(model)
    (rules,) = model.model_options["sampler_post_cfg_function"]
    assert rules.course is None and not rules.kept
    assert torch.equal(run(model), first)


def test_memory_for_a_look_is_planned_beside_the_models_own(monkeypatch, inference_mode):
    """The plan with a rule is larger by the decode of one picture without a graph: a third of that with one. A second
    rule with the same decoder looks after the first, so nothing is added."""
    asked, load = [], comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda m, **k: asked.append(k.get("memory_required")) or load(m, **k)
    )
    model = tiny_models.sd15()
    run(model)
    once = ruled(model, Order(1.0), "stop")
    run(once)
    run(ruled(once, Order(1.0), "stop"))
    (rules,) = once.model_options["sampler_post_cfg_function"]
    look = rules.judged[0].decoder.memory_for((1, 4, 8, 8)) / 3
    assert asked[1] - asked[0] == pytest.approx(look, rel=1e-3) and asked[2] == asked[1]


def test_a_preview_is_refused_for_a_reward_that_looks_for_more_than_colours():
    with pytest.raises(WrongConnectionError, match="A preview shows colours alone"):
        ruled(tiny_models.sd15(), WatermarkPenalty(detector=Detector().eval()), "stop", decoder="preview")


def candidates(name: str, model: Any) -> None:
    """A run of the node that makes several candidates of a picture, on this model."""
    vae, noise = tiny_models.vae(), custom.RandomNoise.execute(3).args[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny_models.conditioning("sd15", 1), tiny_models.conditioning("sd15", 2))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    latent, euler = {"samples": torch.zeros(1, 4, 8, 8)}, comfy.samplers.ksampler("euler")
    if name == "Best of N":
        FeedbackBestOfN.execute(noise, guider, euler, sigmas, latent, Order(1.0), vae, 2)
    elif name == "Optimise noise":
        FeedbackOptimizeNoise.execute(noise, guider, euler, sigmas, latent, Brightness(), vae, iterations=1)
    else:
        ancestral = comfy.samplers.ksampler("euler_ancestral")
        sampler = FeedbackRewardSteering.execute(ancestral, Order(1.0), vae, 2, 1.0).args[0]
        guider.sample(torch.randn(1, 4, 8, 8), latent["samples"], sampler, sigmas, disable_pbar=True, seed=1)


@pytest.mark.parametrize("name", ["Best of N", "Optimise noise", "Reward steering"])
def test_a_model_with_rules_is_refused_by_nodes_that_make_several_candidates_of_a_picture(name, inference_mode):
    """One course of a picture cannot be that of all its candidates: a stop in one would stop the others."""
    with pytest.raises(WrongConnectionError, match=f"but {name} makes several candidates"):
        candidates(name, ruled(tiny_models.sd15(), Order(1.0), "stop"))
    candidates(name, tiny_models.sd15())


def test_a_rule_that_could_do_nothing_is_refused_with_what_to_do():
    with pytest.raises(WrongConnectionError, match="Connect a CLIP Text Encode to `conditioning`"):
        ruled(tiny_models.sd15(), Order(1.0), "switch conditioning")
    with pytest.raises(WrongConnectionError, match="start_percent .0.8. has to be below end_percent .0.2."):
        ruled(tiny_models.sd15(), Order(1.0), "stop", start_percent=0.8, end_percent=0.2)
    with pytest.raises(WrongConnectionError, match="`reward` is no reward"):
        ruled(tiny_models.sd15(), "taste", "stop")  # type: ignore[arg-type]


def test_every_input_explains_itself():
    schema = FeedbackRule.define_schema()
    assert all(one.tooltip for one in schema.inputs)


def test_what_fired_is_shown_on_the_rules_own_node(inference_mode, monkeypatch):
    """Of a batch of two, Order gives the second picture -1: one line for it; the second rule met none."""
    shown = []
    monkeypatch.setattr(ruled_module, "tell", lambda node, text: shown.append((node, text)))
    model = ruled(ruled(tiny_models.sd15(), Order(1.0, -1.0), "stop"), Order(1.0), "step back")
    run(model)
    assert [node for node, _ in shown] == [None, None]
    assert shown[0][1].startswith("Picture 2: stopped at") and "below 0" in shown[0][1]
    assert shown[1][1] == "None of 2 pictures met this rule."
