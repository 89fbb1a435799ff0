"""Every objective learns a taste on numbers: pictures are two numbers, and people or a reward like the first one large.

The network starts as the ideal denoiser of N(0, 1); the mean of what it makes of pure noise is its mean picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from feedback_loop.diffusion.process import Process
from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.training.advantages import advantages
from feedback_loop.training.alarm import Measured, over_optimised
from feedback_loop.training.following import Follower
from feedback_loop.training.labels import pairs_to_train_on
from feedback_loop.training.loop import Plan, train
from feedback_loop.training.objectives import Batch, Nft, Objective, Sft
from feedback_loop.training.online import Epoch, OnlineSource, old_decay
from feedback_loop.training.policy_gradient import Awm, Draft, Ppo, StepBatch, step_log_prob
from feedback_loop.training.preferences import Dpo, Kto
from feedback_loop.training.runs import Run
from feedback_loop.training.sources import Example, ForwardSource
from feedback_loop.training.validation import LikedFit, RatingFit

from .small import CLEAN, NOISY, Policy, progress_of

PROCESS, PICTURES = Process("eps"), 256
LEVELS = (NOISY, 1.0, 0.3, 0.1, 0.0)


def ideal() -> Policy:
    """The correction that the ideal denoiser x / (1 + sigma^2) needs is none: the last layer is zero."""
    policy = Policy()
    with torch.no_grad():
        last = policy.adapters.layers[-1].get_base_layer()
        last.weight.zero_()
        last.bias.zero_()
    return policy


def sigma_at(u: Tensor) -> Tensor:
    return CLEAN * (NOISY / CLEAN) ** u


def mean_picture(policy: Policy) -> Tensor:
    """The mean clean estimate of pure noise at the noisiest level, two numbers."""
    x = NOISY * torch.randn(256, 1, 1, 2, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        return policy.denoise(x, torch.full((256,), NOISY), [1.0] * 256).mean((0, 1, 2))


def examples_of(objective: Objective, rating: Tensor, latents: Tensor) -> list[Example | tuple[Example, ...]]:
    if objective.pictures == 1:
        labels = objective.labels(rating).tolist()
        return [Example(x, "p", label) for x, label in zip(latents, labels, strict=True)]
    gaps = pairs_to_train_on(rating, ["p"] * len(rating), each=1)
    return [(Example(latents[g.chosen], "p", g.gap), Example(latents[g.rejected], "p", -g.gap)) for g in gaps]


@cache
def offline(kind: str, shuffled: bool) -> tuple[float, float]:
    """How far the mean picture moved in each number, after 200 steps on the ratings."""
    objective: Objective = {"SFT": Sft(), "NFT": Nft(beta=0.5), "DPO": Dpo(20.0), "KTO": Kto(20.0)}[kind]
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(PICTURES, 1, 1, 2, generator=generator)
    rating = latents[:, 0, 0, 0]
    rating = (rating - rating.mean()) / rating.std()
    if shuffled:
        rating = rating[torch.randperm(PICTURES, generator=generator)]
    policy = ideal()
    made = ForwardSource(examples_of(objective, rating, latents), {"p": 1.0, "": 0.0}, PROCESS, sigma_at, 32, seed=0)
    before, progress = mean_picture(policy), progress_of(policy)
    train(policy, made, objective, Plan(200, 1e-2), progress, lambda step: None)
    moved = (mean_picture(policy) - before).tolist()
    return moved[0], moved[1]


@pytest.mark.parametrize("kind", ["SFT", "NFT", "DPO", "KTO"])
def test_every_offline_objective_learns_from_ratings(kind: str) -> None:
    """By more than a third of a standard deviation in what is liked, and by less than half of that in the other."""
    liked, other = offline(kind, shuffled=False)
    assert liked > 0.35
    assert abs(other) < liked / 2


@pytest.mark.parametrize("kind", ["SFT", "NFT", "DPO", "KTO"])
def test_shuffled_ratings_give_no_gain(kind: str) -> None:
    """256 ratings without any meaning: what is left is their chance correlation of about 1 / 16, so less than a third
    of what the true ones give."""
    assert abs(offline(kind, shuffled=True)[0]) < offline(kind, shuffled=False)[0] / 3


def rolled(policy: Policy, number: int, window: int = 2, count: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures by the ancestral step from LEVELS, with the steps of the window and the last one as they were taken."""
    generator = torch.Generator().manual_seed(1000 + number)
    x = NOISY * torch.randn(count, 1, 1, 2, generator=generator)
    steps: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for i, (now, after) in enumerate(zip(LEVELS, LEVELS[1:], strict=False)):
            ones = torch.ones(count)
            d = policy.denoise(x, now * ones, [1.0] * count)
            step = ancestral_step(PROCESS, now, after)
            following = step.take(x, d, torch.randn(x.shape, generator=generator))
            told = {"x": x, "after": following, "d": d, "sigma": now * ones}
            told |= {"keep": step.keep * ones, "drift": step.pull * ones, "spread": step.noise * ones}
            if i < window or i == len(LEVELS) - 2:
                steps.append(told)
            x = following
    taken = {name: torch.stack([s[name] for s in steps], dim=1) for name in steps[0]}
    return x, taken


def builder(policy: Policy, objective: Objective) -> Callable[[Epoch, Tensor], Callable[[int], Batch]]:
    def build(epoch: Epoch, advantage: Tensor) -> Callable[[int], Batch]:
        labels, taken = objective.labels(advantage), epoch.tensors
        if isinstance(objective, Ppo):
            return lambda update: steps_of(taken, labels, update % 2)
        if isinstance(objective, Draft):
            x, sigma = taken["x"][:, -1], taken["sigma"][:, -1]
            ones = torch.ones(len(x))
            return lambda update: Batch(x, x, sigma, ones, ones, [1.0] * len(x))
        latents = taken["latents"]
        examples = [Example(v, "p", label) for v, label in zip(latents, labels.tolist(), strict=True)]
        seed = 1 + epoch.number
        return ForwardSource(examples, {"p": 1.0}, PROCESS, sigma_at, 64, seed, dropout=0.0, levels=4).batch_at

    return build


