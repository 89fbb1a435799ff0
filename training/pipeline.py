"""A diffusers pipeline from a local folder: checked before anything of it is loaded, and what sets its kind apart.

Only safetensors are read, no program that lies in the folder is run, and nothing is fetched.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pipeline_noise import Noise, UnknownNoise, noise_of

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
WEIGHTS = ".safetensors"
LARGEST = 2**20  # bytes of an index
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of pipelines that training has no use for."""

Named = Mapping[str, Tensor]


class PipelineError(ValueError):
    """A folder that is no pipeline, or not one that can be trained here; the message says why."""


class Family:
    """One kind of pipeline, by diffusers' name for it.

    network: which part is trained. told: the tensors that the network is told of a prompt. spare: parts that a folder
    may lack. architecture: the family's name in the metadata of LoRA files.
    """

    pipeline = "StableDiffusionPipeline"
    network = "unet"
    told: tuple[str, ...] = ("text",)
    spare: tuple[str, ...] = ()
    architecture = "sd15"
    addition: str | None = None

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """What the network is told of a prompt, by the names in `told`; without a batch's axis."""
        embedded, _ = pipe.encode_prompt(prompt, pipe.device, 1, False)
        return {"text": embedded[0]}

    def predict(self, network: Any, x: Tensor, timestep: Tensor, told: Named) -> Tensor:
        """The network's own output. x: (B, C, H, W) as it wants it; told: one row a picture."""
        return network(x, timestep, told["text"], return_dict=False)[0]

    def layer(self, path: str) -> str:
        """What LoRA files call the network's layer: kohya's name, which ComfyUI, diffusers and others read."""
        return f"lora_unet_{path.replace('.', '_')}"

    def check(self, pipe: Any) -> None:
        """Raises PipelineError for a network that wants to be told more than a prompt."""
        config = getattr(pipe, self.network).config
        more = ("time_cond_proj_dim", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
        for name in more:
            if config.get(name) is not None:
                raise PipelineError(f"The network of this pipeline has {name}, which can't be trained here.")
        if config.get("addition_embed_type") != self.addition:
            raise PipelineError(f"The network has the addition_embed_type {config.get('addition_embed_type')!r}.")


class Sdxl(Family):
    pipeline = "StableDiffusionXLPipeline"
    told = ("text", "pooled")
    architecture = "sdxl"
    addition = "text_time"

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        embedded, _, pooled, _ = pipe.encode_prompt(prompt, None, pipe.device, 1, False)
        return {"text": embedded[0], "pooled": pooled[0]}

    def predict(self, network: Any, x: Tensor, timestep: Tensor, told: Named) -> Tensor:
        height, width = 8 * x.shape[-2], 8 * x.shape[-1]
        sizes = x.new_tensor([[height, width, 0, 0, height, width]]).repeat(len(x), 1)
        added = {"text_embeds": told["pooled"], "time_ids": sizes}
        return network(x, timestep, told["text"], added_cond_kwargs=added, return_dict=False)[0]


class Sd3(Family):
    pipeline = "StableDiffusion3Pipeline"
    network = "transformer"
    told = ("text", "pooled")
    spare = ("text_encoder_3", "tokenizer_3")
    architecture = "sd3"

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        embedded, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, pipe.device, 1, do_classifier_free_guidance=False
        )
        return {"text": embedded[0], "pooled": pooled[0]}

    def predict(self, network: Any, x: Tensor, timestep: Tensor, told: Named) -> Tensor:
        return network(x, told["text"], told["pooled"], timestep, return_dict=False)[0]

    def layer(self, path: str) -> str:
        return f"transformer.{path}"


FAMILIES: dict[str, Family] = {one.pipeline: one for one in (Family(), Sdxl(), Sd3())}


