"""The taste on synthetic pictures whose true utility is known: it finds it, says how well, and nothing in noise."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
import torch

from feedback_loop.feedback.pairs import Agreement
from feedback_loop.feedback.records import ComparedImages, Generation, RatedImage
from feedback_loop.training import ordinal, taste
from feedback_loop.training.judgements import Judgements, TooFewJudgementsError, judgements
from feedback_loop.training.ordinal import Choices, Stars
from feedback_loop.training.taste import fit_taste
from feedback_loop.training.taste_report import describe, doubled

CUTS = (-1.0, -0.35, 0.3, 0.95)
NOISE = math.sqrt(math.sqrt(2) - 1)  # 75 % of repeated pairs come out the same, for a normal utility
NO_STARS = Stars(np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0, dtype=int))
NO_CHOICES = Choices(np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0))


class Features:
    """An encoder for vectors that are features already."""

    id = "features-1"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)

    def networks(self) -> list[torch.nn.Module]:
        return []


def world(n: int, seed: int, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """n pictures: features (n, width) of six hidden properties mixed, with noise; utility of the first three, sd 1."""
    mix = np.random.default_rng(99).normal(size=(6, width))
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 6))
    utility = hidden[:, :3] @ np.array([0.8, 0.5, -0.33])
    return hidden @ mix + 0.5 * rng.normal(size=(n, width)), utility / math.sqrt(0.64 + 0.25 + 0.1089)


def starred(utility: np.ndarray, seed: int, cuts: tuple[float, ...] = CUTS, rater: int = 0) -> Stars:
    noisy = utility + NOISE * np.random.default_rng((seed, 7)).normal(size=len(utility))
    return Stars(np.arange(len(utility)), np.searchsorted(cuts, noisy), np.full(len(utility), rater))


def prompts(n: int, each: int = 4) -> list[str]:
    return [f"prompt {i // each}" for i in range(n)]


def correlation(reward: Any, features: np.ndarray, utility: np.ndarray) -> float:
    mean, _ = reward.posterior(torch.from_numpy(features).float())
    return float(np.corrcoef(mean.numpy(), utility)[0, 1])


def of_prompts_that_count(seed: int) -> tuple[Judgements, np.ndarray, np.ndarray]:
    """20 prompts of 4 pictures, whose prompt adds a normal number to what the rater thinks; fresh pictures beside."""
    features, utility = world(80, seed)
    added = np.random.default_rng((seed, 3)).normal(size=20).repeat(4)
    fresh, true = world(400, seed + 1000)
    return Judgements(features, prompts(80), starred(utility + added, seed), NO_CHOICES), fresh, true


def test_what_a_prompt_adds_by_itself_is_not_read_into_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same fit without the effect of prompts finds less of the taste, on average over eight raters."""
    gains = []
    for seed in range(8):
        data, fresh, true = of_prompts_that_count(seed)
        found = []
        for sd in (taste.PROMPT_SD, 0.0):
            with monkeypatch.context() as patched:
                patched.setattr(taste, "PROMPT_SD", sd)
                found.append(correlation(fit_taste(data, Features())[0], fresh, true))
        gains.append(found[0] - found[1])
    assert np.mean(gains) > 2 * np.std(gains) / math.sqrt(len(gains)), gains


def test_a_prompt_gets_an_effect_only_where_whole_prompts_are_held_out() -> None:
    assert taste._prompt_effects(prompts(12)).shape == (12, 0)  # three prompts: pictures are held out
    effects = taste._prompt_effects([*prompts(16), "alone"])
    assert effects.shape == (17, 4) and not effects[16].any()
    assert effects[:16].sum(axis=0) == pytest.approx([4 * taste.PROMPT_SD] * 4)
    assert taste._prompt_effects([f"prompt {i // 2}" for i in range(600)]).shape == (600, taste.MOST_PROMPTS)


