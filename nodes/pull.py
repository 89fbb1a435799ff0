"""One guidance node's wish, and the post-CFG function that follows those of all guidance nodes on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..diffusion.process import Process
from ..feedback.rewards.base import Reward
from ..guidance.gradient import GuidanceError, Guide, Transport, TrustRegion, guided, orthogonal_part, rms, room, tilted
from ..guidance.watch import LONG
from .decoder import Decoder, check_pictures
from .denoiser import Shared, gradients, normal_reward, patchers_of, process_of_sampling, release_encoders
from .fitting import Fitting
from .jacobian import WHO, check_step, release_outputs, transport_of
from .sight import Sight

OPTIMISE, EXACT = "optimise", "exact"

SAFE = 0.99 * LONG
"""How long rules may make a step, in the units of LONG: just so long that the watching says nothing of it."""


@dataclass(frozen=True)
class Manner:
    """How a reward steers. temperature: inverse, of the law that exact mode aims at. method: one of METHODS."""

    mode: str = OPTIMISE
    temperature: float = 1.0
    method: str = "fast"
    orthogonal: bool = False


@dataclass(frozen=True, eq=False)
class Pull:
    """One guidance node's wish: this reward, through this decoder, this strongly, between these shares of the run."""

    reward: Reward
    decoder: Decoder
    strength: float
    start: float = 0.0
    end: float = 1.0
    mask: Tensor | None = None
    manner: Manner = Manner()
    sight: Sight = field(default_factory=Sight)
    normal: Shared[Reward] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", normal_reward(self.reward))

    def acts(self, sampling: Any, sigma: Tensor) -> bool:
        noise = float(sigma.max())
        if not float(sampling.percent_to_sigma(self.end)) <= noise <= float(sampling.percent_to_sigma(self.start)):
            return False
        return self.reward.at(percent_of(sampling, noise)) is not None

    def score(self, latents: Tensor, percent: float) -> Tensor:
        """(B, C, *spatial) -> (B,) on the latents' device, by what of the reward counts at this share of the run."""
        images = self.decoder(latents)
        reward = self.normal().at(percent)
        if reward is None:
            raise GuidanceError(f"The reward '{self.reward.name}' does not count at {percent:.0%} of the run.")
        reward.to(images.device)
        scores = reward(images)
        self.sight.scored(images, scores)
        return scores.to(latents.device)

    def finish(self, model: ModelPatcher, latents: Tensor | None) -> None:
        """After a run that came to its end. latents: what it made, as it hands them out; None where noise is left.

        Never raises an error: the pictures are there by then, and a verdict is not worth them.
        """

        def decode(latents: Tensor) -> Tensor:
            clean = model.model.process_latent_in(latents)
            self.decoder.load((1, *clean.shape[1:]))
            with torch.no_grad():
                return torch.cat([self.decoder(part) for part in clean.split(1)])

        try:
            self.sight.end(latents, decode)
        except Exception as error:  # noqa: BLE001  (a judge, a VAE, memory: anything; an interrupt is none)
            self.sight.unjudged(error)
        finally:
            self.release()

    def guide(self, denoised: Tensor, percent: float, transport: Transport | None, at_once: int) -> Guide:
        mask = None if self.mask is None else latent_mask(self.mask, denoised)
        strength = self.strength * self.reward.reach
        guide = Guide(lambda x: self.score(x, percent), strength, mask, self.reward.negligible, transport)
        return replace(guide, orthogonal=self.manner.orthogonal, at_once=at_once, on_step=self.sight.roomy)

    def patchers(self) -> list[ModelPatcher]:
        """What ComfyUI's memory management has to see, each network once or more. A judge is loaded at the end."""
        return [self.decoder.patcher, *patchers_of(self.reward)]

    def release(self) -> None:
        self.sight.begin_step()
        self.normal.release()
        self.decoder.release()
        release_encoders([self.reward] if self.sight.judge is None else [self.reward, self.sight.judge])


def percent_of(sampling: Any, sigma: float) -> float:
    """The share of a run, 0 its beginning and 1 its end, at which its schedule reaches this noise: the reverse of
    ComfyUI's `percent_to_sigma`, which falls."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > sigma else (low, middle)
    return (low + high) / 2


def exact_step(denoised: Tensor, sigma: Tensor, pull: Pull, guide: Guide, process: Process) -> Tensor:
    """The estimate under the law tilted by the pull's reward; strength scales the inverse temperature."""

    def seen(slope: Tensor, deviation: Tensor) -> None:
        pull.sight.roomy(room(slope, deviation, guide.negligible, guide.mask).flatten())

    temperature, carry = pull.strength * pull.manner.temperature, guide.transport
    aim = tilted(
        denoised, sigma, guide.reward, process, temperature, transport=carry, at_once=guide.at_once, on_slope=seen
    )
    step = aim.float() - denoised.float()
    if guide.orthogonal:
        step = orthogonal_part(step, denoised)
    if guide.mask is not None:
        step = guide.mask.to(step) * step
    return (denoised.float() + step).to(denoised.dtype)


@dataclass
class Known:
    """What a run has found out about itself. tried: the full gradient is the right one. fitting: how many pictures'
    graphs fit into memory."""

    tried: bool = False
    fitting: Fitting = field(default_factory=lambda: Fitting("Reward guidance"))
    through: Fitting = field(default_factory=lambda: Fitting(WHO))

    def forget(self) -> None:
        self.tried, self.fitting.most, self.through.most = False, None, None


