"""LoRA files that every ComfyUI loader takes: kohya's names under `diffusion_model.`, safetensors, written whole."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

from .low_rank import Kronecker, LowRank, Part

PREFIX = "diffusion_model."


class LoraFileError(ValueError):
    """A LoRA that the model would not take as it is; the message names the layers."""


SUFFIXES = (".lora_up.weight", ".lora_down.weight", ".alpha", ".dora_scale", ".lokr_w1", ".lokr_w2")


def to_tensors(layers: Mapping[str, Part], names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Layer path -> what is added to it, as the tensors of a LoRA file (socket LORA_MODEL).

    names: what the file calls each layer, instead of its path after `diffusion_model.`.
    """
    tensors: dict[str, Tensor] = {}
    for path, part in layers.items():
        layer = f"{PREFIX}{path}" if names is None else names[path]
        named = {"lokr_w1": part.w1, "lokr_w2": part.w2} if isinstance(part, Kronecker) else _low_rank_tensors(part)
        tensors |= {f"{layer}.{name}": tensor.contiguous() for name, tensor in named.items()}
    return tensors


def _low_rank_tensors(part: LowRank) -> dict[str, Tensor]:
    named = {"lora_up.weight": part.up, "lora_down.weight": part.down, "alpha": torch.tensor(part.alpha)}
    return named if part.magnitude is None else named | {"dora_scale": part.magnitude}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """The reverse of `to_tensors`. Raises LoraFileError for a layer that lacks one of its tensors."""
    layers: dict[str, Part] = {}
    for path in layer_paths(tensors):
        own = {key.removeprefix(f"{path}."): tensor for key, tensor in tensors.items() if key.startswith(f"{path}.")}
        try:
            layers[path.removeprefix(PREFIX)] = _part(own)
        except KeyError as error:
            raise LoraFileError(f"The LoRA's layer {path} is incomplete: {error} is missing.") from error
    return layers


def _part(own: Mapping[str, Tensor]) -> Part:
    if "lokr_w1" in own or "lokr_w2" in own:
        return Kronecker(own["lokr_w1"], own["lokr_w2"])
    return LowRank(own["lora_down.weight"], own["lora_up.weight"], float(own["alpha"]), own.get("dora_scale"))


def layer_paths(tensors: Iterable[str]) -> list[str]:
    """The layers that the keys of a LoRA file are about, each once, with their prefix."""
    found = (next((key.removesuffix(s) for s in SUFFIXES if key.endswith(s)), key) for key in tensors)
    return list(dict.fromkeys(found))


def unmatched(keys: Iterable[str], known: Collection[str]) -> list[str]:
    """Keys of a LoRA file whose layer is not in `known`, the layers that the loader of the model accepts."""
    return [key for key in keys if layer_paths([key])[0] not in known]


def metadata(
    title: str, architecture: str, layers: Mapping[str, Part], training: Mapping[str, object]
) -> dict[str, str]:
    """What other programs read of a LoRA (ss_* and modelspec.*). training: any JSON, kept as ss_feedback_loop."""
    first = next(iter(layers.values()))
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ss_network_module": "lycoris.kohya" if isinstance(first, Kronecker) else "networks.lora",
        "ss_network_dim": str(training.get("rank", "")) if isinstance(first, Kronecker) else str(first.down.shape[0]),
        "ss_network_alpha": str(training.get("rank", "")) if isinstance(first, Kronecker) else str(first.alpha),
        "ss_output_name": title,
        "ss_steps": str(training.get("steps", "")),
        "ss_learning_rate": str(training.get("learning_rate", "")),
        "ss_seed": str(training.get("seed", "")),
        "ss_feedback_loop": json.dumps(training, sort_keys=True),
    }


def save(
    path: Path,
    layers: Mapping[str, Part],
    about: Mapping[str, str],
    known: Collection[str],
    names: Mapping[str, str] | None = None,
) -> None:
    """Writes the file whole or not at all, never over another one, and reads it back.

    known: see `unmatched`; names: see `to_tensors`. Raises LoraFileError when a key would be left out by the loader,
    FileExistsError when the name is taken.
    """
    from safetensors.torch import load_file, save_file

    tensors = to_tensors(layers, names)
    if left := unmatched(tensors, known):
        raise LoraFileError(f"{len(left)} of {len(tensors)} keys would not load, the first is {left[0]}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, metadata=dict(about))
        back = load_file(temporary)
        if back.keys() != tensors.keys() or not all(torch.equal(back[key], tensors[key]) for key in tensors):
            raise LoraFileError(f"{path.name} does not read back as it was written; is the disk full or failing?")
        sync(temporary)
        _name(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def _name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, this fails where the name is taken
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if path.exists():
            raise FileExistsError(f"{path} exists already.") from error
        temporary.replace(path)


def free_path(folder: Path, name: str) -> Path:
    """`folder/name_00001.safetensors`, with the first number that no file in the folder has."""
    number = 1
    while (path := folder / f"{name}_{number:05}.safetensors").exists():
        number += 1
    return path


def sync(path: Path) -> None:
    """Returns once the file or folder is on disk: safetensors' own writer does not wait for that."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and writes their entries by itself
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
