"""Liked and disliked pictures as references that a model's self-attention looks at while it makes another one.

At each step the references, with as much noise as the picture has, go through the model first. Their keys and values
are kept, layer by layer, and the picture's own queries see them beside its own keys: FABRIC (von Rütte et al. 2023,
arXiv:2307.10159). There, weights of the references are scaled inside of the softmax; here the attention with and
without them are mixed, which needs no mask and so works with every attention kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values (B, ..., T, D) -> whatever the model's attention gives, rows first."""

AWAY = 0.5
"""How strongly a disliked reference counts beside a liked one (the paper's value)."""
APART, APART_UNTIL, LONGEST = 8.0, 0.5, 2.0
"""How many times `strength` what sets liked and disliked references apart counts, until which share of the run, and how
long it may be beside what is seen with the liked ones.

While the layout is decided: it says how large things are, which what they look like does not. Measured on the demo
model, see bench/refine.py; later in the run it spoils what looking at the liked ones does for colours.
"""


@dataclass
class Layers:
    """Keys and values of the references, one entry for each self-attention in the order in which the model has them."""

    tokens: int | None = None
    entries: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def record(self, keys: Tensor, values: Tensor) -> None:
        """tokens: how many of the last tokens are the picture's (text stands before them); None for all."""
        last = slice(None) if self.tokens is None else slice(-self.tokens, None)
        self.entries.append((keys[..., last, :], values[..., last, :]))

    def side(self, rows: slice) -> list[tuple[Tensor, Tensor]]:
        """The entries of some references, each as one row of all their tokens: (1, ..., R * T, D)."""
        return [(one_row(keys[rows]), one_row(values[rows])) for keys, values in self.entries]


def one_row(tokens: Tensor) -> Tensor:
    """(R, ..., T, D) -> (1, ..., R * T, D)."""
    return torch.cat(list(tokens.split(1)), dim=-2)


def merged(several: Sequence[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """References of several sizes, layer by layer in one row."""
    return [
        (torch.cat([keys for keys, _ in layer], dim=-2), torch.cat([values for _, values in layer], dim=-2))
        for layer in zip(*several, strict=True)
    ]


def looking_at(
    attend: Attend, own: tuple[Tensor, Tensor, Tensor], seen: tuple[Tensor, Tensor], strength: float, rows: Tensor
) -> Tensor:
    """The attention of `own` (queries, keys, values) with references seen by `rows` (indices) of the batch.

    strength: 0 none, 1 as much as the softmax gives them; below 0 away from them. Other rows are as without.
    """
    plain = attend(*own)
    return leaning(plain, beside(attend, own, seen, rows), strength, rows) if len(rows) else plain


def leaning(plain: Tensor, seen: Tensor, strength: float, rows: Tensor) -> Tensor:
    """The attention `plain` with these rows of it on the way to what they see beside references."""
    result = plain.clone()
    result[rows] = plain[rows].lerp(seen, strength)
    return result


def apart(liking: Tensor, disliking: Tensor, scale: float) -> Tensor:
    """`scale` times what is seen beside the liked references less what is seen beside the disliked ones.

    What both sides have in common cancels: a direction, as between two texts, not a look to take over. No token's step
    is longer than LONGEST times what it sees with the liked ones, so that no model is shown what it cannot know.
    """
    step = scale * (liking - disliking)
    longest, length = (one.norm(dim=-1, keepdim=True) for one in (liking, step))
    return step * (LONGEST * longest / length.clamp(min=1e-12)).clamp(max=1)


def beside(attend: Attend, own: tuple[Tensor, Tensor, Tensor], seen: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
    """The attention of rows of `own`, with the references' keys and values after their own."""
    queries, keys, values = (one[rows] for one in own)
    more = [torch.cat([mine, theirs.to(mine).expand(len(rows), *theirs.shape[1:])], dim=-2)
            for mine, theirs in zip((keys, values), seen, strict=True)]  # fmt: skip
    return attend(queries, more[0], more[1])


def rows_of(sides: Sequence[int], batch: int) -> tuple[Tensor, Tensor]:
    """(rows of the prompt, rows of the negative prompt) of a batch.

    sides: 0 for each part of the batch that belongs to the prompt, 1 for the negative prompt; parts are equally long.
    """
    each = batch // max(len(sides), 1)
    parts = [torch.arange(place * each, (place + 1) * each) for place in range(len(sides))]
    nothing = torch.zeros(0, dtype=torch.long)
    liked = [part for part, side in zip(parts, sides, strict=True) if side == 0]
    disliked = [part for part, side in zip(parts, sides, strict=True) if side != 0]
    return torch.cat([nothing, *liked]), torch.cat([nothing, *disliked])


def noise_like(latents: Tensor, seed: int) -> Tensor:
    """One noise for each reference (R, C, *spatial), the same at every step of a run."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(latents.shape, generator=generator).to(latents)
