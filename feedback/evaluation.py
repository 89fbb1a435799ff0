"""Did it help? Paired comparisons with honest intervals, diversity, accuracy on held-out judgements.

Everything takes numbers of the same prompts and seeds under A and under B, in the same order. Pictures of one prompt
resemble each other; `clusters` names what each belongs to, and the intervals then count clusters, not pictures.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

Numbers = Tensor | np.ndarray | Sequence[float]

FEW_PROMPTS = 5
"""With so many prompts or more, intervals count prompts and so speak for prompts like these."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def _array(values: Numbers) -> np.ndarray:
    if isinstance(values, Tensor):
        return cast(Tensor, values).detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _t95(freedom: int) -> float:
    """The .975 quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _cluster_sums(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of them in each cluster; without clusters each value stands alone."""
    if clusters is None:
        return values, np.ones(len(values))
    if len(clusters) != len(values):
        raise ValueError(f"There are {len(values)} values but {len(clusters)} clusters; name one for each value.")
    place = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([place[name] for name in clusters])
    return np.bincount(index, values), np.bincount(index).astype(np.float64)


def mean_interval(values: Numbers, clusters: Sequence[Hashable] | None = None) -> Interval:
    """Mean of (N,) values; the interval is Student's t over clusters (ratio estimator with linearised variance).

    With one cluster alone nothing is known of the spread, and the interval is infinite.
    """
    array = _array(values)
    if not len(array):
        raise ValueError("There is nothing to take the mean of: give at least one value.")
    sums, counts = _cluster_sums(array, clusters)
    mean, groups = float(array.mean()), len(sums)
    if groups < 2:
        return Interval(mean, -math.inf, math.inf)
    residual = sums - mean * counts
    error = math.sqrt(groups / (groups - 1) * float((residual**2).sum())) / len(array)
    reach = _t95(groups - 1) * error
    return Interval(mean, mean - reach, mean + reach)


def paired_difference(a: Numbers, b: Numbers, clusters: Sequence[Hashable] | None = None) -> Interval:
    """Mean of b - a over pairs, in the unit of the scores; (N,) each."""
    first, second = _array(a), _array(b)
    if first.shape != second.shape:
        raise ValueError(f"A has {len(first)} scores and B has {len(second)}; pairs need one of each.")
    return mean_interval(second - first, clusters)


def paired_win_rate(a: Numbers, b: Numbers, clusters: Sequence[Hashable] | None = None) -> Interval:
    """Share of the pairs in which b is above a, ties half; (N,) each. Wilson's interval.

    Correlation within clusters makes pairs worth less: N divided by how much it inflates the variance of the mean.
    """
    first, second = _array(a), _array(b)
    if first.shape != second.shape:
        raise ValueError(f"A has {len(first)} scores and B has {len(second)}; pairs need one of each.")
    return win_rate((second > first) + 0.5 * (second == first), clusters)


def win_rate(wins: Numbers, clusters: Sequence[Hashable] | None = None) -> Interval:
    """Mean of (N,) wins: 1, 0 or .5 for a tie; see `paired_win_rate`.

    Where all are alike nothing tells how alike those of a cluster are, and each cluster counts once.
    """
    wins = _array(wins)
    if not len(wins):
        raise ValueError("There are no pairs to count wins of: give at least one.")
    rate, n = float(wins.mean()), float(len(wins))
    if clusters is not None:
        sums, counts = _cluster_sums(wins, clusters)
        groups = len(sums)
        if groups < 2:
            return Interval(rate, 0.0, 1.0)
        if (wins == rate).all():
            return wilson(rate * groups, groups)
        inflated = (
            groups
            / (groups - 1)
            * float(((sums - rate * counts) ** 2).sum())
            / max(float(((wins - rate) ** 2).sum()), 1e-12)
        )
        n = min(n, n / max(inflated, 1e-12))
    return wilson(rate * n, n)


def wilson(successes: float, n: float) -> Interval:
    """Wilson's 95 % interval of a share; Wilson 1927. n may be an effective number."""
    if n <= 0:
        return Interval(math.nan, 0.0, 1.0)
    z, rate = 1.959964, successes / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(rate, max(0.0, middle - reach), min(1.0, middle + reach))


def chance_of_no_fall(change: Interval, freedom: int) -> float:
    """One-sided p of Student's t that what changed did not fall, from a 95 % interval with so many degrees of freedom:
    .025 where the interval's upper end is 0."""
    from scipy.stats import t

    reach = change.high - change.value
    if freedom < 1 or not 0 <= reach < math.inf or math.isnan(change.value):
        return 1.0
    if reach == 0:
        return float(change.value >= 0)
    return float(t.cdf(change.value * _t95(freedom) / reach, freedom))


