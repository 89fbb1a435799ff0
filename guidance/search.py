"""Searching over starting noise: which candidates are made how far, and where the next ones are looked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

HALVINGS = ((0.5, 3 / 8), (0.65, 0.0))
"""At half of the steps three in eight candidates go on, at two thirds of them one: 8 candidates for 4.8 whole runs.

On the demo model estimates rank the candidates as the finished pictures will be ranked, by a learned taste and by the
watermark detector, with a correlation of .34 and -.1 at a quarter of the steps, .82 and .49 at half, .98 and .8 at two
thirds (bench/estimates.py): dropping them earlier is dropping at random.
"""


class Stage(NamedTuple):
    """`count` candidates are made until `steps` steps of the run are done."""

    count: int
    steps: int


def stages(count: int, steps: int, halving: bool) -> list[Stage]:
    """The way of `count` candidates to the end of a run of `steps` steps; without halving all are made whole.

    Successive halving: Jamieson & Talwalkar 2016 (arXiv:1502.07943), on predicted clean images.
    """
    if not halving or count == 1:
        return [Stage(count, steps)]
    planned, left, done = [], count, 0
    for share, keep in HALVINGS:
        until = max(1, round(share * steps))
        fewer = max(1, round(keep * count))
        if done < until < steps and fewer < left:
            planned.append(Stage(left, until))
            left, done = fewer, until
    return [*planned, Stage(left, steps)]


def cost(planned: Sequence[Stage], asked: Sequence[int] | None = None) -> int:
    """Steps that these stages make, all candidates together; or the denoiser's evaluations, where `asked` says how many
    a run has made by the end of 0, 1, ... steps."""
    begun = [0, *(stage.steps for stage in planned[:-1])]
    at = range(planned[-1].steps + 1) if asked is None else asked
    return sum(stage.count * (at[stage.steps] - at[start]) for stage, start in zip(planned, begun, strict=True))


def affordable(count: int, halving: bool, evaluations: int, asked: Sequence[int]) -> int:
    """The most candidates, up to `count`, whose stages take no more than so many denoiser evaluations; 0 for none.
    asked: those that a run has made by the end of 0, 1, ... steps."""
    steps = len(asked) - 1
    fitting = (n for n in range(count, 0, -1) if cost(stages(n, steps, halving), asked) <= evaluations)
    return next(fitting, 0)


def kept(scores: Tensor, count: int) -> Tensor:
    """(count, B): the best candidates of each picture by scores (N, B), best first; no number counts as the worst."""
    known = torch.where(scores.isnan(), -math.inf, scores)
    return known.argsort(dim=0, descending=True, stable=True)[:count]


def mixed(candidates: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """One tensor (B, ...) out of several: row b is that of candidate `chosen[b]`."""
    return torch.stack([candidates[int(k)][b] for b, k in enumerate(chosen)])


def neighbour(noise: Tensor, fresh: Tensor, cosine: float) -> Tensor:
    """`cos t * z + sin t * eps`: as white as z, and correlated with it by cos t (zero-order search, Ma et al. 2025,
    arXiv:2501.09732). cosine 1 stays, 0 forgets z."""
    return cosine * noise + math.sqrt(1 - cosine**2) * fresh


@dataclass(eq=False)
class Best:
    """The best of what was tried so far for each of B pictures. All (B, ...); scores on the CPU."""

    noise: Tensor
    latents: Tensor
    scores: Tensor

    def improved(self, noise: Tensor, latents: Tensor, scores: Tensor) -> Best:
        """With those pictures replaced whose score is higher."""
        better = scores > torch.where(self.scores.isnan(), -math.inf, self.scores)
        return Best(
            _where(better, noise, self.noise),
            _where(better, latents, self.latents),
            torch.where(better, scores, self.scores),
        )

    def reached(self, threshold: float | None) -> bool:
        """Whether every picture is at least as good as the threshold."""
        return threshold is not None and bool((self.scores >= threshold).all())


def promising(estimates: Tensor, best: Best | None, threshold: float | None) -> Tensor | None:
    """(B,): which candidate of each picture is best by scores (N, B) of its estimates, if all pictures would be at
    least as good as the threshold with these or as they are; else None."""
    if threshold is None:
        return None
    enough = kept(estimates, 1)[0]
    good = estimates.gather(0, enough.unsqueeze(0))[0] >= threshold
    if best is not None:
        good = good | (best.scores >= threshold)
    return enough if bool(good.all()) else None


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.to(one.device).reshape(-1, *(1,) * (one.ndim - 1)), one, other)
