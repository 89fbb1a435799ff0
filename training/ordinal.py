"""One likelihood of stars and of choices: cumulative logits and Bradley-Terry in a linear utility, Gaussian prior.

u = Z w. A rater with cut-points c gives level k with probability s(c_k - u) - s(c_{k-1} - u), s the logistic function
(McCullagh 1980), and prefers i to j with probability s(u_i - u_j) (Bradley and Terry 1952); a tie is half of each. Both
are log-concave in (w, c) together, so Newton's method with halving finds the one maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CUT_SD = 4.0  # prior of the cut-points around their marginal values: wide, but a level nobody gave leaves them finite
MAX_LEVELS = 7
Array = np.ndarray


def expit(x: Array) -> Array:
    """The logistic function; written here because scipy would slow ComfyUI's start."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def log_expit(x: Array) -> Array:
    """Its logarithm, exact in both tails."""
    return -np.logaddexp(0, -x)


@dataclass(frozen=True)
class Stars:
    """Absolute judgements. image: row of the picture; level: 0..; rater: 0..; all (m,) integers.

    weight: (m,) how many times each counts, None for once each.
    """

    image: Array
    level: Array
    rater: Array
    weight: Array | None = None

    @property
    def weights(self) -> Array:
        return np.ones(len(self.image)) if self.weight is None else self.weight

    def only(self, keep: Array) -> Stars:
        weight = None if self.weight is None else self.weight[keep]
        return Stars(self.image[keep], self.level[keep], self.rater[keep], weight)

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Choices:
    """Comparisons. left, right: rows of pictures; label: 1 left, 0 right, .5 tie; (m,)."""

    left: Array
    right: Array
    label: Array

    def only(self, keep: Array) -> Choices:
        return Choices(self.left[keep], self.right[keep], self.label[keep])

    def __len__(self) -> int:
        return len(self.left)


@dataclass(frozen=True)
class Posterior:
    """Laplace approximation: w ~ N(mean, covariance); log_evidence of the data under the prior, approximately."""

    mean: Array
    covariance: Array
    cuts: dict[int, Array]
    log_evidence: float


@dataclass(frozen=True)
class _Cuts:
    """Where each star's upper and lower cut-point stand in the vector of all; -1 where the scale is open."""

    start: dict[int, tuple[int, int]]
    upper: Array
    lower: Array
    prior: Array


def _arrange(stars: Stars) -> _Cuts:
    start, prior, at = {}, [], 0
    upper, lower = np.full(len(stars), -1), np.full(len(stars), -1)
    for rater in np.unique(stars.rater):
        mine = stars.rater == rater
        level, weight = stars.level[mine], stars.weights[mine]
        top = max(1, int(level.max()))
        below = np.array([weight[level <= k].sum() for k in range(top)])
        share = (below + 0.5) / (weight.sum() + 1)
        prior.append(1.2 * np.log(share / (1 - share)))  # 1.2: the utility spreads the logistic
        upper[mine] = np.where(level < top, at + level, -1)
        lower[mine] = np.where(level > 0, at + level - 1, -1)
        start[int(rater)] = (at, at + top)
        at += top
    return _Cuts(start, upper, lower, np.concatenate(prior) if prior else np.zeros(0))


def _ends(u: Array, c: Array, cuts: _Cuts) -> tuple[Array, Array]:
    """Distances of the upper and lower cut-point from the utility, infinite where the scale is open."""
    padded = np.append(c, 0.0)
    upper = np.where(cuts.upper >= 0, padded[cuts.upper] - u, np.inf)
    lower = np.where(cuts.lower >= 0, padded[cuts.lower] - u, -np.inf)
    return upper, lower


def _star_terms(upper: Array, lower: Array) -> tuple[Array, Array, Array, Array]:
    """log p, its slopes in upper and lower, and the curvature h that couples them (0 at an open end)."""
    gap = upper - lower
    closed = np.isfinite(gap)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        odds = np.where(closed, 1 / np.expm1(np.where(closed, gap, 1.0)), 0.0)
        log_p = (
            log_expit(upper) + log_expit(-lower) + np.where(closed, np.log(-np.expm1(-np.where(closed, gap, 1.0))), 0)
        )
    return log_p, expit(-upper) + odds, -expit(lower) - odds, odds * (1 + odds)


def star_log_likelihood(u: Array, stars: Stars, cuts: dict[int, Array]) -> Array:
    """(m,) log p of each star, times its weight, under utilities u of all pictures; without raters of no cut-points."""
    known = np.isin(stars.rater, list(cuts))
    stars = stars.only(known)
    ends = {r: np.concatenate([[-np.inf], c, [np.inf]]) for r, c in cuts.items()}
    out = np.zeros(len(stars))
    for rater, edge in ends.items():
        mine = stars.rater == rater
        level = np.minimum(stars.level[mine], len(edge) - 2)
        distance = u[stars.image[mine]]
        out[mine] = _star_terms(edge[level + 1] - distance, edge[level] - distance)[0]
    return stars.weights * out


