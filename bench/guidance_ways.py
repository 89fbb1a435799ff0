"""The ways to steer that bench/guidance.py sets side by side: baselines as published, and ours.

MPGD (arXiv:2311.16424), a constant step along the gradient at the clean estimate; DPS (2209.14687), a constant step
along the gradient through the denoiser; FreeDoM (2303.09833), the same with a step proportional to the noise
prediction's length; LGD-MC (2303.15483), its gradient averaged over eight samples around the estimate; FK steering
(2501.06848) with lambda 10, undamped; SVDD (2408.08252); best of N; TFG (2409.15761) without recurrence, its step
through the denoiser and four at the clean estimate, all on a slightly noised reward. Constant steps are taken at three
sizes, a factor of 4 apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import all_on_cpu  # noqa: F401  (before ComfyUI)
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from feedback_loop.demo import judge as judging
from feedback_loop.demo import measure
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.guidance.gradient import gradient, rms
from feedback_loop.nodes import demo, sampling
from feedback_loop.nodes.decoder import decoder_of
from feedback_loop.nodes.denoiser import gradients, process_of_sampling
from feedback_loop.nodes.guidance import FeedbackRewardGuidance
from feedback_loop.nodes.jacobian import transport_of
from feedback_loop.nodes.kept_noise import KeptNoise
from feedback_loop.nodes.noise import FeedbackOptimizeNoise
from feedback_loop.nodes.pull import Pull
from feedback_loop.nodes.search import FeedbackBestOfN
from feedback_loop.nodes.steering import FeedbackRewardSteering

STEPS, CFG, SIZE, BATCH = 20, 2.0, 64, 16
FEW = 4
"""Steps of the rows that look at noise optimisation, which is for models of few steps."""
NEGATIVE = "watermark"
UNKNOWN = "stock logo"
"""Words for the same thing that no caption of the demo model's pictures had: what a negative prompt is worth where a
model's captions do not name marks."""


