"""Search over starting noise: its costs, its choices, and what it finds where that is known."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.guidance.search import Best, Stage, affordable, cost, kept, mixed, neighbour, promising, stages


def test_eight_candidates_cost_four_point_eight_runs():
    """8 * 50 % + 3 * 15 % + 1 * 35 % = 4.8 of a run: 96 steps of 20."""
    assert stages(8, 20, True) == [Stage(8, 10), Stage(3, 13), Stage(1, 20)]
    assert cost(stages(8, 20, True)) == 96
    assert cost(stages(8, 20, False)) == 160


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16, 50])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20])
def test_stages_go_on_to_the_end_with_ever_fewer(count, steps):
    planned = stages(count, steps, True)
    assert planned[0].count == count and planned[-1].steps == steps
    for before, after in zip(planned, planned[1:], strict=False):
        assert after.count < before.count and after.steps > before.steps
    assert cost(planned) <= cost(stages(count, steps, False))


def test_a_budget_buys_the_most_candidates_that_fit():
    """20 steps: 1 candidate costs 20, 2 cost 2*10+10 = 30, 3 cost 3*10+10 = 40, 8 cost 96; at two evaluations a step
    twice that."""
    once, twice = range(21), range(0, 41, 2)
    assert [affordable(8, True, budget, once) for budget in (19, 20, 30, 40, 95, 96, 999)] == [0, 1, 2, 3, 7, 8, 8]
    assert affordable(8, True, 80, twice) == 3
    assert affordable(8, False, 60, once) == 3


def test_a_cost_counts_what_each_step_asks():
    """Heun's four steps ask 2, 2, 2 and 1 times, and the estimate of a step is its first answer: by the end of step k
    2k - 1 were asked, 7 of the whole. Three candidates for two steps and one to the end: 3*3 + 1*(7-3) = 13."""
    assert cost([Stage(3, 2), Stage(1, 4)], [0, 1, 3, 5, 7]) == 13


def test_pictures_are_promising_once_each_has_a_good_estimate_or_is_good_already():
    """Of two pictures the first has a good estimate from candidate 1; the second none, until its best is good."""
    estimates, zeros = torch.tensor([[0.0, 0.3], [2.0, float("nan")]]), torch.zeros(2, 1, 1, 1)
    best = Best(zeros, zeros, torch.tensor([0.0, 1.0]))
    assert promising(estimates, None, 1.0) is None and promising(estimates, best, None) is None
    chosen = promising(estimates, best, 1.0)
    assert chosen is not None and chosen.tolist() == [1, 0]


def test_each_picture_keeps_its_own_best_and_no_number_is_never_kept():
    nan = float("nan")
    scores = torch.tensor([[1.0, nan], [3.0, 0.5], [2.0, nan]])
    assert kept(scores, 2).tolist() == [[1, 1], [2, 0]]
    candidates = [torch.full((2, 1, 2, 2), float(k)) for k in range(3)]
    assert mixed(candidates, torch.tensor([1, 2])).flatten(1)[:, 0].tolist() == [1, 2]


def test_a_neighbour_is_as_white_as_the_noise_and_correlated_by_the_cosine():
    """cos^2 + sin^2 = 1 keeps the variance; 100,000 numbers have a standard error of .0032 for the correlation."""
    generator = torch.Generator().manual_seed(0)
    z, fresh = torch.randn(2, 100000, generator=generator)
    near = neighbour(z, fresh, 0.95)
    assert near.var().item() == pytest.approx(1, abs=0.02)
    assert (near * z).mean().item() == pytest.approx(0.95, abs=0.02)
    assert torch.equal(neighbour(z, fresh, 1.0), z) and torch.equal(neighbour(z, fresh, 0.0), fresh)


def test_only_pictures_that_got_better_are_replaced():
    zeros, ones = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    best = Best(zeros, zeros, torch.tensor([1.0, 1.0])).improved(ones, ones, torch.tensor([2.0, 0.5]))
    assert best.scores.tolist() == [2.0, 1.0]
    assert best.noise[:, 0, 0, 0].tolist() == [1, 0] and best.latents[:, 0, 0, 0].tolist() == [1, 0]


def test_a_threshold_is_reached_when_every_picture_is_there():
    zeros = torch.zeros(2, 1, 1, 1)
    best = Best(zeros, zeros, torch.tensor([1.0, 0.9]))
    assert not best.reached(None) and not best.reached(1.0) and best.reached(0.9)


def test_rounds_around_the_best_climb_where_more_of_the_same_would_not():
    """Reward <a, z> over unit noise in 64 dimensions, |a| = 1: the best of 8 has 1.42 on average, the best of 48
    2.22. Six rounds of 8, each near the best (cos .95, sin .31), add up to .31 * 1.42 a round less 5 % of what
    there is: r -> .95 r + .44, from 1.42 to about 2.9, more than any 48 fresh ones."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(64)
    direction[0] = 1.0
    found = []
    for _ in range(200):
        best = torch.randn(8, 64, generator=generator)
        best = best[(best @ direction).argmax()]
        for _ in range(5):
            others = neighbour(best, torch.randn(8, 64, generator=generator), 0.95)
            pool = torch.cat([best.unsqueeze(0), others])
            best = pool[(pool @ direction).argmax()]
        found.append(float(best @ direction))
    fresh = torch.randn(200, 48, generator=generator).amax(1).mean().item()
    assert fresh == pytest.approx(2.22, abs=0.1)
    assert sum(found) / 200 > fresh + 0.4
