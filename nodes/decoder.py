"""MODEL and VAE -> a decoder that can be differentiated: clean latents in model space to pictures in 0..1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.sd
import comfy.taesd.taesd
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..diffusion import small_decoder
from ..feedback.rewards.colour import ColourReward
from .denoiser import Shared, WrongConnectionError, patcher_of

SIZES = ("auto", "full", "half", "small", "preview")

TINY_LATENT = 32
"""Latents smaller than this (256 pixels for most models) are always decoded whole: half of them would show nothing."""

BACKWARD_MEMORY = 3.0
"""A decode whose graph is kept needs about this much of the memory that ComfyUI plans for a plain one."""


class Decoder:
    """Clean latents in model space (B, C, h, w), or with one frame (B, C, 1, h, w), -> pictures (B, 3, H, W) in 0..1.

    Differentiable in the latents. Its `patcher` has to be loaded first: by `load`, or as an additional model of a run.
    half: latents are averaged to half their size first, where they are not tiny.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        to_network: Callable[[Tensor], Tensor],
        to_unit: Callable[[Tensor], Tensor],
        bytes_for: Callable[[Sequence[int]], float],
        dtype: torch.dtype,
        half: bool,
    ) -> None:
        self.patcher, self.half = patcher, half
        self._to_network, self._to_unit, self._bytes_for, self._dtype = to_network, to_unit, bytes_for, dtype
        self._network = Shared(patcher.model, [patcher.model], patcher.load_device)

    def __call__(self, latents: Tensor) -> Tensor:
        latents = self._shrunk(latents.reshape(check_pictures(latents.shape)))
        latents = self._to_network(latents).to(device=self.patcher.load_device, dtype=self._dtype)
        return self._to_unit(self._network().decode(latents).float())

    def load(self, shape: Sequence[int]) -> None:
        """Brings the weights to their device, with room for the graph of latents of this shape."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=self.memory_for(shape))

    def memory_for(self, shape: Sequence[int]) -> float:
        """Bytes that decoding latents of this shape takes while the graph is kept."""
        height, width = self._size(*shape[-2:])
        return BACKWARD_MEMORY * self._bytes_for((*shape[:2], height, width))

    def release(self) -> None:
        """Lets go of the weights, so that ComfyUI can unload them."""
        self._network.release()

    def _size(self, height: int, width: int) -> tuple[int, int]:
        shrinks = self.half and min(height, width) >= TINY_LATENT
        return (height // 2, width // 2) if shrinks else (height, width)

    def _shrunk(self, latents: Tensor) -> Tensor:
        size = self._size(*latents.shape[-2:])
        return latents if size == latents.shape[-2:] else nn.functional.interpolate(latents, size=size, mode="area")


def reserving(bytes_for: Callable[[Sequence[int]], float]) -> Callable[..., Any]:
    """A PREPARE_SAMPLING wrapper that makes ComfyUI keep so much memory free beside its own for one picture of a shape.

    ComfyUI plans memory from the latent's shape and nothing else, so it is told of a larger batch.
    """

    def prepare(
        executor: Any, model: ModelPatcher, noise_shape: Sequence[int], conds: Any, *args: Any, **kwargs: Any
    ) -> Any:
        planned, _ = comfy.sampler_helpers.estimate_memory(model, noise_shape, conds)
        extra = bytes_for((1, *noise_shape[1:]))
        batch = noise_shape[0] * (1 + extra / max(planned, 1))
        return executor(model, [batch, *noise_shape[1:]], conds, *args, **kwargs)

    return prepare


def decoder_of(vae: Any, model: ModelPatcher, size: str = "auto") -> Decoder:
    """The decoder for a model's latents.

    size: "full", "half" (latents at half resolution), "small" (a TAESD in models/vae_approx, at half resolution),
    "auto": small where one is installed, else half; or "preview", colours without detail, as ComfyUI's previews. Raises
    WrongConnectionError for a VAE that does not fit the model, and when no small decoder is installed though one was
    asked for.
    """
    if size not in SIZES:
        raise WrongConnectionError(f"Unknown decoder '{size}'. Choose one of: {', '.join(SIZES)}.")
    check_vae(vae, model)
    if size == "preview":
        return _preview_decoder(model)
    if size in ("auto", "small"):
        own = getattr(model.get_model_object("latent_format"), "own_decoder", None)
        if own is not None:
            return _own_decoder(own)
        if (path := _small_decoder_path(model)) is not None:
            return _small_decoder(path, model)
    if size == "small":
        raise WrongConnectionError(_no_small_decoder(model))
    return _vae_decoder(vae, model, half=size != "full")


def check_vae(vae: Any, model: ModelPatcher) -> None:
    """Raises WrongConnectionError unless vae decodes this model's latents into pictures."""
    if vae is None or getattr(vae, "first_stage_model", None) is None:
        raise WrongConnectionError(
            "There is no VAE in what is connected as `vae`. Connect one from Load VAE, or a checkpoint that holds one."
        )
    latent = model.get_model_object("latent_format")
    if vae.latent_dim == 1 or vae.output_channels != 3 or latent.latent_dimensions == 1:
        raise WrongConnectionError(
            "This is an audio or 3D model or VAE. Feedback Loop works on models that make pictures."
        )
    if vae.latent_channels != latent.latent_channels:
        raise WrongConnectionError(
            f"This VAE has latents of {vae.latent_channels} channels, but the model's have {latent.latent_channels}. "
            "Connect the VAE that belongs to the model."
        )


