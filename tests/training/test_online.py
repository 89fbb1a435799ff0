"""Training on one's own pictures: what an epoch is, when the old view follows, the alarm, and nothing lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from feedback_loop.training.alarm import Measured, over_optimised
from feedback_loop.training.following import Follower
from feedback_loop.training.loop import EndOfRun, Plan
from feedback_loop.training.objectives import Batch, Nft
from feedback_loop.training.online import Epoch, OnlineSource, old_decay, prompts_of_epoch, seeds_of_epoch
from feedback_loop.training.runs import Run

from .small import Policy, progress_of, source


def epoch(number: int, rewards: Sequence[float]) -> Epoch:
    latents = torch.randn(len(rewards), 1, 1, 2, generator=torch.Generator().manual_seed(number))
    return Epoch(number, ["p"] * len(rewards), list(rewards), {"latents": latents}, {"second": [0.5] * len(rewards)})


def online(folder: Path, told: list[Any], rewards: Sequence[float] = (0.0, 1.0), **more: Any) -> OnlineSource:
    """Three updates an epoch; `told` hears of all that happens."""

    def roll(number: int) -> Epoch:
        told.append(("roll", number))
        return epoch(number, rewards)

    def build(made: Epoch, advantage: Tensor) -> Callable[[int], Batch]:
        told.append(("build", made.number))
        inner = source(0.5 + advantage / 2, batch=2, seed=made.number)
        return inner.batch_at

    def advantages_of(made: Epoch) -> Tensor:
        rewards = torch.tensor(made.rewards)
        return (rewards - rewards.mean()).sign()

    hooks = {"begin": lambda step: told.append(("begin", step)), "judge": lambda step, made: told.append("judge") or ""}
    return OnlineSource(3, roll, advantages_of, build, folder, **(hooks | more))


def test_an_epoch_is_begun_rolled_and_judged_once_and_trained_on_for_its_updates(tmp_path: Path) -> None:
    """The old view follows first: it is the one that draws."""
    told: list[Any] = []
    made = online(tmp_path, told)
    for step in range(4):
        assert made.batch_at(step) is not None
    first = [("begin", 0), ("roll", 0), "judge", ("build", 0)]
    assert told == [*first, ("begin", 3), ("roll", 1), "judge", ("build", 1)]


def test_no_scored_picture_is_lost_or_made_twice(tmp_path: Path) -> None:
    """A source that goes on in the middle of epoch 1 rolls nothing and does not let the old view follow again."""
    told: list[Any] = []
    made = online(tmp_path, told)
    expected = [made.batch_at(step) for step in range(6)]
    again: list[Any] = []
    resumed = online(tmp_path, again)
    for step in (4, 5):
        batch, before = resumed.batch_at(step), expected[step]
        assert batch is not None and before is not None and torch.equal(batch.x, before.x)
    assert again == [("build", 1)]


def test_after_a_setback_other_pictures_are_made_and_the_old_ones_kept(tmp_path: Path) -> None:
    setbacks = [0]
    told: list[Any] = []
    made = online(tmp_path, told, setbacks=lambda: setbacks[0])
    made.batch_at(0)
    setbacks[0] = 1
    made.batch_at(0)
    assert told.count(("roll", 0)) == 2 and len(list(tmp_path.glob("epoch-*"))) == 2


def test_an_epoch_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = epoch(3, [0.1, 0.7])
    made.save(tmp_path / "a.safetensors")
    read = Epoch.load(tmp_path / "a.safetensors")
    assert (read.number, list(read.prompts), list(read.rewards)) == (3, ["p", "p"], [0.1, 0.7])
    assert read.watched == {"second": [0.5, 0.5]} and torch.equal(read.tensors["latents"], made.tensors["latents"])


def drawn_and_scored(folder: Path, told: list[Any], rewards: Sequence[float], mark: str = "") -> OnlineSource:
    """Pictures that are never drawn alike twice, scored apart from that."""

    def roll(number: int) -> Epoch:
        told.append("drawn")
        return replace(epoch(number, []), prompts=["p", "p"], tensors={"latents": torch.randn(2, 1, 1, 2)}, watched={})

    def score(made: Epoch) -> Epoch:
        told.append(made.tensors["latents"])
        return replace(made, rewards=rewards)

    return replace(online(folder, []), roll=roll, score=score, mark=mark)


class Cut(BaseException):
    pass


def test_pictures_are_kept_before_they_are_scored(tmp_path: Path) -> None:
    """Cut off while people look at them: the same pictures are scored when the run goes on."""

    class Nobody(list[float]):
        def __iter__(self) -> Any:
            raise Cut

    told: list[Any] = []
    with pytest.raises(Cut):
        drawn_and_scored(tmp_path, told, Nobody([0.0, 1.0])).batch_at(0)
    assert drawn_and_scored(tmp_path, told, [0.0, 1.0]).batch_at(0) is not None
    assert told[0] == "drawn" and len(told) == 3 and torch.equal(told[1], told[2])
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00000-0.safetensors"]


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_score_that_is_no_number_is_not_kept(tmp_path: Path, broken: float) -> None:
    """The run can go on once the reward is mended, with the same pictures."""
    told: list[Any] = []
    with pytest.raises(ValueError, match="1 of 2 scores by the reward are not a number.*scored again"):
        drawn_and_scored(tmp_path, told, [0.0, broken]).batch_at(0)
    assert drawn_and_scored(tmp_path, told, [0.0, 1.0]).batch_at(0) is not None
    assert len(told) == 3 and torch.equal(told[1], told[2])


def test_pictures_of_another_run_in_the_same_folder_are_not_taken(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint leaves its pictures; one of other settings makes its own."""
    told: list[Any] = []
    drawn_and_scored(tmp_path, told, [0.0, 1.0], "one").batch_at(0)
    drawn_and_scored(tmp_path, told, [0.0, 1.0], "one").batch_at(0)
    assert len(told) == 2
    drawn_and_scored(tmp_path, told, [0.0, 1.0], "other").batch_at(0)
    assert len(told) == 4 and not torch.equal(told[1], told[3])


