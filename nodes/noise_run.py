"""Optimising the starting noise inside one run of a sampler: whole few-step runs, with a graph or without."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..guidance.noise import Look, NoiseSteps, optimised, zero_order
from ..guidance.search import Best
from .decoder import Decoder, check_pictures, decoder_of
from .denoiser import WrongConnectionError, gradients, normal_reward, training_kernels
from .fitting import Fitting
from .jacobian import GRAPH_MEMORY, normal_conds
from .network_parts import checkpointed
from .policy import check_weights, twin_of
from .ruled import check_no_rules
from .scoring import LatentScores
from .search_run import Show
from .slope_check import check_slope, check_whole
from .starts import started

GRADIENT, ZERO_ORDER = "gradient", "zero-order"
INSTEAD = f"Set `method` to {ZERO_ORDER}, which needs none."
RADIUS = 0.2
"""How far zero-order looks go, as the sine of the angle: nearer ones drown in a reward's own roughness."""


@dataclass(frozen=True, eq=False)
class Optimise:
    """A SAMPLER's function that optimises its starting noise. function: the sampler's own. pairs: of zero-order looks.

    judge: what the noise is kept by, instead of the reward itself. history: rewards (B,) of each iteration.
    """

    function: Callable[..., Tensor]
    reward: Reward
    vae: Any
    noise: Tensor
    steps: NoiseSteps
    method: str = GRADIENT
    pairs: int = 4
    judge: Reward | None = None
    decoder: str = "auto"
    own_inpaint_noise: bool = False
    show: Show = lambda done, planned, estimate: None
    found: list[Best] = field(default_factory=list)
    history: list[Tensor] = field(default_factory=list)
    judged: list[Tensor] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

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
        guider = model.inner_model
        check_pictures(x.shape)
        check_no_rules(guider, "Optimise noise")
        decoder = decoder_of(self.vae, guider.model_patcher, self.decoder)
        run = _Optimising(self, decoder, model, sigmas, dict(extra_args or {}), options)
        try:
            run.score.load(guider, x.shape)
            if run.judge is not None:
                run.judge.load(guider, x.shape)
            self.found.append(optimised(self.noise.to(x), run.look, self.steps, run.on_step))
            return run.plain(self.found[-1].noise)
        finally:
            run.release()


