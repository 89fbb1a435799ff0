"""CLIP_VISION -> Encoder: the features that a taste is learned on, with a gradient to the picture."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import comfy.clip_model
import comfy.model_management
import comfy.model_patcher
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..feedback.rewards.clip_folder import clip_id, pooled
from ..feedback.rewards.networks import NetworkEncoder
from .denoiser import Shared, WrongConnectionError, patcher_of

_ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def encoder_from(clip_vision: Any) -> ClipVisionEncoder:
    """Raises WrongConnectionError for what is no CLIP_VISION model."""
    if not all(hasattr(clip_vision, name) for name in ("model", "patcher", "image_size", "image_mean", "image_std")):
        raise WrongConnectionError(
            "What is connected as clip_vision holds no image encoder. Connect the output of Load CLIP Vision, or of "
            "Demo model."
        )
    return ClipVisionEncoder(clip_vision)


class ClipVisionEncoder:
    """(B,3,H,W) in 0..1 -> (B,F): the global embedding, the mean of the patch tokens, their means over a 2x2 grid.

    The patch tokens come from the last layer but one. A picture is scaled to the encoder's square as a whole: a corner
    that was cut off could neither be judged nor guided.
    """

    def __init__(self, clip_vision: Any) -> None:
        self._clip = clip_vision
        self.id = encoder_id(clip_vision)
        patcher: comfy.model_patcher.ModelPatcher = clip_vision.patcher
        self._network: Shared[nn.Module] = Shared(
            clip_vision.model, [clip_vision.model], patcher.load_device, prepare=keep_norms_inputs
        )

    def __call__(self, images: Tensor) -> Tensor:
        device = self._clip.patcher.load_device
        pixels = preprocess(images.to(device).float(), self._clip)
        # as ComfyUI does for SigLIP; the position from the end is the same for all
        last, middle, whole, *_ = self._network()(pixel_values=pixels, intermediate_output=-2)
        if whole.ndim == 3:
            whole = whole.mean(dim=1)
        tokens = middle if middle is not None else last
        patch = _patch(self._clip)
        grid = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return torch.cat([whole.float(), *pooled(tokens.float(), grid)], dim=1).to(images.device)

    def networks(self) -> list[nn.Module]:
        return [self._clip.model]

    def patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        """ComfyUI's own record of the network, so that it is loaded and counted once."""
        return [self._clip.patcher]

    def release(self) -> None:
        """Lets go of the weights, so that ComfyUI can unload them."""
        self._network.release()


class ManagedNetwork:
    """A network of feedback.rewards as an encoder that ComfyUI loads, counts and moves."""

    def __init__(self, encoder: NetworkEncoder) -> None:
        self.id, self._encoder = encoder.id, encoder
        self._patcher = patcher_of(encoder.network)
        self._network: Shared[nn.Module] = Shared(encoder.network, [encoder.network], self._patcher.load_device)

    def __call__(self, images: Tensor) -> Tensor:
        found = self._encoder.features(self._network(), images.to(self._patcher.load_device).float())
        return found.float().to(images.device)

    def network(self) -> nn.Module:
        """The network as a graph needs it, where ComfyUI has put it."""
        return self._network()

    def networks(self) -> list[nn.Module]:
        return [self._encoder.network]

    def patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [self._patcher]

    def release(self) -> None:
        """Lets go of the weights, so that ComfyUI can unload them."""
        self._network.release()


def keep_norms_inputs(network: nn.Module) -> None:
    """ComfyUI's CLIP adds to the residual in place after a norm has saved it for the backward pass: give it a copy."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.clone() for x in inputs))


def _patch(clip_vision: Any) -> int:
    config = clip_vision.config
    return int(config.get("patch_size", 16 if "siglip2" in clip_vision.model_type else 14))


def preprocess(images: Tensor, clip_vision: Any) -> Tensor:
    """ComfyUI's clip_preprocess without cropping, and without rounding to 8 bits, which has no gradient."""
    size = clip_vision.image_size
    height, width, mode = size, size, "bicubic"
    if size <= 0:
        # SigLIP 2 takes any shape with at most this many patches
        patches = clip_vision.config.get("num_patches", 256)
        height, width = comfy.clip_model.siglip2_flex_calc_resolution(*images.shape[-2:], _patch(clip_vision), patches)
        mode = "bilinear"
    if images.shape[-2:] != (height, width):
        images = F.interpolate(images, size=(height, width), mode=mode, antialias=True)
    mean, std = (
        images.new_tensor(values).view(1, 3, 1, 1) for values in (clip_vision.image_mean, clip_vision.image_std)
    )
    return (images.clamp(0, 1) - mean) / std


def encoder_id(clip_vision: Any) -> str:
    """Kind and hash of configuration and weights."""
    if clip_vision not in _ids:
        weights = clip_vision.model.state_dict()
        _ids[clip_vision] = clip_id(clip_vision.model_type, clip_vision.config, clip_vision.image_size, weights)
    return _ids[clip_vision]
