"""FeedbackBestOfN with ComfyUI's own guiders, samplers and noise, on tiny models of its own classes."""

from __future__ import annotations

import re

import comfy.model_management
import comfy.samplers
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch

from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.nodes.denoiser import WrongConnectionError
from feedback_loop.nodes.search import ANYWHERE, NEAR, NOT_HALVED, FeedbackBestOfN
from feedback_loop.nodes.starts import fresh_noise, seeds_of
from feedback_loop.tests.nodes import tiny_models

SEED, STEPS = 5, 8


class Brightness(Reward):
    name, differentiable = "brightness", False

    def score(self, images, prompts, embed):
        return 100 * images.mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def parts():
    """Model and VAE, made in inference mode as loader nodes would."""
    with torch.inference_mode():
        return tiny_models.sd15(), tiny_models.vae()


class Search:
    """The inputs of one search, and the stock node on the same ones."""

    def __init__(self, parts, sampler="euler", kind="sd15", batch=1, size=4, cfg=1.0):
        self.model, self.vae = parts
        self.guider = comfy.samplers.CFGGuider(self.model)
        self.guider.set_conds(tiny_models.conditioning(kind, 1), tiny_models.conditioning(kind, 2))
        self.guider.set_cfg(cfg)
        self.sampler = comfy.samplers.sampler_object(sampler)
        self.sigmas = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "normal", STEPS)
        self.latent = {"samples": torch.zeros(batch, tiny_models.CHANNELS[kind], size, size)}

    def plain(self, noise):
        made = custom.SamplerCustomAdvanced.execute(noise, self.guider, self.sampler, self.sigmas, self.latent)
        return made.args[0]["samples"]

    def plain_of(self, seed, on_the_way=SEED):
        """The picture of fresh noise of a seed, with what the sampler draws on the way as the search draws it."""
        noise = Noise(fresh_noise(self.latent["samples"], seed), on_the_way)
        return self.plain(noise)

    def run(self, noise=None, reward=None, **inputs):
        noise = noise or custom.Noise_RandomNoise(SEED)
        node = FeedbackBestOfN.execute(
            noise, self.guider, self.sampler, self.sigmas, self.latent, reward or Brightness(), self.vae, **inputs
        )
        latent, images, best, score, report = node.args
        return latent["samples"], images, best, score, report

    def score(self, latents):
        return Brightness()(self.vae.decode(latents.clone()).movedim(-1, 1))


class Noise:
    def __init__(self, noise, seed):
        self.noise, self.seed = noise, seed

    def generate_noise(self, latent):
        return self.noise.clone()


SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if not name.endswith("_cfg_pp") and name not in NOT_HALVED]


QUICK = ("euler", "dpmpp_3m_sde", "heun", "uni_pc")


@pytest.mark.parametrize(
    "sampler", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SAMPLERS]
)
def test_the_picture_found_is_bit_for_bit_the_plain_run_of_its_noise(sampler, parts, inference_mode):
    """With halving, whatever the sampler remembers between steps, and for every core sampler."""
    search = Search(parts, sampler)
    latent, _, best, _, _ = search.run(candidates=4)
    assert torch.equal(search.plain(best), latent)


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_sde", pytest.param("dpm_adaptive", marks=pytest.mark.long)])
def test_without_halving_the_best_of_all_whole_runs_is_found(sampler, parts, inference_mode):
    """The candidates are the given noise and fresh noise of the seeds of `seeds_of`."""
    search = Search(parts, sampler)
    latent = search.run(candidates=3, halving=False)[0]
    plain = [search.plain_of(seed) for seed in seeds_of(SEED, 3)]
    assert torch.equal(latent, max(plain, key=lambda x: search.score(x).item()))


def test_one_candidate_is_the_stock_node(parts, inference_mode):
    search = Search(parts, "dpmpp_2m", cfg=3.0)
    assert torch.equal(search.run(candidates=1)[0], search.plain(custom.Noise_RandomNoise(SEED)))


@pytest.mark.parametrize(
    "kind", ["sd15 v", "sd3", *(pytest.param(k, marks=pytest.mark.long) for k in ("sdxl", "flux"))]
)
def test_the_best_of_four_is_at_least_as_good_as_the_first_on_every_kind_of_model(kind, inference_mode):
    name = kind.split()[0]
    model = tiny_models.sd15(prediction="v") if kind == "sd15 v" else tiny_models.MODELS[name]()
    search = Search((model, tiny_models.vae(channels=tiny_models.CHANNELS[name])), kind=name, size=8)
    latent, images, best, score, _ = search.run(candidates=4, halving=False)
    assert search.score(latent) >= search.score(search.plain(custom.Noise_RandomNoise(SEED)))
    assert torch.equal(search.plain(best), latent)
    assert images.shape == (1, 64, 64, 3) and score == pytest.approx(search.score(latent).item(), rel=1e-4)


