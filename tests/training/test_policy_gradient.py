"""PPO, AWM and DRaFT: their clips, their gradients, and the score function's identity on a Gaussian step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from feedback_loop.diffusion.process import Process
from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.training.objectives import Batch
from feedback_loop.training.policy_gradient import Awm, Draft, Ppo, StepBatch, clipped, step_kl, step_log_prob

DTYPE = torch.float64
PROCESSES = [Process("eps"), Process("v"), Process("flow")]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def taken(process: Process, advantage: Tensor, eta: float = 0.7) -> tuple[StepBatch, Tensor]:
    """Steps from .8 to .5 by a model whose estimates are random, and these estimates."""
    count = len(advantage)
    x, d = random(count, 2, 3, seed=1), random(count, 2, 3, seed=2)
    step, ones = ancestral_step(process, 0.8, 0.5, eta), torch.ones(count, dtype=DTYPE)
    after = step.take(x, d, random(count, 2, 3, seed=3))
    numbers = [value * ones for value in (step.keep, step.pull, step.noise)]
    draft = StepBatch(x, x, 0.8 * ones, ones, advantage, [None] * count, after, *numbers, torch.zeros(count))
    return StepBatch(**{**draft.__dict__, "log_prob": step_log_prob(d, draft)}), d


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_a_steps_log_probability_is_that_of_the_sampler_a_dimension(process: Process) -> None:
    """The sampler's is summed over the 6 numbers of a picture, and torch's own normal distribution agrees."""
    batch, d = taken(process, torch.ones(4, dtype=DTYPE))
    step = ancestral_step(process, 0.8, 0.5, 0.7)
    assert torch.allclose(batch.log_prob, step.log_probability(batch.x, d, batch.after) / 6, rtol=1e-9, atol=1e-12)
    normal = torch.distributions.Normal(step.mean(batch.x, d), step.noise)
    assert torch.allclose(batch.log_prob, normal.log_prob(batch.after).flatten(1).mean(1), atol=1e-12)


def test_ppos_ratio_is_exactly_one_where_nothing_has_moved() -> None:
    """exp(p - p) = 1 bit for bit, so the loss is -A whatever the clip."""
    advantage = torch.tensor([1.5, -0.5, 2.0], dtype=DTYPE)
    batch, d = taken(Process("eps"), advantage)
    assert Ppo(kl=0.0).losses({"theta": d}, batch).tolist() == (-advantage).tolist()


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
def test_one_pass_of_ppo_is_reinforce(process: Process) -> None:
    """At ratio 1 the gradient of -A rho is -A times that of the log-probability: the score function's."""
    advantage = torch.tensor([1.5, -0.5], dtype=DTYPE)
    batch, d = taken(process, advantage)
    theta, other = d.clone().requires_grad_(), d.clone().requires_grad_()
    (g,) = torch.autograd.grad(Ppo(kl=0.0).losses({"theta": theta}, batch).sum(), theta)
    (score,) = torch.autograd.grad(step_log_prob(other, batch).sum(), other)
    assert torch.allclose(g, -advantage.reshape(-1, 1, 1) * score, rtol=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.0, 1.3, -1.2, 0.0),  # gone far enough towards the good: no more pull
        (1.0, 0.7, -0.7, -1.0),  # the good one became rarer: back
        (-1.0, 0.7, 0.8, 0.0),  # the bad one is rare enough
        (-1.0, 1.3, 1.3, 1.0),
        (0.0, 5.0, 0.0, 0.0),
    ],
)
def test_the_clip_ends_the_pull_on_the_side_where_enough_is_gained(
    advantage: float, ratio: float, loss: float, slope: float
) -> None:
    rho = torch.tensor([ratio], requires_grad=True)
    value = clipped(torch.tensor([advantage]), rho, 0.2)
    value.sum().backward()
    assert rho.grad is not None
    assert (value.item(), rho.grad.item()) == (pytest.approx(loss), pytest.approx(slope))


def test_the_divergence_of_two_steps_is_that_of_two_gaussians() -> None:
    """|mu_1 - mu_2|^2 / (2 u^2), the mean over dimensions; torch.distributions agrees."""
    batch, d = taken(Process("flow"), torch.ones(3, dtype=DTYPE))
    step, other = ancestral_step(Process("flow"), 0.8, 0.5, 0.7), d + random(3, 2, 3, seed=9)
    a, b = (torch.distributions.Normal(step.mean(batch.x, e), step.noise) for e in (d, other))
    expected = torch.distributions.kl_divergence(a, b).flatten(1).mean(1)
    assert torch.allclose(step_kl(d, other, batch), expected, rtol=1e-9)
    assert step_kl(d, d, batch).tolist() == [0.0] * 3


