"""Reward guidance against the exact tilted law of a Gaussian, and the promises of the trust region."""

from __future__ import annotations

import logging

import pytest
import torch

from feedback_loop.diffusion.process import Process
from feedback_loop.guidance.gradient import (
    LATENT,
    GuidanceError,
    Guide,
    TrustRegion,
    capped,
    forward_difference,
    gradient,
    guided,
    orthogonal_part,
    rms,
    room,
    tilted,
)

EPS, FLOW = Process("eps", latent_variance=0.8), Process("flow", latent_variance=0.8)
MEAN, VARIANCE = 0.5, 0.8


def denoiser(x, sigma, process, mean=MEAN, variance=VARIANCE):
    """E[x0 | x] for x0 ~ N(mean, variance) and x = a x0 + s n: mean + v a (x - a mean) / (v a^2 + s^2)."""
    a, s = process.a(sigma), process.s(sigma)
    return mean + variance * a * (x - a * mean) / (variance * a**2 + s**2)


def schedule(process, steps=30):
    """Karras' sigmas from 80 for eps; for flow uniform times moved by ComfyUI's shift of 3: 3t / (1 + 2t)."""
    if process.kind == "flow":
        time = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return 3 * time / (1 + 2 * time)
    ramp = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps, dtype=torch.float64) ** 7
    return torch.cat([ramp, ramp.new_zeros(1)])


def euler(denoise, process, x):
    """Euler's method on dx/dsigma = (x - D) / sigma, which is the probability flow of eps and of flow models."""
    sigmas = schedule(process)
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (x - denoise(x, now)) / now * (after - now)
    return x


def start(process, count=64):
    """Equally likely quantiles of the starting noise, so that mean and variance have no sampling error."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    noise = torch.distributions.Normal(0.0, 1.0).icdf(quantiles).reshape(-1, 1, 1, 1)
    return process.s(schedule(process)[0]) * noise


def assert_same_law(samples, expected, variance):
    """The issue's bound: means within .01 standard deviations of the target, variances within .1 %."""
    assert abs(samples.mean() - expected.mean()).item() <= 0.01 * variance**0.5
    assert samples.var().item() == pytest.approx(expected.var().item(), rel=1e-3)


@pytest.mark.parametrize("process", [EPS, FLOW], ids=["eps", "flow with shift 3"])
def test_a_linear_reward_gives_the_samples_of_the_tilted_gaussian(process):
    """N(m, v) exp(lambda b x) is N(m + lambda v b, v). With lambda = 3, b = .7, v = .8 the mean moves by 1.68. The
    target is that Gaussian's own denoiser under the same sampler: 30 Euler steps alone cost a tenth of the variance."""
    x, slope, temperature = start(process), 0.7, 3.0
    ours = euler(
        lambda x, s: tilted(denoiser(x, s, process), s, lambda z: slope * z.flatten(1).sum(1), process, temperature),
        process,
        x,
    )
    target = euler(lambda x, s: denoiser(x, s, process, MEAN + temperature * VARIANCE * slope), process, x)
    assert target.mean().item() == pytest.approx(MEAN + 1.68, abs=0.1)
    assert_same_law(ours, target, VARIANCE)


@pytest.mark.parametrize("stiffness", [1.0, 20.0, 1000.0])
@pytest.mark.parametrize("process", [EPS, FLOW], ids=["eps", "flow with shift 3"])
def test_a_quadratic_reward_gives_the_samples_of_the_tilted_gaussian(process, stiffness):
    """N(m, v) exp(-lambda k (x - b)^2 / 2): precisions add, 1/v' = 1/v + lambda k, and m' = v' (m/v + lambda k b). With
    lambda k = 1000 an undamped step would overshoot 800-fold."""
    x, goal = start(process), -1.5
    variance = 1 / (1 / VARIANCE + stiffness)
    mean = variance * (MEAN / VARIANCE + stiffness * goal)
    ours = euler(
        lambda x, s: tilted(
            denoiser(x, s, process), s, lambda z: -((z - goal) ** 2).flatten(1).sum(1) / 2, process, stiffness
        ),
        process,
        x,
    )
    target = euler(lambda x, s: denoiser(x, s, process, mean, variance), process, x)
    assert_same_law(ours, target, variance)


