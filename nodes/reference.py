"""FeedbackReferenceGuidance: the model looks at liked and disliked pictures while it makes new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..feedback.records import Feedback
from ..guidance.reference import APART, APART_UNTIL, Layers, merged, noise_like, rows_of
from .compat import FEEDBACK, io, store
from .dataset import mean_values
from .decoder import check_vae
from .denoiser import WrongConnectionError
from .examples import encode
from .guidance import check_interval
from .inputs import share_input
from .learning import pictures_of
from .reference_hooks import INSIDE, Looking, Recording

KEY = "feedback_loop_references"
MULTIPLE = 16  # pixels: two latents, one patch of a transformer
MAX_SIDE = 1024
MOST = 8  # references on either side

UNET = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
TRANSFORMERS = (comfy.ldm.modules.diffusionmodules.mmdit.MMDiT, comfy.ldm.flux.model.Flux)
SUPPORTED = "U-Nets (Stable Diffusion 1, 2 and XL), Stable Diffusion 3 and Flux"


@dataclass(frozen=True, eq=False)
class References:
    """The wrapper around the model. latents: of each reference in model space, (1, C, *spatial); liked ones first."""

    latents: tuple[Tensor, ...]
    liked: int
    strength: float
    start: float
    end: float
    unet: bool

    def __call__(
        self,
        run: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        options = transformer_options or {}
        sampling = run.class_obj.model_sampling
        if INSIDE in options or not self._acts(sampling, t):
            return run(x, t, c_concat, c_crossattn, control, transformer_options, **more)
        if c_concat is not None:
            raise WrongConnectionError(
                "This model is made for inpainting or editing and sees a picture beside the noise; references do not "
                "work with it. Connect the plain model of the same family."
            )
        liked_rows, disliked_rows = rows_of(options.get("cond_or_uncond", [0]), len(x))
        likes, dislikes = self._seen(run, sampling, x, t, c_crossattn, options, more)
        early = float(t.max()) >= float(sampling.percent_to_sigma(APART_UNTIL))
        apart = APART * self.strength if early else 0.0
        look = Looking(likes, dislikes, liked_rows, disliked_rows, self.strength, self.unet, apart)
        return run(x, t, c_concat, c_crossattn, control, look.options(options), **more)

    def _acts(self, sampling: Any, sigma: Tensor) -> bool:
        noise = float(sigma.max())
        return float(sampling.percent_to_sigma(self.end)) <= noise <= float(sampling.percent_to_sigma(self.start))

    def _seen(
        self, run: Any, sampling: Any, x: Tensor, t: Tensor, context: Any, options: dict[str, Any], more: dict[str, Any]
    ) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """(keys and values of the liked, of the disliked references), each layer by layer."""
        sides: tuple[list[Any], list[Any]] = ([], [])
        for place, latent in enumerate(self.latents):
            comfy.model_management.throw_exception_if_processing_interrupted()
            latent = latent.to(device=x.device, dtype=x.dtype)
            noisy = sampling.noise_scaling(
                t[:1].reshape(1, *(1,) * (latent.ndim - 1)), noise_like(latent, place), latent
            )
            recording = Recording(Layers(None if self.unet else picture_tokens(latent)), self.unet)
            run(noisy, t[:1], None, _first(context), None, recording.options(options), **_first_rows(more, len(x)))
            sides[place >= self.liked].append(recording.layers.side(slice(None)))
        return (merged(sides[0]) if sides[0] else []), (merged(sides[1]) if sides[1] else [])


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) else value


def _first_rows(more: dict[str, Any], batch: int) -> dict[str, Any]:
    """The conditions of the first row of a batch; what shows other pictures to the model is left out."""
    kept = {name: value for name, value in more.items() if name not in ("ref_latents", "ref_latents_method")}
    return {k: v[:1] if isinstance(v, Tensor) and v.ndim and len(v) == batch else v for k, v in kept.items()}


def picture_tokens(latent: Tensor) -> int:
    """How many tokens a transformer with patches of 2 x 2 makes of a latent."""
    height, width = latent.shape[-2:]
    return -(-height // 2) * -(-width // 2)


def is_unet(model: ModelPatcher) -> bool:
    """Whether it is a U-Net or a transformer that is supported. Raises WrongConnectionError for any other."""
    network = model.get_model_object("diffusion_model")
    if type(network) is UNET:
        return True
    if isinstance(network, TRANSFORMERS):
        return False
    raise WrongConnectionError(
        f"References work with {SUPPORTED}; this model is a {type(network).__name__}. Connect one of those, or use "
        "Reward guidance with a learned taste, which works with every model."
    )


def latents_of(model: ModelPatcher, vae: Any, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures (H, W, 3) in 0..1 as latents in model space, (1, C, *spatial) each, at their own sizes."""
    return [model.model.process_latent_in(encode(vae, _fitting(picture)).float()) for picture in pictures]


