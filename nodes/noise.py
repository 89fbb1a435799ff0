"""FeedbackOptimizeNoise: the starting noise of a few-step model is moved up a reward."""

from __future__ import annotations

from typing import Any

from comfy.samplers import KSAMPLER, CFGGuider
from torch import Tensor

from ..feedback.rewards.base import Reward
from ..guidance.noise import Likely, NoiseSteps
from .compat import REWARD, io
from .decoder import check_vae
from .guidance import check_judge
from .inputs import decoder_input
from .kept_noise import KeptNoise, check_noise
from .noise_run import GRADIENT, ZERO_ORDER, Optimise, check_gradient
from .plots import line_plot
from .scoring import tell
from .search import check_sampler, pictures_of, progress_of, run_of, starting_latents

NORM, WHITE = "its length (ReNO)", "white noise (DNO)"
LIKELY: dict[str, Likely] = {NORM: "norm", WHITE: "white"}


def report(plan: Optimise) -> str:
    first, best = plan.history[0], plan.found[-1]
    reached = max(float(scores.mean()) for scores in plan.history)
    size = plan.found[-1].noise.square().mean()
    lines = [
        f"{plan.reward.name}: {float(first.mean()):+.3f} at the start, {reached:+.3f} at its best, in "
        f"{len(plan.history) - 1} iterations and {len(plan.calls)} denoiser evaluations.",
        f"The noise has a variance of {float(size):.2f}; white noise has 1.",
    ]
    if plan.judge is not None:
        kept, before = float(best.scores.mean()), float(plan.judged[0].mean())
        lines.append(f"Kept by {plan.judge.name}: {before:+.3f} at the start, {kept:+.3f} kept.")
        if float(plan.judged[-1].mean()) < before:
            lines.append(f"{plan.judge.name} fell while {plan.reward.name} was optimised: it is being outwitted.")
    return "\n".join(lines)


class FeedbackOptimizeNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackOptimizeNoise",
            display_name="Optimise noise",
            category="feedback/guidance",
            description=(
                "For models of 1 to 4 steps, whose pictures cannot be steered on the way: moves the starting noise up "
                "a reward, run after run. In place of SamplerCustomAdvanced, or before it."
            ),
            search_aliases=["ReNO", "DNO", "noise optimization", "turbo", "lightning", "few steps", "reward"],
            inputs=[
                io.Noise.Input("noise", tooltip="Where to start: RandomNoise, or the noise of an earlier search."),
                io.Guider.Input("guider", tooltip="A few-step model and its prompts, as for SamplerCustomAdvanced."),
                io.Sampler.Input(
                    "sampler", tooltip="The sampler: euler, lcm, euler_ancestral or another for few steps."
                ),
                io.Sigmas.Input("sigmas", tooltip="The schedule: 1 to 4 steps. Every iteration runs all of them."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Empty latents, or a picture to start from. Each picture of a "
                    "batch is optimised for itself.",
                ),
                REWARD.Input("reward", tooltip="What to move towards, from any reward node."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Combo.Input(
                    "method",
                    options=[GRADIENT, ZERO_ORDER],
                    default=GRADIENT,
                    tooltip="gradient: through the model and the VAE; needs memory, and a reward that has one. "
                    "zero-order: tries pairs of nearby noises; slower, for any reward and any weights.",
                ),
                io.Int.Input(
                    "iterations",
                    default=50,
                    min=0,
                    max=10000,
                    tooltip="Steps of the optimisation. 0 gives the noise back as it is.",
                ),
                io.Combo.Input(
                    "stay",
                    options=list(LIKELY),
                    default=NORM,
                    tooltip="What keeps the noise one that the model knows: its length alone, or, after every step, "
                    "the spectrum of white noise, which also ends patterns in it.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How far each step goes. 5 with the gradient clipped at .1 is ReNO's.",
                ),
                io.Int.Input(
                    "pairs",
                    default=4,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="zero-order only: pairs of noises that are tried for each step; two runs each.",
                ),
                decoder_input("How latents become pictures for the reward, as in Reward guidance."),
                REWARD.Input(
                    "judge",
                    optional=True,
                    tooltip="A second reward, which is not optimised: the noise that it likes best on the way is kept. "
                    "Guards against pictures that only fool the first.",
                ),
            ],
            outputs=[
                io.Noise.Output(
                    "best_noise",
                    tooltip="The noise: for SamplerCustomAdvanced with the same guider, sampler, steps and latents.",
                ),
                io.Latent.Output("latent", tooltip="What the sampler makes of it."),
                io.Image.Output("image", tooltip="The same, decoded."),
                io.Image.Output("curve", tooltip="The reward of each picture over the iterations."),
                io.String.Output("report", tooltip="Rewards before and after, and what it cost."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        noise: Any,
        guider: CFGGuider,
        sampler: KSAMPLER,
        sigmas: Tensor,
        latent_image: dict[str, Any],
        reward: Reward,
        vae: Any,
        method: str = GRADIENT,
        iterations: int = 50,
        stay: str = NORM,
        learning_rate: float = 5.0,
        pairs: int = 4,
        decoder: str = "auto",
        judge: Reward | None = None,
    ) -> io.NodeOutput:
        check_sampler(sampler, halving=False)
        check_vae(vae, guider.model_patcher)
        check_judge(reward, "reward")
        if judge is not None:
            check_judge(judge)
        if method == GRADIENT and iterations:
            check_gradient(guider.model_patcher, reward)
        latent = starting_latents(guider, latent_image)
        steps = NoiseSteps(iterations, learning_rate, likely=LIKELY[stay])
        start, own = check_noise(noise).generate_noise(latent), bool(sampler.inpaint_options.get("random"))
        plan = Optimise(
            sampler.sampler_function, reward, vae, start, steps, method, pairs, judge, decoder, own, progress_of(guider)
        )
        made = run_of(guider, sampler, sigmas, latent, noise.seed, plan)
        return found_output(cls, plan, made, KeptNoise(noise.seed, plan.found[-1].noise))


def found_output(node: type[io.ComfyNode], plan: Optimise, latent: dict[str, Any], noise: KeptNoise) -> io.NodeOutput:
    text = report(plan)
    tell(getattr(node.hidden, "unique_id", None), text)
    images = pictures_of(plan.vae, latent)
    pictures = {f"picture {i + 1}": [float(s[i]) for s in plan.history] for i in range(min(len(plan.history[0]), 6))}
    curve = line_plot(pictures, f"{plan.reward.name} over the iterations")
    return io.NodeOutput(noise, latent, images, curve, text, ui={"text": (text,)})


NODES: list[type[io.ComfyNode]] = [FeedbackOptimizeNoise]
