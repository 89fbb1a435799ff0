"""One run of ComfyUI's own stochastic sampler over N particles a picture, resampled between its steps.

The sampler's function runs once, over all particles as one batch; what it holds on to between steps are its variables:
x, estimates, and what it made of them. Those tensors are resampled in place. The denoiser is called for one particle of
all pictures at a time, as in a plain run, so that prompts, masks, ControlNets and others' patches see what they know.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..diffusion.process import Process
from ..diffusion.stochastic import ancestral_step
from ..feedback.rewards.base import Reward
from ..guidance.particles import Particles, Steering, spread
from ..guidance.steering import Steered
from .decoder import check_pictures, decoder_of
from .denoiser import WrongConnectionError, process_of
from .pull import RewardGuidance
from .ruled import check_no_rules
from .scoring import LatentScores
from .starts import NoiseSampler, noise_sampler_of, noises_of, seeds_of, started

BEST, DRAWN, ALL = "best", "drawn", "all"


@dataclass(frozen=True, eq=False)
class Plan:
    """A SAMPLER's function with particles around it.

    function: core's sampler function of the name. keep: BEST, DRAWN or ALL. correct: weigh back what reward guidance on
    the model does. tell: is given the report of a run.
    """

    function: Callable[..., Tensor]
    name: str
    reward: Reward
    vae: Any
    steering: Steering
    count: int
    every: int = 3
    keep: str = BEST
    correct: bool = False
    decoder: str = "auto"
    tell: Callable[[str], None] = print

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        if len(sigmas) < 2:
            return x
        run = _Run(self, model, x, sigmas, dict(extra_args or {}), callback, options)
        try:
            return run.sample(disable)
        finally:
            run.score.release()


class _Run:
    def __init__(
        self,
        plan: Plan,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[dict[str, Any]], None] | None,
        options: dict[str, Any],
    ) -> None:
        guider, seed = model.inner_model, extra_args.get("seed")
        self.plan, self.sigmas, self.extra_args, self.options = plan, sigmas, extra_args, options
        self.callback, self.process = callback, process_of(guider.model_patcher)
        check_pictures(x.shape)
        check_no_rules(guider, "Reward steering")
        self.score = LatentScores(plan.reward, decoder_of(plan.vae, guider.model_patcher, plan.decoder))
        self.score.load(guider, x.shape)
        seeds = seeds_of(seed, plan.count)
        noises = noises_of(model.noise, seeds)
        self.x = torch.cat([x, *(started(model, sigmas, noise) for noise in noises[1:])])
        self.model = _Model(model, noises)
        self.noise = _Noise([noise_sampler_of(plan.name, x, sigmas, one) for one in seeds])
        generator = torch.Generator().manual_seed(seeds[-1])
        self.steered = Steered(plan.steering, self.process, self.score, plan.count, len(x), generator, plan.every)
        check_noise_drawn(plan.name, sigmas, options)
        self.correction = _Correction(self.process, sigmas, options) if plan.correct else None
        self.last: dict[str, Any] = {}

    def sample(self, disable: bool | None) -> Tensor:
        if self.correction is not None:
            self.extra_args["model_options"] = self.correction.recorded(self.extra_args["model_options"])
        x = self.plan.function(
            self.model,
            self.x,
            self.sigmas,
            extra_args=self.extra_args,
            callback=self._on_step,
            disable=disable,
            noise_sampler=self.noise,
            **self.options,
        )
        self._weigh_back()
        clean = x if self.sigmas[-1] == 0 else self.last["denoised"]
        self.steered.finish(clean)
        rows = self._kept().to(x.device)
        self._show(self.last, x, clean, rows)
        self.plan.tell(report(self.plan, self.steered.particles, clean, self.model.calls))
        return x[rows]

    def _on_step(self, info: dict[str, Any]) -> None:
        self._weigh_back()
        x, denoised, sigma = info["x"], info["denoised"], info["sigma"]
        sampler = sys._getframe(1)  # tests see to it that this is so for every sampler in STOCHASTIC
        others = held(sampler.f_locals.values(), x, denoised)
        if self.correction is not None:
            others += self.correction.step(info["i"])
        self.last = info
        if info["i"] + 2 > len(self.sigmas) - 1:  # the last estimate is the picture, which is weighed at the end
            return
        if self.steered.due(sigma):
            self.steered.look(sigma, x, denoised, others)
        best = self.steered.rows(self.steered.particles.ranking()[:1]).to(x.device)
        self._show(info, x, denoised, best)

    def _weigh_back(self) -> None:
        if self.correction is not None and (ratio := self.correction.log_ratio(self.noise.last)) is not None:
            self.steered.particles.correct(self.steered.of(ratio.cpu()))

    def _show(self, info: dict[str, Any], x: Tensor, denoised: Tensor, rows: Tensor) -> None:
        if self.callback is not None:
            self.callback({**info, "x": x[rows], "denoised": denoised[rows]})

    def _kept(self) -> Tensor:
        particles = self.steered.particles
        chosen = {BEST: particles.ranking()[:1], ALL: particles.ranking()}
        return self.steered.rows(particles.draw() if self.plan.keep == DRAWN else chosen[self.plan.keep])


def held(values: Iterable[Any], x: Tensor, denoised: Tensor) -> list[Tensor]:
    """The tensors of x's shape among a sampler's variables and in its lists, each memory once, without these two."""
    flat = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    tensors = {one.data_ptr(): one for one in flat if isinstance(one, Tensor) and one.shape == x.shape}
    known = (x.data_ptr(), denoised.data_ptr())
    return [one for place, one in tensors.items() if place not in known]


class _Model:
    """What the sampler calls: all particles in, one particle of all pictures at a time to the plain run's model."""

    def __init__(self, model: Any, noises: Sequence[Tensor]) -> None:
        self._model, self._noises = model, noises
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        parts = []
        for noise, rows, level in zip(
            self._noises, x.chunk(len(self._noises)), sigma.chunk(len(self._noises)), strict=True
        ):
            comfy.model_management.throw_exception_if_processing_interrupted()
            self._model.noise = noise  # an inpainted part keeps to the particle's own noise
            parts.append(self._model(rows, level, **extra_args))
        self.calls += len(parts)
        return torch.cat(parts)


