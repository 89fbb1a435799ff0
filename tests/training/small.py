"""A policy of three linear layers and rated numbers for it: what the tests of the loop and of whole runs train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feedback_loop.diffusion.process import Process, per_sample
from feedback_loop.training.adapters import Adapters, MovingAverage
from feedback_loop.training.following import Follower
from feedback_loop.training.loop import Plan
from feedback_loop.training.objectives import Batch, Nft, Objective, Sft, View
from feedback_loop.training.online import Epoch, OnlineSource
from feedback_loop.training.progress import Progress
from feedback_loop.training.runs import Run
from feedback_loop.training.sources import Example, ForwardSource

CLEAN, NOISY = 0.05, 3.0


class Policy:
    """D = x / (1 + sigma^2) + a small network of (x, sigma, condition): latents are (1, 1, 2)."""

    def __init__(self, seed: int = 0, limit: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))
        self.adapters = Adapters(self.network, rank=8, seed=seed)
        self.limit, self.sizes = limit, []

    def denoise(self, x: Tensor, sigma: Tensor, cond: Sequence[Any]) -> Tensor:
        self.sizes.append(len(x))
        if self.limit is not None and len(x) > self.limit:
            raise torch.OutOfMemoryError("as a device says that has room for fewer")
        told = torch.tensor([[float(c)] for c in cond])
        seen = torch.cat([x.flatten(1) / (1 + sigma**2).sqrt()[:, None], sigma.log()[:, None] / 2, told], dim=1)
        return x / per_sample(1 + sigma**2, x) + self.network(seen).reshape(x.shape)

    def view(self, name: View) -> AbstractContextManager[None]:
        return self.adapters.view(name)

    def parameters(self) -> list[nn.Parameter]:
        return self.adapters.parameters()

    def state(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.network.parameters()]


def source(labels: Tensor, batch: int = 6, seed: int = 0) -> ForwardSource:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(len(labels), 1, 1, 2, generator=generator)
    examples = [Example(x, "p", label) for x, label in zip(latents, labels.tolist(), strict=True)]
    return ForwardSource(
        examples, {"p": 1.0, "": 0.0}, Process("eps"), lambda u: CLEAN * (NOISY / CLEAN) ** u, batch, seed
    )


def progress_of(policy: Policy) -> Progress:
    return Progress(policy.parameters(), MovingAverage(policy.parameters()), policy.adapters)


class OldFollows:
    """A source before each of whose batches the old view follows theta, as it does online."""

    def __init__(self, policy: Policy, made: ForwardSource, between: Callable[[], None]) -> None:
        self.policy, self.made, self.between = policy, made, between

    def batch_at(self, step: int) -> Batch:
        self.between()
        self.policy.adapters.follow(0.9)
        return self.made.batch_at(step)


def follower_of(
    folder: Path, every: int, between: Callable[[], None] = lambda: None, steps: int = 20
) -> tuple[Follower, Policy, OldFollows | OnlineSource, Objective, Plan]:
    """A run of `steps` steps that keeps an old view too, saved every `every` steps; between: called before each."""
    policy = Policy()
    policy.adapters.follow(0.0)
    run = Run(folder, every_steps=every, every_minutes=1e9)
    made = OldFollows(policy, source(torch.linspace(0, 2, 12)), between)
    return Follower(run, progress_of(policy), {"steps": steps}), policy, made, Sft(), Plan(steps, 1e-2)


UPDATES = 3
"""Steps an epoch of `online_of`."""


@dataclass
class Drawn:
    """What the policy draws itself, in its old view: eight points an epoch, of which those further right are better."""

    policy: Policy
    follower: Follower

    def roll(self, number: int) -> Epoch:
        x = NOISY * torch.randn(8, 1, 1, 2, generator=torch.Generator().manual_seed(number))
        with torch.no_grad(), self.policy.view("old"):
            for sigma, after in ((NOISY, 1.0), (1.0, 0.0)):
                d = self.policy.denoise(x, sigma * torch.ones(8), [1.0] * 8)
                x = x + (x - d) / sigma * (after - sigma)
        return Epoch(number, ["p"] * 8, [], {"latents": x})

    def score(self, epoch: Epoch) -> Epoch:
        return replace(epoch, rewards=epoch.tensors["latents"][:, 0, 0, 0].tolist())

    def advantages_of(self, epoch: Epoch) -> Tensor:
        rewards = torch.tensor(epoch.rewards)
        return (rewards - rewards.mean()) / rewards.std()

    def build(self, epoch: Epoch, advantage: Tensor) -> Callable[[int], Batch]:
        labels = Nft().labels(advantage).tolist()
        examples = [Example(x, "p", label) for x, label in zip(epoch.tensors["latents"], labels, strict=True)]
        return replace(source(advantage), examples=examples, seed=epoch.number).batch_at

    def judge(self, step: int, epoch: Epoch) -> str:
        """Notes the epoch once, and keeps the weights if it is the best."""
        history, mean = self.follower.history, sum(epoch.rewards) / len(epoch.rewards)
        if all(seen["number"] != epoch.number for seen in history.epochs):
            history.epochs.append({"number": epoch.number, "step": step, "reward": [mean, 0.0]})
            self.follower.judge(step, -mean, 0)
        return ""


def online_of(
    folder: Path, every: int, between: Callable[[], None] = lambda: None, steps: int = 12
) -> tuple[Follower, Policy, OldFollows | OnlineSource, Objective, Plan]:
    """A run on its own pictures, whose old view draws and follows; between: called before each epoch is drawn."""
    policy = Policy()
    follower = Follower(Run(folder, every_steps=every, every_minutes=1e9), progress_of(policy), {"online": steps})
    drawn = Drawn(policy, follower)

    def begin(step: int) -> None:
        between()
        policy.adapters.follow(0.5, step)

    made = OnlineSource(
        UPDATES, drawn.roll, drawn.advantages_of, drawn.build, folder / "rollouts", begin, drawn.judge,
        lambda: follower.progress.setbacks, drawn.score, "a run",
    )  # fmt: skip
    return follower, policy, made, Nft(kl=0.0, old="old"), Plan(steps, 1e-2)