def test_the_gradient_and_curvature_are_those_of_the_objective() -> None:
    """Central differences, h = 1e-5, of the log posterior in weights and cut-points together."""
    rng = np.random.default_rng(0)
    z, plain = rng.normal(size=(30, 3)), starred(rng.normal(size=30), 0)
    stars = Stars(plain.image, plain.level, plain.rater, rng.uniform(0.2, 2, 30))
    choices = Choices(rng.integers(0, 15, 20), rng.integers(15, 30, 20), rng.choice([0, 0.5, 1], 20))
    cuts = ordinal._arrange(stars)
    difference = z[choices.left] - z[choices.right]
    theta = np.concatenate([rng.normal(size=3), cuts.prior + 0.1])

    def value(at: np.ndarray) -> float:
        return ordinal._objective(at, z, difference, stars, choices, cuts)

    gradient, hessian = ordinal._derivatives(theta, z, difference, stars, choices, cuts)
    step = 1e-5 * np.eye(len(theta))
    numeric = [(value(theta + h) - value(theta - h)) / 2e-5 for h in step]
    assert gradient == pytest.approx(numeric, rel=1e-5, abs=1e-6)
    slopes = [
        (ordinal._derivatives(theta + h, z, difference, stars, choices, cuts)[0]
         - ordinal._derivatives(theta - h, z, difference, stars, choices, cuts)[0]) / 2e-5
        for h in step
    ]  # fmt: skip
    assert hessian == pytest.approx(-np.array(slopes), rel=1e-5, abs=1e-5)


def test_level_probabilities_add_to_one_and_match_the_likelihood() -> None:
    """Without variance the shares are what the likelihood takes the logarithm of."""
    u, cuts = np.array([-1.0, 0.2, 3.0]), np.array([-1.0, 0.0, 2.0])
    shares = ordinal.level_shares(u, np.zeros(3), cuts)
    assert shares.sum(axis=1) == pytest.approx(1.0)
    stars = Stars(np.arange(3), np.array([0, 2, 3]), np.zeros(3, dtype=int))
    assert np.exp(ordinal.star_log_likelihood(u, stars, {0: cuts})) == pytest.approx(shares[[0, 1, 2], [0, 2, 3]])


def test_bradley_terry_alone_gives_the_logistic_fit_of_a_line() -> None:
    """One feature, 3 of 4 choices for +1 over -1, prior N(0, 1): the mode w solves 4 * (.75 - s(2w)) * 2 = w.

    By bisection w = .4184.
    """
    z = np.array([[1.0], [-1.0]])
    choices = Choices(np.zeros(4, dtype=int), np.ones(4, dtype=int), np.array([1.0, 1, 1, 0]))
    found = ordinal.fit(z, NO_STARS, choices)
    w = float(found.mean[0])
    assert 8 * (0.75 - 1 / (1 + math.exp(-2 * w))) == pytest.approx(w, abs=1e-4)
    p = 1 / (1 + math.exp(-2 * w))
    assert float(found.covariance[0, 0]) == pytest.approx(1 / (1 + 16 * p * (1 - p)), rel=1e-4)


def test_two_hundred_noisy_stars_are_enough_to_find_the_taste() -> None:
    features, utility = world(200, seed=1)
    reward, report = fit_taste(Judgements(features, prompts(200), starred(utility, 1), NO_CHOICES), Features())
    fresh, truth = world(2000, seed=2)
    assert correlation(reward, fresh, truth) > 0.9
    assert report.held_out.low > 0.6 and report.beats_chance and not reward.warning
    assert report.held_out.low < report.held_out.value < report.held_out.high


