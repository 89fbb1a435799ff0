"""Particle methods against laws that are known: Gaussians and mixtures with their exact denoisers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from feedback_loop.diffusion.process import Process
from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.guidance.gradient import forward_difference, tilted
from feedback_loop.guidance.particles import (
    Particles,
    Steering,
    categorical,
    effective_size,
    spread,
    systematic,
)
from feedback_loop.guidance.steering import Steered

MEAN, VARIANCE = 0.5, 0.8
EPS, FLOW = Process("eps", latent_variance=VARIANCE), Process("flow", latent_variance=VARIANCE)
PROCESSES = pytest.mark.parametrize("process", [EPS, FLOW], ids=["eps", "flow with shift 3"])


def schedule(process, steps=24):
    """Karras' sigmas from 40 for eps; for flow uniform times moved by ComfyUI's shift of 3: 3t / (1 + 2t)."""
    if process.kind == "flow":
        time = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return 3 * time / (1 + 2 * time)
    ramp = torch.linspace(40 ** (1 / 7), 0.01 ** (1 / 7), steps, dtype=torch.float64) ** 7
    return torch.cat([ramp, ramp.new_zeros(1)])


def gaussian(x, sigma, process, mean=MEAN, variance=VARIANCE):
    """E[x0 | x] for x0 ~ N(mean, variance) and x = a x0 + s n."""
    a, s = process.a(sigma), process.s(sigma)
    return mean + variance * a * (x - a * mean) / (variance * a**2 + s**2)


def sampled_law(process, mean=MEAN, variance=VARIANCE):
    """Mean and variance of what the plain ancestral sampler makes of N(mean, variance), step by step: every step is
    linear in x, so x stays Gaussian. Few steps alone change the variance; the target has to be that of the sampler."""
    sigmas = schedule(process)
    m, v = 0.0, process.s(sigmas[0]).item() ** 2
    for now, after in itertools.pairwise(sigmas):
        step, a, s = ancestral_step(process, now, after), process.a(now).item(), process.s(now).item()
        slope = variance * a / (variance * a**2 + s**2)
        m = step.keep * m + step.pull * (mean + slope * (m - a * mean))
        v = (step.keep + step.pull * slope) ** 2 * v + step.noise**2
    return m, v


def run(process, denoise, score, steering, count, pictures, shape=(1,), seed=0, push=None, every=1):
    """The ancestral sampler with particles: what the SAMPLER does, on exact denoisers. Returns (latents, Steered)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(count * pictures, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    sigmas = schedule(process)
    x = process.s(sigmas[0]) * draw()
    steered = Steered(steering, process, score, count, pictures, generator, every=every)
    for now, after in itertools.pairwise(sigmas):
        denoised = denoise(x, now)
        pushed = torch.zeros_like(x) if push is None else push(x, denoised, now) - denoised
        denoised = denoised + pushed
        if after > 0 and steered.due(now):
            steered.look(now, x, denoised, [pushed])
        step, n = ancestral_step(process, now, after), draw()
        x = step.take(x, denoised, n)
        if push is not None and step.noise > 0:
            steered.particles.correct(steered.of(step.log_ratio(pushed, n)))
    steered.finish(x)
    return x, steered


def weighted(x, steered):
    """Mean and variance under the weights, with the standard error of the mean over independent pictures."""
    n, b = steered.particles.log_weights.shape
    weights, values = steered.particles.log_weights.softmax(dim=0), x.reshape(n, b)
    means = (weights * values).sum(dim=0)
    variance = (weights * (values - means.mean()) ** 2).sum(dim=0).mean().item()
    return means.mean().item(), variance, means.std().item() / b**0.5


@PROCESSES
@pytest.mark.parametrize(
    ("potential", "temperature", "every"), [("difference", 2.0, 1), ("max", 2.0, 6), ("sum", 0.7, 6)]
)
def test_a_linear_reward_gives_the_tilted_gaussian_whatever_the_potential(process, potential, temperature, every):
    """N(m, v) exp(lambda b x) is N(m + lambda b v, v), with m and v of the plain sampler itself. lambda = 2, b = .7
    moves the mean by about 1.1. Max and sum weigh anew at every look, so they get about four, as published, and sum,
    which adds them up, a third of lambda. A ratio of sums over 64 particles leaves a bias of order 1/64 of the spread;
    bounds: .03 sd and 3 standard errors for the mean, 8 % for the variance of 400 pictures."""
    m, v = sampled_law(process)
    steering = Steering(temperature, potential, curvature=0.0)
    denoise, score = lambda x, s: gaussian(x, s, process), lambda z: 0.7 * z.flatten(1).sum(1)
    mean, variance, error = weighted(*run(process, denoise, score, steering, 64, 400, every=every))
    assert mean == pytest.approx(m + 0.7 * temperature * v, abs=0.03 * v**0.5 + 3 * error)
    assert variance == pytest.approx(v, rel=0.08)


@PROCESSES
def test_a_quadratic_reward_gives_the_tilted_gaussian(process):
    """N(m, v) exp(-lambda k (x - b)^2 / 2): 1/v' = 1/v + lambda k and m' = v' (m/v + lambda k b). The reward is as
    curved as it is, so kappa = 1 damps it by what is known: lambda k = 4."""
    m, v = sampled_law(process)
    stiffness, goal = 4.0, -1.0
    variance = 1 / (1 / v + stiffness)
    target = variance * (m / v + stiffness * goal)
    score = lambda z: -((z - goal) ** 2).flatten(1).sum(1) / 2  # noqa: E731
    x, steered = run(process, lambda x, s: gaussian(x, s, process), score, Steering(stiffness), 64, 400)
    mean, found, error = weighted(x, steered)
    assert mean == pytest.approx(target, abs=0.03 * variance**0.5 + 3 * error)
    assert found == pytest.approx(variance, rel=0.08)


@PROCESSES
@pytest.mark.parametrize("count", [2, 4, 16])
def test_the_evidence_estimate_is_unbiased_for_any_number_of_particles(process, count):
    """E_p[exp(lambda b x)] = exp(lambda b m + (lambda b)^2 v / 2) for p the plain sampler's own law. The mean of Z^ / Z
    over independent pictures is 1 within 3 standard errors, also where particles were resampled."""
    m, v = sampled_law(process)
    tilt = 1.2
    steering = Steering(tilt, curvature=0.5, threshold=0.9)
    x, steered = run(
        process, lambda x, s: gaussian(x, s, process), lambda z: z.flatten(1).sum(1), steering, count, 2000
    )
    ratio = (steered.particles.log_evidence() - (tilt * m + tilt**2 * v / 2)).exp()
    assert steered.particles.resampled.float().mean() > 0.5
    assert ratio.mean().item() == pytest.approx(1, abs=3 * ratio.std().item() / 2000**0.5)


def mixture(x, sigma, process, centres, weights, variance):
    """The exact denoiser of sum_i w_i N(c_i, variance) in D dimensions: posterior shares times posterior means."""
    a, s = process.a(sigma), process.s(sigma)
    total = variance * a**2 + s**2
    off = x.unsqueeze(1) - a * centres
    shares = (weights.log() - off.square().sum(-1) / (2 * total)).softmax(dim=1)
    return (shares.unsqueeze(-1) * (centres + variance * a * off / total)).sum(1)


@PROCESSES
def test_particles_move_the_mass_of_a_mixture_as_the_tilt_says(process):
    """Three modes in the plane with shares .5, .3, .2 and a reward of 0, 1, 2 on them, which has no gradient at all: it
    counts which mode is nearest. At lambda 1 the shares become w_i e^(r_i) / Z. One particle a picture is drawn by
    weight; the share over 3000 pictures is within 3 binomial standard errors. The sampler's own shares, which are what
    is tilted, are known from so many pictures that they add next to nothing to that."""
    centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    mode = lambda z: torch.cdist(z, centres).argmin(dim=1)  # noqa: E731
    pictures = 3000
    prior = Process(process.kind, latent_variance=3.0)
    x, steered = run(
        prior,
        lambda x, s: mixture(x, s, prior, centres, weights, 0.1),
        lambda z: mode(z).double(),
        Steering(1.0),
        64,
        pictures,
        shape=(2,),
    )
    drawn = mode(x[steered.rows(steered.particles.draw())])
    found = torch.bincount(drawn, minlength=3).double() / pictures
    plain = torch.bincount(mode(plain_samples(prior, centres, weights)), minlength=3).double()
    expected = plain / plain.sum() * torch.tensor([0.0, 1.0, 2.0]).exp()
    expected = expected / expected.sum()
    for share, target in zip(found.tolist(), expected.tolist(), strict=True):
        assert share == pytest.approx(target, abs=3 * math.sqrt(target * (1 - target) / pictures))


def plain_samples(process, centres, weights, count=100000):
    """The sampler's own shares, which differ from the prior's a little: that is the law that is tilted."""
    return run(
        process,
        lambda x, s: mixture(x, s, process, centres, weights, 0.1),
        lambda z: z.sum(1),
        Steering(0.0),
        1,
        count,
        shape=(2,),
        seed=1,
    )[0]


@PROCESSES
def test_four_particles_with_a_gradient_as_proposal_are_as_good_as_many_without(process):
    """The twisted method: the guided denoiser proposes and the weights take back what it added. Prior variances 4 and
    .04, reward -(x1 + x2 - 1)^2 / 2, lambda 2: a Gaussian again, 1/V' = 1/V + lambda b b', b = (1, 1). What proposes is
    what guidance does: the exact mode, with the covariance by a forward difference through the denoiser. The design's
    bound for N = 4 is .06 standard deviations; here 3 standard errors of 3000 pictures come on top."""
    variances = torch.tensor([4.0, 0.04], dtype=torch.float64)
    process = Process(process.kind, latent_variance=1.0)
    denoise = lambda x, s: gaussian(x, s, process, 0.0, variances)  # noqa: E731
    reward, steering = lambda z: -((z.sum(1) - 1) ** 2) / 2, Steering(2.0, curvature=1.0)

    def push(x, denoised, sigma):
        """Nothing at pure noise: a flow's x says nothing about x0 there, and guidance's interval ends before."""
        if process.a(sigma) == 0:
            return denoised
        level = sigma.expand(len(x))
        carry = forward_difference(lambda y: denoise(y, sigma), x, denoised, level, process)
        return tilted(denoised, level, reward, process, 2.0, transport=carry)

    x, steered = run(process, denoise, reward, steering, 4, 3000, shape=(2,), push=push)
    plain = [sampled_law(process, 0.0, float(v))[1] for v in variances]
    prior = torch.diag(torch.tensor(plain, dtype=torch.float64))
    b = torch.ones(2, 1, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + 2 * b @ b.T)
    target = 2 * covariance @ b
    weights = steered.particles.log_weights.softmax(dim=0).unsqueeze(-1)
    means = (weights * x.reshape(4, 3000, 2)).sum(0)
    for i in range(2):
        deviation = covariance[i, i].sqrt().item()
        error = means[:, i].std().item() / 3000**0.5
        assert means[:, i].mean().item() == pytest.approx(target[i].item(), abs=0.06 * deviation + 3 * error)


def test_svdd_draws_by_softmax_and_raises_the_reward_without_collapsing_to_the_best():
    """Copies of one drawn particle go on at every look. Its draws follow the reward but are no argmax: at lambda 0 they
    are even, at a large lambda the best is taken."""
    logits = torch.tensor([[0.0], [1.0], [2.0]]).expand(3, 30000)
    drawn = categorical(logits, torch.Generator().manual_seed(0)).flatten()
    shares = torch.bincount(drawn, minlength=3).double() / 30000
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0, 2.0]).softmax(0).double(), rtol=0, atol=0.01)
    denoise, score = lambda x, s: gaussian(x, s, EPS), lambda z: z.flatten(1).sum(1)
    found = {}
    for temperature in (0.0, 1.0, 20.0):
        steering = Steering(temperature, method="svdd", curvature=0.0)
        found[temperature] = run(EPS, denoise, score, steering, 4, 800)[0].mean().item()
    assert found[0.0] == pytest.approx(MEAN, abs=3 * (VARIANCE / 800) ** 0.5)
    assert found[0.0] + 0.3 < found[1.0] < found[20.0]