def level_shares(u: Array, variance: Array, cuts: Array) -> Array:
    """(n, levels): probability of each level, the utility's variance included by MacKay's probit approximation."""
    shrink = 1 / np.sqrt(1 + np.pi / 8 * variance)
    below = expit((cuts[None] - u[:, None]) * shrink[:, None])
    edges = np.concatenate([np.zeros((len(u), 1)), below, np.ones((len(u), 1))], axis=1)
    return np.diff(edges, axis=1)


def choice_log_likelihood(u: Array, choices: Choices) -> Array:
    """(m,) log p of each choice."""
    gap = u[choices.left] - u[choices.right]
    return choices.label * log_expit(gap) + (1 - choices.label) * log_expit(-gap)


def _objective(theta: Array, z: Array, difference: Array, stars: Stars, choices: Choices, cuts: _Cuts) -> float:
    k = z.shape[1]
    w, c = theta[:k], theta[k:]
    upper, lower = _ends(z @ w, c, cuts)
    if np.any(upper <= lower):
        return -np.inf
    gap = difference @ w
    fit = stars.weights @ _star_terms(upper, lower)[0]
    fit += (choices.label * log_expit(gap) + (1 - choices.label) * log_expit(-gap)).sum()
    return float(fit - 0.5 * w @ w - 0.5 * ((c - cuts.prior) ** 2).sum() / CUT_SD**2)


def _select(index: Array, count: int) -> Array:
    """(m, count) with a 1 in the column that each row names, none for -1."""
    rows = np.zeros((len(index), count))
    rows[np.flatnonzero(index >= 0), index[index >= 0]] = 1
    return rows


def _derivatives(
    theta: Array, z: Array, difference: Array, stars: Stars, choices: Choices, cuts: _Cuts
) -> tuple[Array, Array]:
    """Gradient and negative Hessian of `_objective`."""
    k, count = z.shape[1], len(cuts.prior)
    w, c = theta[:k], theta[k:]
    upper, lower = _ends(z @ w, c, cuts)
    up, low, coupled = (stars.weights * term for term in _star_terms(upper, lower)[1:])
    select_up, select_low = _select(cuts.upper, count), _select(cuts.lower, count)
    curve_up, curve_low = (stars.weights * expit(end) * expit(-end) for end in (upper, lower))
    gap = difference @ w
    p = expit(gap)
    gradient_w = -z.T @ (up + low) + difference.T @ (choices.label - p) - w
    gradient_c = select_up.T @ up + select_low.T @ low - (c - cuts.prior) / CUT_SD**2
    hessian = np.eye(k + count)
    hessian[k:, k:] /= CUT_SD**2
    hessian[:k, :k] += (z * (curve_up + curve_low)[:, None]).T @ z
    hessian[:k, :k] += (difference * (p * (1 - p))[:, None]).T @ difference
    cross = -z.T @ (select_up * curve_up[:, None] + select_low * curve_low[:, None])
    hessian[:k, k:], hessian[k:, :k] = cross, cross.T
    both = select_up - select_low
    hessian[k:, k:] += (select_up * curve_up[:, None]).T @ select_up + (select_low * curve_low[:, None]).T @ select_low
    hessian[k:, k:] += (both * coupled[:, None]).T @ both
    return np.concatenate([gradient_w, gradient_c]), hessian


def fit(z: Array, stars: Stars, choices: Choices, start: Array | None = None, steps: int = 25) -> Posterior:
    """MAP and Laplace posterior of w ~ N(0, I). z: (n, k) scaled features of all pictures."""
    cuts = _arrange(stars)
    k = z.shape[1]
    rows, difference = z[stars.image], z[choices.left] - z[choices.right]
    theta = np.concatenate([np.zeros(k) if start is None else start, cuts.prior])
    value = _objective(theta, rows, difference, stars, choices, cuts)
    for _ in range(steps):
        gradient, hessian = _derivatives(theta, rows, difference, stars, choices, cuts)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (
            tried := _objective(theta + size * step, rows, difference, stars, choices, cuts)
        ) < value and size > 1e-4:
            size /= 2
        if size <= 1e-4 or tried - value < 1e-8:
            break
        theta, value = theta + size * step, tried
    _, hessian = _derivatives(theta, rows, difference, stars, choices, cuts)
    covariance = np.linalg.inv(hessian)[:k, :k]
    evidence = value - 0.5 * np.linalg.slogdet(hessian)[1] - len(cuts.prior) * np.log(CUT_SD)
    found = {rater: theta[k + a : k + b] for rater, (a, b) in cuts.start.items()}
    return Posterior(theta[:k], covariance, found, float(evidence))