def test_shuffled_stars_teach_nothing_and_the_report_says_so() -> None:
    """Negative control: held-out accuracy around one half (mean of 6 worlds within 3 sd, .037 each), no world beats
    chance but by luck (at most 1 of 6), and what is left of the reward's own trust is small."""
    accuracies, beaten, said = [], 0, []
    for seed in range(6):
        features, utility = world(120, seed)
        stars = starred(utility, seed)
        mixed = Stars(stars.image, np.random.default_rng(seed).permutation(stars.level), stars.rater)
        reward, report = fit_taste(Judgements(features, prompts(120), mixed, NO_CHOICES), Features())
        accuracies.append(report.held_out.value)
        beaten += report.beats_chance
        said.append(
            (report.beats_chance, "has not beaten chance" in describe(report), "beaten chance" in reward.warning)
        )
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.06)
    assert beaten <= 1
    assert all(beats or (told and warned) for beats, told, warned in said)


def test_choices_alone_teach_the_same_taste() -> None:
    features, utility = world(200, seed=3)
    rng = np.random.default_rng(3)
    left, right = rng.permutation(200)[:100], rng.permutation(200)[:100]
    left, right = np.concatenate([left, right]), np.concatenate([right[::-1], left])
    keep = left != right
    left, right = left[keep], right[keep]
    noise = NOISE * rng.normal(size=(2, len(left)))
    label = (utility[left] + noise[0] > utility[right] + noise[1]).astype(float)
    reward, report = fit_taste(Judgements(features, prompts(200), NO_STARS, Choices(left, right, label)), Features())
    fresh, truth = world(2000, seed=4)
    assert correlation(reward, fresh, truth) > 0.8
    assert report.held_out.value > 0.6


def test_a_strict_and_a_generous_rater_are_learned_from_together() -> None:
    """Pictures 0-99 by a rater whose cuts lie 1.5 higher, 100-199 by one whose lie 1.5 lower. With one scale for both,
    the raters' difference would drown the taste; with their own cut-points it is as good as with one rater."""
    features, utility = world(200, seed=5)
    strict = starred(utility[:100], 5, tuple(c + 1.5 for c in CUTS))
    generous = starred(utility[100:], 6, tuple(c - 1.5 for c in CUTS))
    apart = Stars(
        np.arange(200), np.concatenate([strict.level, generous.level]), np.repeat([0, 1], 100),
    )  # fmt: skip
    together = Stars(apart.image, apart.level, np.zeros(200, dtype=int))
    fresh, truth = world(2000, seed=6)
    own, _ = fit_taste(Judgements(features, prompts(200), apart, NO_CHOICES), Features())
    mixed, _ = fit_taste(Judgements(features, prompts(200), together, NO_CHOICES), Features())
    assert correlation(own, fresh, truth) > correlation(mixed, fresh, truth) + 0.02


def test_the_fit_is_deterministic_and_does_not_depend_on_the_unit_of_the_features() -> None:
    features, utility = world(80, seed=7)
    data = Judgements(features, prompts(80), starred(utility, 7), NO_CHOICES)
    scaled = Judgements(features * 1000, prompts(80), starred(utility, 7), NO_CHOICES)
    first, again, large = (fit_taste(d, Features())[0] for d in (data, data, scaled))
    x = torch.from_numpy(features).float()
    assert torch.equal(first.posterior(x)[0], again.posterior(x)[0])
    assert torch.allclose(first.posterior(x)[0], large.posterior(x * 1000)[0], atol=1e-4)


def test_doubt_is_larger_far_from_the_rated_pictures_and_never_steers() -> None:
    """The std grows with distance; caution is bounded so that its gradient is at most half of the mean's (rms)."""
    features, utility = world(200, seed=8)
    reward, report = fit_taste(Judgements(features, prompts(200), starred(utility, 8), NO_CHOICES), Features())
    x = torch.from_numpy(features).float()
    centre = x.mean(dim=0)
    assert (reward.posterior(centre + 5 * (x - centre))[1] > reward.posterior(x)[1]).all()
    leaf = x.clone().requires_grad_()
    mean, std = reward.posterior(leaf)
    slopes = [
        torch.autograd.grad(part.sum(), leaf, retain_graph=True)[0] * reward._tensors["scale"] for part in (mean, std)
    ]
    along, doubt = (float(s.square().sum(dim=1).mean().sqrt()) for s in slopes)
    assert report.caution * doubt <= 0.5 * along * 1.001