def test_each_picture_of_a_batch_is_searched_for_itself(parts, inference_mode):
    """The pictures found are those of one noise, whose rows come from different candidates; no picture is worse than
    the same row of any candidate."""
    search = Search(parts, "dpmpp_2m", batch=3)
    latent, _, best, _, _ = search.run(candidates=4, halving=False)
    runs = torch.stack([search.score(search.plain_of(seed)) for seed in seeds_of(SEED, 4)])
    assert search.score(latent).tolist() == pytest.approx(runs.amax(0).tolist(), rel=1e-4)
    halved, _, best, _, _ = search.run(candidates=4)
    torch.testing.assert_close(search.plain(best), halved, rtol=1e-4, atol=1e-4)


def calls_of(search, **inputs):
    """Calls of the model during a search, and the node's report."""
    calls = []
    model = search.model.model
    real = model.apply_model
    model.apply_model = lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs)
    try:
        report = search.run(**inputs)[-1]
    finally:
        del model.apply_model
    return len(calls), report


def test_eight_candidates_cost_less_than_five_runs_and_the_report_says_so(parts, inference_mode):
    """8 steps: 8 * 4 + 3 * 1 + 1 * 3 = 38 evaluations, 38 / 8 = 4.75 runs."""
    calls, report = calls_of(Search(parts), candidates=8)
    assert calls == 38 and "38 denoiser evaluations, as many as 4.75 plain runs" in report
    assert report.startswith("8 candidates a picture in 1 round")


@pytest.mark.parametrize(("budget", "sampler", "expected"), [(16, "euler", 16), (12, "euler", 12), (8, "euler", 8)])
def test_a_budget_is_never_exceeded(budget, sampler, expected, parts, inference_mode):
    """3 candidates of 8 steps cost 3*4 + 4 = 16, 2 cost 2*4 + 4 = 12, 1 costs 8."""
    calls, _ = calls_of(Search(parts, sampler), candidates=8, rounds=5, budget=budget)
    assert calls == expected


def test_a_budget_counts_samplers_that_ask_twice_a_step(parts, inference_mode):
    """Heun asks twice a step: 2 candidates cost 2*4 + 4 = 12 steps, which are 24 evaluations, and 3 cost 32."""
    calls, report = calls_of(Search(parts, "heun"), candidates=8, budget=24)
    assert calls <= 24 and report.startswith("2 candidates")


def test_a_search_stops_when_the_reward_is_reached(parts, inference_mode):
    search = Search(parts)
    stop = {"stop": "at a reward", "reward_of": -1e6}
    assert calls_of(search, candidates=4, halving=False, stop=stop)[0] == STEPS
    assert calls_of(search, candidates=4, rounds=3, stop=stop)[0] == 21
    never = {"stop": "at a reward", "reward_of": 1e6}
    assert calls_of(search, candidates=4, halving=False, stop=never)[0] == 4 * STEPS


def test_rounds_near_the_best_never_get_worse_and_the_noise_goes_on_from_there(parts, inference_mode):
    search = Search(parts)
    scores = [search.run(candidates=4, halving=False, rounds=rounds)[3] for rounds in (1, 3)]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    best = search.run(candidates=4, halving=False)[2]
    again = search.run(noise=best, candidates=4, halving=False, look=NEAR)
    assert again[3] >= scores[0] and best.seed == SEED
    elsewhere = search.run(noise=best, candidates=4, halving=False, look=ANYWHERE)
    assert elsewhere[3] >= scores[0]


def test_what_a_mask_keeps_stays(parts, inference_mode):
    search = Search(parts, size=8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    kept = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    search.latent = {"samples": kept, "noise_mask": mask}
    latent, _, best, _, _ = search.run(candidates=4)
    torch.testing.assert_close(latent[..., :4], kept[..., :4], rtol=1e-4, atol=1e-4)
    assert torch.equal(search.plain(best), latent)


@pytest.mark.usefixtures("every_step_shown")
def test_progress_runs_once_from_the_first_step_to_the_last(parts, inference_mode, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *a, **k: seen.append((value, total)))
    Search(parts).run(candidates=8)
    values = [value for value, _ in seen]
    assert values == sorted(values) and len(set(values)) > 5 and seen[-1] == (38, 38)


def test_an_interrupt_stops_the_search(parts, inference_mode):
    class Interrupting(Brightness):
        def score(self, images, prompts, embed):
            comfy.model_management.interrupt_current_processing(True)
            return super().score(images, prompts, embed)

    search = Search(parts)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        search.run(reward=Interrupting())
    assert not comfy.model_management.processing_interrupted()
    assert search.run(candidates=2)[0].isfinite().all()


def test_noise_for_other_latents_is_refused(parts, inference_mode):
    best = Search(parts).run(candidates=2)[2]
    with pytest.raises(WrongConnectionError, match=re.escape("(1, 4, 4, 4), but these are (2, 4, 4, 4)")):
        Search(parts, batch=2).run(noise=best)


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpm_adaptive", "dpm_fast"])
def test_samplers_that_cannot_be_stopped_half_way_are_refused_by_name(sampler, parts):
    with pytest.raises(WrongConnectionError, match=f"'{sampler}' cannot be stopped half-way.*switch `halving` off"):
        Search(parts, sampler).run()


def test_a_budget_below_one_run_is_refused(parts):
    with pytest.raises(WrongConnectionError, match="less than one run of 8 steps.*Raise it"):
        Search(parts).run(budget=7)