class _Optimising:
    def __init__(
        self,
        plan: Optimise,
        decoder: Decoder,
        model: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.plan, self.model, self.sigmas = plan, model, sigmas
        self.extra_args, self.options, self.decoder = extra_args, options, decoder
        self.score = LatentScores(plan.reward, decoder)
        self.judge = None if plan.judge is None else LatentScores(plan.judge, decoder)
        self.normal, self.tried = normal_reward(plan.reward), False
        self.fitting = Fitting("Optimise noise")
        self.generator = torch.Generator().manual_seed(extra_args.get("seed") or 0)

    def release(self) -> None:
        self.normal.release()
        self.score.release()
        if self.judge is not None:
            self.judge.release()

    def look(self, noise: Tensor, wanted: bool) -> Look:
        if wanted and self.plan.method == GRADIENT:
            latents, scores, slope = self._with_gradient(noise)
        else:
            latents = self.plain(noise)
            scores, slope = self.score(latents), self._zero_order(noise) if wanted else None
        kept_by = scores if self.judge is None else self.judge(latents)
        return Look(scores, kept_by, latents, slope)

    def on_step(self, number: int, seen: Look) -> None:
        self.plan.history.append(seen.scores)
        self.plan.judged.append(seen.kept_by)
        self.plan.show(number + 1, self.plan.steps.iterations + 1, seen.latents)

    def plain(self, noise: Tensor) -> Tensor:
        """The plain run of a noise."""
        counted = _Counted(self.model, self.plan)
        if not self.plan.own_inpaint_noise:
            self.model.noise = noise
        start = started(self.model, self.sigmas, noise)
        return self.plan.function(
            counted, start, self.sigmas, extra_args=dict(self.extra_args), disable=True, **self.options
        )

    def _zero_order(self, noise: Tensor) -> Tensor:
        return zero_order(lambda z: self.score(self.plain(z)), noise, self.plan.pairs, RADIUS, self.generator)

    def _with_gradient(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, rewards on the CPU, and their slope in the noise, through every step.

        As many pictures' graphs at a time as were planned for; where they do not fit, which is not known before, half
        as many from then on.
        """
        model = self.model.inner_model.inner_model
        planned = pictures_at_once(model, self.decoder, noise)
        check_whole(model, noise.device, INSTEAD)
        self._check_slope(noise)
        return self.fitting.run(lambda at_once: self._slope(noise, at_once), lambda: planned)

    def _slope(self, noise: Tensor, at_once: int) -> tuple[Tensor, Tensor, Tensor]:
        with (
            gradients(),
            training_kernels(),
            _normal_run(self.model, self.sigmas, self.extra_args, at_once) as (sigmas, extra),
        ):
            z = noise.clone().float().requires_grad_()
            if not self.plan.own_inpaint_noise:
                self.model.noise = z
            start = started(self.model, sigmas, z)
            counted = _Counted(self.model, self.plan, passes=2)
            latents = self._function()(counted, start, sigmas, extra_args=extra, disable=True, **self.options)
            if not latents.requires_grad:
                raise WrongConnectionError(
                    "This sampler passes no gradient through its steps. Choose euler, euler_ancestral, heun or lcm, or "
                    f"set `method` to {ZERO_ORDER}."
                )
            looks = [self._looked_at(part) for part in latents.detach().split(at_once)]
            scores, wishes = (torch.cat(found) for found in zip(*looks, strict=True))
            (slope,) = torch.autograd.grad(latents, z, wishes)
        return latents.detach(), scores.cpu(), slope

    def _looked_at(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards of some clean latents and their slope there; what that keeps is free again afterwards."""
        leaf = latents.clone().requires_grad_()
        images = self.decoder(leaf)
        reward = self.normal()
        reward.to(images.device)
        scores = reward(images)
        (slope,) = torch.autograd.grad(scores.sum(), leaf)
        return scores.detach(), slope

    def _check_slope(self, noise: Tensor) -> None:
        """Once, before the first slope is followed."""
        if not self.tried:
            cond = next(cond for side in self.model.inner_model.conds.values() for cond in side or ())
            x = started(self.model, self.sigmas, noise)
            check_slope(self.model.inner_model.inner_model, cond, x, self.sigmas[:1], INSTEAD)
        self.tried = True

    def _function(self) -> Callable[..., Tensor]:
        """The sampler's function without the decorators that switch gradients off."""
        function = self.plan.function
        flow = hasattr(self.model.inner_model.inner_model.model_sampling, "multiplier")
        if function is k_diffusion.sample_euler_ancestral and flow:
            function = k_diffusion.sample_euler_ancestral_RF
        return inspect.unwrap(function)


class _Counted:
    """The model as the sampler sees it, counting what it is asked. passes: how often it runs for each answer."""

    def __init__(self, model: Any, plan: Optimise, passes: int = 1) -> None:
        self._model, self._plan, self._passes = model, plan, passes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._plan.calls.extend([1] * self._passes)
        return self._model(x, sigma, **extra_args)


@contextmanager
def _normal_run(
    model: Any, sigmas: Tensor, extra_args: dict[str, Any], at_once: int
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The run's model, which keeps at_once pictures' graphs, conditions, mask and latents as normal tensors; as before
    afterwards."""
    guider = model.inner_model
    before = guider.inner_model, guider.conds, model.latent_image
    twin = twin_of(guider.inner_model)
    twin.current_patcher = guider.inner_model.current_patcher
    checkpointed(twin, at_once)
    known: dict[int, Any] = {}
    try:
        guider.inner_model = twin
        guider.conds = {name: normal_conds(cond, known, sigmas.device) for name, cond in before[1].items()}
        model.latent_image = _copied(model.latent_image)
        yield sigmas.clone(), extra_args | {"denoise_mask": _copied(extra_args.get("denoise_mask"))}
    finally:
        guider.inner_model, guider.conds, model.latent_image = before


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def pictures_at_once(model: Any, decoder: Decoder, x: Tensor) -> int:
    """How many pictures' graphs, of one step or of the decoding, fit into free memory.

    Raises WrongConnectionError when not even one does.
    """
    step = GRAPH_MEMORY * model.memory_required([2, *x.shape[1:]])
    needed, free = max(step, decoder.memory_for((1, *x.shape[1:]))), comfy.model_management.get_free_memory(x.device)
    if needed > free:
        raise WrongConnectionError(
            f"The gradient needs about {needed / 2**30:.1f} GiB for one picture of this size, and "
            f"{free / 2**30:.1f} GiB are free. Set `method` to {ZERO_ORDER}, or make smaller pictures."
        )
    return min(len(x), int(free / max(needed, 1)))


def check_gradient(model: Any, reward: Reward) -> None:
    """Raises WrongConnectionError for a reward without a gradient and for weights that pass none."""
    if not reward.differentiable:
        raise WrongConnectionError(
            f"The reward '{reward.name}' has no gradient. Set `method` to {ZERO_ORDER}, or connect another reward."
        )
    try:
        check_weights(model.model.diffusion_model)
    except WrongConnectionError as error:
        raise WrongConnectionError(f"{error} Or set `method` to {ZERO_ORDER}, which needs no gradient.") from error