def test_the_reward_is_in_standard_deviations_of_the_taste() -> None:
    """Variance of the mean over the rated pictures plus the mean posterior variance is one."""
    features, utility = world(200, seed=9)
    reward, _ = fit_taste(Judgements(features, prompts(200), starred(utility, 9), NO_CHOICES), Features())
    mean, std = reward.posterior(torch.from_numpy(features).float())
    assert float(mean.var(correction=0) + std.square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_more_labels_teach_more_and_the_forecast_is_the_square_root_law() -> None:
    """Accuracy a - b / sqrt(n) through (50, .65) and (200, .75): b = .1 / (50^-.5 - 200^-.5) = 1.4142; at 400 it gains
    1.4142 * (200^-.5 - 400^-.5) = .0293."""
    assert doubled([(50, 0.65), (100, 0.7), (200, 0.75)]) == pytest.approx(0.0293, abs=1e-4)
    assert doubled([(50, 0.7), (200, 0.6)]) == 0


def test_the_report_in_words_names_accuracy_interval_agreement_and_bound() -> None:
    """Agreement 3 of 4 = 75 %: bound (1 + sqrt(.5)) / 2 = 85 %."""
    features, utility = world(80, seed=10)
    data = Judgements(features, prompts(80), starred(utility, 10), NO_CHOICES)
    _, report = fit_taste(data, Features(), Agreement(same=3, repeats=4))
    text = describe(report)
    for part in ("80 ratings", "20 prompts", "95 % interval", "75% of 4 repeated pairs", "85%"):
        assert part in text
    assert sum(count for *_, count in report.bins) == report.held_out_pairs


def test_pictures_of_one_prompt_are_held_out_one_by_one_and_the_report_says_so() -> None:
    features, utility = world(60, seed=11)
    _, report = fit_taste(Judgements(features, ["same"] * 60, starred(utility, 11), NO_CHOICES), Features())
    assert report.held_out_pairs > 100 and "pictures were held out" in describe(report)


# --- from the store's records ----------------------------------------------------------------------------------------


def rated(
    image: str, raw: float, rater: str = "ann", scale: tuple[float, float] = (1, 5), prompt: str = "a cat"
) -> RatedImage:
    value = (raw - scale[0]) / (scale[1] - scale[0])
    now = datetime.now(timezone.utc)
    return RatedImage(f"r-{image}-{rater}", image, prompt, value, raw, scale, rater, "overall", now, Generation())


def compared(left: str, right: str, winner: Any) -> ComparedImages:
    now = datetime.now(timezone.utc)
    return ComparedImages(f"{left}{right}", left, right, winner, None, "ann", "overall", now, "a cat", "a dog")


def vectors(*names: str) -> dict[str, np.ndarray]:
    return {name: np.array([float(ord(name[0])), 1.0]) for name in names}


def test_records_become_levels_of_each_rater_and_scale_and_choices() -> None:
    """Ann's 1, 3, 5 are levels 0, 1, 2; her thumbs 0, 1 a scale of their own; skip says nothing; a tie is .5."""
    said = [rated(n, raw) for n, raw in zip("abcdefgh", (1, 3, 5, 1, 3, 5, 1, 1), strict=True)]
    said += [rated("a", 0, scale=(0, 1)), rated("b", 1, scale=(0, 1))]
    choices = [compared("a", "b", "left"), compared("b", "c", "tie"), compared("a", "c", "skip")]
    data = judgements(said, choices, vectors(*"abcdefgh"))
    assert data.stars.level.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 0, 1]
    assert data.stars.rater.tolist() == [0] * 8 + [1] * 2
    assert data.choices.label.tolist() == [1, 0.5]
    assert len(data.features) == 8


