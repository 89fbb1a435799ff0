"""A policy of three linear layers and rated numbers for it: what the tests of the loop and of whole runs train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feedback_loop.diffusion.process import Process, per_sample
from feedback_loop.training.adapters import Adapters, MovingAverage
from feedback_loop.training.following import Follower
from feedback_loop.training.loop import Plan
from feedback_loop.training.objectives import Batch, Objective, Sft, View
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
) -> tuple[Follower, Policy, OldFollows, Objective, Plan]:
    """A run of `steps` steps that keeps an old view too, saved every `every` steps; between: called before each."""
    policy = Policy()
    policy.adapters.follow(0.0)
    run = Run(folder, every_steps=every, every_minutes=1e9)
    made = OldFollows(policy, source(torch.linspace(0, 2, 12)), between)
    return Follower(run, progress_of(policy), {"steps": steps}), policy, made, Sft(), Plan(steps, 1e-2)