def test_a_judge_that_says_why_ends_the_run_after_whole_steps(tmp_path: Path) -> None:
    made = online(tmp_path, [], judge=lambda step, made: "enough" if step == 3 else "")
    assert made.batch_at(2) is not None
    with pytest.raises(EndOfRun, match="enough"):
        made.batch_at(3)


def test_a_constant_reward_leaves_every_parameter_bit_equal(tmp_path: Path) -> None:
    """No advantage, no batch: six steps are taken and nothing moves, not even Adam's moments."""
    policy = Policy()
    policy.adapters.follow(0.0)
    before, progress = policy.state(), progress_of(policy)
    follower = Follower(Run(tmp_path / "run"), progress, {})
    follower.follow(policy, online(tmp_path, [], rewards=(0.7, 0.7)), Nft(old="old"), Plan(6, 1e-2))
    assert progress.step == 6 and not progress.optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(policy.state(), before, strict=True))


def test_every_prompt_comes_once_before_any_comes_twice_in_groups() -> None:
    prompts = [str(i) for i in range(6)]
    epochs = [prompts_of_epoch(prompts, number, 4, 3, seed=0) for number in range(3)]
    assert all(len(each) == 12 and each[0] == each[1] == each[2] for each in epochs)
    assert Counter(p for each in epochs for p in each) == {prompt: 6 for prompt in prompts}
    assert epochs == [prompts_of_epoch(prompts, number, 4, 3, seed=0) for number in range(3)]
    assert epochs != [prompts_of_epoch(prompts, number, 4, 3, seed=1) for number in range(3)]


def test_no_seed_comes_twice_in_a_run() -> None:
    seeds = [seed for number in range(50) for seed in seeds_of_epoch(number, 32, seed=7)]
    assert len(set(seeds)) == 1600


def test_the_old_view_lags_more_and_more() -> None:
    """min(.5, .001 * step)."""
    assert [old_decay(step) for step in (0, 100, 400, 900)] == [0.0, 0.1, 0.4, 0.5]


def series(means: Iterable[float], error: float = 0.1) -> list[Measured]:
    return [Measured(mean, error) for mean in means]


RISING = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_the_alarm_goes_off_when_the_second_score_falls_while_the_first_rises() -> None:
    """Best at epochs 1-3 with mean 5, last three with mean 1: a fall of 4 over an error of .1 * sqrt(2 / 3)."""
    text = over_optimised(series(RISING), {"second": series([4, 5, 5, 5, 2, 1, 0])})
    assert "Over-optimisation: the reward rose by 3 while second fell by 4" in text


@pytest.mark.parametrize(
    ("rewards", "second", "error"),
    [
        (RISING, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.1),  # both rise
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [5.0, 5.0, 5.0, 2.0, 1.0, 1.0, 0.0], 0.1),  # both fall: training failed
        (RISING, [5.0, 5.0, 5.0, 4.9, 4.9, 4.9, 4.9], 0.1),  # within the error
        (RISING, [5.0, 5.0, 5.0, 2.0, 1.0, 1.0, 0.0], 9.0),  # too noisy to tell
        (RISING[:5], [5.0, 5.0, 5.0, 5.0, 0.0], 0.1),  # too early to tell: one epoch alone
    ],
)
def test_the_alarm_stays_quiet_without_cause(rewards: list[float], second: list[float], error: float) -> None:
    assert over_optimised(series(rewards, error), {"second": series(second, error)}) == ""


def test_noise_alone_seldom_sets_off_the_alarm() -> None:
    """200 runs of 20 epochs whose reward rises and whose second score only fluctuates about 0 with its standard error:
    at most one in ten rings, although each run is asked 15 times and compares with its best."""
    rng, rang = random.Random(0), 0
    for _ in range(200):
        means = [rng.gauss(0, 0.1) for _ in range(20)]
        asked = (over_optimised(series(range(n)), {"s": series(means[:n])}) for n in range(6, 21))
        rang += any(asked)
    assert 0 < rang <= 20


def test_a_fall_that_is_real_is_seen_through_the_same_noise() -> None:
    """The second score falls by .05 an epoch, half of its standard error, under a rising reward: every run rings."""
    rng = random.Random(0)
    for _ in range(100):
        means = [rng.gauss(-0.05 * epoch, 0.1) for epoch in range(20)]
        assert any(over_optimised(series(range(n)), {"s": series(means[:n])}) for n in range(6, 21))


def test_an_epochs_mean_has_its_standard_error() -> None:
    """1, 3: mean 2, standard deviation sqrt 2, of two pictures 1."""
    assert Measured.of([1.0, 3.0]) == Measured(2.0, pytest.approx(1.0))
    assert Measured.of([4.0]) == Measured(4.0, 0.0)


def test_pictures_of_one_prompt_are_no_evidence_of_others() -> None:
    """Two prompts at 0 and 1 with four equal pictures each: the error of two numbers, sqrt(.5 / 2) = .5, not of eight.
    Where pictures of a prompt differ and prompts do not, it is that of eight pictures."""
    prompts = ["a"] * 4 + ["b"] * 4
    assert Measured.of([0.0] * 4 + [1.0] * 4, prompts).error == pytest.approx(0.5)
    assert Measured.of([0.0, 1.0] * 4, prompts).error == pytest.approx((2 / 7 / 8) ** 0.5)
    assert Measured.of([0.0, 1.0], ["a", "a"]) == Measured.of([0.0, 1.0])
