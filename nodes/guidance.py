"""FeedbackRewardGuidance: a reward steers every picture that the model makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ..diffusion.process import Process
from ..feedback.rewards.base import Reward
from ..guidance.gradient import (
    LATENT,
    PIXEL,
    GuidanceError,
    Guide,
    Transport,
    TrustRegion,
    guided,
    orthogonal_part,
    tilted,
)
from .compat import REWARD, io
from .decoder import SIZES, Decoder, check_pictures, decoder_of
from .denoiser import (
    Shared,
    WrongConnectionError,
    encoders_of,
    gradients,
    normal_reward,
    patchers_of,
    process_of,
    process_of_sampling,
)
from .encoder import ClipVisionEncoder, ManagedNetwork
from .jacobian import METHODS, check_method, transport_of

KEY = "feedback_loop_guidance"
OPTIMISE, EXACT = "optimise", "exact"


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
    normal: Shared[Reward] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", normal_reward(self.reward))

    def acts(self, sampling: Any, sigma: Tensor) -> bool:
        noise = float(sigma.max())
        return float(sampling.percent_to_sigma(self.end)) <= noise <= float(sampling.percent_to_sigma(self.start))

    def score(self, latents: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B,) on the latents' device."""
        images = self.decoder(latents)
        reward = self.normal()
        reward.to(images.device)
        return reward(images).to(latents.device)

    def guide(self, denoised: Tensor, transport: Transport | None = None, at_once: int | None = None) -> Guide:
        mask = None if self.mask is None else latent_mask(self.mask, denoised)
        orthogonal = self.manner.orthogonal
        return Guide(self.score, self.strength, mask, self.reward.negligible, transport, orthogonal, at_once)

    def release(self) -> None:
        self.normal.release()
        self.decoder.release()
        for encoder in encoders_of(self.reward):
            if isinstance(encoder, ClipVisionEncoder | ManagedNetwork):
                encoder.release()


def exact_step(denoised: Tensor, sigma: Tensor, pull: Pull, guide: Guide, process: Process) -> Tensor:
    """The estimate under the law tilted by the pull's reward; strength scales the inverse temperature."""
    temperature = pull.strength * pull.manner.temperature
    aim = tilted(denoised, sigma, guide.reward, process, temperature, transport=guide.transport, at_once=guide.at_once)
    step = aim.float() - denoised.float()
    if guide.orthogonal:
        step = orthogonal_part(step, denoised)
    if guide.mask is not None:
        step = guide.mask.to(step) * step
    return (denoised.float() + step).to(denoised.dtype)


@dataclass(frozen=True, eq=False)
class RewardGuidance:
    """The post-CFG function. All guidance nodes on a model end up in one of these: they share its trust region."""

    pulls: tuple[Pull, ...]
    region: TrustRegion

    def __call__(self, args: dict[str, Any]) -> Tensor:
        denoised, sigma, sampling = args["denoised"], args["sigma"], args["model"].model_sampling
        process = process_of_sampling(sampling)
        pulls = [pull for pull in self.pulls if pull.acts(sampling, sigma)]
        if not pulls or not self.region.holds(process, sigma):
            return denoised
        comfy.model_management.throw_exception_if_processing_interrupted()
        check_pictures(denoised.shape)
        with gradients():
            return self._guided(args, denoised.clone(), sigma.clone().expand(len(denoised)), pulls, process)

    def _guided(
        self, args: dict[str, Any], denoised: Tensor, sigma: Tensor, pulls: Sequence[Pull], process: Process
    ) -> Tensor:
        """In as many parts as memory asks for: no picture's step depends on another's."""
        at_once = pictures_at_once(denoised, pulls)
        guides = [pull.guide(denoised, transport_of(pull.manner.method, args, process), at_once) for pull in pulls]
        for pull, guide in zip(pulls, guides, strict=True):
            if pull.manner.mode == EXACT:
                denoised = exact_step(denoised, sigma, pull, guide, process)
        shared = [guide for pull, guide in zip(pulls, guides, strict=True) if pull.manner.mode == OPTIMISE]
        return guided(denoised, sigma, shared, process, self.region.tau)

    def memory_for(self, shape: Sequence[int]) -> float:
        return max(pull.decoder.memory_for(check_pictures(shape)) for pull in self.pulls)

    def release(self, _patcher: ModelPatcher | None = None) -> None:
        """After a run, so that ComfyUI can free the memory of what it unloads."""
        for pull in self.pulls:
            pull.release()


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


def add_guidance(model: ModelPatcher, pull: Pull) -> ModelPatcher:
    """A clone of the model that follows the pull as well as those it already follows."""
    model = model.clone()
    hooks = model.model_options.get("sampler_post_cfg_function", [])
    before = [hook for hook in hooks if isinstance(hook, RewardGuidance)]
    pulls = (*(known for hook in before for known in hook.pulls), pull)
    guidance = RewardGuidance(pulls, region_of(model))
    model.model_options["sampler_post_cfg_function"] = [hook for hook in hooks if hook not in before]
    model.set_model_sampler_post_cfg_function(guidance)
    _manage_memory(model, guidance)
    return model


def region_of(model: ModelPatcher) -> TrustRegion:
    """The trust region that was calibrated for this kind of model."""
    return PIXEL if model.get_model_object("latent_format").spacial_downscale_ratio == 1 else LATENT


