"""LoRA files that every ComfyUI loader takes: kohya's names under `diffusion_model.`, safetensors, written whole."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

from .adapters import LowRank

PREFIX = "diffusion_model."


class LoraFileError(ValueError):
    """A LoRA that the model would not take as it is; the message names the layers."""


def to_tensors(layers: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Layer path -> low rank part, as the tensors of a LoRA file (socket LORA_MODEL)."""
    tensors: dict[str, Tensor] = {}
    for path, part in layers.items():
        tensors[f"{PREFIX}{path}.lora_up.weight"] = part.up.contiguous()
        tensors[f"{PREFIX}{path}.lora_down.weight"] = part.down.contiguous()
        tensors[f"{PREFIX}{path}.alpha"] = torch.tensor(part.alpha)
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """The reverse of `to_tensors`. Raises LoraFileError for a layer that lacks one of its three tensors."""
    ups = [key.removesuffix(".lora_up.weight") for key in tensors if key.endswith(".lora_up.weight")]
    layers = {}
    for key in ups:
        try:
            down, alpha = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.alpha"]
        except KeyError as error:
            raise LoraFileError(f"The LoRA's layer {key} is incomplete: {error} is missing.") from error
        layers[key.removeprefix(PREFIX)] = LowRank(down, tensors[f"{key}.lora_up.weight"], float(alpha))
    return layers


def unmatched(keys: Iterable[str], known: Collection[str]) -> list[str]:
    """Keys of a LoRA file whose layer is not in `known`, the layers that the loader of the model accepts."""
    suffixes = (".lora_up.weight", ".lora_down.weight", ".alpha")
    left = []
    for key in keys:
        layer = next((key.removesuffix(s) for s in suffixes if key.endswith(s)), key)
        if layer not in known:
            left.append(key)
    return left


def metadata(
    title: str, architecture: str, layers: Mapping[str, LowRank], training: Mapping[str, object]
) -> dict[str, str]:
    """What other programs read of a LoRA (ss_* and modelspec.*). training: any JSON, kept as ss_feedback_loop."""
    first = next(iter(layers.values()))
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(first.down.shape[0]),
        "ss_network_alpha": str(first.alpha),
        "ss_output_name": title,
        "ss_steps": str(training.get("steps", "")),
        "ss_learning_rate": str(training.get("learning_rate", "")),
        "ss_seed": str(training.get("seed", "")),
        "ss_feedback_loop": json.dumps(training, sort_keys=True),
    }


def save(path: Path, layers: Mapping[str, LowRank], about: Mapping[str, str], known: Collection[str]) -> None:
    """Writes the file whole or not at all, never over another one, and reads it back.

    known: see `unmatched`. Raises LoraFileError when a key would be left out by the loader, FileExistsError when the
    name is taken.
    """
    from safetensors.torch import load_file, save_file

    tensors = to_tensors(layers)
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