def steps_of(taken: dict[str, Tensor], labels: Tensor, at: int) -> StepBatch:
    now = {name: value[:, at] for name, value in taken.items() if name != "latents"}
    ones = torch.ones(len(labels))
    draft = StepBatch(
        now["x"], now["x"], now["sigma"], ones, labels, [1.0] * len(labels), now["after"], now["keep"], now["drift"],
        now["spread"], ones,
    )  # fmt: skip
    return StepBatch(**{**draft.__dict__, "log_prob": step_log_prob(now["d"], draft)})


Judge = Callable[[int, Epoch], str]


def quiet(policy: Policy) -> Judge:
    return lambda step, epoch: ""


def online(
    kind: str,
    reward: Callable[[Tensor], Tensor],
    folder: Path,
    epochs: int = 12,
    judge_of: Callable[[Policy], Judge] = quiet,
) -> tuple[Policy, list[float]]:
    """The policy after so many epochs of 64 pictures with 4 updates each, and each epoch's mean first number."""
    objective: Objective = {
        "NFT": Nft(kl=0.0, limit=5.0, old="old"),
        "AWM": Awm(kl=0.0),
        "PPO": Ppo(clip=0.2, kl=0.0),
        "DRaFT": Draft(lambda d, batch: reward(d), kl=0.0),
    }[kind]
    policy, means = ideal(), []

    def roll(number: int) -> Epoch:
        with policy.view("old" if "old" in objective.views else "theta"):
            x, taken = rolled(policy, number)
        means.append(float(x[:, 0, 0, 0].mean()))
        return Epoch(number, ["p"] * len(x), reward(x).tolist(), taken | {"latents": x})

    def advantages_of(epoch: Epoch) -> Tensor:
        scores: Sequence[float] = epoch.rewards
        return torch.ones(len(scores)) if kind == "DRaFT" else advantages(torch.tensor(scores), epoch.prompts)

    def begin(step: int) -> None:
        policy.adapters.follow(0.0 if kind == "AWM" else old_decay(step), step)

    made = OnlineSource(4, roll, advantages_of, builder(policy, objective), folder, begin, judge_of(policy))
    Follower(Run(folder / "run"), progress_of(policy), {}).follow(policy, made, objective, Plan(4 * epochs, 1e-2))
    return policy, means


def first(x: Tensor) -> Tensor:
    return x.flatten(1)[:, 0]


@pytest.mark.parametrize("kind", ["NFT", "AWM", "PPO", "DRaFT"])
def test_every_online_objective_raises_the_reward(kind: str, tmp_path: Path) -> None:
    """From a mean of 0 by a third of the pictures' own spread of 1, in 12 epochs of 64 pictures."""
    _, means = online(kind, first, tmp_path)
    assert abs(means[0]) < 0.3
    assert sum(means[-3:]) / 3 > means[0] + 0.33


@pytest.mark.parametrize("kind", ["NFT", "AWM", "PPO", "DRaFT"])
def test_a_constant_reward_changes_no_bit_online(kind: str, tmp_path: Path) -> None:
    policy, _ = online(kind, lambda x: 0.0 * first(x) + 0.7, tmp_path, epochs=3)
    trained, untouched = policy.parameters(), ideal().parameters()
    assert len(trained) == 6 and all(torch.equal(a, b) for a, b in zip(trained, untouched, strict=True))


def watching(liked: float, told: list[str]) -> Callable[[Policy], Judge]:
    """An alarm that watches the fit to 32 held-out points; liked: the side that was, 1 right, -1 left."""

    def judge_of(policy: Policy) -> Judge:
        points = torch.randn(32, 1, 1, 2, generator=torch.Generator().manual_seed(5))
        points[:, 0, 0, 0] = points[:, 0, 0, 0].abs() * torch.tensor([1.0, -1.0] * 16)
        examples = [Example(x, "p", liked * float(x[0, 0, 0].sign())) for x in points]
        source = ForwardSource(examples, {"p": 1.0, "": 0.0}, PROCESS, sigma_at, 32, 0)
        both, rewards = {"fit": RatingFit(policy, source), "liked": LikedFit(policy, source)}, []
        watched: dict[str, list[Measured]] = {name: [] for name in both}

        def judge(step: int, epoch: Epoch) -> str:
            rewards.append(Measured.of(epoch.rewards))
            for name, fit in both.items():
                one = Measured.of(fit())
                watched[name].append(Measured(one.mean, max(one.error, fit.least_error)))
            told.append(over_optimised(rewards, watched))
            return told[-1]

        return judge

    return judge_of


def test_the_alarm_rings_when_the_reward_rises_against_what_people_liked(tmp_path: Path) -> None:
    """The reward is to be on the right. Where people liked the left, the fit to their ratings falls and the run ends;
    where they liked the right, it rises and the run goes on to its end."""
    told: list[str] = []
    _, means = online("NFT", first, tmp_path / "left", judge_of=watching(-1.0, told))
    assert told[-1].startswith("Over-optimisation: the reward rose by") and "while fit fell" in told[-1]
    assert 3 <= len(means) < 12
    told.clear()
    _, means = online("NFT", first, tmp_path / "right", judge_of=watching(1.0, told))
    assert not any(told) and len(means) == 12