class _Noise:
    """Each particle's noise from its own seed; `last` is what was drawn last."""

    def __init__(self, draws: Sequence[NoiseSampler]) -> None:
        self._draws = draws
        self.last: Tensor | None = None

    def __call__(self, sigma: Tensor, following: Tensor) -> Tensor:
        self.last = torch.cat([draw(sigma, following) for draw in self._draws])
        return self.last


class _Correction:
    """What reward guidance did to each step of the Euler ancestral sampler, for weighing it back."""

    def __init__(self, process: Process, sigmas: Tensor, options: dict[str, Any]) -> None:
        self._process, self._sigmas = process, sigmas
        self._eta, self._s_noise = float(options.get("eta", 1.0)), float(options.get("s_noise", 1.0))
        self._parts: list[Tensor] = []
        self._push: Tensor | None = None
        self._index = 0

    def recorded(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """The options with reward guidance that is listened to."""
        hooks = model_options.get("sampler_post_cfg_function", [])
        return {**model_options, "sampler_post_cfg_function": [self._listening(hook) for hook in hooks]}

    def step(self, index: int) -> list[Tensor]:
        """The push of the step that begins, which moves with its particle."""
        self._push = torch.cat(self._parts) if self._parts else None
        self._parts, self._index = [], index
        return [] if self._push is None else [self._push]

    def log_ratio(self, noise: Tensor | None) -> Tensor | None:
        """log p - log q of the step that has been made, once; None where nothing was pushed or drawn."""
        push, self._push = self._push, None
        if push is None or noise is None:
            return None
        step = ancestral_step(
            self._process, self._sigmas[self._index], self._sigmas[self._index + 1], self._eta, self._s_noise
        )
        return step.log_ratio(push, noise) if step.noise > 0 else None

    def _listening(self, hook: Any) -> Any:
        if not isinstance(hook, RewardGuidance):
            return hook

        def listen(args: dict[str, Any]) -> Tensor:
            guided = hook(args)
            self._parts.append(guided - args["denoised"])
            return guided

        return listen


def check_noise_drawn(name: str, sigmas: Tensor, options: dict[str, Any]) -> None:
    """Raises WrongConnectionError for an SA solver whose part of the schedule with noise holds none of the steps."""
    tau = options.get("tau_func")
    if tau is not None and not any(tau(sigma) > 0 for sigma in sigmas[1:-1]):
        raise WrongConnectionError(
            f"'{name}' draws no noise at any of these steps, so all copies of a particle would stay alike. Set eta "
            "above 0, and let sde_start_percent to sde_end_percent hold some steps."
        )


def report(plan: Plan, particles: Particles, clean: Tensor, calls: int) -> str:
    """What happened, in a few lines; figures are means over the pictures of the batch."""
    sizes = torch.stack(particles.sizes)
    starts = sum(len(column.unique()) for column in particles.lineage.T) / particles.lineage.shape[1]
    weights = particles.log_weights.softmax(dim=0)
    lines = [
        f"{plan.count} particles a picture with {plan.name}, {calls} denoiser evaluations.",
        f"Reward of {plan.reward.name}: best {particles.scores.amax(0).mean():+.3f}, by weight "
        f"{(weights * particles.scores).sum(0).mean():+.3f}, mean {particles.scores.mean():+.3f}.",
        f"Effective number of particles: {sizes[-1].mean():.1f} at the end, {sizes.amin(0).mean():.1f} at least; "
        f"resampled {particles.resampled.float().mean():.1f} times.",
        f"{starts:.1f} starts are left; the particles are {spread(clean, plan.count).mean():.2f} apart.",
    ]
    if particles.steering.method == "feynman-kac":
        lines.append(f"log Z: {particles.log_evidence().mean():+.3f}.")
    return "\n".join(lines)
