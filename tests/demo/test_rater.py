"""The scripted rater is as consistent as promised, and its taste lives where prompts leave things open."""

from __future__ import annotations

import numpy as np
import pytest

from feedback_loop.demo import judge, loop, measure, rater, world


def plain_scenes(n: int) -> tuple[judge.Truth, list[dict[str, str]]]:
    rng = np.random.default_rng(3)
    scenes = [world.sample_scene(rng) for _ in range(n)]
    words = [
        {k: w for k, w in world.attributes(s).items() if rng.random() < loop.TASTE_WORDS.get(k, loop.OTHER_WORDS)}
        for s in scenes
    ]
    return judge.truth_of_scenes(scenes), words


def test_repeated_pairs_come_out_the_same_three_times_in_four() -> None:
    """For a normal utility .75 by design; the true one is a mixture, so 3 points are allowed (and 1.4 for chance)."""
    truth, words = plain_scenes(4000)
    utility = rater.utility(truth, words)
    rng = np.random.default_rng(0)
    agreement = rater.self_agreement(utility[:2000], utility[2000:], rng, repeats=4000)
    assert agreement == pytest.approx(0.75, abs=0.045)


def test_watermarks_are_at_most_a_quarter_of_the_taste() -> None:
    truth, words = plain_scenes(4000)
    with_all, without = rater.utility(truth, words), rater.utility(truth, words, without=("watermark",))
    assert 0 < (with_all - without).var() / with_all.var() <= 0.25


def test_what_the_prompt_asked_for_is_never_held_against_a_picture() -> None:
    truth, _ = plain_scenes(50)
    everything_said = [{"size": "small", "texture": "busy", "count": "one", "place": "left"}] * len(truth)
    utility = rater.utility(truth, everything_said, without=("watermark",))
    assert (utility == 0).all()


def test_noise_is_added_before_the_stars_and_all_five_are_used() -> None:
    truth, words = plain_scenes(2000)
    utility = rater.utility(truth, words)
    first, second = (rater.stars(utility, np.random.default_rng(i)) for i in (1, 2))
    assert set(first) == {1, 2, 3, 4, 5}
    assert (first != second).any() and np.corrcoef(first, second)[0, 1] > 0.5


def test_the_bound_of_a_perfectly_consistent_rater_is_one_and_of_a_coin_one_half() -> None:
    assert measure.bound(1.0) == 1.0 and measure.bound(0.5) == 0.5
    assert measure.bound(0.75) == pytest.approx(0.8536, abs=1e-4)  # (1 + sqrt(.5)) / 2


def test_a_perfect_score_reaches_the_agreement_and_a_random_one_chance() -> None:
    """At noise^2 = (sqrt(2) - 1) * variance a normal utility agrees with one answer with probability
    1/2 + asin(2^-1/4) / pi = .818; 500 pairs of 400 pictures leave about 2.5 points of error."""
    rng = np.random.default_rng(5)
    utility = 0.86**0.5 * rng.standard_normal(400)
    accuracy, (low, high) = measure.pair_accuracy(utility, utility, 4, 500, rng)
    assert accuracy == pytest.approx(0.818, abs=0.06) and low < accuracy < high
    accuracy, (low, high) = measure.pair_accuracy(rng.standard_normal(400), utility, 4, 500, rng)
    assert low < 0.5 < high