def chance_of_no_minority(share: Interval) -> float:
    """One-sided p that a share with Wilson's 95 % interval is a half or more, by the score test that the interval is
    the inverse of: .025 where its upper end is .5. The (effective) number comes out of where its middle lies."""
    from scipy.stats import norm

    z, rate, middle = 1.959964, share.value, (share.low + share.high) / 2
    if not rate < 0.5 or not rate < middle < 0.5:
        return 1.0
    n = z * z * (0.5 - middle) / (middle - rate)
    return float(norm.cdf((rate - 0.5) * 2 * math.sqrt(n)))


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which of several hypotheses are refuted, with a probability of at most `level` that any true one is among them,
    however they hang together (Holm 1979). chances: the p of each."""
    refuted = [False] * len(chances)
    for done, place in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        if chances[place] > level / (len(chances) - done):
            break
        refuted[place] = True
    return refuted


def pair_accuracy(correct: Numbers, left: Sequence[Hashable], right: Sequence[Hashable]) -> Interval:
    """Share of pairs that were ranked right, (P,) of 1, 0 or .5; left, right: the cluster of either picture of a pair.

    One picture stands in many pairs, so pairs are not independent: the interval is by the jackknife that leaves out one
    cluster with all its pairs (Efron and Stein 1981). With fewer than three clusters it is 0 to 1.
    """
    right_ones = _array(correct)
    if not len(right_ones):
        return Interval(math.nan, 0.0, 1.0)
    place = {name: i for i, name in enumerate(dict.fromkeys([*left, *right]))}
    ends = [np.array([place[name] for name in side]) for side in (left, right)]
    clusters = len(place)
    both = ends[0] == ends[1]
    hits = sum(np.bincount(end, right_ones, clusters) for end in ends) - np.bincount(
        ends[0], right_ones * both, clusters
    )
    pairs = sum(np.bincount(end, minlength=clusters) for end in ends) - np.bincount(ends[0], both, clusters)
    value, rest = float(right_ones.mean()), len(right_ones) - pairs
    if clusters < 3 or (rest <= 0).any():
        return Interval(value, 0.0, 1.0)
    without = (right_ones.sum() - hits) / rest
    error = math.sqrt((clusters - 1) / clusters * float(((without - without.mean()) ** 2).sum()))
    reach = _t95(clusters - 1) * error
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def diversity(features: Tensor, groups: Sequence[Hashable] | None = None) -> float:
    """Mean Euclidean distance between two pictures, (N, F); of the same group, where groups have several pictures.

    Nan with fewer than two pictures.
    """
    if len(features) < 2:
        return math.nan
    return float(_distances(features)[_same(len(features), groups)].mean())


def diversity_difference(a: Tensor, b: Tensor, groups: Sequence[Hashable], units: Sequence[Hashable]) -> Interval:
    """Diversity of b less that of a, (N, F) each, of the same groups; see `diversity`.

    A picture stands in many distances, so the interval is by the jackknife that leaves out one unit with all its
    distances; units: what each picture belongs to, as its prompt or itself. Infinite with fewer than three units.
    """
    if len(a) < 2:
        return Interval(math.nan, -math.inf, math.inf)
    change = (_distances(b) - _distances(a)) * (same := _same(len(a), groups).double())
    place = {name: i for i, name in enumerate(dict.fromkeys(units))}
    of = torch.nn.functional.one_hot(torch.tensor([place[name] for name in units])).double()
    value = float(change.sum() / same.sum())
    sums, counts = (_touching(matrix, of) for matrix in (change, same))
    rest = same.sum() - counts
    if len(place) < 3 or bool((rest <= 0).any()):
        return Interval(value, -math.inf, math.inf)
    without = (change.sum() - sums) / rest
    error = math.sqrt((len(place) - 1) / len(place) * float((without - without.mean()).square().sum()))
    reach = _t95(len(place) - 1) * error
    return Interval(value, value - reach, value + reach)


def _touching(matrix: Tensor, of: Tensor) -> Tensor:
    """(N, N) of pairs and (N, U) one-hot units -> (U,), the sum over the pairs that a unit is part of."""
    within = torch.einsum("iu,ij,ju->u", of, matrix, of)
    return (matrix.sum(1) + matrix.sum(0)) @ of - within


def _distances(features: Tensor) -> Tensor:
    return torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist").cpu()


def _same(count: int, groups: Sequence[Hashable] | None) -> Tensor:
    """(N, N), each pair once: those of one group, or all where no group has two."""
    names = list(groups) if groups is not None else [0] * count
    if len(names) != count:
        raise ValueError(f"There are {count} pictures but {len(names)} groups; name one for each picture.")
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    index = torch.tensor([place[name] for name in names])
    same = (index[:, None] == index[None]).triu(1)
    return same if same.any() else torch.ones_like(same).triu(1)
