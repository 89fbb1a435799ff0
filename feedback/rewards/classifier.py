"""An image classifier as a reward: the log-odds of one label against all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Embed, Encoder, Reward, RewardError
from .folders import (
    CONFIG,
    PREPROCESSOR,
    checked_config,
    first_line,
    folder_id,
    load_network,
    read_json,
    shapes_in,
    unreadable,
    weight_files,
)
from .networks import NetworkEncoder, Preprocess, frozen, preprocess_of

MOST_LABELS = 50_000
WITHOUT_EFFECT = ("num_classes", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate")
"""Arguments of timm's that say nothing new, or count in training alone."""


class ClassifierReward(Reward):
    """`direction * saturating(log_odds)`: linear in the log-odds up to about `enough`, flat beyond it.

    log_odds = `logit_k - logsumexp(all other logits)`, or `logit_k` itself where every label is a question of its own.
    enough: log-odds at which the label is taken as given; 4 is a probability of 98 %.
    """

    negligible = 0.05

    def __init__(
        self, encoder: Encoder, label: int, name: str, exclusive: bool = True, direction: int = 1, enough: float = 4.0
    ) -> None:
        self.encoders, self.label, self.exclusive = (encoder,), label, exclusive
        self.direction, self.enough = direction, enough
        self.name = name if direction > 0 else f"not {name}"

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        odds = self.direction * log_odds(embed(self.encoders[0]), self.label, self.exclusive)
        return self.enough - F.softplus(self.enough - odds)


def log_odds(logits: Tensor, label: int, exclusive: bool = True) -> Tensor:
    """logits (B,K) -> log-odds (B,) of one label against the rest."""
    if not exclusive or logits.shape[1] == 1:
        return logits[:, label]
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(dim=1)


def labels_of(folder: Path) -> list[str]:
    """The labels of a classifier's folder, in the order of its logits. Raises RewardError for what is no classifier."""
    config = checked_config(folder)
    if "architecture" in config:
        return _timm_labels(config, folder)
    if not any("ImageClassification" in str(name) for name in config.get("architectures") or []):
        raise RewardError(f"{folder.name} is no image classifier: {CONFIG} names none under architectures.")
    named = config.get("id2label")
    if isinstance(named, dict):
        count = len(named)
        labels = [named.get(str(index)) for index in range(count)]
    else:
        count = config.get("num_labels", 2)
        labels = [f"LABEL_{index}" for index in range(count)] if type(count) is int and 0 < count <= MOST_LABELS else []
    return _checked_labels(labels, folder)


def _timm_labels(config: dict[str, Any], folder: Path) -> list[str]:
    labels, count = config.get("label_names"), config.get("num_classes")
    if not isinstance(labels, list) and type(count) is int and 0 < count <= MOST_LABELS:
        labels = [str(index) for index in range(count)]
    return _checked_labels(labels, folder)


def _checked_labels(labels: Any, folder: Path) -> list[str]:
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise RewardError(f"{CONFIG} of {folder.name} does not name its labels: copy it from the model's source.")
    if len(labels) > MOST_LABELS:
        raise RewardError(f"{folder.name} has {len(labels)} labels; at most {MOST_LABELS} are offered.")
    return [label[:200] for label in labels]


def label_index(labels: Sequence[str], wanted: str) -> int:
    """Where a label stands. Raises RewardError with the labels that resemble it."""
    if wanted in labels:
        return labels.index(wanted)
    from difflib import get_close_matches

    near = get_close_matches(wanted, labels, 5, 0.4) or list(labels[:5])
    raise RewardError(f"There is no label '{wanted[:80]}' in this classifier; choose one such as {', '.join(near)}.")


def load_classifier(folder: Path) -> tuple[NetworkEncoder, list[str], bool]:
    """The network as an encoder that gives logits, its labels, and whether they exclude one another.

    Raises RewardError for a folder that is damaged, incomplete or of another kind.
    """
    labels = labels_of(folder)
    if "architecture" in checked_config(folder):
        encoder, exclusive = _timm_classifier(folder, len(labels)), True
    else:
        encoder, exclusive = _transformers_classifier(folder)
    return encoder, labels, exclusive


