"""FeedbackRewardSteering: particles around a sampler, for rewards with or without a gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy.samplers import KSAMPLER

from ..feedback.rewards.base import Reward
from ..guidance.particles import Potential, Steering
from .compat import REWARD, io
from .denoiser import WrongConnectionError
from .guidance import check_judge
from .inputs import decoder_input
from .particle_run import ALL, BEST, DRAWN, Plan
from .scoring import tell
from .starts import is_core, name_of

SVDD = "svdd"
METHODS = ("difference", "max", "sum", SVDD)
KEEP_GUIDANCE, WEIGH_BACK = "keep it", "weigh it back"

EULER = "euler_ancestral"
STOCHASTIC = (
    EULER,
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "res_multistep_ancestral",
    "seeds_2",
    "seeds_3",
    "exp_heun_2_x0_sde",
    "er_sde",
    "sa_solver",
    "sa_solver_pece",
)
"""Core samplers that draw noise on the way."""

NO_NOISE = "it draws no noise on the way, so all copies of a particle would stay alike"
NOT_CORE = "it is no sampler of ComfyUI's own, and what it keeps between its steps is not known"
CFG_PP = "it keeps the unguided estimate that the model gave last, which is that of one particle alone"
ADAPTIVE = "it chooses its steps by itself, for all particles alike"


def why_not(name: str, sampler: Any) -> str:
    """Why particles cannot be put around a sampler of this name; empty where they can."""
    if name in STOCHASTIC:
        return "" if is_core(sampler, name) else NOT_CORE
    if name in ("dpm_fast", "dpm_adaptive"):
        return ADAPTIVE
    if name.endswith("_cfg_pp"):
        return CFG_PP
    return NO_NOISE if is_core(sampler, name) or name in ("unipc", "unipc_bh2") else NOT_CORE


def check_stochastic(sampler: Any, correct: bool) -> str:
    """The name of a sampler that particles can be put around. Raises WrongConnectionError with what to choose."""
    name = name_of(sampler)
    if isinstance(getattr(sampler, "sampler_function", None), Plan):
        raise WrongConnectionError("This sampler has particles around it already: use one Reward steering node.")
    if why := why_not(name, sampler):
        raise WrongConnectionError(
            f"The sampler '{name}' cannot be steered by particles: {why}. Choose euler_ancestral, dpmpp_2m_sde, "
            "dpmpp_sde, er_sde or lcm."
        )
    silent = [key for key in ("eta", "s_noise") if sampler.extra_options.get(key, 1.0) == 0]
    if silent:
        raise WrongConnectionError(
            f"{silent[0]} is 0, so '{name}' draws no noise on the way and all copies of a particle would stay alike. "
            f"Set {silent[0]} to 1."
        )
    if correct and name != EULER:
        raise WrongConnectionError(
            f"Reward guidance can only be weighed back with euler_ancestral, whose steps have a known density; this is "
            f"'{name}'. Choose euler_ancestral, or set `with_guidance` to '{KEEP_GUIDANCE}'."
        )
    return name


def steering_of(method: str, strength: float, damping: float) -> Steering:
    if method == SVDD:
        return Steering(strength, curvature=damping, method="svdd")
    potentials: dict[str, Potential] = {"difference": "difference", "max": "max", "sum": "sum"}
    return Steering(strength, potentials[method], damping)


class FeedbackRewardSteering(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackRewardSteering",
            display_name="Reward steering (particles)",
            category="feedback/guidance",
            description=(
                "Makes several candidates of every picture at once, looks at them on the way, and lets the promising "
                "ones go on. Needs no gradient, so any reward can steer. For a sampler that draws noise on the way."
            ),
            search_aliases=[
                "particles",
                "feynman-kac",
                "SMC",
                "SVDD",
                "reward",
                "steer",
                "candidates",
                "gradient free",
            ],
            inputs=[
                io.Sampler.Input(
                    "sampler",
                    tooltip="A sampler that draws noise on the way: euler_ancestral, an SDE sampler, lcm.",
                ),
                REWARD.Input("reward", tooltip="What makes a candidate promising, from any reward node."),
                io.Vae.Input("vae", tooltip="The model's VAE. Rewards judge pictures, so estimates are decoded."),
                io.Int.Input(
                    "particles",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Candidates of each picture. Time grows in proportion. 1 is off: the plain sampler.",
                ),
                io.Float.Input(
                    "strength",
                    default=10.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="How strongly one unit of reward counts (the inverse temperature). 10 suits rewards that "
                    "differ by about 1 between pictures. 0 is off: exactly the plain sampler.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="difference",
                    tooltip="How candidates are weighed: by the rise of their reward (difference), the best it was "
                    "(max), all it was (sum). svdd draws one at every look and goes on from copies of it: greedier.",
                ),
                io.Int.Input(
                    "every",
                    default=3,
                    min=1,
                    max=100,
                    tooltip="Look at the candidates every so many steps, once there is something to see. Each look "
                    "decodes all of them.",
                ),
                io.Combo.Input(
                    "keep",
                    options=[BEST, DRAWN, ALL],
                    default=BEST,
                    tooltip="best: the candidate with the highest reward of each picture. drawn: one drawn by its "
                    "weight, a fair sample. all: every candidate, first the best of each picture, then the second "
                    "best, and so on.",
                ),
                io.Float.Input(
                    "damping",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How much less an early, blurred estimate counts. 1 suits rewards that differ by about 1 "
                    "between pictures; 0 trusts early estimates in full.",
                ),
                io.Combo.Input(
                    "with_guidance",
                    options=[KEEP_GUIDANCE, WEIGH_BACK],
                    default=KEEP_GUIDANCE,
                    advanced=True,
                    tooltip="Where the model has Reward guidance too. Keep it: choose among guided pictures. Weigh it "
                    "back: guidance only proposes, and the law of the strength above is aimed at exactly; for small "
                    "pictures and many candidates.",
                ),
                decoder_input(
                    "How estimates become pictures for the reward. auto: the small decoder (TAESD in "
                    "models/vae_approx) if there is one, else the VAE at half size."
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="The sampler with particles around it, for SamplerCustom nodes.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        sampler: Any,
        reward: Reward,
        vae: Any,
        particles: int,
        strength: float,
        method: str = "difference",
        every: int = 3,
        keep: str = BEST,
        damping: float = 1.0,
        with_guidance: str = KEEP_GUIDANCE,
        decoder: str = "auto",
    ) -> io.NodeOutput:
        name = check_stochastic(sampler, with_guidance == WEIGH_BACK)
        check_judge(reward, "reward")
        if particles == 1 or strength == 0:
            return io.NodeOutput(sampler)
        steering, say = steering_of(method, strength, damping), partial(tell, getattr(cls.hidden, "unique_id", None))
        correct = with_guidance == WEIGH_BACK
        plan = Plan(
            sampler.sampler_function, name, reward, vae, steering, particles, every, keep, correct, decoder, say
        )
        return io.NodeOutput(KSAMPLER(plan, sampler.extra_options, sampler.inpaint_options))


NODES: list[type[io.ComfyNode]] = [FeedbackRewardSteering]
