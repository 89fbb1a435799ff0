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

    def __init__(self, parts, sampler="euler", kind="sd15", batch=1, size=4, cfg=1.0, steps=STEPS):
        self.model, self.vae = parts
        self.guider = comfy.samplers.CFGGuider(self.model)
        self.guider.set_conds(tiny_models.conditioning(kind, 1), tiny_models.conditioning(kind, 2))
        self.guider.set_cfg(cfg)
        self.sampler = comfy.samplers.sampler_object(sampler)
        self.sigmas = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "normal", steps)
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
    """Heun asks twice a step but once in the last, and a step's estimate is its first answer: 7 evaluations until half
    of 8 steps, 15 for all. 2 candidates cost 2*7 + 8 = 22 evaluations, 3 cost 29."""
    calls, report = calls_of(Search(parts, "heun"), candidates=8, budget=28)
    assert calls == 22 and report.startswith("2 candidates")
    assert "22 denoiser evaluations of the 28 allowed, as many as 1.47 plain runs" in report


OFTEN = ("dpm_2", "dpmpp_2s_ancestral", "sa_solver_pece", "exp_heun_2_x0", "uni_pc")


@pytest.mark.parametrize("halving", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "sampler", ["dpmpp_sde", "seeds_3", *(pytest.param(name, marks=pytest.mark.long) for name in OFTEN)]
)
def test_a_budget_bug_of_samplers_that_ask_more_than_once_a_step(sampler, halving, parts, inference_mode):
    """What a step asks was taken to be one evaluation until two steps were seen: with two steps, or in the first
    candidate, more was spent than allowed. One run and one evaluation less is too little; so is one less for two."""
    search = Search(parts, sampler, steps=2)
    whole = calls_of(search, candidates=1)[0]
    for budget in (whole, 2 * whole - 1, 3 * whole):
        assert calls_of(search, candidates=8, rounds=3, halving=halving, budget=budget)[0] <= budget
    with pytest.raises(WrongConnectionError, match=rf"of {whole - 1} denoiser evaluations is less than one run"):
        search.run(candidates=8, halving=halving, budget=whole - 1)


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpm_fast", pytest.param("dpm_adaptive", marks=pytest.mark.long)])
def test_a_budget_holds_where_only_a_run_tells_what_it_asks(sampler, parts, inference_mode):
    search = Search(parts, sampler, steps=4)
    whole = calls_of(search, candidates=1, halving=False)[0]
    calls, report = calls_of(search, candidates=8, halving=False, budget=2 * whole + 1)
    assert calls <= 2 * whole + 1 and f"{calls} denoiser evaluations of the {2 * whole + 1} allowed" in report
    if whole > 4:
        with pytest.raises(WrongConnectionError, match=f"{whole - 1} denoiser evaluations is less than one run"):
            search.run(halving=False, budget=whole - 1)


def test_a_budget_holds_for_somebody_elses_sampler(parts, inference_mode):
    """Its first candidate is made whole, to see what it asks: 15 evaluations. 2 candidates cost 22 as Heun's do, the
    first one's second half included; the chosen one's may have to be made besides."""

    def sample_mine(*args, **kwargs):
        return comfy.samplers.k_diffusion_sampling.sample_heun(*args, **kwargs)

    search = Search(parts)
    search.sampler = comfy.samplers.KSAMPLER(sample_mine)
    for budget in (21, 30):
        calls, report = calls_of(search, candidates=8, rounds=2, budget=budget)
        assert calls <= budget and f"{calls} denoiser evaluations of the {budget} allowed" in report


AT_ONCE, NEVER = ({"stop": "at a reward", "reward_of": value} for value in (-1e6, 1e6))


def test_a_search_stops_when_the_reward_is_reached(parts, inference_mode):
    search = Search(parts)
    assert calls_of(search, candidates=4, halving=False, stop=AT_ONCE)[0] == STEPS
    assert calls_of(search, candidates=4, halving=False, stop=NEVER)[0] == 4 * STEPS


def test_with_halving_a_search_stopped_only_after_a_round(parts, inference_mode):
    """The first candidate's estimate is good enough, so it is finished before the others are begun: one run."""
    search = Search(parts)
    calls, report = calls_of(search, candidates=4, rounds=3, stop=AT_ONCE)
    assert calls == STEPS and report.startswith("1 candidates")
    assert calls_of(search, candidates=4, stop=NEVER)[0] == 21


class Estimates(Brightness):
    """Of batches, a score each: 1 for every picture looked at, but what is given for the first looks."""

    def __init__(self, *scores):
        self.given = list(scores)

    def score(self, images, prompts, embed):
        return torch.tensor(self.given.pop(0) if self.given else [1.0] * len(images))


def test_a_search_of_a_batch_stops_once_every_picture_is_good_enough(parts, inference_mode):
    """Candidate 1 has the first picture, candidate 2 the second: joined they are finished, and candidates 3 and 4 never
    begun. Two halves and one second half: 4 + 4 + 4. What is found is the plain run of the joined noise."""
    search = Search(parts, batch=2)
    reward = Estimates([1.0, 0.0], [0.0, 1.0])
    calls, report = calls_of(search, candidates=4, reward=reward, stop={"stop": "at a reward", "reward_of": 1.0})
    assert calls == 12 and report.startswith("2 candidates")
    latent, _, best, _, _ = search.run(
        candidates=4, reward=Estimates([1.0, 0.0], [0.0, 1.0]), stop={"stop": "at a reward", "reward_of": 1.0}
    )
    torch.testing.assert_close(search.plain(best), latent, rtol=1e-4, atol=1e-4)


def test_an_estimate_that_promised_too_much_costs_its_own_second_half_alone(parts, inference_mode):
    """The first estimate is at the goal, its picture is not: the search goes on as planned, 38 evaluations. The 4 of
    the second half come on top unless that candidate is chosen anyway; a budget without room for them is kept."""
    goal = {"stop": "at a reward", "reward_of": 2.0}
    calls = calls_of(Search(parts), candidates=8, reward=Estimates([2.0]), stop=goal)[0]
    assert calls == 38, "it is the best of the estimates, so it is chosen"
    rest = [[3.0 + k] for k in range(3)]
    calls = calls_of(Search(parts), candidates=8, reward=Estimates([2.0], [1.0], *rest), stop=goal)[0]
    assert calls == 42
    calls = calls_of(Search(parts), candidates=8, reward=Estimates([2.0], *rest), stop=goal, budget=38)[0]
    assert calls <= 38


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