def _fitting(picture: Tensor) -> Tensor:
    """(1, H, W, 3) with sides that the model can take, 1024 pixels at most."""
    height, width = picture.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    sides = [max(round(side * scale / MULTIPLE), 1) * MULTIPLE for side in (height, width)]
    image = picture.movedim(-1, 0)[None].float()
    if sides != [height, width]:
        image = nn.functional.interpolate(image, size=sides, mode="bilinear", antialias=True).clamp(0, 1)
    return image.movedim(1, -1)


def extremes(feedback: Any, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The best and the worst rated pictures. Raises WrongConnectionError where there is nothing to choose from."""
    if not isinstance(feedback, Feedback):
        raise WrongConnectionError("What is connected as feedback is no feedback. Connect Collect feedback.")
    kept = store()
    values = mean_values(kept.rated(feedback))
    liked = [id_ for id_, value in values.items() if value > 0.5][:count]
    disliked = [id_ for id_, value in reversed(list(values.items())) if value < 0.5][:count]
    if not liked and not disliked:
        raise WrongConnectionError(
            "Nobody rated a picture above or below the middle yet, so there is nothing to look at. Give some pictures "
            "stars, or connect pictures as liked or disliked."
        )
    both = [[torch.tensor(kept.image_pixels(id_)).float() / 255 for id_ in ids] for ids in (liked, disliked)]
    return both[0], both[1]


def pictures(images: Tensor | None) -> list[Tensor]:
    return [] if images is None else list(pictures_of(images).movedim(1, -1)[:MOST])


def add_references(model: ModelPatcher, references: References) -> ModelPatcher:
    """A clone of the model that looks at them; a node further up is replaced by this one."""
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, references)
    return model


class FeedbackReferenceGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackReferenceGuidance",
            display_name="Look at liked pictures",
            category="feedback/guidance",
            description=(
                "While it makes a picture, the model looks at pictures that you liked, and away from those that you "
                f"did not. Nothing is trained. Works with {SUPPORTED}."
            ),
            search_aliases=["fabric", "reference", "style reference", "attention reference", "likes and dislikes"],
            inputs=[
                io.Model.Input("model", tooltip=f"The model: {SUPPORTED}. Other models are refused by name."),
                io.Vae.Input("vae", tooltip="The VAE of the model, which encodes the references."),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much the model looks at them. Above 1 it exaggerates. 0 is off: exactly the pictures "
                    "without this node.",
                ),
                share_input(
                    "start_percent", 0.0, "When the model begins to look, as a share of the run.", advanced=True
                ),
                share_input(
                    "end_percent",
                    1.0,
                    "When it stops to look, as a share of the run. Textures and colours come mostly in the last part; "
                    "stop at 0.6 if detail is copied that you do not want.",
                    advanced=True,
                ),
                io.Image.Input("liked", optional=True, tooltip="Pictures to come near to, eight at most."),
                io.Image.Input("disliked", optional=True, tooltip="Pictures to get away from, eight at most."),
                FEEDBACK.Input(
                    "feedback", optional=True, tooltip="The best and the worst rated pictures, beside those connected."
                ),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=MOST,
                    optional=True,
                    tooltip="How many of the best and of the worst are taken out of the feedback.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model that looks at the references, for any sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
        liked: Tensor | None = None,
        disliked: Tensor | None = None,
        feedback: Any = None,
        count: int = 4,
    ) -> io.NodeOutput:
        unet = is_unet(model)
        check_vae(vae, model)
        check_interval(start_percent, end_percent)
        best, worst = ([], []) if feedback is None else extremes(feedback, count)
        likes, dislikes = [*pictures(liked), *best][:MOST], [*pictures(disliked), *worst][:MOST]
        if not likes and not dislikes:
            raise WrongConnectionError("There is nothing to look at. Connect liked or disliked pictures, or feedback.")
        if strength == 0:
            return io.NodeOutput(model)
        latents = latents_of(model, vae, [*likes, *dislikes])
        seen = References(tuple(latents), len(likes), strength, start_percent, end_percent, unet)
        return io.NodeOutput(add_references(model, seen))


NODES: list[type[io.ComfyNode]] = [FeedbackReferenceGuidance]
