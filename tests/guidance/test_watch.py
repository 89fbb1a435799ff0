"""A run that does nothing, one that does too much, and one whose gain another judge does not see, are told apart."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.guidance.watch import Look, Watch, curve, statistics


def pictures(count=6, contrast=0.2, seed=0):
    """Grey-ish noise: saturation and detail grow with the contrast."""
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (0.5 + contrast * 0.2 * noise).clamp(0, 1)


def look(step, count, room=1.0, stride=0.6):
    return Look(
        (step + 1) / 8, torch.arange(count) + float(step), torch.full((count,), room), torch.full((count,), stride)
    )


def seen(images, room=1.0, plain=None, steps=5, stride=0.6):
    watch = Watch(None if plain is None else statistics(plain))
    for step in range(steps):
        watch.see(look(step, len(images), room, stride))
    watch.made = statistics(images)
    return watch


def test_a_good_run_is_silent():
    assert seen(pictures(seed=1), plain=pictures()).problems() == []
    assert seen(pictures(seed=1)).problems() == []


@pytest.mark.parametrize("quiet_steps, said", [(3, False), (4, True)])
def test_a_reward_without_a_slope_in_four_of_five_steps_does_nothing(quiet_steps, said):
    watch = seen(pictures(), room=0.01, steps=quiet_steps)
    for step in range(quiet_steps, 5):
        watch.see(look(step, 6))
    assert any("next to nothing" in problem for problem in watch.problems()) is said


@pytest.mark.parametrize("stride, said", [(0.6, False), (0.75, True)])
def test_steps_longer_than_the_models_doubt_are_too_long(stride, said):
    """Strength 1 makes steps of .6 standard deviations of x0 given x, strength 1.25 of .75."""
    assert any("Lower the strength" in problem for problem in seen(pictures(), stride=stride).problems()) is said


def test_pictures_beyond_the_range_of_plain_ones_are_named_with_the_side():
    """Ten times the contrast is far above what the plain pictures have; a flat grey is below."""
    above, below = (seen(pictures(contrast=c), plain=pictures()).problems() for c in (2.0, 0.0))
    assert len(above) == 1 and "saturation of 100% of the pictures is above" in above[0]
    assert len(below) == 1 and "is below what unsteered ones have" in below[0]


def test_one_picture_of_six_beyond_the_range_is_no_reason_to_warn():
    images = pictures(seed=1)
    images[0] = pictures(1, contrast=2.0)[0]
    assert seen(images, plain=pictures()).problems() == []


@pytest.mark.parametrize("fall, said", [(0.2, False), (2.0, True)])
def test_a_second_reward_that_falls_by_more_than_chance_is_told(fall, said):
    """Six and six scores of deviation 1: the standard error of the difference is about .58, twice that 1.15."""
    watch, scores = seen(pictures()), torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    watch.judged = (scores - fall, scores)
    assert bool(watch.problems()) is said
    watch.judged = (scores + fall, scores)
    assert watch.problems() == []


def test_a_run_without_a_steered_step_says_so():
    assert "No step was steered" in Watch().problems()[0]


def test_the_curve_holds_lowest_mean_and_highest_of_each_step():
    assert curve(seen(pictures(3), steps=2).looks) == [(0.125, 0.0, 1.0, 2.0), (0.25, 1.0, 2.0, 3.0)]


def test_several_looks_at_one_share_of_a_run_are_one_point_of_the_curve():
    """Heun asks twice at most noise levels, and of eight particles four go at a time: no run gets longer by that. Looks
    of a run that was sent back stand where they belong."""
    looks = [look(step, 2) for step in (0, 1, 1, 0)] + [Look(0.125, torch.tensor([8.0]), torch.ones(1), torch.ones(1))]
    assert curve(looks) == [(0.125, 0.0, 2.0, 8.0), (0.25, 1.0, 1.5, 2.0)]
