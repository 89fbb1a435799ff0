"""What an adapter adds to one layer, apart from any network: low rank parts and Kronecker products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to one layer: alpha / rank * up @ down, shaped like the layer's weight.

    down: (rank, in, *kernel), up: (out, rank, *ones). magnitude: (out, *ones), DoRA's: the layer's new weight is then
    `(W + added) * magnitude / |W|`, with the norm of each output's row of the weight W as it was, which is how loaders
    read `dora_scale`.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    def added(self) -> Tensor:
        """(out, in, *kernel), without the magnitude."""
        flat = self.alpha / self.down.shape[0] * self.up.flatten(1) @ self.down.flatten(1)
        return flat.reshape(self.up.shape[0], *self.down.shape[1:])

    def widened(self, rank: int, alpha: float, like: Tensor) -> LowRank:
        """The same added weight at a higher rank and another alpha; new rows of `down` are those of `like`.

        Raises ValueError when the rank is lower.
        """
        own = self.down.shape[0]
        if rank < own:
            raise ValueError(f"This LoRA has rank {own}, more than {rank}: set rank to {own} or more to go on with it.")
        down = like.detach().cpu().float().clone()
        down[:own] = self.down.float()
        up = torch.zeros(self.up.shape[0], rank, *self.up.shape[2:])
        up[:, :own] = self.up.float() * (self.alpha / own) / (alpha / rank)
        return LowRank(down, up, alpha)


@dataclass(frozen=True)
class Kronecker:
    """What a LoKr adds to one layer: the Kronecker product of w1 (a, b) and w2 (c, d, *kernel)."""

    w1: Tensor
    w2: Tensor

    def added(self) -> Tensor:
        """(a * c, b * d, *kernel)."""
        return torch.kron(self.w1.reshape(*self.w1.shape, *(1,) * (self.w2.ndim - 2)), self.w2.contiguous())


Part = LowRank | Kronecker


def nearest_low_rank(added: Tensor, rank: int) -> tuple[LowRank, float]:
    """The LoRA of this rank that is nearest to an added weight (out, in, *kernel), and which share of it is lost."""
    u, s, v = torch.linalg.svd(added.float().flatten(1), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    down = (root[:, None] * v[:rank]).reshape(rank, *added.shape[1:])
    up = (u[:, :rank] * root).reshape(-1, rank, *(1,) * (added.ndim - 2))
    lost = s[rank:].square().sum() / s.square().sum().clamp_min(1e-30)
    return LowRank(down, up, float(rank)), float(lost.sqrt())


def row_norms(weight: Tensor) -> Tensor:
    """(out, in, *kernel) -> (out,), float32."""
    return weight.detach().float().flatten(1).norm(dim=1)
