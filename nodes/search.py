"""FeedbackBestOfN: many starts, few of them made to the end; the best picture and the noise that it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
from comfy.samplers import KSAMPLER, CFGGuider
from torch import Tensor

from ..feedback.rewards.base import Reward
from .compat import REWARD, io
from .decoder import check_vae
from .denoiser import WrongConnectionError
from .guidance import check_judge
from .inputs import decoder_input
from .kept_noise import KeptNoise, check_noise
from .particle_run import Plan
from .scoring import tell
from .search_run import Found, Search, too_small
from .starts import name_of

ANYWHERE, NEAR = "anywhere", "near the noise"
NOT_HALVED = ("dpm_fast", "dpm_adaptive")
"""Samplers whose steps are not those of the schedule."""


def check_sampler(sampler: Any, halving: bool) -> KSAMPLER:
    """Raises WrongConnectionError for a SAMPLER that cannot be searched with, and says what to choose."""
    name = name_of(sampler)
    if not isinstance(sampler, KSAMPLER):
        raise WrongConnectionError(f"'{name}' is no sampler of core's kind. Connect KSampler Select.")
    if isinstance(sampler.sampler_function, Plan):
        raise WrongConnectionError(
            "This sampler has particles around it, which look for the best start themselves. Connect the plain sampler "
            "here, or use Reward steering with SamplerCustomAdvanced."
        )
    if halving and (name in NOT_HALVED or name.endswith("_cfg_pp")):
        raise WrongConnectionError(
            f"Candidates of the sampler '{name}' cannot be stopped half-way and gone on with: it keeps things that "
            "only the model's own answers tell. Choose another, such as euler or dpmpp_2m, or switch `halving` off."
        )
    return sampler


def check_budget(budget: int, sigmas: Tensor) -> None:
    if 0 < budget < len(sigmas) - 1:
        raise WrongConnectionError(too_small(budget, len(sigmas) - 1, None))


def starting_latents(guider: CFGGuider, latent: dict[str, Any]) -> dict[str, Any]:
    """As SamplerCustomAdvanced reads a LATENT: empty ones in the model's own channels and size."""
    samples = comfy.sample.fix_empty_latent_channels(
        guider.model_patcher,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
    return kept | {"samples": samples}


def progress_of(guider: CFGGuider) -> Callable[[int, int, Tensor], None]:
    """One bar and previews for a search: called with steps made, steps planned and a clean estimate."""
    bar = comfy.utils.ProgressBar(1)
    previewer = latent_preview.get_previewer(guider.model_patcher.load_device, guider.model_patcher.model.latent_format)

    def show(done: int, planned: int, estimate: Tensor) -> None:
        preview = previewer.decode_latent_to_preview_image("JPEG", estimate) if previewer else None
        bar.update_absolute(done, planned, preview)

    return show


class Starting(Protocol):
    """A sampler's function around a sampler's function."""

    @property
    def noise(self) -> Tensor:
        """What it begins with, as NOISE gives it."""
        ...

    def __call__(self, model: Any, x: Tensor, sigmas: Tensor) -> Tensor: ...


def run_of(
    guider: CFGGuider, sampler: KSAMPLER, sigmas: Tensor, latent: dict[str, Any], seed: int, function: Starting
) -> dict[str, Any]:
    """The LATENT that a sampler with this function in place of its own gives."""
    wrapped = KSAMPLER(function, sampler.extra_options, sampler.inpaint_options)
    samples = guider.sample(
        function.noise,
        latent["samples"],
        wrapped,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=seed,
    )
    samples = samples.to(comfy.model_management.intermediate_device())
    return latent | {"samples": samples}


def report(found: Found, reward: Reward) -> str:
    scores = found.best.scores
    runs = found.evaluations / max(found.plain, 1)
    allowed = f" of the {found.budget} allowed" if found.budget else ""
    return (
        f"{found.tried} candidates a picture in {found.rounds} round{'s' * (found.rounds != 1)}: "
        f"{found.evaluations} denoiser evaluations{allowed}, as many as {runs:.2f} plain runs.\n"
        f"{reward.name} of the best: " + ", ".join(f"{score:+.3f}" for score in scores.tolist())
    )


class FeedbackBestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        goal = io.Float.Input(
            "reward_of",
            default=1.0,
            min=-1e6,
            max=1e6,
            step=0.1,
            tooltip="The reward that is good enough for every picture of the batch.",
        )
        return io.Schema(
            node_id="FeedbackBestOfN",
            display_name="Best of N",
            category="feedback/guidance",
            description=(
                "Samples every picture from many starts, drops the weak ones on the way, and gives the best with the "
                "noise that it came from. In place of SamplerCustomAdvanced."
            ),
            search_aliases=["best of n", "search", "reward", "seeds", "candidates", "noise search", "halving"],
            inputs=[
                io.Noise.Input(
                    "noise",
                    tooltip="The first candidate, and the seed of the others: RandomNoise, or the "
                    "best noise of an earlier search.",
                ),
                io.Guider.Input("guider", tooltip="Model and prompts, as for SamplerCustomAdvanced."),
                io.Sampler.Input("sampler", tooltip="Any sampler."),
                io.Sigmas.Input("sigmas", tooltip="The schedule of steps."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Empty latents, or a picture to start from. Each picture of a "
                    "batch is searched for itself.",
                ),
                REWARD.Input("reward", tooltip="What makes a picture good, from any reward node."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Int.Input(
                    "candidates",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="Starts of each picture in a round. 1 is the plain picture of the noise.",
                ),
                io.Boolean.Input(
                    "halving",
                    default=True,
                    tooltip="Drop weak candidates on the way: at half of the steps three in eight go on, at two thirds "
                    "of them one. 8 candidates then cost 4.8 runs instead of 8. Off makes all of them whole.",
                ),
                io.Int.Input(
                    "rounds",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Each round after the first looks around the best noise so far.",
                ),
                io.Combo.Input(
                    "look",
                    options=[ANYWHERE, NEAR],
                    default=ANYWHERE,
                    tooltip="Where the first round looks: at new noise, or near the connected one, to go on with an "
                    "earlier search.",
                ),
                io.Float.Input(
                    "nearness",
                    default=0.95,
                    min=0.0,
                    max=0.999,
                    step=0.005,
                    advanced=True,
                    tooltip="How much neighbours share with the noise they are near. Higher keeps more of the picture.",
                ),
                io.DynamicCombo.Input(
                    "stop",
                    options=[
                        io.DynamicCombo.Option("when all are tried", []),
                        io.DynamicCombo.Option("at a reward", [goal]),
                    ],
                    tooltip="Whether to stop as soon as every picture is good enough.",
                ),
                io.Int.Input(
                    "budget",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="The most denoiser evaluations a picture; fewer candidates are tried to stay within. 0 is "
                    "no limit.",
                ),
                decoder_input(),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The best of each picture."),
                io.Image.Output("image", tooltip="The same, decoded."),
                io.Noise.Output(
                    "best_noise",
                    tooltip="The noise that it came from: makes the same picture with the same "
                    "guider, sampler and steps, and starts the next search.",
                ),
                io.Float.Output("score", tooltip="The mean reward of the best."),
                io.String.Output("report", tooltip="What was tried, what it cost and what came of it."),
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
        candidates: int = 8,
        halving: bool = True,
        rounds: int = 1,
        look: str = ANYWHERE,
        nearness: float = 0.95,
        stop: dict[str, Any] | None = None,
        budget: int = 0,
        decoder: str = "auto",
    ) -> io.NodeOutput:
        check_sampler(sampler, halving)
        check_budget(budget, sigmas)
        check_vae(vae, guider.model_patcher)
        latent = starting_latents(guider, latent_image)
        search = Search(
            sampler.sampler_function,
            check_judge(reward, "reward"),
            vae,
            check_noise(noise).generate_noise(latent),
            candidates,
            halving,
            rounds,
            look == NEAR,
            nearness,
            (stop or {}).get("reward_of"),
            budget,
            decoder,
            bool(sampler.inpaint_options.get("random")),
            progress_of(guider),
        )
        latent = run_of(guider, sampler, sigmas, latent, noise.seed, search)
        return found_output(cls, latent, search, noise.seed)


def pictures_of(vae: Any, latent: dict[str, Any]) -> Tensor:
    """A LATENT decoded as an IMAGE (B, H, W, C); a film of one frame is a picture."""
    images = vae.decode(latent["samples"])
    return images.reshape(-1, *images.shape[-3:])


def found_output(node: type[io.ComfyNode], latent: dict[str, Any], search: Search, seed: int) -> io.NodeOutput:
    found = search.found[-1]
    text = report(found, search.reward)
    tell(getattr(node.hidden, "unique_id", None), text)
    images = pictures_of(search.vae, latent)
    kept = KeptNoise(seed, found.best.noise)
    return io.NodeOutput(latent, images, kept, float(found.best.scores.mean()), text, ui={"text": (text,)})


NODES: list[type[io.ComfyNode]] = [FeedbackBestOfN]