def check_pictures(shape: Sequence[int]) -> tuple[int, ...]:
    """(B, C, h, w) of a latent's shape with or without a frame axis. Raises WrongConnectionError for the rest."""
    if len(shape) == 5 and shape[2] > 1:
        raise WrongConnectionError(
            f"These latents are a video of {shape[2]} frames; guidance works on single pictures."
        )
    if len(shape) not in (4, 5):
        raise WrongConnectionError(
            f"Latents of shape {tuple(shape)} are sound, or several media in one; guidance works on pictures."
        )
    return (*shape[:2], *shape[-2:])


def _vae_decoder(vae: comfy.sd.VAE, model: ModelPatcher, half: bool) -> Decoder:
    video = vae.latent_dim == 3
    # some formats hold means and scales, which a loader node has made in inference mode
    latent_format = Shared(model.get_model_object("latent_format"), [])()
    centred = vae.process_output(torch.zeros(1)).item() == 0.5

    def to_network(latents: Tensor) -> Tensor:
        if latent_format.latent_dimensions == 3:
            latents = latents.unsqueeze(2)
        latents = latent_format.process_out(latents)
        picture = latents.reshape(check_pictures(latents.shape))
        return picture.unsqueeze(2) if video else picture

    def to_unit(images: Tensor) -> Tensor:
        images = images[:, :, 0] if images.ndim == 5 else images
        return _clipped((images + 1) / 2 if centred else images)

    def bytes_for(shape: Sequence[int]) -> float:
        frames = (1,) if video else ()
        return shape[0] * vae.memory_used_decode((1, shape[1], *frames, *shape[2:]), vae.vae_dtype)

    return Decoder(vae.patcher, to_network, to_unit, bytes_for, vae.vae_dtype, half)


def _clipped(images: Tensor) -> Tensor:
    """Into 0..1, with the gradient of no clipping: a pixel beyond white could otherwise not be pulled back."""
    return images + (images.clamp(0, 1) - images).detach()


