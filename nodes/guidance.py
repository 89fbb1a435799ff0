"""FeedbackRewardGuidance: a reward steers every picture that the model makes."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..guidance.gradient import LATENT, PIXEL, GuidanceError, TrustRegion
from .compat import REWARD, io
from .decoder import check_decoder, decoder_of, reserving
from .denoiser import WrongConnectionError, process_of
from .inputs import decoder_input, share_input
from .jacobian import METHODS, check_method, keep_outputs
from .pull import EXACT, OPTIMISE, Manner, Pull, RewardGuidance
from .sight import Sight, plain_pictures

KEY = "feedback_loop_guidance"


def add_guidance(model: ModelPatcher, pull: Pull) -> ModelPatcher:
    """A clone of the model that follows the pull as well as those it already follows."""
    model = model.clone()
    hooks = model.model_options.get("sampler_post_cfg_function", [])
    before = [hook for hook in hooks if isinstance(hook, RewardGuidance)]
    pulls = (*(known for hook in before for known in hook.pulls), pull)
    guidance = RewardGuidance(pulls, region_of(model))
    model.model_options["sampler_post_cfg_function"] = [hook for hook in hooks if hook not in before]
    model.set_model_sampler_post_cfg_function(guidance)
    if pull.manner.method != "fast":
        keep_outputs(model)
    _manage_memory(model, guidance)
    return model


def region_of(model: ModelPatcher) -> TrustRegion:
    """The trust region that was calibrated for this kind of model."""
    return PIXEL if model.get_model_object("latent_format").spacial_downscale_ratio == 1 else LATENT


def _manage_memory(model: ModelPatcher, guidance: RewardGuidance) -> None:
    networks = [patcher for pull in guidance.pulls for patcher in pull.patchers()]
    unique = {id(patcher.model): patcher for patcher in networks}
    model.set_additional_models(KEY, list(unique.values()))
    model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, guidance.release)
    model.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, reserving(guidance.memory_for))
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guidance.sample)


def check_reward(reward: Any) -> Reward:
    """The reward, or GuidanceError that says what to connect."""
    check_judge(reward, "reward")
    if not reward.differentiable:
        raise GuidanceError(
            f"The reward '{reward.name}' has no gradient, so it cannot guide a run. "
            "Use it to score pictures, or connect another reward."
        )
    return reward


def check_judge(reward: Any, name: str = "judge") -> Reward:
    """A reward with or without a gradient, or WrongConnectionError."""
    if not isinstance(reward, Reward):
        raise WrongConnectionError(
            f"What is connected as `{name}` is no reward of this pack. Connect a Feedback Loop reward node."
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
                share_input(
                    "start_percent",
                    0.0,
                    "When steering begins, as a share of the run. Later leaves the layout alone. The first "
                    "steps, which are nearly pure noise, are never steered.",
                    advanced=True,
                ),
                share_input(
                    "end_percent",
                    1.0,
                    "When steering ends, as a share of the run. Earlier saves time and leaves fine detail.",
                    advanced=True,
                ),
                decoder_input(
                    "How estimates become pictures for the reward. auto: the small decoder (TAESD in "
                    "models/vae_approx) if there is one, else the VAE at half size. full is slowest and sharpest. "
                    "preview shows colours alone and costs next to nothing."
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
                REWARD.Input(
                    "judge",
                    optional=True,
                    tooltip="A second reward, which steers nothing. Where `plain` is connected too, the node says so "
                    "when this falls below that of the plain pictures: then the first is being outwitted.",
                ),
                io.Image.Input(
                    "plain",
                    optional=True,
                    tooltip="Pictures of the same model without guidance. The node says so when steered ones leave "
                    "their range of saturation or detail. Without them only what no photograph has is reported.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The steered model, for any sampler.")],
            hidden=[io.Hidden.unique_id],
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
        judge: Reward | None = None,
        plain: Tensor | None = None,
    ) -> io.NodeOutput:
        process_of(model)
        check_reward(reward)
        check_interval(start_percent, end_percent)
        check_method(gradient, model)
        check_decoder(decoder, reward)
        decode = decoder_of(vae, model, decoder)
        if strength == 0 or (mode == EXACT and inverse_temperature == 0):
            return io.NodeOutput(model)
        manner = Manner(mode, inverse_temperature, gradient, orthogonal)
        node = str(cls.hidden.unique_id or "") if cls.hidden else ""
        sight = Sight(node, plain_pictures(plain), None if judge is None else check_judge(judge), vae)
        pull = Pull(reward, decode, strength, start_percent, end_percent, mask, manner, sight)
        return io.NodeOutput(add_guidance(model, pull))


NODES: list[type[io.ComfyNode]] = [FeedbackRewardGuidance]