@dataclass
class Bench:
    """The demo model, the two rewards, and the prompts of one seed. `rows` counts what the denoiser is asked."""

    model: Any
    clip: Any
    vae: Any
    vision: Any
    judge: judging.Judge
    rewards: dict[str, Reward]
    prompts: list[measure.Prompt]
    rows: int = 0

    @classmethod
    def of_demo(cls, rewards: dict[str, Reward] | None = None, prompts: Sequence[measure.Prompt] = ()) -> Bench:
        """With the demo model as it is published."""
        return cls(*demo.load_demo_model(), judging.load(), rewards or {}, [*prompts])

    def encoded(self, texts: list[str]) -> Any:
        return sampling.stacked([self.clip.encode_from_tokens_scheduled(self.clip.tokenize(t)) for t in texts])

    def counted(self, model: Any) -> Any:
        model = model.clone()

        def count(apply: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
            self.rows += len(given["input"])
            return apply(given["input"], given["timestep"], **given["c"])

        model.set_model_unet_function_wrapper(count)
        return model

    def noise(self, prompts: list[measure.Prompt]) -> Tensor:
        empty = torch.zeros(1, 4, SIZE // 8, SIZE // 8)
        return torch.cat([comfy.sample.prepare_noise(empty, prompt.seed) for prompt in prompts])

    def guider(self, model: Any, prompts: list[measure.Prompt], cfg: float, negative: str) -> Any:
        guider = comfy.samplers.CFGGuider(self.counted(model))
        guider.set_conds(self.encoded([p.text for p in prompts]), self.encoded([negative]))
        guider.set_cfg(cfg)
        return guider

    def sigmas(self, steps: int = STEPS) -> Tensor:
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "sgm_uniform", steps)


Method = Callable[[Bench, str, list[measure.Prompt]], Tensor]
"""Bench, target, prompts -> latents, one for each prompt."""


def sampled(
    bench: Bench,
    prompts: list[measure.Prompt],
    model: Any,
    sampler: Any = None,
    cfg: float = CFG,
    negative: str = "",
    steps: int = STEPS,
    noise: Tensor | None = None,
) -> Tensor:
    noise = bench.noise(prompts) if noise is None else noise
    sampler = sampler or comfy.samplers.sampler_object("euler")
    guider = bench.guider(model, prompts, cfg, negative)
    return guider.sample(
        noise, torch.zeros_like(noise), sampler, bench.sigmas(steps), disable_pbar=True, seed=prompts[0].seed
    )


def plain(cfg: float = CFG, negative: str = "", sampler: str = "euler", steps: int = STEPS) -> Method:
    return lambda bench, target, prompts: sampled(
        bench, prompts, bench.model, comfy.samplers.sampler_object(sampler), cfg, negative, steps
    )


def ours(strength: float = 1.0, **options: Any) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        guided = FeedbackRewardGuidance.execute(bench.model, bench.rewards[target], bench.vae, strength, **options)
        return sampled(bench, prompts, guided.args[0])

    return run


def hooked(step: Callable[[dict[str, Any], Pull, Any], Tensor]) -> Method:
    """A baseline as a post-CFG function: step(args, pull, process) is added to the clean estimate."""

    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        pull = Pull(bench.rewards[target], decoder_of(bench.vae, bench.model), 1.0)
        pull.decoder.load((BATCH, 4, SIZE // 8, SIZE // 8))
        model = bench.model.clone()

        def hook(args: dict[str, Any]) -> Tensor:
            process = process_of_sampling(args["model"].model_sampling)
            with gradients():
                moved = step(args, pull, process)
            return args["denoised"] + torch.nan_to_num(moved.detach()).to(args["denoised"])

        model.set_model_sampler_post_cfg_function(hook)
        return sampled(bench, prompts, model)

    return run


def slope(pull: Pull, denoised: Tensor) -> Tensor:
    return gradient(lambda x: pull.score(x, 1.0), denoised.clone())


def mpgd(size: float) -> Method:
    return hooked(lambda args, pull, process: size * slope(pull, args["denoised"]))


def through(args: dict[str, Any], process: Any, wish: Tensor) -> Tensor:
    """s^2/a J^T wish: what DPS and its kin do to the clean estimate when they move x by the gradient through it."""
    carry = transport_of("full", args, process)
    assert carry is not None
    return carry(wish)


def dps(size: float) -> Method:
    return hooked(lambda args, pull, process: size * through(args, process, slope(pull, args["denoised"])))


def freedom(size: float) -> Method:
    """The step in x is size * |predicted noise| / |gradient| times the gradient: its length follows the noise."""

    def step(args: dict[str, Any], pull: Pull, process: Any) -> Tensor:
        moved = through(args, process, slope(pull, args["denoised"]))
        sigma = args["sigma"].clone().reshape(-1, 1, 1, 1)
        predicted = (args["input"].clone() - args["denoised"].clone()) / sigma
        return size * sigma * rms(predicted) * moved / rms(moved).clamp(min=1e-12)

    return hooked(step)


def lgd_mc(size: float, samples: int = 8) -> Method:
    def step(args: dict[str, Any], pull: Pull, process: Any) -> Tensor:
        sigma = args["sigma"].clone().reshape(-1, 1, 1, 1)
        spread = sigma / (1 + sigma**2).sqrt()
        generator = torch.Generator().manual_seed(0)
        clean = args["denoised"].clone()
        around = [clean + spread * torch.randn(clean.shape, generator=generator) for _ in range(samples)]
        return size * through(args, process, torch.stack([slope(pull, one) for one in around]).mean(0))

    return hooked(step)


def tfg(through_size: float, clean_size: float, iterations: int = 4, noise: float = 0.1) -> Method:
    def step(args: dict[str, Any], pull: Pull, process: Any) -> Tensor:
        clean, generator = args["denoised"].clone(), torch.Generator().manual_seed(0)
        spread = noise * args["sigma"].clone().reshape(-1, 1, 1, 1)

        def smoothed(at: Tensor) -> Tensor:
            return slope(pull, at + spread * torch.randn(at.shape, generator=generator))

        moved = torch.zeros_like(clean)
        for _ in range(iterations):
            moved = moved + clean_size * torch.nan_to_num(smoothed(clean + moved))
        return moved + through_size * through(args, process, smoothed(clean))

    return hooked(step)


def particles(**options: Any) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        base = comfy.samplers.sampler_object("euler_ancestral")
        sampler = FeedbackRewardSteering.execute(base, bench.rewards[target], bench.vae, **options).args[0]
        return sampled(bench, prompts, bench.model, sampler)

    return run


def twisted(guidance: float, **options: Any) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        base = comfy.samplers.sampler_object("euler_ancestral")
        sampler = FeedbackRewardSteering.execute(base, bench.rewards[target], bench.vae, **options).args[0]
        guided = FeedbackRewardGuidance.execute(bench.model, bench.rewards[target], bench.vae, guidance).args[0]
        return sampled(bench, prompts, guided, sampler)

    return run


def best_of(count: int, halving: bool, steps: int = STEPS) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        guider = bench.guider(bench.model, prompts, CFG, "")
        noise = KeptNoise(prompts[0].seed, bench.noise(prompts))
        latent = {"samples": torch.zeros(len(prompts), 4, SIZE // 8, SIZE // 8)}
        sampler = comfy.samplers.sampler_object("euler")
        found = FeedbackBestOfN.execute(
            noise, guider, sampler, bench.sigmas(steps), latent, bench.rewards[target], bench.vae, count, halving
        )
        return found.args[0]["samples"]

    return run


def noise_optimised(iterations: int, rate: float, steps: int = FEW) -> Method:
    def run(bench: Bench, target: str, prompts: list[measure.Prompt]) -> Tensor:
        guider = bench.guider(bench.model, prompts, CFG, "")
        noise = KeptNoise(prompts[0].seed, bench.noise(prompts))
        latent = {"samples": torch.zeros(len(prompts), 4, SIZE // 8, SIZE // 8)}
        sampler, reward = comfy.samplers.sampler_object("euler"), bench.rewards[target]
        found = FeedbackOptimizeNoise.execute(
            noise, guider, sampler, bench.sigmas(steps), latent, reward, bench.vae, iterations=iterations,
            learning_rate=rate,
        )  # fmt: skip
        return found.args[1]["samples"]

    return run


METHODS: dict[str, Method] = {
    "plain": plain(),
    "plain, ancestral": plain(sampler="euler_ancestral"),
    "negative prompt at CFG 2": plain(negative=NEGATIVE),
    "negative prompt at CFG 3": plain(3.0, NEGATIVE),
    "negative prompt it has no word for": plain(negative=UNKNOWN),
    "best of 2": best_of(2, False),
    "best of 4": best_of(4, False),
    "best of 8": best_of(8, False),
    **{f"MPGD, {size:g}": mpgd(size) for size in (0.05, 0.2, 0.8)},
    **{f"DPS, {size:g}": dps(size) for size in (0.25, 1.0, 4.0)},
    **{f"FreeDoM, {size:g}": freedom(size) for size in (0.1, 0.4)},
    "LGD-MC, 1": lgd_mc(1.0),
    **{f"TFG, {size:g}": tfg(size, size / 20) for size in (0.25, 1.0)},
    "FK steering, published": particles(particles=4, strength=10.0, method="max", every=4, damping=0.0),
    "SVDD": particles(particles=4, strength=10.0, method="svdd"),
    "ours: trust region, .5": ours(0.5),
    "ours: trust region (default)": ours(1.0),
    "ours: trust region, full decoder": ours(1.0, decoder="full"),
    "ours: trust region, difference": ours(1.0, gradient="difference"),
    "ours: particles": particles(particles=4, strength=10.0),
    "ours: twisted particles": twisted(0.5, particles=4, strength=10.0),
    "ours: halving search of 8": best_of(8, True),
    "plain, 4 steps": plain(steps=FEW),
    "best of 8, 4 steps": best_of(8, False, FEW),
    "ours: noise optimisation, 4 steps": noise_optimised(8, 20.0),
}
