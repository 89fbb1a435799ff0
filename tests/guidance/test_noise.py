"""Optimised noise climbs its reward, stays likely, and is best of what was seen."""

from __future__ import annotations

import pytest
import torch

from feedback_loop.diffusion.process import Process
from feedback_loop.diffusion.stochastic import ancestral_step
from feedback_loop.guidance.noise import Look, NoiseSteps, length_slope, optimised, whitened, zero_order


def noise(batch=2, size=16, seed=0, channels=4):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def looking(generate, reward):
    """The Looking of a differentiable model and reward, by autograd."""

    def look(z, wanted):
        leaf = z.clone().requires_grad_(wanted)
        latents = generate(leaf)
        scores = reward(latents)
        slope = torch.autograd.grad(scores.sum(), leaf)[0] if wanted else None
        return Look(scores.detach(), scores.detach(), latents.detach(), slope)

    return look


def few_steps(process, steps=2, mean=0.3, variance=0.8):
    """The few-step Euler run of a Gaussian's exact denoiser, differentiable in the noise."""
    sigmas = torch.linspace(0.9, 0, steps + 1) if process.kind == "flow" else torch.linspace(8.0, 0, steps + 1)

    def generate(z):
        x = process.s(sigmas[0]) * z
        for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            a, s = process.a(now), process.s(now)
            denoised = mean + variance * a * (x - a * mean) / (variance * a**2 + s**2)
            x = ancestral_step(process, now, after, 0.0).mean(x, denoised)
        return x

    return generate


KINDS = pytest.mark.parametrize("process", [Process("eps"), Process("v"), Process("edm"), Process("flow")])


@KINDS
@pytest.mark.parametrize("likely", ["norm", "white"])
def test_fifty_steps_raise_a_reward_through_a_few_step_model_of_every_kind(process, likely):
    """The reward is nearness to a fixed picture, which no scaling of the noise reaches."""
    goal = noise(1, seed=9)
    reward = lambda x: -((x - goal) ** 2).flatten(1).mean(1)  # noqa: E731
    look = looking(few_steps(process), reward)
    start = look(noise(), False).scores
    best = optimised(noise(), look, NoiseSteps(likely=likely))
    assert (best.scores > start + 0.1).all()
    torch.testing.assert_close(look(best.noise, False).scores, best.scores)
    torch.testing.assert_close(look(best.noise, False).latents, best.latents)


def test_no_iteration_gives_the_noise_back_bit_for_bit():
    z = noise()
    best = optimised(z, looking(lambda x: x, lambda x: x.flatten(1).sum(1)), NoiseSteps(iterations=0))
    assert torch.equal(best.noise, z)


def test_a_step_has_the_length_that_the_clip_and_the_size_say():
    """A steep slope is clipped to .1 sqrt(d / 16384); the first step of Nesterov's momentum is 1.9 times that, times
    the learning rate 5: .95 * sqrt(1024 / 16384) = .2375 for 1024 numbers."""
    seen = []
    look = looking(lambda x: x, lambda x: 1e6 * x.flatten(1).sum(1))
    optimised(noise(), lambda z, wanted: seen.append(z) or look(z, wanted), NoiseSteps(iterations=1))
    assert (seen[1] - seen[0]).flatten(1).norm(dim=1).tolist() == pytest.approx([0.2375] * 2, rel=1e-3)


def test_the_length_of_the_noise_is_pulled_to_what_is_likely():
    """log p(|z|) is highest at |z|^2 = d - 1, and its gradient is that of autograd."""
    z = (3 * noise()).requires_grad_()
    d = z[0].numel()
    log_p = (d - 1) * z.flatten(1).norm(dim=1).log() - z.flatten(1).square().sum(1) / 2
    (expected,) = torch.autograd.grad(log_p.sum(), z)
    torch.testing.assert_close(length_slope(z.detach()), expected)
    likely = noise(1)
    likely = likely * ((d - 1) / likely.square().sum()).sqrt()
    assert length_slope(likely).abs().max() < 1e-4


@pytest.mark.parametrize("likely", ["norm", "white"])
def test_a_reward_for_sheer_size_does_not_blow_the_noise_up(likely):
    """|z|^2 / d starts at 1 and a reward of its own length would raise it without end: 50 steps of up to .3125 in a
    noise of length 32, ten times that with momentum, would treble it. Norm keeps it within 60 %, white within 10 %."""
    reward = lambda x: x.flatten(1).norm(dim=1)  # noqa: E731
    last = []
    look = looking(lambda x: x, reward)
    weight = 1.0 if likely == "norm" else 0.01
    steps = NoiseSteps(iterations=200, likely=likely, weight=weight)
    optimised(noise(), lambda z, w: last.append(z) or look(z, w), steps)
    growth = last[-1].square().mean(dim=(1, 2, 3))
    assert (growth < (1.6 if likely == "norm" else 1.1)).all()


