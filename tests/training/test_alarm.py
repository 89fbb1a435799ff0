"""Which epoch's weights are handed out when a run is taken back, and how they are kept until then."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from feedback_loop.training.alarm import Measured, best_epoch, over_optimised, top
from feedback_loop.training.averages import Averages, is_kept


def series(means: Iterable[float], error: float = 0.1) -> list[Measured]:
    return [Measured(mean, error) for mean in means]


RISING = series(range(9))


@pytest.mark.parametrize(
    ("second", "epoch"),
    [
        ([1.0] * 9, 8),  # nothing fell: the highest reward
        ([1, 1, 1, 1, 1, 0, -1, -2, -3], 4),  # level, then it falls
        ([1, 2, 3, 4, 3, 2, 1, 0, -1], 3),  # it rises with the reward, and then falls
        ([8, 7, 6, 5, 4, 3, 2, 1, 0], 0),  # it falls from the first step on
        ([1, 1.1, 0.9, 1, 0.5, 1, 0.9, 1.1, 1], 8),  # one bad epoch is no fall
    ],
)
def test_the_weights_of_before_a_second_score_began_to_fall_are_the_best(second: list[float], epoch: int) -> None:
    """The reward rises all the time, so that its highest is always the last: what is chosen is the last that is not
    out, which can be read off the second score, written without noise."""
    assert best_epoch(RISING, {"second": series(second)}) == epoch


def test_a_fall_all_at_once_is_seen_too_early_and_never_too_late() -> None:
    """A step is no line: the corner of the one that fits it best lies before it."""
    for step in range(1, 7):
        second = series([1.0] * step + [-3.0] * (9 - step))
        assert best_epoch(RISING, {"second": second}) < step


def test_of_several_second_scores_the_first_to_fall_decides() -> None:
    early, late = series([1, 1, 1, 0, -1, -2, -3, -4, -5]), series([1, 1, 1, 1, 1, 1, 0, -1, -2])
    assert best_epoch(RISING, {"late": late, "early": early, "level": series([0.0] * 9)}) == 2
    assert best_epoch(RISING, {"late": late}) == 5


def test_the_reward_decides_between_what_the_others_allow() -> None:
    rewards = series([0, 1, 5, 2, 3, 9, 9, 9, 9])
    assert best_epoch(rewards, {"second": series([1, 1, 1, 1, 1, 0, -1, -2, -3])}) == 2
    assert best_epoch(rewards, {}) == 5


def test_an_epoch_that_lies_surely_below_the_first_is_out_also_in_a_run_too_short_for_the_alarm() -> None:
    """.1 * sqrt 2 = .14 is the error of a difference: -.2 may be noise and -.4 is none."""
    assert best_epoch(series([0, 1, 2]), {"second": series([0, -0.2, -0.4])}) == 1
    assert best_epoch(series([0, 1, 2]), {"second": series([0, -0.4, -0.4])}) == 0


@pytest.mark.parametrize(
    "second", [lambda epoch: -0.15 * epoch, lambda epoch: min(0.0, -0.3 * (epoch - 5)), lambda epoch: -0.02 * epoch**2]
)
def test_through_noise_what_is_handed_out_has_hardly_fallen(second: Callable[[int], float]) -> None:
    """A second score that falls from the start, from the sixth epoch on, or ever faster, with a standard error of .2 in
    each epoch. When the alarm rings, the weights of the highest reward have lost .5 or more of it; those that are
    chosen at most half of that error in every second run, and in nine of ten at most twice it."""
    rng, lost, hacked = random.Random(0), [], []
    for _ in range(100):
        noisy = series((rng.gauss(second(epoch), 0.2) for epoch in range(25)), 0.2)
        rewards = series(range(25))
        rang = next(n for n in range(6, 26) if over_optimised(rewards[:n], {"s": noisy[:n]}))
        lost.append(-second(best_epoch(rewards[:rang], {"s": noisy[:rang]})))
        hacked.append(-second(rang - 1))
    lost.sort()
    assert lost[49] <= 0.1 and lost[89] <= 0.4 and min(hacked) >= 0.5, (lost[49], lost[89], min(hacked))


def drawn(rng: random.Random, prompts: int) -> Measured:
    """A level score of four pictures of each prompt, half of whose variance is the prompts', as epochs measure it."""
    names, found = [], []
    for name in map(str, range(prompts)):
        easy = rng.gauss(0, 0.5**0.5)
        names += [name] * 4
        found += [easy + rng.gauss(0, 0.5**0.5) for _ in range(4)]
    return Measured.of(found, names)