def test_both_bad_puts_both_pictures_below_a_cut() -> None:
    said = [rated(n, 1 + i % 5) for i, n in enumerate("abcdefgh")]
    data = judgements(said, [compared("a", "b", "both_bad")], vectors(*"abcdefgh"))
    assert data.stars.level.tolist()[-2:] == [0, 0] and data.stars.image.tolist()[-2:] == [0, 1]
    assert len(data.choices) == 0


def test_a_scale_of_a_hundred_steps_is_cut_into_seven_levels() -> None:
    names = [chr(97 + i // 10) + str(i) for i in range(70)]
    said = [rated(n, float(i), scale=(0, 100)) for i, n in enumerate(names)]
    level = judgements(said, [], vectors(*names)).stars.level
    assert level.tolist() == sorted(level.tolist()) and np.bincount(level).tolist() == [10] * 7


def test_too_little_or_uniform_feedback_is_refused_by_a_sentence() -> None:
    with pytest.raises(TooFewJudgementsError, match="at least 8 ratings"):
        judgements([rated("a", 3), rated("b", 4)], [], vectors("a", "b"))
    with pytest.raises(TooFewJudgementsError, match="All ratings are the same"):
        judgements([rated(n, 4) for n in "abcdefgh"], [], vectors(*"abcdefgh"))


def test_a_star_of_weight_two_is_the_same_star_twice_and_one_of_weight_nought_is_none() -> None:
    """The likelihood of a star stands in the sum as often as its weight says."""
    features, utility = world(30, seed=11, width=5)
    stars = starred(utility, 11)
    twice = Stars(*(np.concatenate([column, column[:10]]) for column in (stars.image, stars.level, stars.rater)))
    weighted = Stars(stars.image, stars.level, stars.rater, np.where(np.arange(30) < 10, 2.0, 1.0))
    assert ordinal.fit(features, weighted, NO_CHOICES).mean == pytest.approx(
        ordinal.fit(features, twice, NO_CHOICES).mean, abs=1e-6
    )
    without = stars.only(np.arange(30) >= 10)
    assert without.level.max() == stars.level.max(), "both have the same cut-points"
    muted = Stars(stars.image, stars.level, stars.rater, np.where(np.arange(30) < 10, 0.0, 1.0))
    assert ordinal.fit(features, muted, NO_CHOICES).mean == pytest.approx(
        ordinal.fit(features, without, NO_CHOICES).mean, abs=1e-6
    )
    ones = Stars(stars.image, stars.level, stars.rater, np.ones(30))
    assert (ordinal.fit(features, ones, NO_CHOICES).mean == ordinal.fit(features, stars, NO_CHOICES).mean).all()


def test_what_was_only_concluded_weighs_less_and_is_not_what_accuracy_is_measured_on() -> None:
    """Interactions that say the opposite of the stars at weight .1 hardly move the taste; at weight 1 they ruin it."""
    features, utility = world(200, seed=12)
    stars, against = starred(utility, 12), starred(-utility, 13, rater=1)

    def mixed(weight: float) -> Judgements:
        columns = [
            np.concatenate(pair) for pair in zip(*((s.image, s.level, s.rater) for s in (stars, against)), strict=True)
        ]
        weights = np.repeat([1.0, weight], 200)
        return Judgements(features, prompts(200), Stars(*columns, weights), NO_CHOICES)

    fresh, truth = world(1000, seed=14)
    (light, report), (heavy, _) = (fit_taste(mixed(weight), Features()) for weight in (0.1, 1.0))
    _, alone_report = fit_taste(Judgements(features, prompts(200), stars, NO_CHOICES), Features())
    assert correlation(light, fresh, truth) > 0.85 > correlation(heavy, fresh, truth)
    assert report.held_out_pairs == alone_report.held_out_pairs