def test_whitening_takes_a_planted_pattern_out_and_leaves_white_noise_nearly_as_it_is():
    """A wave of amplitude 2 puts a power of 2^2/2 * n = 2 n into two of n coefficients: it stands out of its ring, and
    its amplitude is cut. A mean of 1 is cut to two deviations of a mean of 1024 numbers, .06. White noise, where each
    ring is within two deviations nineteen times in twenty, moves by under a fifth of a standard deviation."""
    clean = noise(8, 32)
    moved = (whitened(clean) - clean).square().mean().sqrt().item()
    assert moved < 0.2
    torch.testing.assert_close(whitened(whitened(clean)), whitened(clean), rtol=1e-3, atol=1e-3)
    wave = 2 * torch.sin(torch.arange(32) * 2 * torch.pi * 3 / 32).expand(32, 32)
    part = lambda z: (z * wave).mean() / (wave * wave).mean()  # noqa: E731
    assert part(clean + wave) == pytest.approx(1, abs=0.05)
    assert part(whitened(clean + wave)) < 0.45
    flat = whitened(clean + 1.0)
    assert flat.mean(dim=(-1, -2)).abs().max() < 0.07


def test_whitening_keeps_the_type_and_latents_with_a_frame_axis():
    video = noise().unsqueeze(2).half()
    assert whitened(video).shape == video.shape and whitened(video).dtype == torch.float16
    torch.testing.assert_close(whitened(video)[:, :, 0], whitened(video[:, :, 0]))


def test_the_zero_order_slope_of_a_linear_score_is_its_gradient_on_average():
    """E[(a.e) e] = a. The error of each coordinate has variance (|a|^2 + a_i^2) / pairs: with |a| = 1 and 4000 pairs a
    standard error of .016 to .022."""
    a = torch.zeros(1, 1, 4, 4)
    a[0, 0, 0, 0], a[0, 0, 1, 1] = 0.6, 0.8
    slope = zero_order(
        lambda z: (a * z).flatten(1).sum(1), torch.zeros(1, 1, 4, 4), 4000, 0.2, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(slope, a, rtol=0, atol=4 * 0.022)


def test_noise_is_optimised_without_any_gradient():
    """A score in steps, whose gradient is zero everywhere. Over noises it has a standard deviation of 1/16 = .0625."""
    generator, direction = torch.Generator().manual_seed(1), noise(1, 8, seed=3)
    reward = lambda x: (64 * (direction * x).flatten(1).mean(1)).round() / 64  # noqa: E731

    def look(z, wanted):
        slope = zero_order(reward, z, 4, 0.3, generator) if wanted else None
        return Look(reward(z), reward(z), z, slope)

    best = optimised(noise(2, 8), look, NoiseSteps(iterations=30))
    assert (best.scores > reward(noise(2, 8)) + 0.05).all()


def test_pictures_are_kept_by_the_second_reward_where_there_is_one():
    """Optimised for the first, kept by the second, which is best at the start: the start comes back."""
    z = noise()
    inner = looking(lambda x: x, lambda x: x.flatten(1).mean(1))
    start = z.clone()

    def look(z, wanted):
        seen = inner(z, wanted)
        return seen._replace(kept_by=-(z - start).flatten(1).norm(dim=1))

    best = optimised(z, look, NoiseSteps(iterations=5))
    assert torch.equal(best.noise, z)


def test_a_picture_of_a_batch_is_optimised_as_if_alone():
    goal = noise(1, seed=9)
    look = looking(few_steps(Process("eps")), lambda x: -((x - goal) ** 2).flatten(1).mean(1))
    together = optimised(noise(3), look, NoiseSteps(iterations=5, likely="white"))
    for i in range(3):
        alone = optimised(noise(3)[i : i + 1], look, NoiseSteps(iterations=5, likely="white"))
        torch.testing.assert_close(alone.noise[0], together.noise[i], rtol=1e-4, atol=1e-5)


def test_a_picture_whose_gradient_is_not_finite_is_left_where_it_is_likely(caplog):
    def look(z, wanted):
        slope = torch.ones_like(z)
        slope[0, 0, 0, 0] = float("inf")
        return Look(torch.zeros(2), torch.zeros(2), z, slope if wanted else None)

    seen = []
    optimised(noise(), lambda z, w: seen.append(z) or look(z, w), NoiseSteps(iterations=1, weight=0.0))
    assert torch.equal(seen[1][0], seen[0][0]) and (seen[1][1] != seen[0][1]).all()
    assert "not finite" in caplog.text
