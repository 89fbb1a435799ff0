"""ImageReward: a BLIP that reads a picture and its prompt together, and a head that says how people would like it.

Xu et al. 2023 (arXiv:2304.05977); BLIP: Li et al. 2022 (arXiv:2201.12086). A folder holds the weights under the names
of the published checkpoint, in safetensors; the published med_config.json; and BERT's vocab.txt. The networks are
transformers' BLIP, whose parts have other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Embed, Encoder, Reward, RewardError
from .folders import first_line, read_json, shapes_in, unreadable, weight_files
from .networks import NetworkEncoder, Preprocess, frozen

MED, VOCABULARY = "med_config.json", "vocab.txt"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's points over the published training set, by which it is standardised."""
LONGEST = 35  # tokens of a prompt; what comes after them was cut off in training too
HEAD_WIDTH = 64  # of the ViT, in all of BLIP's sizes
LARGEST_VOCABULARY = 16 * 2**20
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PICTURE, WORDS, POINTS = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
TAKE = "Take ImageReward's weights as safetensors with their own names, and its med_config.json."


class ImageReward(Reward):
    """Standardised points of a picture for its prompt.

    prompt: what pictures are judged for where nobody says what they were made for. The encoder's features are the
    picture's tokens, one after the other; read: tokens (B,F) and prompts -> (B,).
    """

    negligible = 0.02

    def __init__(
        self, encoder: Encoder, read: Callable[[Tensor, Sequence[str]], Tensor], prompt: str, name: str
    ) -> None:
        self.encoders, self.prompt, self.name, self._read = (encoder,), prompt.strip(), name, read

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        if prompts is None and not self.prompt:
            raise RewardError(f"'{self.name}' judges pictures for a prompt: write it as the wish.")
        seen = embed(self.encoders[0])
        points = self._read(seen, [self.prompt] * len(images) if prompts is None else prompts)
        return (points.to(images.device) - MEAN) / STD


class JudgeNetwork(nn.Module):
    """pixels -> tokens (B, N, W); tokens and token ids of as many prompts -> points (B,)."""

    def __init__(self, picture: Any, words: Any, widths: Sequence[int]) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        seeing, reading = BlipVisionConfig(**picture), BlipTextConfig(**words)
        seeing._attn_implementation = reading._attn_implementation = "eager"
        self.picture = BlipVisionModel(seeing)
        self.words = BlipTextModel(reading, add_pooling_layer=False)
        # linear throughout, with dropout between, hence the gaps in the published numbers
        layers = dict(zip(("0", "2", "4", "6", "7"), zip(widths, widths[1:], strict=False), strict=True))
        self.points = nn.ModuleDict({name: nn.Linear(*sides) for name, sides in layers.items()})

    def forward(self, pixels: Tensor) -> Tensor:
        return self.picture(pixel_values=pixels).last_hidden_state

    def judge(self, tokens: Tensor, ids: Tensor) -> Tensor:
        found = self.words(input_ids=ids, encoder_hidden_states=tokens, is_decoder=False).last_hidden_state[:, 0]
        for layer in self.points.values():
            found = layer(found)
        return found[:, 0]


@dataclass(frozen=True)
class JudgeModel:
    images: NetworkEncoder
    tokens: Any

    def read(self, seen: Tensor, prompts: Sequence[str], network: nn.Module | None = None) -> Tensor:
        """What `network`, this one or a copy of it, says of the tokens (B,F) of pictures. One picture at a time: a
        score must not depend on how long the others' prompts are."""
        network = network or self.images.network
        assert isinstance(network, JudgeNetwork)  # tells types, guards nothing # nosec B101
        place = next(network.parameters()).device
        rows = []
        for one, prompt in zip(seen, prompts, strict=True):
            ids = torch.tensor([self.tokens.encode(prompt).ids], device=place)
            rows.append(network.judge(one.to(place).unflatten(0, (-1, network.picture.config.hidden_size))[None], ids))
        return torch.cat(rows)


def load_image_reward(folder: Path) -> JudgeModel:
    """Raises RewardError for a folder of another layout, damaged or without its vocabulary."""
    from blake3 import blake3

    (file,) = _one_file(folder)
    shapes, settings = shapes_in(file), read_json(folder / MED)
    picture, words, widths = _sizes(folder, shapes, settings)
    tokens = _vocabulary(folder, words["vocab_size"])
    try:
        with torch.device("meta"):
            network = JudgeNetwork(picture, words, widths)
    except unreadable() as error:
        raise RewardError(f"{MED} of {folder.name} describes no BLIP ({first_line(error)}). {TAKE}") from error
    _fill(network, file, folder.name)
    digest = blake3((folder / MED).read_bytes())
    digest.update_mmap(file)
    side = int(picture["image_size"])
    encoder = NetworkEncoder(
        f"{folder.name}-{digest.hexdigest(length=8)}", frozen(network), Preprocess(side, side, CLIP_MEAN, CLIP_STD),
        lambda judge, pixels: judge(pixels).flatten(1),
    )  # fmt: skip
    return JudgeModel(encoder, tokens)


