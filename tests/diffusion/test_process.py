"""The forward processes against closed forms of a Gaussian, where everything about them is known."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.diffusion.process import Process, at_least_float32, per_sample

KINDS = [
    Process("eps"),
    Process("v"),
    Process("edm", sigma_data=0.5, latent_variance=0.25),
    Process("flow"),
    Process("flow", noise_scale=2.0, latent_variance=3.0),
]


@pytest.mark.parametrize("process", KINDS, ids=str)
def test_noising_has_the_mean_and_the_spread_that_a_and_s_say(process):
    """x = a x0 + s n, so with n = 0 x is a x0 and with x0 = 0 it is s n."""
    sigma, ones = torch.tensor([0.1, 0.5, 0.9]), torch.ones(3, 4, 2, 2)
    a, s = process.a(sigma), process.s(sigma)
    assert torch.equal(process.noise(ones, 0 * ones, sigma), per_sample(a, ones) * ones)
    assert torch.equal(process.noise(0 * ones, ones, sigma), per_sample(s, ones) * ones)


@pytest.mark.parametrize("process", KINDS, ids=str)
def test_posterior_variance_is_that_of_gaussian_conditioning(process):
    """x0 ~ N(0, v) and x = a x0 + s n: Var(x0 | x) = v - (a v)^2 / (a^2 v + s^2), the Schur complement."""
    sigma = torch.tensor([1e-3, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    v, a, s = process.latent_variance, process.a(sigma), process.s(sigma)
    schur = v - (a * v) ** 2 / (a**2 * v + s**2)
    torch.testing.assert_close(process.posterior_variance(sigma), schur, rtol=1e-9, atol=1e-12)


def test_pure_noise_leaves_the_variance_of_the_prior():
    """At sigma 1 a flow has a = 0: x says nothing, V = v. An eps model gets there as sigma grows."""
    assert Process("flow", latent_variance=0.7).posterior_variance(torch.tensor(1.0)).item() == pytest.approx(0.7)
    assert Process("eps", latent_variance=0.7).posterior_variance(torch.tensor(1e5)).item() == pytest.approx(0.7)


def test_flow_and_eps_are_one_process_seen_at_two_scales():
    """Dividing a flow's x by 1 - sigma gives an eps x at sigma/(1 - sigma): same V, and that is noise_to_signal."""
    flow, eps = Process("flow"), Process("eps")
    sigma = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    ratio = flow.noise_to_signal(sigma)
    torch.testing.assert_close(ratio, sigma / (1 - sigma))
    torch.testing.assert_close(flow.posterior_variance(sigma), eps.posterior_variance(ratio))
    assert flow.noise_to_signal(torch.tensor(1.0)).item() == float("inf")


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (Process("eps"), 1 / 4),  # error of the predicted noise: n = (x - D) / sigma
        (Process("flow"), 1 / 4),  # error of the predicted velocity: (x - D) / sigma as well
        (Process("v"), 5 / 4),  # (sigma^2 + 1) / sigma^2
        (Process("edm", sigma_data=0.5), 4.25),  # (4 + .25) / (4 * .25)
    ],
    ids=str,
)
def test_the_loss_weight_is_the_models_own_at_sigma_two(process, expected):
    """kappa at sigma = 2, worked out by hand beside each case."""
    assert process.kappa(torch.tensor(2.0)).item() == pytest.approx(expected)


def test_half_precision_sigmas_do_not_overflow():
    """sigma_max of a zero-terminal-SNR schedule is about 4500; its square is beyond float16, not beyond float32."""
    sigma = torch.tensor([4500.0], dtype=torch.float16)
    assert at_least_float32(sigma).dtype == torch.float32
    assert Process("eps").posterior_variance(sigma).item() == pytest.approx(1.0, rel=1e-4)
    assert Process("v").noise(torch.ones(1, 4, 2, 2).half(), torch.ones(1, 4, 2, 2).half(), sigma).isfinite().all()


def test_sigma_broadcasts_over_pictures_and_over_latents_with_a_frame_axis():
    sigma = torch.tensor([0.0, 1.0])
    for shape in ((2, 4, 3, 3), (2, 4, 1, 3, 3)):
        x = Process("eps").noise(torch.zeros(shape), torch.ones(shape), sigma)
        assert x[0].abs().max() == 0 and torch.equal(x[1], torch.ones(shape[1:]))


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="'ddpm'"):
        Process("ddpm")  # type: ignore[arg-type]