@dataclass(frozen=True, eq=False)
class RewardGuidance:
    """The post-CFG function. All guidance nodes on a model end up in one of these: they share its trust region."""

    pulls: tuple[Pull, ...]
    region: TrustRegion
    known: Known = field(default_factory=Known)

    def __call__(self, args: dict[str, Any]) -> Tensor:
        denoised, sigma, sampling = args["denoised"], args["sigma"], args["model"].model_sampling
        process = process_of_sampling(sampling)
        pulls = [pull for pull in self.pulls if pull.acts(sampling, sigma)]
        if not pulls or not self.region.holds(process, sigma):
            return denoised
        comfy.model_management.throw_exception_if_processing_interrupted()
        check_pictures(denoised.shape)
        if not self.known.tried and any(pull.manner.method == "full" for pull in pulls):
            check_step(args)
            self.known.tried = True
        with gradients():
            return self._guided(args, denoised.clone(), sigma.clone().expand(len(denoised)), pulls, process)

    def _guided(
        self, args: dict[str, Any], denoised: Tensor, sigma: Tensor, pulls: Sequence[Pull], process: Process
    ) -> Tensor:
        """In as many parts as memory asks for: no picture's step depends on another's.

        The decoder's graph is planned for, that of a reward's network is not known before it is made: where it does not
        fit either, half as many pictures go at once, for the rest of the run.
        """
        return self.known.fitting.run(
            lambda at_once: self._in_parts(args, denoised, sigma, pulls, process, at_once),
            lambda: pictures_at_once(denoised, pulls),
        )

    def _in_parts(
        self,
        args: dict[str, Any],
        denoised: Tensor,
        sigma: Tensor,
        pulls: Sequence[Pull],
        process: Process,
        at_once: int,
    ) -> Tensor:
        percent = percent_of(args["model"].model_sampling, float(sigma.max()))
        carries = [transport_of(pull.manner.method, args, process, self.known.through) for pull in pulls]
        guides = [pull.guide(denoised, percent, carry, at_once) for pull, carry in zip(pulls, carries, strict=True)]
        steered = denoised
        for pull, guide in zip(pulls, guides, strict=True):
            pull.sight.begin_step()
            if pull.manner.mode == EXACT:
                steered = exact_step(steered, sigma, pull, guide, process)
        shared = [guide for pull, guide in zip(pulls, guides, strict=True) if pull.manner.mode == OPTIMISE]
        steered = guided(steered, sigma, shared, process, self.region.tau)
        deviation = process.posterior_variance(sigma).sqrt().to(steered.device).flatten().clamp(min=1e-12)
        reach = max(1.0 if pull.manner.mode == EXACT else pull.reward.reach for pull in pulls)
        steered = _boosted(args, denoised, steered, SAFE * reach * deviation)
        stride = rms(steered.float() - denoised.float()).flatten() / deviation
        for pull in pulls:
            pull.sight.end_step(percent, stride / reach)
        return steered

    def memory_for(self, shape: Sequence[int]) -> float:
        return max(pull.decoder.memory_for(check_pictures(shape)) for pull in self.pulls)

    def release(self, patcher: ModelPatcher | None = None) -> None:
        """After a run, so that ComfyUI can free the memory of what it unloads."""
        for pull in self.pulls:
            pull.release()
        if patcher is not None:
            release_outputs(patcher)

    def sample(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An OUTER_SAMPLE wrapper: a run that comes to its end is judged, one that fails or is stopped is not.

        The models of the run are free again by then, and rules have made all their rounds.
        """
        self.known.forget()
        for pull in self.pulls:
            pull.sight.begin()
        samples = executor(noise, latent, sampler, sigmas, *args, **kwargs)
        for pull in self.pulls:
            pull.finish(executor.class_obj.model_patcher, samples if float(sigmas[-1]) == 0 else None)
        return samples


def _boosted(args: dict[str, Any], denoised: Tensor, steered: Tensor, longest: Tensor) -> Tensor:
    """The step times what rules on the model ask for, picture by picture. longest (B,): a boost makes no step longer
    than that, in root mean square; one that is longer by itself stays as it is."""
    for hook in args.get("model_options", {}).get("sampler_post_cfg_function", ()):
        factor = hook.guidance_factor(denoised) if hasattr(hook, "guidance_factor") else None
        if factor is not None:
            length = rms(steered.float() - denoised.float()).flatten().clamp(min=1e-12)
            most = (longest / length).clamp(min=1).reshape(factor.shape)
            factor = torch.minimum(factor, most.to(factor))
            steered = torch.where(factor == 1, steered, (denoised + factor * (steered - denoised)).to(steered))
    return steered


def pictures_at_once(denoised: Tensor, pulls: Sequence[Pull]) -> int:
    """How many pictures' graphs fit into free memory, one at least."""
    one = (1, *check_pictures(denoised.shape)[1:])
    needed = max(pull.decoder.memory_for(one) for pull in pulls)
    free = min(comfy.model_management.get_free_memory(pull.decoder.patcher.load_device) for pull in pulls)
    return max(1, min(len(denoised), int(free / max(needed, 1))))


def latent_mask(mask: Tensor, like: Tensor) -> Tensor:
    """A MASK (B or 1, H, W) as (B, 1, *spatial) at the latent's size; the last one serves for pictures without one."""
    mask = mask.clone().float().reshape(-1, 1, *mask.shape[-2:]).clamp(0, 1)
    mask = nn.functional.interpolate(mask, size=like.shape[-2:], mode="area")
    mask = mask[torch.arange(len(like)).clamp(max=len(mask) - 1)]
    return mask.reshape(len(like), *(1,) * (like.ndim - 3), *like.shape[-2:]).to(like.device)