def _manage_memory(model: ModelPatcher, guidance: RewardGuidance) -> None:
    networks = [p for pull in guidance.pulls for p in (pull.decoder.patcher, *patchers_of(pull.reward))]
    unique = {id(patcher.model): patcher for patcher in networks}
    model.set_additional_models(KEY, list(unique.values()))
    model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, guidance.release)
    model.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _reserving(guidance))


def _reserving(guidance: RewardGuidance) -> Any:
    """A PREPARE_SAMPLING wrapper that makes ComfyUI keep the memory of one picture's graph free beside its own.

    ComfyUI plans memory from the latent's shape and nothing else, so it is told of a larger batch.
    """

    def prepare(
        executor: Any, model: ModelPatcher, noise_shape: Sequence[int], conds: Any, *args: Any, **kwargs: Any
    ) -> Any:
        planned, _ = comfy.sampler_helpers.estimate_memory(model, noise_shape, conds)
        extra = guidance.memory_for((1, *noise_shape[1:]))
        batch = noise_shape[0] * (1 + extra / max(planned, 1))
        return executor(model, [batch, *noise_shape[1:]], conds, *args, **kwargs)

    return prepare


def check_reward(reward: Any) -> Reward:
    """The reward, or GuidanceError that says what to connect."""
    if not isinstance(reward, Reward):
        raise WrongConnectionError(
            "What is connected as `reward` is no reward of this pack. Connect a Feedback Loop reward node."
        )
    if not reward.differentiable:
        raise GuidanceError(
            f"The reward '{reward.name}' has no gradient, so it cannot guide a run. "
            "Use it to score pictures, or connect another reward."
        )
    return reward


def check_interval(start: float, end: float) -> None:
    if start >= end:
        raise WrongConnectionError(
            f"start_percent ({start:g}) has to be below end_percent ({end:g}), or nothing would be steered."
        )


class FeedbackRewardGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackRewardGuidance",
            display_name="Reward guidance",
            category="feedback/guidance",
            description=(
                "Steers every picture that the model makes towards a higher reward: what you taught it to like, fewer "
                "watermarks, other colours. Works with any sampler. Chain several for several rewards."
            ),
            search_aliases=["reward", "guidance", "steer", "taste", "watermark", "classifier guidance", "feedback"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to steer. It comes out changed; the original stays as it is."
                ),
                REWARD.Input("reward", tooltip="What to steer towards, from any reward node of Feedback Loop."),
                io.Vae.Input("vae", tooltip="The model's VAE. Rewards judge pictures, so every estimate is decoded."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How far each step may go. 1 is what we measured to work best, .5 is subtle, above 2 "
                    "pictures tend to break. 0 is off: exactly the pictures without this node.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="When steering begins, as a share of the run. Later leaves the layout alone. The first "
                    "steps, which are nearly pure noise, are never steered.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="When steering ends, as a share of the run. Earlier saves time and leaves fine detail.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=list(SIZES),
                    default="auto",
                    advanced=True,
                    tooltip="How estimates become pictures for the reward. auto: the small decoder (TAESD in "
                    "models/vae_approx) if there is one, else the VAE at half size. full is slowest and sharpest.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    advanced=True,
                    tooltip="Where the picture may be changed (white). Without one, everywhere.",
                ),
                io.Combo.Input(
                    "gradient",
                    options=list(METHODS),
                    default="fast",
                    optional=True,
                    advanced=True,
                    tooltip="How the reward's wish reaches the model's estimate. fast: straight. difference: through "
                    "the model, for one more evaluation a step, which keeps to what the model finds likely. full: by a "
                    "gradient through the model, which takes much memory.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[OPTIMISE, EXACT],
                    default=OPTIMISE,
                    optional=True,
                    advanced=True,
                    tooltip="optimise: steps of a fixed length towards more reward. exact: aims at the pictures that "
                    "the model makes, weighted by exp(inverse_temperature x reward): for comparing and for science.",
                ),
                io.Float.Input(
                    "inverse_temperature",
                    default=1.0,
                    min=0.0,
                    max=10000.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Used by mode exact only, times strength: how much one point of reward weighs.",
                ),
                io.Boolean.Input(
                    "orthogonal",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Leaves out the part of each step that only makes the estimate as a whole stronger or "
                    "weaker. Colours saturate less.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The steered model, for any sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        reward: Reward,
        vae: Any,
        strength: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        decoder: str = "auto",
        mask: Tensor | None = None,
        gradient: str = "fast",
        mode: str = OPTIMISE,
        inverse_temperature: float = 1.0,
        orthogonal: bool = False,
    ) -> io.NodeOutput:
        process_of(model)
        check_reward(reward)
        check_interval(start_percent, end_percent)
        check_method(gradient, model)
        decode = decoder_of(vae, model, decoder)
        if strength == 0:
            return io.NodeOutput(model)
        manner = Manner(mode, inverse_temperature, gradient, orthogonal)
        pull = Pull(reward, decode, strength, start_percent, end_percent, mask, manner)
        return io.NodeOutput(add_guidance(model, pull))


NODES: list[type[io.ComfyNode]] = [FeedbackRewardGuidance]