def test_the_best_of_n_normals_is_as_tables_say():
    """E[max] of N draws from N(0, 1): .5642, 1.0294, 1.4236, 1.7660 for N = 2, 4, 8, 16. Particles that are never
    resampled and ranked by reward are best-of-N; 20,000 pictures have a standard error below .006."""
    generator = torch.Generator().manual_seed(0)
    for count, expected in ((2, 0.5642), (4, 1.0294), (8, 1.4236), (16, 1.7660)):
        particles = Particles(Steering(1.0, threshold=0.0), count, 20000, generator)
        scores = torch.randn(count, 20000, generator=generator)
        particles.finish(scores)
        best = scores.gather(0, particles.ranking()[:1])
        assert best.mean().item() == pytest.approx(expected, abs=0.018)


def test_one_picture_never_sees_another():
    """Weights, resampling and evidence are by picture: appending a picture with extreme rewards changes nothing."""
    scores = torch.tensor([[0.0], [3.0], [1.0], [2.0]], dtype=torch.float64)
    both = torch.cat([scores, scores * 50], dim=1)
    results = []
    for values in (scores, both):
        particles = Particles(Steering(1.0), 4, values.shape[1], torch.Generator().manual_seed(0))
        particles.weigh(values, 0.0)
        results.append((particles.log_weights[:, 0].clone(), effective_size(particles.log_weights)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_damping_weighs_early_looks_by_what_they_are_worth():
    """lambda / (1 + lambda kappa V): at lambda 10 and V = 1 an estimate counts 10/11, at V = 0 in full."""
    assert Steering(10.0).temperature_at(1.0) == pytest.approx(10 / 11)
    assert Steering(10.0).temperature_at(0.0) == 10.0
    assert Steering(10.0, curvature=0.0).temperature_at(1.0) == 10.0


def test_systematic_resampling_takes_each_particle_as_often_as_its_weight_to_within_one():
    """N w = 2.4, 1.2, .4, 0: floor or ceiling of each, whatever the draw; averaged over draws exactly N w."""
    weights = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    pictures = 4000
    chosen = systematic(weights.log().unsqueeze(1).expand(4, pictures), torch.Generator().manual_seed(0))
    times = torch.stack([(chosen == i).sum(0) for i in range(4)]).double()
    wanted = 4 * weights
    assert (times >= wanted.floor().unsqueeze(1)).all() and (times <= wanted.ceil().unsqueeze(1)).all()
    torch.testing.assert_close(times.mean(1), wanted, rtol=0, atol=3 * 0.5 / pictures**0.5)


def test_particles_that_go_on_keep_their_place():
    """So that as few rows as possible are copied, and even weights move nothing."""
    generator = torch.Generator().manual_seed(0)
    even = systematic(torch.zeros(5, 3), generator)
    assert torch.equal(even, torch.arange(5).unsqueeze(1).expand(5, 3))
    uneven = systematic(torch.tensor([[-50.0], [0.0], [-50.0], [0.0]]), generator).flatten()
    assert uneven[1] == 1 and uneven[3] == 3 and sorted(uneven.tolist()) == [1, 1, 3, 3]


def test_the_effective_number_is_that_of_even_weights_with_the_same_variance():
    """N for even weights, 1 for a single one, 1 / (.75^2 + .25^2) = 1.6 for three to one."""
    log_weights = torch.tensor([[0.0, 0.0, math.log(3.0)], [0.0, -80.0, 0.0]], dtype=torch.float64)
    assert effective_size(log_weights).tolist() == pytest.approx([2.0, 1.0, 1.6])


def test_extreme_rewards_neither_overflow_nor_lose_the_others():
    """exp(1e6) is infinite in any float; weights are kept as logarithms."""
    particles = Particles(Steering(10.0, curvature=0.0), 3, 1, torch.Generator().manual_seed(0))
    particles.weigh(torch.tensor([[1e6], [1e6 - 0.1], [-1e6]], dtype=torch.float64), 0.5)
    assert effective_size(particles.log_weights).item() == pytest.approx(
        (1 + math.exp(-1)) ** 2 / (1 + math.exp(-2)), rel=1e-2
    )
    assert particles.log_evidence().isfinite().all()


def test_a_reward_without_a_number_counts_as_the_worst(caplog):
    particles = Particles(Steering(1.0, curvature=0.0), 3, 2, torch.Generator().manual_seed(0))
    nan = float("nan")
    particles.weigh(torch.tensor([[1.0, nan], [nan, nan], [-2.0, nan]]), 0.5)
    assert particles.scores.tolist() == [[1.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]]
    assert "no number" in caplog.text


def test_looks_begin_where_there_is_something_to_see_and_come_every_so_often():
    """Sigma 4 of an eps model is .8 of a flow (.8 / .2 = 4)."""
    sigmas = torch.tensor([10.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.2])
    new = lambda process: Steered(Steering(1.0), process, lambda z: z, 2, 1, torch.Generator(), every=2)  # noqa: E731
    eps, flow = new(EPS), new(FLOW)
    assert [eps.due(s) for s in sigmas] == [False, False, True, False, True, False, True]
    assert [flow.due(s) for s in (torch.tensor(0.81), torch.tensor(0.79))] == [False, True]


def test_the_lineage_and_the_spread_tell_how_many_starts_are_left():
    """Two particles at distance 2 in each of D dimensions are 2 apart, root mean square; copies are 0 apart."""
    latents = torch.tensor([0.0, 5.0, 2.0, 5.0]).reshape(4, 1, 1, 1).expand(4, 3, 2, 2)
    assert spread(latents, 2).tolist() == pytest.approx([2.0, 0.0])
    particles = Particles(Steering(50.0, curvature=0.0), 4, 1, torch.Generator().manual_seed(0))
    particles.weigh(torch.tensor([[0.0], [9.0], [0.0], [0.0]]), 0.5)
    assert particles.ancestors().flatten().tolist() == [1, 1, 1, 1]
    assert particles.lineage.unique().tolist() == [1] and particles.resampled.tolist() == [1]


def test_resampling_moves_x_the_estimate_and_the_history_alike():
    x = torch.arange(4.0).reshape(4, 1)
    estimate, older = x + 10, x + 20
    steered = Steered(
        Steering(50.0, curvature=0.0), EPS, lambda z: (z.flatten() == 12).float(), 4, 1, torch.Generator()
    )
    assert steered.look(torch.tensor(1.0), x, estimate, [older])
    assert x.flatten().tolist() == [2] * 4 and estimate.flatten().tolist() == [12] * 4
    assert older.flatten().tolist() == [22] * 4