def _small_decoder(path: str, model: ModelPatcher) -> Decoder:
    """TAESD (github.com/madebyollin/taesd), which takes latents as they are in model space."""
    channels = model.get_model_object("latent_format").latent_channels
    with torch.inference_mode(False):
        network = comfy.taesd.taesd.TAESD(None, path, latent_channels=channels).eval().requires_grad_(False)
    return Decoder(
        patcher_of(network),
        to_network=lambda latents: latents,
        to_unit=lambda images: _clipped((images + 1) / 2),
        # 64 channels of fp32 at the picture's size, for the few layers that dominate
        bytes_for=lambda shape: shape[0] * shape[-2] * shape[-1] * 64 * 64 * 4 * 4,
        dtype=torch.float32,
        half=True,
    )


class _Factors(nn.Module):
    """One linear map from each latent pixel to a colour in -1..1."""

    def __init__(self, factors: Any, bias: Any) -> None:
        super().__init__()
        self.colours = nn.Conv2d(len(factors), 3, 1).requires_grad_(False)
        self.colours.weight.copy_(torch.tensor(factors).T[:, :, None, None])
        self.colours.bias.copy_(torch.zeros(3) if bias is None else torch.tensor(bias))  # type: ignore[union-attr]

    def decode(self, latents: Tensor) -> Tensor:
        return self.colours(latents)


def _preview_decoder(model: ModelPatcher) -> Decoder:
    """Pictures of one pixel a latent pixel: enough for a reward on colours, and free."""
    latent = model.get_model_object("latent_format")
    if latent.latent_rgb_factors is None or getattr(latent, "latent_rgb_factors_reshape", None) is not None:
        raise WrongConnectionError(
            "ComfyUI has no preview colours for this kind of model. Set `decoder` to half or full."
        )
    with torch.inference_mode(False):
        network = _Factors(latent.latent_rgb_factors, latent.latent_rgb_factors_bias)
    return Decoder(
        patcher_of(network),
        to_network=lambda latents: latents,
        to_unit=lambda images: _clipped((images + 1) / 2),
        bytes_for=lambda shape: shape[0] * shape[-2] * shape[-1] * 64,
        dtype=torch.float32,
        half=False,
    )


def check_decoder(size: str, reward: Any) -> None:
    """Raises WrongConnectionError for a reward that would have to see what a preview does not show."""
    if size == "preview" and (reward.networks() or _measures_detail(reward)):
        raise WrongConnectionError(
            f"A preview shows colours alone, and the reward '{reward.name}' looks for more. Set `decoder` to auto, or "
            "connect a Colour reward for light or a colour."
        )


def _measures_detail(reward: Any) -> bool:
    """Whether it or a part of it depends on neighbouring pixels, of which a preview has one for 8 by 8."""
    own = isinstance(reward, ColourReward) and reward.measure in ("sharpness", "contrast")
    return own or any(_measures_detail(part) for part in getattr(reward, "parts", ()))


def _own_decoder(path: str) -> Decoder:
    """What a latent format of ours brings along."""
    return Decoder(
        patcher_of(small_decoder.load(path)),
        to_network=lambda latents: latents,
        to_unit=_clipped,
        # a handful of layers of 64 channels at the latents' size, and of 48 at twice that
        bytes_for=lambda shape: shape[0] * shape[-2] * shape[-1] * (8 * 64 + 4 * 6 * 48 + 3 * 64) * 4,
        dtype=torch.float32,
        half=True,
    )


def _small_decoder_path(model: ModelPatcher) -> str | None:
    latent = model.get_model_object("latent_format")
    if latent.taesd_decoder_name is None or latent.latent_dimensions != 2:
        return None
    for name in folder_paths.get_filename_list("vae_approx"):
        if name.startswith(latent.taesd_decoder_name):
            return folder_paths.get_full_path("vae_approx", name)
    return None


def _no_small_decoder(model: ModelPatcher) -> str:
    name = model.get_model_object("latent_format").taesd_decoder_name
    if name is None:
        return "There is no small decoder for this kind of model. Set `decoder` to half or full."
    return f"Put {name}.safetensors into models/vae_approx to use the small decoder, or set `decoder` to half or full."
