"""What people said, in the form that any objective takes: stars, likes and comparisons become numbers or pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .sources import NoPreferenceError


@dataclass(frozen=True)
class Preference:
    """Picture `chosen` was preferred to `rejected` (their places in a list); weight: how much the answer counts."""

    chosen: int
    rejected: int
    weight: float = 1.0


def utilities(z: Tensor, preferences: Sequence[Preference], trust: float = 0.5) -> Tensor:
    """How good each picture is, (N,): the mode of Bradley-Terry's likelihood of the preferences around the ratings.

    z: (N,) standardised ratings, 0 for a picture without. trust: inverse variance of a picture's utility about its
    rating; the lower, the more comparisons can say against it. Without preferences this is z.
    """
    if not preferences:
        return z.float()
    prior = z.double().cpu().numpy()
    chosen, rejected, weight = _arrays(preferences)
    u = prior.copy()
    for _ in range(50):
        step = _newton(u, prior, chosen, rejected, weight, trust)
        u -= step
        if abs(step).max() < 1e-9:
            break
    return torch.from_numpy(u).float()


def _arrays(preferences: Sequence[Preference]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [(p.chosen, p.rejected, p.weight) for p in preferences]
    chosen, rejected, weight = (np.array(column) for column in zip(*rows, strict=True))
    return chosen.astype(int), rejected.astype(int), weight.astype(float)


def _newton(
    u: np.ndarray, prior: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, weight: np.ndarray, trust: float
) -> np.ndarray:
    """One Newton step of sum weight * log sigmoid(u_w - u_l) - trust / 2 * |u - prior|^2, which is concave."""
    from scipy.sparse import coo_matrix, identity
    from scipy.sparse.linalg import spsolve

    lost = 1 / (1 + np.exp(u[chosen] - u[rejected]))
    slope, n = weight * lost, len(u)
    gradient = trust * (u - prior) - np.bincount(chosen, slope, n) + np.bincount(rejected, slope, n)
    bend = weight * lost * (1 - lost)
    rows = np.concatenate([chosen, rejected, chosen, rejected])
    columns = np.concatenate([chosen, rejected, rejected, chosen])
    curvature = coo_matrix((np.concatenate([bend, bend, -bend, -bend]), (rows, columns)), (n, n)).tocsc()
    return np.asarray(spsolve(curvature + trust * identity(n, format="csc"), gradient))


@dataclass(frozen=True)
class Gap:
    """A pair to train on: places of the chosen and the rejected picture, and how clear the choice is, 1 on average."""

    chosen: int
    rejected: int
    gap: float


def pairs_to_train_on(
    u: Tensor,
    kinds: Sequence[object],
    preferences: Sequence[Preference] = (),
    each: int = 4,
    least: float = 0.3,
    limit: float = 2.0,
) -> list[Gap]:
    """Pairs of pictures of one kind (prompt and size): what was compared, and what stars tell clearly apart.

    u: (N,) utilities in standard deviations. Each picture stands in at most `each` pairs by its stars, those with the
    largest gaps, which have to be at least `least` and count at most `limit`. An explicit comparison counts its weight.
    Raises NoPreferenceError when there is none.
    """
    found = {(p.chosen, p.rejected): p.weight for p in preferences if kinds[p.chosen] == kinds[p.rejected]}
    for rows in _by_kind(kinds).values():
        for chosen, rejected in _clearest(u, rows, each, least):
            if (rejected, chosen) not in found:
                found.setdefault((chosen, rejected), min(float(u[chosen] - u[rejected]), limit))
    if not found:
        raise NoPreferenceError(
            "There are no two pictures of one prompt and size of which one is liked better, and DPO learns from such "
            "pairs alone. Rate several pictures of the same prompt, compare pictures, or choose SFT or KTO."
        )
    mean = sum(found.values()) / len(found)
    return [Gap(chosen, rejected, gap / mean) for (chosen, rejected), gap in found.items()]


def _by_kind(kinds: Sequence[object]) -> dict[object, list[int]]:
    found: dict[object, list[int]] = {}
    for index, kind in enumerate(kinds):
        found.setdefault(kind, []).append(index)
    return found


def _clearest(u: Tensor, rows: list[int], each: int, least: float) -> list[tuple[int, int]]:
    """(better, worse) with the largest gaps first, no picture in more than `each` of them."""
    value = u[rows].double()
    gap = value[:, None] - value[None]
    order = gap.flatten().argsort(descending=True, stable=True)
    used, chosen = [0] * len(rows), []
    for flat in order[: int((gap >= least).sum())].tolist():
        a, b = divmod(flat, len(rows))
        if used[a] < each and used[b] < each:
            used[a], used[b] = used[a] + 1, used[b] + 1
            chosen.append((rows[a], rows[b]))
    return chosen