def _transformers_classifier(folder: Path) -> tuple[NetworkEncoder, bool]:
    from transformers import AutoModelForImageClassification

    network = load_network(folder, AutoModelForImageClassification)
    size = getattr(network.config, "image_size", None)
    size = size if isinstance(size, int) else None
    preprocess = preprocess_of(read_json(folder / PREPROCESSOR, needed=False), size, folder.name)
    exclusive = network.config.problem_type != "multi_label_classification"
    return NetworkEncoder(folder_id(folder), LogitsNetwork(network), preprocess, _plain), exclusive


class LogitsNetwork(nn.Module):
    """A classifier of transformers' classes: preprocessed pixels -> logits (B,K).

    ComfyUI notes the device on the network that it manages, and transformers' own classes do not let it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits


def _timm_classifier(folder: Path, count: int) -> NetworkEncoder:
    """timm's layout: config.json with `architecture`, `num_classes` and `pretrained_cfg`."""
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RewardError(
            f"{folder.name} is a model of timm, which is not installed. Install the Python package timm, or choose a "
            "model in Hugging Face's own layout."
        ) from error
    from safetensors.torch import load_file

    config, files = checked_config(folder), weight_files(folder)
    architecture = str(config["architecture"])
    if not timm.is_model(architecture):
        raise RewardError(f"{folder.name}: timm knows no '{architecture[:60]}'. Update timm.")
    arguments = {"num_classes": count, **_timm_arguments(config, folder)}
    try:
        with torch.device("meta"):
            network = timm.create_model(architecture, pretrained=False, **arguments)
    except (*unreadable(), AssertionError) as error:  # timm asserts what it wants of its arguments
        raise RewardError(
            f"{folder.name} can't be built by the installed timm ({first_line(error)}). Update timm, or copy "
            f"{CONFIG} again."
        ) from error
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if shapes_in(files[0]) != wanted:
        raise RewardError(f"The weights of {folder.name} are not those of its configuration: copy both again.")
    network = timm.create_model(architecture, pretrained=False, **arguments)
    network.load_state_dict(load_file(files[0]))
    return NetworkEncoder(folder_id(folder), frozen(network), _timm_preprocess(config, folder), _plain)


def _timm_arguments(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What of `model_args` changes a network: how it pools and the size of its pictures. Raises RewardError for more.

    The rest of timm's arguments reaches far, to files and pickles even, and the folder is a stranger's.
    """
    named = config.get("model_args")
    named = named if isinstance(named, dict) else {}
    kept = {key: value for key, value in named.items() if value is not None and key not in WITHOUT_EFFECT}
    channels = kept.pop("in_chans", 3)
    sides = kept.get("img_size", 1)
    sound = {
        "global_pool": isinstance(kept.get("global_pool", ""), str),
        "img_size": all(type(side) is int and side > 0 for side in (sides if isinstance(sides, list) else [sides])),
    }
    wrong = next((key for key in kept if not sound.get(key)), "in_chans" if channels != 3 else None)
    if wrong is not None:
        raise RewardError(
            f"{folder.name} was made with timm's argument '{wrong[:40]}' = {str(named[wrong])[:40]}, which rewards "
            "don't take. Choose a model without it."
        )
    return kept


def _plain(network: nn.Module, pixels: Tensor) -> Tensor:
    return network(pixels)


def _timm_preprocess(config: dict[str, Any], folder: Path) -> Preprocess:
    settings = config.get("pretrained_cfg")
    settings = settings if isinstance(settings, dict) else {}
    sides = settings.get("input_size")
    size = {"height": sides[1], "width": sides[2]} if isinstance(sides, list) and len(sides) == 3 else None
    filters = {"bilinear": 2, "nearest": 0}
    plain = {
        "size": size,
        "image_mean": settings.get("mean", [0.485, 0.456, 0.406]),
        "image_std": settings.get("std", [0.229, 0.224, 0.225]),
        "resample": filters.get(str(settings.get("interpolation")), 3),
    }
    return preprocess_of(plain, None, folder.name)
