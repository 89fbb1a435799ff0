"""Known answers of the objectives on Gaussian data, where the best denoiser is a line.

Data N(MU, V) noised by x = x0 + SIGMA n has E[x0 | x] = (V x + SIGMA^2 MU) / (V + SIGMA^2) and the posterior variance
V SIGMA^2 / (V + SIGMA^2). A loss that is quadratic in D has its optimum among lines D = slope * x + offset where one
Newton step from anywhere leads, so the optimum of our code is found exactly and compared with the formula.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from feedback_loop.training.objectives import (
    Batch,
    Nft,
    Sft,
    nft,
    rating_probabilities,
    rating_weights,
    squared_error,
)

MU, V, SIGMA = 0.7, 1.9, 1.3
POSTERIOR = V * SIGMA**2 / (V + SIGMA**2)


def quadrature() -> tuple[Tensor, Tensor, Tensor]:
    """(x0, x, probability) of Gauss-Hermite nodes for data and noise: exact for every moment that the tests need."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(48))
    weights = weights / weights.sum()
    x0, noise = torch.meshgrid(MU + V**0.5 * nodes, nodes, indexing="ij")
    probability = torch.outer(weights, weights)
    return x0.reshape(-1, 1), (x0 + SIGMA * noise).reshape(-1, 1), probability.flatten()


def best_line(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """(slope, offset) of the line D(x) at which `loss`, a function of D, is stationary."""

    def of_line(line: Tensor) -> Tensor:
        return loss(line[0] * x + line[1])

    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(of_line, start)
    curvature = torch.autograd.functional.hessian(of_line, start)
    slope, offset = start - torch.linalg.solve(curvature, gradient)
    return float(slope), float(offset)


def batch_of(x0: Tensor, x: Tensor, label: Tensor) -> Batch:
    ones = torch.ones(len(x0), dtype=torch.float64)
    return Batch(x0, x, SIGMA * ones, ones, label, [None] * len(x0))


@pytest.mark.parametrize("tau", [0.8, 3.0, 1e6])
def test_reward_weighted_regression_learns_the_tilted_gaussian(tau: float) -> None:
    """exp(x0 / tau) N(MU, V) is N(MU + V / tau, V), whose denoiser is that of the data with the mean moved.

    At tau = 1e6 nothing is tilted and the denoiser of the data itself comes out.
    """
    x0, x, probability = quadrature()
    batch = batch_of(x0, x, (x0[:, 0] / tau).exp())
    slope, offset = best_line(lambda d: (probability * Sft().losses({"theta": d}, batch)).sum(), x)
    assert slope == pytest.approx(V / (V + SIGMA**2), abs=1e-6)
    assert offset == pytest.approx(SIGMA**2 * (MU + V / tau) / (V + SIGMA**2), abs=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_nfts_optimum_moves_by_the_covariance_of_rating_and_picture(beta: float) -> None:
    """r = 1/2 + c (x0 - MU) has cov(r, x0 | x) = c * POSTERIOR, so the line moves by 2 c POSTERIOR / beta."""
    x0, x, probability = quadrature()
    old = (V * x + SIGMA**2 * MU) / (V + SIGMA**2)
    c = 0.05
    r = 0.5 + c * (x0[:, 0] - MU)

    def plain(estimate: Tensor, target: Tensor) -> Tensor:
        return squared_error(estimate, target, torch.ones(()))

    slope, offset = best_line(lambda d: (probability * nft(d, old, x0, r, beta, plain)).sum(), x)
    assert slope == pytest.approx(V / (V + SIGMA**2), abs=1e-6)
    assert offset == pytest.approx(SIGMA**2 * MU / (V + SIGMA**2) + 2 * c * POSTERIOR / beta, abs=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_nfts_gradient_at_the_start_is_the_error_s_times_twice_r_less_one(beta: float) -> None:
    """Where D = old both estimates are D, so d loss / d D = beta (r - (1 - r)) * 2 (D - x0) / n / mean |D - x0|."""
    generator = torch.Generator().manual_seed(0)
    x0, d = (torch.randn(5, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    r = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    theta = d.clone().requires_grad_()
    nft(theta, d, x0, r, beta).sum().backward()
    error = d - x0
    scale = error.abs().mean((1, 2), keepdim=True)
    expected = beta * (2 * r - 1).reshape(-1, 1, 1) * 2 * error / 12 / scale
    assert theta.grad is not None
    assert torch.allclose(theta.grad, expected, atol=1e-12)


def test_a_rating_in_the_middle_gives_nft_no_gradient_at_all() -> None:
    """At r = 1/2 and D = old the two halves are equal and opposite, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    x0, d = torch.randn(4, 3, 5, generator=generator), torch.randn(4, 3, 5, generator=generator)
    theta = d.clone().requires_grad_()
    batch = Batch(x0, x0, torch.ones(4), torch.ones(4), torch.full((4,), 0.5), [None] * 4)
    Nft(kl=0.01).losses({"theta": theta, "ref": d}, batch).sum().backward()
    assert theta.grad is not None and not theta.grad.any()


def test_rating_weights_are_the_clipped_exponential() -> None:
    """exp(0) = 1, exp(1) = 2.718, exp(2) = 7.39 is cut at 5; with tau 2 exp(2 / 2) = 2.718."""
    assert rating_weights(torch.tensor([0.0, 1.0, 2.0])).tolist() == pytest.approx([1.0, 2.71828, 5.0], rel=1e-5)
    assert rating_weights(torch.tensor([2.0]), tau=2.0).item() == pytest.approx(2.71828, rel=1e-5)


def test_rating_probabilities_run_from_0_to_1_over_two_deviations() -> None:
    assert rating_probabilities(torch.tensor([-9.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_squared_error_is_the_weighted_mean_over_each_picture() -> None:
    """(1^2 + 3^2) / 2 = 5, times the weight 2; the second picture is exact."""
    denoised, target = torch.tensor([[1.0, 3.0], [4.0, 4.0]]), torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    assert squared_error(denoised, target, torch.tensor([2.0, 7.0])).tolist() == [10.0, 0.0]


def test_the_pull_to_the_base_model_adds_its_share() -> None:
    """D - x0 = 2 and D - ref = 3: label 1.5 * 4 + kl .1 * 9 = 6.9."""
    d, x0, ref = torch.full((1, 2), 2.0), torch.zeros(1, 2), torch.full((1, 2), -1.0)
    batch = Batch(x0, x0, torch.ones(1), torch.ones(1), torch.tensor([1.5]), [None])
    assert Sft(kl=0.1).losses({"theta": d, "ref": ref}, batch).item() == pytest.approx(6.9)
    assert Sft(kl=0.1).views == ("ref",) and Sft().views == ()


@pytest.mark.parametrize("objective", [Sft(), Sft(kl=0.1), Nft(), Nft(beta=0.5)])
def test_a_picture_s_loss_does_not_depend_on_the_batch_it_is_in(objective: Sft | Nft) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, d, ref = (torch.randn(6, 2, 3, 3, generator=generator) for _ in range(3))
    label = torch.rand(6, generator=generator)
    batch = Batch(x0, x0, torch.ones(6), torch.rand(6, generator=generator), label, list(range(6)))
    together = objective.losses({"theta": d, "ref": ref}, batch)
    alone = [
        objective.losses({"theta": d[i : i + 1], "ref": ref[i : i + 1]}, batch.part(i, i + 1)).item() for i in range(6)
    ]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)
    assert batch.part(2, 4).cond == [2, 3]
