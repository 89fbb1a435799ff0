"""Model folders in Hugging Face's layout: config.json, model.safetensors, preprocessor_config.json, tokenizer files.

Folders come from strangers. Nothing in them is run: no code, no pickles, no addresses. Before a network is built, its
size is taken from the weights that are really there, so that a configuration can't ask for more memory than the file
has. transformers is imported when a folder is loaded, not before.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from .base import RewardError

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_JSON = 4 * 2**20  # the labels of large classifiers take half of that
LARGEST_HEADER = 16 * 2**20
LARGEST_NUMBER = 2**20  # a width, a vocabulary, a number of labels
FORBIDDEN = {
    "auto_map": "wants to run code of its own",
    "quantization_config": "has quantised weights",
    "custom_pipelines": "wants to run code of its own",
}


def unreadable() -> tuple[type[Exception], ...]:
    """What transformers and safetensors raise for files that are none of theirs."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    usual = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, RuntimeError, ImportError)
    return (*usual, StrictDataclassError, SafetensorError)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def read_json(path: Path, needed: bool = True) -> dict[str, Any]:
    """An object in a small JSON file; {} where it is missing and not needed. Raises RewardError otherwise."""
    if not path.is_file():
        if not needed:
            return {}
        raise RewardError(f"{path.parent.name} has no {path.name}: copy it from the model's source.")
    if path.stat().st_size > LARGEST_JSON:
        raise RewardError(f"{path.name} of {path.parent.name} is larger than a configuration is: take the original.")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RewardError(f"{path.name} of {path.parent.name} is no JSON: copy it from the source again.") from error
    if not isinstance(found, dict):
        raise RewardError(f"{path.name} of {path.parent.name} holds no settings: copy it from the source again.")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX).get("weight_map")
        names = set(names.values()) if isinstance(names, dict) and all(map(_is_text, names.values())) else set()
        files = [folder / name for name in sorted(names) if Path(name).name == name and name.endswith(".safetensors")]
        if files and len(files) == len(names) and all(file.is_file() for file in files):
            return files
        raise RewardError(f"{folder.name} lacks some of the files that {INDEX} names: copy them all.")
    other = next((f.name for f in sorted(folder.glob("*")) if f.suffix in (".bin", ".pt", ".pth", ".ckpt")), None)
    if other:
        raise RewardError(
            f"{folder.name} has its weights in {other}, which can run code when it is opened. Take the model in "
            f"safetensors, as {WEIGHTS}."
        )
    raise RewardError(f"{folder.name} has no {WEIGHTS}: copy it from the model's source.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone. Raises RewardError for what is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LARGEST_HEADER, path.stat().st_size):
                raise ValueError("a header longer than the file")
            header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: tuple(int(side) for side in entry["shape"]) for name, entry in entries.items()}
    except (OSError, struct.error, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"{path.name} is no safetensors file, or is damaged: copy it from the source again."
        ) from error


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json, if it is one that we load. Raises RewardError."""
    config = read_json(folder / CONFIG)
    for key, what in FORBIDDEN.items():
        if config.get(key):
            raise RewardError(f"{folder.name} {what}, which rewards may not. Choose a model that transformers knows.")
    if (folder / "adapter_config.json").exists():
        raise RewardError(f"{folder.name} holds an adapter and no whole model: merge it into its model first.")
    _check_numbers(config, folder.name)
    return config


def _check_numbers(config: Any, where: str) -> None:
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else [config]:
        if isinstance(value, dict | list):
            _check_numbers(value, where)
        elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
            raise RewardError(f"{CONFIG} of {where} asks for {value:g} of something: no model is that large.")


def model_config(folder: Path) -> Any:
    """The configuration as transformers' own class, without what could make it load code. Raises RewardError."""
    from transformers import AutoConfig

    settings = checked_config(folder)
    kind = settings.pop("model_type", None)
    layers = [count for name, count in _numbers(settings) if "layer" in name or "depth" in name or "block" in name]
    tensors = sum(len(shapes_in(file)) for file in weight_files(folder))
    if any(count > tensors for count in layers):
        raise RewardError(f"{CONFIG} of {folder.name} asks for more layers than its weights have: take the original.")
    kept = {key: value for key, value in settings.items() if "attn_implementation" not in key and "experts" not in key}
    try:
        return AutoConfig.for_model(kind, **kept)
    except unreadable() as error:
        raise RewardError(
            f"{folder.name} is a model of the kind '{str(kind)[:60]}', which the installed transformers does not know "
            "or can't read. Choose another model, or update transformers."
        ) from error


def _numbers(settings: Any, name: str = "") -> list[tuple[str, int]]:
    if isinstance(settings, dict):
        return [pair for key, value in settings.items() for pair in _numbers(value, str(key))]
    if isinstance(settings, list):
        return [pair for value in settings for pair in _numbers(value, name)]
    return [(name, settings)] if type(settings) is int else []


def load_network(folder: Path, auto: Any) -> Any:
    """The network of a folder through `auto`, such as AutoModelForImageClassification; fp32, frozen.

    Raises RewardError when the weights are not those of the configuration.
    """
    import torch
    from transformers import logging as transformers_logging

    config = model_config(folder)
    shapes = [shape for file in weight_files(folder) for shape in shapes_in(file).values()]
    there = sum(torch.Size(shape).numel() for shape in shapes)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is said below, as an error
    try:
        with torch.device("meta"):
            asked = sum(weight.numel() for weight in auto.from_config(config).parameters())
        if asked > 1.05 * there + 4096:
            raise RewardError(f"{CONFIG} of {folder.name} asks for more weights than the file has: take the original.")
        network, loaded = auto.from_pretrained(
            folder, config=config, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            attn_implementation="eager", dtype=torch.float32, output_loading_info=True,
        )  # fmt: skip
    except RewardError:
        raise
    except unreadable() as error:
        raise RewardError(
            f"{folder.name} can't be loaded as a model for this reward ({first_line(error)}). Choose "
            "another, or copy all of its files again."
        ) from error
    finally:
        transformers_logging.set_verbosity(level)
    lacking = [*loaded["missing_keys"], *loaded["mismatched_keys"]]
    if lacking:
        raise RewardError(
            f"{folder.name} lacks weights for {len(lacking)} parts of the model, such as {str(lacking[0])[:80]}. It "
            "was not trained for this, or its files are not of one model."
        )
    if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
        raise RewardError(f"{folder.name} has weights that are no numbers: it is damaged; copy it again.")
    return network.eval().requires_grad_(False)


def folder_id(folder: Path) -> str:
    """A name for the network and its weights: kind and a hash over the configuration and all weights."""
    from blake3 import blake3

    digest = blake3((folder / CONFIG).read_bytes())
    for name in (PREPROCESSOR,):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for file in weight_files(folder):
        digest.update_mmap(file)
    return f"{folder.name}-{digest.hexdigest(length=8)}"
