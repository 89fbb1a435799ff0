"""Where training examples come from: rated pictures, noised by the model's own forward process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..diffusion.process import Process
from .objectives import Batch

SigmaAt = Callable[[Tensor], Tensor]
"""Uniform numbers (B,) in 0..1 -> noise levels (B,), 1 the noisiest: the model's own training distribution."""

# One stream of random numbers for each purpose, so that a change in one leaves the others as they were.
SHUFFLE, NOISE, SIGMA, DROPOUT = 1, 2, 3, 4


class NoPreferenceError(ValueError):
    """The ratings do not say what is better than what."""


def standardise(values: Tensor, groups: Sequence[str], own: int = 16) -> Tensor:
    """Ratings (N,) -> z-scores (N,): in a group (prompt) of `own` or more by its own mean and spread, else by all's.

    A group's spread counts for at least a tenth of that of all, so that noise in a group of equals is not blown up.
    Raises NoPreferenceError when all ratings are the same.
    """
    values = values.double()
    spread = values.std(correction=0)
    if len(values) < 2 or spread < 1e-6:
        raise NoPreferenceError(
            f"All {len(values)} ratings are the same, so they do not say what is better: "
            "rate some pictures higher and some lower."
        )
    z = (values - values.mean()) / spread
    for members in _members(groups).values():
        if len(members) >= own:
            chosen = values[members]
            z[members] = (chosen - chosen.mean()) / chosen.std(correction=0).clamp_min(0.1 * spread)
    return z.float()


def _members(groups: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return found


def timestep_weight(process: Process, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556) for eps and v: kappa times it is min(1 / sigma^2, gamma).

    sigma: (B,) -> (B,). EDM and flow models weigh by how often a sigma is drawn (`sigma_of_kind`), so they get 1.
    """
    if process.kind not in ("eps", "v"):
        return torch.ones_like(sigma)
    snr = sigma.float() ** -2
    native = snr if process.kind == "eps" else snr + 1
    return snr.clamp_max(gamma) / native


def logit_normal(u: Tensor) -> Tensor:
    """Uniform u in 0..1 -> sigmoid(N(0, 1)), how flow models draw their time (Esser et al. 2024, arXiv:2403.03206)."""
    return torch.special.ndtri(u).sigmoid()


def log_normal(u: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Uniform u in 0..1 -> exp(N(mean, std^2)), how EDM models draw sigma (Karras et al. 2022, arXiv:2206.00364)."""
    return (mean + std * torch.special.ndtri(u)).exp()


@dataclass(frozen=True)
class Example:
    """A clean latent (C, *spatial) in model space, its prompt, and what the objective made of its rating."""

    latent: Tensor
    prompt: str
    label: float


Group = tuple[Example, ...]
"""Pictures that a loss is about together, with one noise, one noise level and one fate of their captions: one picture,
or the chosen and the rejected one of a pair."""


@dataclass(frozen=True)
class ForwardSource:
    """Rated pictures with fresh noise: `x = a(sigma) x0 + s(sigma) n`, whichever sampler made them.

    `batch_at(step)` is a function of the step and the seed alone, so a resumed run sees what it would have seen. Each
    picture (or pair of pictures, given as a tuple) comes once before any comes twice; a batch holds `batch` of them,
    latents of one size. conds: prompt -> condition, with "" where dropout > 0: that share of the captions is dropped,
    so that guidance by CFG goes on working. levels: noise levels that each picture of a batch is seen at.
    """

    examples: Sequence[Example | Group]
    conds: Mapping[str, object]
    process: Process
    sigma_at: SigmaAt
    batch: int
    seed: int
    dropout: float = 0.1
    levels: int = 1

    def __post_init__(self) -> None:
        if not self.examples:
            raise NoPreferenceError("There is no rated picture to train on.")
        groups = [e if isinstance(e, tuple) else (e,) for e in self.examples]
        missing = {e.prompt for group in groups for e in group} | ({""} if self.dropout else set())
        if missing := missing - set(self.conds):
            raise KeyError(f"No condition for the prompt {sorted(missing)[0]!r}.")
        object.__setattr__(self, "_groups", groups)
        object.__setattr__(self, "_epoch", lru_cache(maxsize=1)(self._plan))

    @property
    def groups(self) -> list[Group]:
        return self._groups  # type: ignore[attr-defined]

    def batch_at(self, step: int) -> Batch:
        """The batch of that step, counted from 0."""
        length = self.steps_in_epoch()
        chosen = [self.groups[i] for i in self._epoch(step // length)[step % length]]  # type: ignore[attr-defined]
        return self._noised([group for group in chosen for _ in range(self.levels)], step)

    def _noised(self, chosen: Sequence[Group], step: int) -> Batch:
        together, flat = len(chosen[0]), [e for group in chosen for e in group]
        x0 = torch.stack([e.latent for e in flat])
        first = x0[::together]
        noise = torch.randn(first.shape, generator=self._stream(NOISE, step)).to(x0).repeat_interleave(together, 0)
        sigma = self.sigma_at(self._spread(len(chosen), step)).float().to(x0.device).repeat_interleave(together)
        return Batch(
            x0=x0,
            x=self.process.noise(x0, noise, sigma),
            sigma=sigma,
            weight=self.process.kappa(sigma) * timestep_weight(self.process, sigma),
            label=torch.tensor([e.label for e in flat], dtype=torch.float32, device=x0.device),
            cond=self._conditions(chosen, step),
        )

    def _conditions(self, chosen: Sequence[Group], step: int) -> list[object]:
        dropped = torch.rand(len(chosen), generator=self._stream(DROPOUT, step)) < self.dropout
        told = zip(chosen, dropped.tolist(), strict=True)
        return [self.conds["" if drop else e.prompt] for group, drop in told for e in group]

    def _spread(self, count: int, step: int) -> Tensor:
        """(count,) numbers, one in each of as many equal parts of 0..1, in random order: less noise than uniform."""
        generator = self._stream(SIGMA, step)
        u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        return u.clamp(1e-6, 1 - 1e-6)

    def _stream(self, purpose: int, index: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + index * 8 + purpose) % 2**63)

    def _sizes(self) -> dict[str, list[int]]:
        return _members([str(tuple(group[0].latent.shape)) for group in self.groups])

    def steps_in_epoch(self) -> int:
        """How many batches it takes to see each picture once."""
        return sum(-(-len(members) // self.batch) for members in self._sizes().values())

    def largest_step(self) -> int:
        """A step of the first epoch whose latents are the largest of all."""
        plan = self._epoch(0)  # type: ignore[attr-defined]
        return max(range(len(plan)), key=lambda step: self.groups[plan[step][0]][0].latent.numel())

    def _plan(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch: each size's pictures shuffled and cut up, the last batch filled from the start."""
        generator = self._stream(SHUFFLE, epoch)
        batches: list[list[int]] = []
        for members in self._sizes().values():
            order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
            for start in range(0, len(order), self.batch):
                batches.append([order[(start + k) % len(order)] for k in range(self.batch)])
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