def test_the_policy_gradient_is_the_covariance_of_reward_and_score() -> None:
    """x' ~ N(theta, 1) with reward x'^2: d/dtheta E[x'^2] = 2 theta, which E[A * score] gives with A = r - E[r], by
    Gauss-Hermite quadrature. PPO's loss has minus that gradient."""
    theta = 0.6
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(20))
    weights, after = weights / weights.sum(), (theta + nodes).reshape(-1, 1)
    reward = after.flatten().square()
    ones, zero = torch.ones(20, dtype=DTYPE), torch.zeros(20, 1, dtype=DTYPE)
    advantage = reward - (weights * reward).sum()
    at = torch.tensor(theta, dtype=DTYPE, requires_grad=True)
    batch = StepBatch(zero, zero, ones, ones, advantage, [None] * 20, after, 0 * ones, ones, ones, 0 * ones)
    batch = StepBatch(**{**batch.__dict__, "log_prob": step_log_prob(at.detach().expand(20, 1), batch)})
    (weights * Ppo(kl=0.0).losses({"theta": at.expand(20, 1)}, batch)).sum().backward()
    assert at.grad is not None and at.grad.item() == pytest.approx(-2 * theta, rel=1e-9)


def forward(label: Tensor) -> tuple[Batch, Tensor]:
    x0, d = random(len(label), 4, seed=1), random(len(label), 4, seed=2)
    ones = torch.ones(len(label), dtype=DTYPE)
    return Batch(x0, x0, ones, 2 * ones, label, [None] * len(label)), d


def test_awms_gradient_at_the_start_is_the_advantage_times_the_errors() -> None:
    """rho = exp(m_old - m), so d(-A rho) = A dm where m = m_old; both pulls have no slope there."""
    label = torch.tensor([1.0, -2.0], dtype=DTYPE)
    batch, d = forward(label)
    theta = d.clone().requires_grad_()
    Awm().losses({"theta": theta, "old": d, "ref": d}, batch).sum().backward()
    assert theta.grad is not None
    assert torch.allclose(theta.grad, label.reshape(-1, 1) * 2 * 2 * (d - batch.x0) / 4, rtol=1e-12)


def test_awm_without_a_clip_or_a_pull_is_refused() -> None:
    for settings in ({"clip": 0.0}, {"kl_old": 0.0}):
        with pytest.raises(ValueError, match="runs away"):
            Awm(**settings)


def test_draft_follows_the_rewards_own_gradient() -> None:
    """Reward = sum of the estimate: a loss of -1 a number, and nothing of the pull where D is the base model's."""
    batch, d = forward(torch.ones(3, dtype=DTYPE))
    theta = d.clone().requires_grad_()
    losses = Draft(lambda estimate, _: estimate.sum(1)).losses({"theta": theta, "ref": d}, batch)
    losses.sum().backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == [[-1.0] * 4] * 3
    assert losses.tolist() == pytest.approx((-d.sum(1)).tolist())


def test_advantages_are_clipped_to_five() -> None:
    assert Ppo().labels(torch.tensor([-9.0, 1.0, 9.0])).tolist() == [-5.0, 1.0, 5.0]
    assert Awm().labels(torch.tensor([-9.0, 1.0, 9.0])).tolist() == [-5.0, 1.0, 5.0]


def test_ppo_wants_steps() -> None:
    batch, d = forward(torch.ones(2, dtype=DTYPE))
    with pytest.raises(TypeError, match="steps of a sampler"):
        Ppo(kl=0.0).losses({"theta": d}, batch)


def test_a_step_at_a_thousandth_has_the_density_of_its_own_width() -> None:
    """log N at its mean is -log(u sqrt(2 pi)): for u = .001 it is 6.9078 - .9189."""
    ones, zero = torch.ones(1, dtype=DTYPE), torch.zeros(1, 2, dtype=DTYPE)
    batch = StepBatch(zero, zero, ones, ones, ones, [None], zero, ones, ones, 1e-3 * ones, ones)
    assert step_log_prob(zero, batch).item() == pytest.approx(math.log(1000) - math.log(2 * math.pi) / 2)