@pytest.mark.parametrize(
    ("one", "most"),
    [
        (lambda rng: Measured(rng.gauss(0, 0.2), 0.2), 0.04),
        (lambda rng: drawn(rng, 8), 0.07),
        (lambda rng: drawn(rng, 4), 0.11),
    ],
    ids=["known errors", "eight prompts", "four prompts"],
)
def test_without_any_change_few_runs_of_twenty_epochs_ring(
    one: Callable[[random.Random], Measured], most: float
) -> None:
    """300 runs whose reward rises all the time, asked in every epoch. The rates are about .013, .033 and .067; the
    bounds are three binomial standard errors above. 3 in place of 3.5 standard errors breaks them."""
    rng, rewards, rang = random.Random(1), series(range(20)), 0
    for _ in range(300):
        level = [one(rng) for _ in range(20)]
        rang += any(over_optimised(rewards[:n], {"s": level[:n]}) for n in range(2, 21))
    assert rang / 300 <= most, rang / 300


def test_a_clear_fall_rings_in_the_third_epoch_and_one_bad_epoch_does_not() -> None:
    """.1 * sqrt 2 = .14 is the error of a difference, so that .5 is more than three of it."""
    assert "fell by 0.5 " in over_optimised(RISING[:3], {"second": series([1, 0.5, 0.4])})
    assert over_optimised(RISING[:3], {"second": series([1, 0.5, 0.9])}) == ""
    assert over_optimised(RISING[:2], {"second": series([1, 0.0])}) == ""
    assert over_optimised(RISING[2::-1], {"second": series([1, 0.5, 0.4])}) == ""  # no rise, nothing bought with it


def test_the_top_is_not_the_luckiest_epoch() -> None:
    """Level with one epoch that stands out, then a straight fall: the corner is where the lines meet."""
    assert top(series([0, 0, 1, 0, 0, 0, -2, -4, -6])) in (4, 5)


def values(number: int) -> list[torch.Tensor]:
    return [torch.full((2, 3), float(number)), torch.full((1,), -float(number))]


def test_the_weights_of_an_epoch_come_back_or_those_of_one_shortly_before(tmp_path: Path) -> None:
    """The first and the last eight are all there; older ones the longer, the rounder their number."""
    kept = Averages(tmp_path / "averages", "this run")
    for number in range(40):
        kept.keep(number, values(number))
    for asked, there in ((0, 0), (39, 39), (32, 32), (31, 30), (17, 16), (15, 12), (11, 8), (7, 0), (100, 39)):
        found = kept.last_until(asked)
        assert found is not None and found[0] == there
        assert all(torch.equal(a, b) for a, b in zip(found[1], values(there), strict=True))
    assert len(list((tmp_path / "averages").iterdir())) <= 8 + 4 * 3


def test_no_epoch_is_further_off_than_a_third_of_its_age() -> None:
    for newest in range(0, 400, 7):
        there = [number for number in range(newest + 1) if is_kept(number, newest)]
        for number in range(newest + 1):
            off = number - max(n for n in there if n <= number)
            assert off <= (newest - number) / 3


def test_weights_of_another_run_are_not_taken(tmp_path: Path) -> None:
    Averages(tmp_path, "another").keep(0, values(0))
    assert Averages(tmp_path, "this").last_until(5) is None
    assert Averages(tmp_path / "nothing", "this").last_until(5) is None