def _one_file(folder: Path) -> list[Path]:
    files = weight_files(folder)
    if len(files) != 1:
        raise RewardError(f"{folder.name} has its weights in {len(files)} files, but ImageReward has one. {TAKE}")
    return files


def _sizes(
    folder: Path, shapes: dict[str, tuple[int, ...]], settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """Configurations of both halves and widths of the head, as far as possible from the weights that are there."""
    try:
        _, places, width = shapes[PICTURE + "pos_embed"]
        patch = shapes[PICTURE + "patch_embed.proj.weight"][-1]
        picture = {
            "hidden_size": width, "num_hidden_layers": _layers(shapes, PICTURE + "blocks."),
            "num_attention_heads": max(width // HEAD_WIDTH, 1), "patch_size": patch,
            "intermediate_size": shapes[PICTURE + "blocks.0.mlp.fc1.weight"][0],
            "image_size": round((places - 1) ** 0.5) * patch, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        }  # fmt: skip
        vocabulary, hidden = shapes[WORDS + "embeddings.word_embeddings.weight"]
        words = {
            "vocab_size": vocabulary, "hidden_size": hidden, "encoder_hidden_size": width, "hidden_act": "gelu",
            "num_hidden_layers": _layers(shapes, WORDS + "encoder.layer."), "is_decoder": True,
            "intermediate_size": shapes[WORDS + "encoder.layer.0.intermediate.dense.weight"][0],
            "max_position_embeddings": shapes[WORDS + "embeddings.position_embeddings.weight"][0],
            "num_attention_heads": int(settings["num_attention_heads"]),
            "layer_norm_eps": float(settings["layer_norm_eps"]),
        }  # fmt: skip
        widths = [shapes[f"{POINTS}0.weight"][1], *(shapes[f"{POINTS}{n}.weight"][0] for n in (0, 2, 4, 6, 7))]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise RewardError(f"{folder.name} lacks {str(error)[:80]}, which ImageReward has. {TAKE}") from error
    return picture, words, widths


def _layers(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _fill(network: JudgeNetwork, file: Path, where: str) -> None:
    """The file's weights in a network that has none yet. Raises RewardError unless they fit one by one."""
    from safetensors.torch import load_file

    found = {own: value.float() for name, value in load_file(file).items() if (own := _own_name(name))}
    wanted = {name: weight.shape for name, weight in network.state_dict().items()}
    odd = [name for name in wanted if name not in found or found[name].shape != wanted[name]]
    odd += [name for name in found if name not in wanted]
    if odd:
        raise RewardError(f"{where}: {len(odd)} weights are not ImageReward's, such as {odd[0][:80]}. {TAKE}")
    if not all(bool(weight.isfinite().all()) for weight in found.values()):
        raise RewardError(f"{where} has weights that are no numbers: it is damaged; copy it again.")
    network.load_state_dict(found, assign=True)
    embeddings = network.words.embeddings
    # no weight, so nothing has filled it
    places = torch.arange(embeddings.position_embeddings.num_embeddings)[None]
    embeddings.register_buffer("position_ids", places, persistent=False)


def _own_name(name: str) -> str | None:
    """The name of a published weight here; None for what is no weight."""
    if name.endswith("position_ids"):
        return None
    if name.startswith(PICTURE):
        own = name[len(PICTURE) :]
        for pattern, here in RENAMED:
            own = re.sub(pattern, here, own)
        return f"picture.{own}"
    return name.replace(WORDS, "words.", 1).replace(POINTS, "points.", 1)


def _vocabulary(folder: Path, size: int) -> Any:
    """BERT's word pieces in small letters, as the published model reads its prompts."""
    from tokenizers.implementations import BertWordPieceTokenizer

    file = folder / VOCABULARY
    if not file.is_file():
        raise RewardError(f"{folder.name} has no {VOCABULARY}: copy it from bert-base-uncased, whose words it reads.")
    if file.stat().st_size > LARGEST_VOCABULARY:
        raise RewardError(f"{VOCABULARY} of {folder.name} is larger than any is: copy it again.")
    try:
        tokens = BertWordPieceTokenizer(str(file), lowercase=True)
    except Exception as error:  # noqa: BLE001  (tokenizers raises no class of its own)
        if type(error) is not Exception and not isinstance(error, unreadable()):
            raise
        raise RewardError(
            f"{VOCABULARY} of {folder.name} can't be read ({first_line(error)}): copy it again."
        ) from error
    if tokens.get_vocab_size() > size or tokens.token_to_id("[CLS]") is None or tokens.token_to_id("[UNK]") is None:
        raise RewardError(f"{VOCABULARY} of {folder.name} is not that of its weights: take bert-base-uncased's.")
    tokens.enable_truncation(LONGEST)
    return tokens