@pytest.mark.parametrize("process", [Process("eps"), Process("flow")], ids=["eps", "flow with shift 3"])
def test_pictures_of_a_mixture_end_in_the_component_that_is_asked_for_and_stay_likely_there(process):
    """Half of x0 about -1, half about 1, deviation .3 in each of four dimensions; the reward is the log-probability of
    the second. Nearly all end there, and their Mahalanobis distance from its middle is within 2 % of that of unguided
    ones: neither a point in the middle nor thrown beyond it. Which of the two is decided early, so steps of 1.5
    deviations of the whole mixture are needed, and none once there is less noise than signal."""
    middles, spread = torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]], dtype=torch.float64), 0.3

    def distances(x):
        return ((x.flatten(1)[:, None] - middles) ** 2).sum(-1)

    def second(x):
        return (-distances(x) / (2 * spread**2)).log_softmax(-1)[:, 1]

    def estimate(x, sigma):
        a, s = process.a(sigma), process.s(sigma)
        total, flat = (spread * a) ** 2 + s**2, x.flatten(1)[:, None]
        share = (-((flat - a * middles) ** 2).sum(-1) / (2 * total)).softmax(-1)
        own = middles + spread**2 * a * (flat - a * middles) / total
        return (share[..., None] * own).sum(1).reshape(x.shape)

    def steered(x, sigma):
        found, level, region = estimate(x, sigma), sigma.expand(len(x)), TrustRegion(tau=1.5, cleanest=1.0)
        if not region.holds(process, level):
            return found
        return guided(found, level, [Guide(second)], process, region.tau)

    noise = torch.randn(4000, 4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    begin = process.s(schedule(process)[0]) * noise
    plain, ours = euler(estimate, process, begin), euler(steered, process, begin)
    there = distances(plain).argmin(1) == 1
    assert 0.4 < there.double().mean() < 0.6
    assert (distances(ours).argmin(1) == 1).double().mean() >= 0.98
    usual = distances(plain)[there, 1].sqrt().mean().item()
    assert distances(ours)[:, 1].sqrt().mean().item() == pytest.approx(usual, rel=0.02)


def test_eps_v_and_flow_forms_of_one_gaussian_are_guided_alike():
    """x at flow sigma .6 is, divided by .4, an eps x at sigma 1.5: same clean estimate, same V, so the same step. V and
    EDM models share the eps process."""
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reward = lambda z: -((z - 2) ** 2).flatten(1).sum(1)  # noqa: E731
    results = []
    for process, sigma, scale in ((EPS, 1.5, 1.0), (Process("v", latent_variance=0.8), 1.5, 1.0), (FLOW, 0.6, 0.4)):
        level = torch.full((3,), sigma, dtype=torch.float64)
        estimate = denoiser(scale * x, level[0], process)
        results.append(
            (tilted(estimate, level, reward, process, 2.0), guided(estimate, level, [Guide(reward)], process, 0.6))
        )
    for exact, optimised in results[1:]:
        torch.testing.assert_close(exact, results[0][0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(optimised, results[0][1], rtol=1e-9, atol=1e-9)


SPREAD = torch.tensor([4.0, 0.04], dtype=torch.float64).reshape(1, 2, 1, 1)


def anisotropic(x, sigma, mean=0.0):
    """E[x0 | x] for x0 ~ N(mean, diag(4, .04)) under eps: mean + v (x - mean) / (v + sigma^2), channel by channel."""
    return mean + SPREAD * (x - mean) / (SPREAD + sigma**2)


@pytest.mark.parametrize("carried, bound", [(False, 1.7), (True, 0.3)], ids=["by the variance", "by a difference"])
def test_on_a_prior_of_unlike_directions_a_difference_through_the_denoiser_finds_the_tilted_mean(carried, bound):
    """N(0, diag(4, .04)) tilted by exp(r), r = b . x, has the mean diag(4, .04) b. One variance for both directions is
    off by up to 1.7 standard deviations of that direction; the covariance itself, by a difference, by at most .3."""
    process, slope = Process("eps", latent_variance=1.0), torch.tensor([0.5, 1.0], dtype=torch.float64)
    x = start(process).expand(-1, 2, 1, 1).clone()
    reward = lambda z: (z * slope.reshape(1, 2, 1, 1)).flatten(1).sum(1)  # noqa: E731

    def steered(x, sigma):
        denoised = anisotropic(x, sigma)
        carry = forward_difference(lambda y: anisotropic(y, sigma), x, denoised, sigma, process) if carried else None
        return tilted(denoised, sigma, reward, process, 1.0, transport=carry)

    aim = (SPREAD * slope.reshape(1, 2, 1, 1)).expand_as(x)
    target = euler(lambda x, s: anisotropic(x, s, aim), process, x)
    off = (euler(steered, process, x).mean(0) - target.mean(0)).abs().flatten() / SPREAD.sqrt().flatten()
    assert off.max() <= bound
    assert carried or off.max() > 0.3, "then the difference would not be needed"


def test_a_forward_difference_is_the_covariance_times_the_slope():
    """For a Gaussian D is linear, so the difference is exact but for rounding: s^2/a dD/dx g = V g, here with
    v s^2 / (v + s^2) for each direction. A sample whose slope is zero is carried nowhere."""
    process, sigma = Process("eps"), torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    x, slope = torch.randn(2, 3, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope[2] = 0
    level = sigma.reshape(-1, 1, 1, 1)
    carried = forward_difference(lambda y: anisotropic(y, level), x, anisotropic(x, level), sigma, process)(slope)
    torch.testing.assert_close(carried, SPREAD * level**2 / (SPREAD + level**2) * slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("process", [Process("eps"), Process("flow")], ids=["eps", "flow"])
@pytest.mark.parametrize(("share", "bound"), [(1e-2, 2e-2), (1e-3, 2e-3), (1e-4, 2e-4)])
def test_a_forward_difference_is_autograds_but_for_how_much_the_denoiser_bends(share, bound, process):
    """A mixture of three, which is no straight line between them, in float64: against autograd's vector-Jacobian
    product. A one-sided difference errs in the order of how far it goes: in proportion to `share`."""
    middles = torch.tensor([[-1.0, 0, 0, 0], [1.0, 0.5, 0, 0], [0, -1.0, 1.0, 0]], dtype=torch.float64)
    generator, spread = torch.Generator().manual_seed(0), 0.3
    draw = lambda: torch.randn(200, 4, 1, 1, dtype=torch.float64, generator=generator)  # noqa: E731
    for noise in (0.2, 1.0, 5.0):
        sigma = torch.tensor(noise if process.kind == "eps" else noise / (1 + noise), dtype=torch.float64).expand(200)
        a, s = process.a(sigma[0]), process.s(sigma[0])

        def denoise(x, a=a, s=s):
            total, flat = (spread * a) ** 2 + s**2, x.flatten(1)[:, None]
            share = (-((flat - a * middles) ** 2).sum(-1) / (2 * total)).softmax(-1)
            own = middles + spread**2 * a * (flat - a * middles) / total
            return (share[..., None] * own).sum(1).reshape(x.shape)

        clean = middles[torch.arange(200) % 3].reshape(200, 4, 1, 1) + spread * draw()
        x, slope = a * clean + s * draw(), draw()
        exact = s**2 / a * torch.autograd.functional.vjp(denoise, x, slope)[1]
        carried = forward_difference(denoise, x, denoise(x), sigma, process, share)(slope)
        off = (carried - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        assert off.quantile(0.95) < bound


def test_the_orthogonal_part_keeps_the_estimates_length_to_first_order():
    x, step = latents(), latents(seed=5)
    part = orthogonal_part(step, x)
    assert (part * x).flatten(1).sum(1).abs().max() < 1e-3
    torch.testing.assert_close(part + (step - part), step)
    moved = guided(x, torch.ones(4), [Guide(towards(0.0, 50.0), orthogonal=True)], EPS, 0.6) - x
    assert rms(moved).max() < 1e-4, "towards(0) pulls straight along the estimate, and nothing of that is left"


def test_the_orthogonal_part_stays_inside_the_mask():
    x, sigma, mask = latents(), torch.ones(4), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    step = guided(x, sigma, [Guide(towards(3.0, 50.0), mask=mask, orthogonal=True)], EPS, 0.6) - x
    assert step[..., 4:].abs().max() == 0 and step[..., :4].abs().max() > 0


def test_graphs_are_kept_for_as_many_samples_at_a_time_as_asked():
    sizes = []

    def reward(z):
        sizes.append(len(z))
        return towards(3.0)(z)

    torch.testing.assert_close(gradient(reward, latents(), 3), gradient(towards(3.0), latents()))
    assert sizes == [3, 1]


def latents(seed=0, batch=4, dtype=torch.float32):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def towards(goal, steepness=1.0):
    return lambda z: -steepness * ((z - goal) ** 2).flatten(1).sum(1)


SIGMAS = torch.tensor([0.2, 1.0, 5.0, 14.0])


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_each_sample_moves_by_tau_standard_deviations_of_its_own_posterior(strength):
    """V = v s^2 / (v + s^2) differs over the batch's four sigmas; the steep reward keeps every step at the cap."""
    x = latents()
    step = guided(x, SIGMAS, [Guide(towards(3.0, 50.0), strength)], Process("eps"), tau=0.6) - x
    expected = 0.6 * strength * Process("eps").posterior_variance(SIGMAS).sqrt()
    torch.testing.assert_close(rms(step).flatten(), expected, rtol=1e-5, atol=0)


def test_a_batch_of_four_is_four_singles():
    x, guides = latents(), [Guide(towards(3.0)), Guide(towards(-1.0), 0.5)]
    together = guided(x, SIGMAS, guides, EPS, 0.6)
    exact = tilted(x, SIGMAS, towards(3.0), EPS, 2.0)
    for i in range(4):
        row = slice(i, i + 1)
        torch.testing.assert_close(guided(x[row], SIGMAS[row], guides, EPS, 0.6), together[row], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            tilted(x[row], SIGMAS[row], towards(3.0), EPS, 2.0), exact[row], rtol=1e-6, atol=1e-6
        )


def test_several_guides_share_one_trust_region():
    """Two equal guides go as far as one; two opposite ones stay; unequal ones go no further than the stronger alone."""
    x, sigma = latents(), torch.ones(4)
    up, down = lambda z: 9 * z.flatten(1).sum(1), lambda z: -9 * z.flatten(1).sum(1)
    sideways = lambda z: 9 * z[:, :2].flatten(1).sum(1)  # noqa: E731
    one = guided(x, sigma, [Guide(up)], EPS, 0.6)
    torch.testing.assert_close(guided(x, sigma, [Guide(up), Guide(up)], EPS, 0.6), one)
    torch.testing.assert_close(guided(x, sigma, [Guide(up), Guide(down)], EPS, 0.6), x)
    both = guided(x, sigma, [Guide(up, 0.5), Guide(sideways, 1.0)], EPS, 0.6) - x
    radius = 0.6 * EPS.posterior_variance(sigma).sqrt()
    assert (rms(both).flatten() <= radius * (1 + 1e-5)).all()


def test_the_order_of_guides_does_not_matter():
    x, sigma = latents(), torch.ones(4)
    guides = [Guide(towards(3.0)), Guide(towards(-1.0), 0.5)]
    forth, back = guided(x, sigma, guides, EPS, 0.6), guided(x, sigma, guides[::-1], EPS, 0.6)
    torch.testing.assert_close(forth, back, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "guides",
    [[], [Guide(towards(3.0), 0.0)], [Guide(towards(3.0), mask=torch.zeros(1, 1, 8, 8))]],
    ids=["no guide", "strength 0", "mask 0"],
)
def test_nothing_to_do_is_bit_equal(guides):
    x = latents(dtype=torch.float16)
    assert torch.equal(guided(x, SIGMAS, guides, EPS, 0.6), x)


def test_tau_zero_and_temperature_zero_are_bit_equal():
    x = latents(dtype=torch.bfloat16)
    assert guided(x, SIGMAS, [Guide(towards(3.0))], EPS, 0.0) is x
    assert tilted(x, SIGMAS, towards(3.0), EPS, 0.0) is x


def test_a_mask_keeps_the_rest_bit_equal_and_the_step_inside_as_long_as_without():
    x, sigma, mask = latents(), torch.ones(4), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    step = guided(x, sigma, [Guide(towards(3.0, 50.0), mask=mask)], EPS, 0.6) - x
    assert step[..., 4:].abs().max() == 0
    expected = 0.6 * EPS.posterior_variance(sigma).sqrt()
    torch.testing.assert_close(rms(step[..., :4]).flatten(), expected, rtol=1e-5, atol=0)


def test_two_masks_are_two_regions_each_with_its_own_full_step():
    x, sigma = latents(), torch.ones(4)
    left, right = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    left[..., :4], right[..., 4:] = 1, 1
    both = guided(x, sigma, [Guide(towards(3.0, 50.0), mask=left), Guide(towards(-3.0, 50.0), mask=right)], EPS, 0.6)
    alone = guided(x, sigma, [Guide(towards(3.0, 50.0), mask=left)], EPS, 0.6)
    torch.testing.assert_close(both[..., :4], alone[..., :4], rtol=1e-5, atol=1e-6)
    assert (both[..., 4:] != x[..., 4:]).all()


def test_a_nearly_flat_reward_moves_in_proportion_to_its_slope():
    """A linear reward of slope b over n dimensions changes by b sqrt(n V) for one standard deviation of x0 given x.
    At a tenth of what is negligible the step is a tenth of the trust region; above it the slope does not matter."""
    x, sigma, n = latents(), torch.ones(4), 4 * 8 * 8
    deviation = EPS.posterior_variance(sigma).sqrt()
    for share, expected in ((0.1, 0.1), (1.0, 1.0), (50.0, 1.0)):
        slope = share * 0.02 / (n**0.5 * deviation[0].item())
        step = guided(x, sigma, [Guide(lambda z, b=slope: b * z.flatten(1).sum(1), negligible=0.02)], EPS, 0.6) - x
        torch.testing.assert_close(rms(step).flatten(), 0.6 * expected * deviation, rtol=1e-3, atol=0)


def test_both_modes_tell_how_much_of_the_reward_is_in_reach():
    """A linear reward of slope b over n dimensions changes by b sqrt(n V) for one deviation, at any temperature."""
    x, sigma, n, told = latents(), torch.full((4,), 2.0), 4 * 8 * 8, []
    reward = lambda z: 0.3 * z.flatten(1).sum(1)  # noqa: E731
    guided(x, sigma, [Guide(reward, negligible=0.02, on_step=told.append)], EPS, 0.6)
    see = lambda slope, deviation: told.append(room(slope, deviation, 0.02).flatten())  # noqa: E731
    tilted(x, sigma, reward, EPS, 7.0, on_slope=see)
    expected = 0.3 * (n * EPS.posterior_variance(sigma)).sqrt() / 0.02
    for seen in told:
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=0)
    assert len(told) == 2


def test_a_gradient_too_small_for_float32_squares_still_has_a_direction():
    """The square of 1e-30 is 0 in float32; the length of a step must not come out as infinite or zero by that."""
    values = torch.full((1, 2, 2, 2), 1e-30)
    assert rms(values).item() == pytest.approx(1e-30, rel=1e-5)
    assert rms(capped(values, torch.tensor(1e-31))).item() == pytest.approx(1e-31, rel=1e-5)


def test_a_picture_whose_gradient_is_not_finite_stays_and_a_warning_says_so(caplog):
    """sqrt has an infinite slope at 0; the other pictures of the batch are guided all the same."""
    x = latents().abs() + 1
    x[1] = 0
    reward = lambda z: 9 * z.sqrt().flatten(1).sum(1)  # noqa: E731
    with caplog.at_level(logging.WARNING):
        moved = guided(x, SIGMAS, [Guide(reward)], EPS, 0.6)
    assert torch.equal(moved[1], x[1])
    assert moved.isfinite().all() and all((moved[i] != x[i]).any() for i in (0, 2, 3))
    assert "not finite" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "move",
    [
        lambda x, carry: guided(x, SIGMAS[:2], [Guide(towards(3.0), transport=carry)], EPS, 0.6),
        lambda x, carry: tilted(x, SIGMAS[:2], towards(3.0), EPS, 2.0, transport=carry),
    ],
    ids=["guided", "tilted"],
)
def test_a_picture_whose_slope_is_not_finite_once_carried_stays_and_a_warning_says_so(move, bad, caplog):
    """The reward's own slope is in order; what overflows is the way through the denoiser, for one of two pictures."""
    x = latents(batch=2)

    def carry(slope):
        carried = slope.clone()
        carried[1, 0, 0, 0] = bad
        return carried

    with caplog.at_level(logging.WARNING):
        moved = move(x, carry)
    assert torch.equal(moved[1], x[1])
    assert moved.isfinite().all() and (moved[0] != x[0]).all()
    assert "not finite" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_keeps_the_latents_type_and_is_a_finite_step(dtype):
    x = latents(dtype=dtype)
    for moved in (guided(x, SIGMAS, [Guide(towards(3.0))], EPS, 0.6), tilted(x, SIGMAS, towards(3.0), EPS, 2.0)):
        assert moved.dtype == dtype and moved.isfinite().all() and (moved != x).any()
        assert not moved.requires_grad


def test_gradients_are_taken_where_they_are_switched_off_and_the_switch_stays_off():
    with torch.no_grad():
        slope = gradient(towards(0.0), latents())
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(slope, -2 * latents())


def test_an_exception_in_the_reward_leaves_gradients_switched_off():
    def broken(z):
        raise KeyboardInterrupt

    with torch.no_grad():
        with pytest.raises(KeyboardInterrupt):
            guided(latents(), SIGMAS, [Guide(broken)], EPS, 0.6)
        assert not torch.is_grad_enabled()


def test_a_reward_without_a_gradient_is_refused():
    with pytest.raises(GuidanceError, match="no gradient"):
        gradient(lambda z: z.detach().flatten(1).sum(1), latents())


def test_a_reward_that_gives_one_number_for_all_pictures_is_refused():
    with pytest.raises(GuidanceError, match="one number for each picture"):
        gradient(lambda z: z.sum(), latents())


def test_the_interval_is_one_of_noise_to_signal_for_every_kind():
    """15 is sigma 15 of an eps model and 15/16 of a flow; pure noise of a flow is outside, whatever the interval."""
    inside, outside = torch.tensor([1.0, 14.9]), torch.tensor([1.0, 15.1])
    assert LATENT.holds(EPS, inside) and not LATENT.holds(EPS, outside)
    assert LATENT.holds(FLOW, torch.tensor([0.93])) and not LATENT.holds(FLOW, torch.tensor([0.94]))
    assert not TrustRegion(0.6).holds(FLOW, torch.tensor([1.0]))
    assert not LATENT.holds(EPS, torch.tensor([0.05]))