@dataclass(frozen=True)
class Pipeline:
    """A loaded pipeline. pipe: diffusers' object, whose network is frozen; latents are scaled as ComfyUI's are."""

    name: str
    pipe: Any
    family: Family
    noise: Noise

    @property
    def network(self) -> Any:
        return getattr(self.pipe, self.family.network)

    @property
    def multiple(self) -> int:
        """Pixels that widths and heights are multiples of."""
        return 2 ** (len(self.pipe.vae.config.block_out_channels) - 1) * int(self.network.config.get("patch_size") or 1)

    def encode_text(self, prompt: str) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.family.encode(self.pipe, prompt)

    @torch.no_grad()
    def encode_picture(self, image: Tensor) -> Tensor:
        """(3, H, W) in 0..1, sizes as `multiple` asks -> the latent (C, h, w) in model space, without noise."""
        vae = self.pipe.vae
        pixels = (image[None] * 2 - 1).to(vae.device, vae.dtype)
        latent = vae.encode(pixels).latent_dist.mode().float()
        return ((latent - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The reverse for (B, C, h, w): pictures (B, 3, H, W) in 0..1."""
        vae = self.pipe.vae
        unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels = vae.decode(unscaled.to(vae.device, vae.dtype), return_dict=False)[0].float()
        return (pixels / 2 + 0.5).clamp(0, 1)

    def to(self, device: torch.device) -> None:
        self.pipe.to(device)

    def forget_encoders(self, vae: bool) -> None:
        """Lets go of what is not needed once all is encoded: the text encoders, and with `vae` the VAE."""
        names = [name for name in self.pipe.components if name.startswith("text_encoder")] + ["vae"] * vae
        for name in names:
            setattr(self.pipe, name, None)


def load(folder: Path, dtype: torch.dtype) -> Pipeline:
    """The pipeline in a folder. dtype: of network and text encoders; the VAE is float32. Raises PipelineError."""
    family, parts = checked(folder)
    variant = None if _weights(folder / family.network, "") else "fp16"
    left_out: dict[str, Any] = dict.fromkeys((name for name in parts if name in LEFT_OUT), None)
    left_out |= {name: None for name in family.spare if not (folder / name).is_dir()}
    if "safety_checker" in left_out:
        left_out["requires_safety_checker"] = False
    try:
        pipe = _loaded(family, folder, dtype, variant, left_out)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise PipelineError(f"diffusers can't load the pipeline {folder}: {str(error)[:500]}") from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            _check_whole(folder / name, part)
            part.requires_grad_(False).eval()
    pipe.vae.to(torch.float32)
    family.check(pipe)
    _check_latents(pipe, family)
    try:
        noise = noise_of(pipe.scheduler)
    except UnknownNoise as error:
        raise PipelineError(f"The noise of this pipeline is not known here: {error}.") from error
    return Pipeline(folder.resolve().name, pipe, family, noise)


def _loaded(family: Family, folder: Path, dtype: torch.dtype, variant: str | None, left_out: dict[str, Any]) -> Any:
    import diffusers
    import transformers
    from safetensors import SafetensorError

    for library in (diffusers, transformers):  # what they remark of, once a process, is nobody's to mend here
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(diffusers, family.pipeline).from_pretrained(
                str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant, **left_out
            )
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_whole(folder: Path, part: torch.nn.Module) -> None:
    """diffusers says nothing of weights that a file lacks, and leaves them without numbers."""
    if missing := [name for name, weight in part.named_parameters() if weight.is_meta]:
        raise PipelineError(f"The weights in {folder} lack {len(missing)} tensors, the first is {missing[0]}.")


def _check_latents(pipe: Any, family: Family) -> None:
    vae, network = pipe.vae.config, getattr(pipe, family.network).config
    if network.in_channels != vae.latent_channels:
        raise PipelineError(
            f"The network reads {network.in_channels} channels and the VAE gives {vae.latent_channels}: pipelines for "
            "inpainting and the like can't be trained here."
        )
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise PipelineError("The VAE scales its latents channel by channel (latents_mean), which is not known here.")


def checked(folder: Path) -> tuple[Family, dict[str, Any]]:
    """(the kind of pipeline, its parts) by the folder's index. Raises PipelineError for what can't or must not load."""
    if not folder.is_dir():
        raise PipelineError(
            f"{folder} is no folder: name one that holds a pipeline as diffusers saves it, not a hub's."
        )
    index = _index(folder)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise PipelineError(f"The pipeline in {folder} is a {str(name)[:80]}; those that can be trained here: {known}.")
    family = FAMILIES[name]
    parts = {key: value for key, value in index.items() if isinstance(value, list) and value != [None, None]}
    for part, kind in parts.items():
        _check_part(folder, family, part, kind)
    for part in (family.network, "vae", "text_encoder", "tokenizer", "scheduler"):
        if part not in parts:
            raise PipelineError(f"The pipeline in {folder} has no {part}.")
    return family, parts


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PipelineError(f"{folder} has no {INDEX}, so it is no pipeline as diffusers saves it.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path} can't be read: {error}.") from error
    if not isinstance(index, dict):
        raise PipelineError(f"{path} holds no object.")
    return index


def _check_part(folder: Path, family: Family, part: str, kind: list[Any]) -> None:
    """diffusers imports what an index names: let it be nothing but the two libraries."""
    if len(kind) != 2 or not all(isinstance(word, str) for word in kind) or kind[0] not in LIBRARIES:
        raise PipelineError(f"The part {part[:80]!r} comes from {str(kind)[:80]}, not from diffusers or transformers.")
    if not part.isidentifier() or not kind[1].isidentifier():
        raise PipelineError(f"The part {part[:80]!r} has a name that is refused.")
    if part in LEFT_OUT or part in family.spare and not (folder / part).is_dir():
        return
    if not (folder / part).is_dir():
        raise PipelineError(f"The pipeline in {folder} lacks the folder {part}.")
    has_weights = part in (family.network, "vae") or part.startswith("text_encoder")
    if has_weights and not (_weights(folder / part, "") or _weights(folder / part, ".fp16")):
        raise PipelineError(
            f"{folder / part} holds no {WEIGHTS} file, and no other kind of weights is read: save the pipeline again "
            "with safe_serialization."
        )


def _weights(folder: Path, variant: str) -> bool:
    """Whether there are safetensors of that variant ("" or ".fp16"), whole or in parts."""
    names = [path.name for path in folder.glob(f"*{WEIGHTS}")]
    return any((".fp16" in name) == bool(variant) for name in names)
