"""Win rates, differences, diversity and accuracies, with the intervals derived by hand or checked by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from feedback_loop.feedback import evaluation


def test_a_tie_counts_half() -> None:
    """b wins 2, loses 1, ties 1: (2 + .5) / 4."""
    assert evaluation.paired_win_rate([0.0, 0, 5, 1], [1.0, 2, 4, 1]).value == pytest.approx(0.625)


def test_exchanging_a_and_b_mirrors_the_win_rate() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    there, back = evaluation.paired_win_rate(a, b), evaluation.paired_win_rate(b, a)
    assert there.value == pytest.approx(1 - back.value) and there.low == pytest.approx(1 - back.high)


def test_wilson_of_8_in_10_is_the_textbook_interval() -> None:
    """z = 1.96: centre (.8 + .19208) / 1.38416 = .7167, half width .2265: .4902 to .9433."""
    found = evaluation.wilson(8, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=2e-4)


def test_the_mean_interval_is_students_for_independent_values() -> None:
    """1, 2, 3, 4: mean 2.5, sd 1.291, t(3) = 3.1824: half width 3.1824 * 1.291 / 2 = 2.0542."""
    found = evaluation.mean_interval([1.0, 2, 3, 4])
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 0.4458, 4.5542), abs=1e-3)


def test_copies_of_one_picture_add_no_certainty() -> None:
    """Each value four times in its cluster: the interval must be that of the values taken once."""
    values = [1.0, 2, 3, 4]
    repeated, clusters = np.repeat(values, 4), np.repeat(range(4), 4).tolist()
    assert evaluation.mean_interval(repeated, clusters) == pytest.approx(evaluation.mean_interval(values))
    won = evaluation.paired_win_rate(
        np.zeros(40), np.repeat([1.0, 1, 1, -1, -1, 1, 1, 1, -1, 1], 4), np.repeat(range(10), 4).tolist()
    )
    once = evaluation.paired_win_rate(np.zeros(10), [1.0, 1, 1, -1, -1, 1, 1, 1, -1, 1])
    assert won.value == once.value and won.high - won.low == pytest.approx(once.high - once.low, rel=0.06)


def test_the_paired_difference_covers_the_truth_in_about_95_of_100_worlds() -> None:
    """12 prompts of 5 pictures, a prompt effect as large as the noise: coverage of 400 worlds within 3 sd of .95."""
    rng, hits = np.random.default_rng(1), 0
    clusters = np.repeat(range(12), 5).tolist()
    for _ in range(400):
        b = 0.3 + np.repeat(rng.normal(size=12), 5) + rng.normal(size=60)
        found = evaluation.paired_difference(np.zeros(60), b, clusters)
        hits += found.low <= 0.3 <= found.high
    assert 0.917 <= hits / 400 <= 0.983


def test_one_cluster_alone_tells_nothing_of_the_spread() -> None:
    found = evaluation.mean_interval([1.0, 2.0], ["p", "p"])
    assert (found.value, found.low, found.high) == (1.5, -math.inf, math.inf)
    assert evaluation.paired_win_rate([0.0, 0, 0], [1.0, 1, -1], ["p"] * 3)[1:] == (0.0, 1.0)


def test_pair_accuracy_covers_one_half_for_a_judge_who_guesses() -> None:
    """All pairs of 40 pictures, scores unrelated to the truth: pairs share pictures, so a binomial interval would be
    far too narrow; the jackknife's must miss .5 in about 5 of 100 worlds (at most 11: 3 binomial sd)."""
    rng, misses = np.random.default_rng(2), 0
    a, b = np.triu_indices(40, 1)
    for _ in range(100):
        truth, score = rng.normal(size=(2, 40))
        correct = (truth[a] > truth[b]) == (score[a] > score[b])
        found = evaluation.pair_accuracy(correct.astype(float), a.tolist(), b.tolist())
        misses += not found.low <= 0.5 <= found.high
    assert misses <= 11


def test_pair_accuracy_without_pairs_or_clusters_claims_nothing() -> None:
    assert evaluation.pair_accuracy([], [], [])[1:] == (0.0, 1.0)
    assert evaluation.pair_accuracy([1.0], ["a"], ["b"])[1:] == (0.0, 1.0)


def test_diversity_is_the_mean_distance_within_a_prompt() -> None:
    """Prompt p: points 0 and 3 on a line, distance 3; prompt q: 10 and 11, distance 1; mean 2. Without groups:
    3, 10, 11, 7, 8, 1 over 6 pairs = 40/6."""
    features = torch.tensor([[0.0], [3], [10], [11]])
    assert evaluation.diversity(features, ["p", "p", "q", "q"]) == pytest.approx(2.0)
    assert evaluation.diversity(features) == pytest.approx(40 / 6)


def test_diversity_of_single_pictures_a_prompt_is_taken_over_all() -> None:
    features = torch.tensor([[0.0], [3], [10]])
    assert evaluation.diversity(features, ["p", "q", "r"]) == pytest.approx(20 / 3)
    assert math.isnan(evaluation.diversity(features[:1]))


def test_numbers_of_unequal_length_are_refused() -> None:
    for function in (evaluation.paired_difference, evaluation.paired_win_rate):
        with pytest.raises(ValueError, match="pairs need one of each"):
            function([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="clusters"):
        evaluation.mean_interval([1.0, 2.0], ["a"])


@pytest.mark.parametrize("won", [0.0, 0.5, 1.0])
def test_where_all_pairs_end_alike_prompts_are_counted_and_not_pictures(won: float) -> None:
    """5 prompts of 20 pictures: as sure as 5 pairs, by Wilson 5 of 5 from .566, and no surer with more of the same."""
    clusters = np.repeat(range(5), 20).tolist()
    found = evaluation.win_rate(np.full(100, won), clusters)
    assert found == pytest.approx(evaluation.wilson(5 * won, 5))
    assert evaluation.win_rate(np.full(100, won), list(range(100))) == pytest.approx(evaluation.wilson(100 * won, 100))
    assert evaluation.win_rate(np.full(20, won), ["p"] * 20)[1:] == (0.0, 1.0)
