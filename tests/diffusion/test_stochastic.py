"""The ancestral step keeps the law of its process, and its density is that of what it draws."""

from __future__ import annotations

import math

import pytest
import torch

from feedback_loop.diffusion.process import Process
from feedback_loop.diffusion.stochastic import ancestral_step

EPS, FLOW = Process("eps"), Process("flow")
SCALED = Process("flow", noise_scale=0.7)
LEVELS = {"eps": (4.0, 2.5), "flow": (0.8, 0.5)}


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("process", [EPS, Process("v"), Process("edm", sigma_data=0.5), FLOW, SCALED])
def test_with_the_true_clean_latent_a_step_lands_on_the_next_levels_law(process, eta):
    """x = a x0 + s n stepped with D = x0 has mean (keep a + pull) x0, which must be a' x0, and variance
    keep^2 s^2 + noise^2, which must be s'^2."""
    now, after = (torch.tensor(v, dtype=torch.float64) for v in LEVELS["flow" if process.kind == "flow" else "eps"])
    step = ancestral_step(process, now, after, eta)
    assert step.keep * process.a(now).item() + step.pull == pytest.approx(process.a(after).item(), rel=1e-12)
    variance = step.keep**2 * process.s(now).item() ** 2 + step.noise**2
    assert variance == pytest.approx(process.s(after).item() ** 2, rel=1e-12)


def test_at_eta_one_an_eps_step_is_the_posterior_of_the_process():
    """q(x' | x, x0) of x = x0 + sigma n has variance s'^2 (s^2 - s'^2) / s^2 and mean x0 + (s'^2 / s^2) (x - x0)."""
    step = ancestral_step(EPS, 4.0, 2.5)
    assert step.noise**2 == pytest.approx(2.5**2 * (16 - 6.25) / 16)
    assert step.keep == pytest.approx(6.25 / 16) and step.pull == pytest.approx(1 - 6.25 / 16)


@pytest.mark.parametrize("process", [EPS, FLOW], ids=["eps", "flow"])
def test_eta_zero_is_eulers_step_on_the_probability_flow(process):
    """x + (x - D) / s * (s' - s) keeps s'/s of x and takes 1 - s'/s of D."""
    now, after = LEVELS[process.kind]
    step = ancestral_step(process, now, after, 0.0)
    assert step.noise == pytest.approx(0, abs=1e-7)
    assert step.keep == pytest.approx(after / now) and step.pull == pytest.approx(1 - after / now)


@pytest.mark.parametrize("process", [EPS, FLOW], ids=["eps", "flow"])
def test_the_last_step_takes_the_clean_estimate(process):
    x, clean, n = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    step = ancestral_step(process, LEVELS[process.kind][1], 0.0)
    assert torch.equal(step.take(x, clean, n), clean)


def test_the_density_is_that_of_torchs_normal_distribution():
    generator = torch.Generator().manual_seed(0)
    x, clean, after = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    step = ancestral_step(EPS, 4.0, 2.5)
    expected = torch.distributions.Normal(step.mean(x, clean), step.noise).log_prob(after).flatten(1).sum(1)
    torch.testing.assert_close(step.log_probability(x, clean, after), expected)


def test_the_gradient_of_the_density_is_the_score_in_the_clean_estimate():
    """d/dD log N(x'; keep x + pull D, s^2) = pull (x' - mean) / s^2, which is pull n / s for the noise n drawn."""
    x, clean, n = torch.randn(3, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = ancestral_step(FLOW, 0.8, 0.5)
    leaf = clean.clone().requires_grad_()
    step.log_probability(x, leaf, step.take(x, clean, n)).sum().backward()
    torch.testing.assert_close(leaf.grad, step.pull * n / step.noise)


@pytest.mark.parametrize("process", [EPS, FLOW], ids=["eps", "flow"])
def test_the_ratio_is_the_difference_of_the_two_densities(process):
    generator = torch.Generator().manual_seed(0)
    x, clean, push, n = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    step = ancestral_step(process, *LEVELS[process.kind])
    after = step.take(x, clean + push, n)
    expected = step.log_probability(x, clean, after) - step.log_probability(x, clean + push, after)
    torch.testing.assert_close(step.log_ratio(push, n), expected)


def test_weights_by_the_ratio_average_to_one():
    """E_q[p / q] = 1. In one dimension with a shift of pull/noise * push = .5 the variance of p/q is e^.25 - 1 = .284,
    so 20,000 draws have a standard error of .0038."""
    step = ancestral_step(EPS, 4.0, 2.5)
    n = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    push = torch.full_like(n, 0.5 * step.noise / step.pull)
    error = math.sqrt((math.exp(0.25) - 1) / 20000)
    assert step.log_ratio(push, n).exp().mean().item() == pytest.approx(1, abs=3 * error)


def test_half_precision_latents_have_a_density_in_float32():
    x = torch.zeros(2, 4, 64, 64, dtype=torch.float16)
    density = ancestral_step(EPS, 400.0, 300.0).log_probability(x, x, x + 60)
    assert density.dtype == torch.float32 and density.isfinite().all()


def test_a_step_without_noise_has_no_density():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="has no density"):
        ancestral_step(EPS, 1.0, 0.0).log_probability(x, x, x)


@pytest.mark.parametrize(("now", "after"), [(1.0, 1.0), (0.5, 1.0), (0.0, 0.0), (1.0, -1.0)])
def test_a_step_that_does_not_go_down_is_refused(now, after):
    with pytest.raises(ValueError, match="goes down"):
        ancestral_step(EPS, now, after)
