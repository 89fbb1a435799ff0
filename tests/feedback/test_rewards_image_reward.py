"""ImageReward in its published layout, with random weights of tiny sizes, against BLIP's equations written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedback_loop.feedback.rewards.base import RewardError
from feedback_loop.feedback.rewards.image_reward import MEAN, STD, ImageReward, JudgeModel, load_image_reward
from feedback_loop.tests.feedback.model_folders import image_reward
from feedback_loop.tests.feedback.slopes import slopes

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "ImageReward"
    image_reward(path)
    return path


def rewarded(model: JudgeModel, prompt: str = "a bright star") -> ImageReward:
    return ImageReward(model.images, model.read, prompt, "ImageReward")


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def normed(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def seen(w: Weights, pixels: Tensor) -> Tensor:
    """The ViT of BLIP: norm before each part, 64 numbers to a head."""
    w = {name.removeprefix("blip.visual_encoder."): value for name, value in w.items()}
    patches = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(pixels), -1, -1), patches], 1) + w["pos_embed"]
    for i in range(2):
        q, k, v = linear(w, f"blocks.{i}.attn.qkv", normed(w, f"blocks.{i}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"blocks.{i}.attn.proj", attention(q, k, v, x.shape[-1] // 64))
        inner = F.gelu(linear(w, f"blocks.{i}.mlp.fc1", normed(w, f"blocks.{i}.norm2", x, 1e-6)))
        x = x + linear(w, f"blocks.{i}.mlp.fc2", inner)
    return normed(w, "norm", x, 1e-6)


def points(w: Weights, tokens: Tensor, ids: list[int]) -> Tensor:
    """BERT with a look at the picture in each layer, norm after each part, and the head over its first token."""
    own = {name.removeprefix("blip.text_encoder."): value for name, value in w.items()}
    x = own["embeddings.word_embeddings.weight"][ids] + own["embeddings.position_embeddings.weight"][: len(ids)]
    x = normed(own, "embeddings.LayerNorm", x, 1e-12).expand(len(tokens), -1, -1)
    for i in range(2):
        for part, other in (("attention", None), ("crossattention", tokens)):
            name, source = f"encoder.layer.{i}.{part}", x if other is None else other
            q, k, v = (
                linear(own, f"{name}.self.{which}", given)
                for which, given in (("query", x), ("key", source), ("value", source))
            )
            x = normed(
                own, f"{name}.output.LayerNorm", x + linear(own, f"{name}.output.dense", attention(q, k, v, 2)), 1e-12
            )
        inner = F.gelu(linear(own, f"encoder.layer.{i}.intermediate.dense", x))
        x = normed(
            own, f"encoder.layer.{i}.output.LayerNorm", x + linear(own, f"encoder.layer.{i}.output.dense", inner), 1e-12
        )
    found = x[:, 0]
    for layer in (0, 2, 4, 6, 7):
        found = linear(w, f"mlp.layers.{layer}", found)
    return found[:, 0]


def test_scores_are_those_of_the_published_equations(folder: Path) -> None:
    """Words of the vocabulary in order: [PAD] [UNK] [CLS] [SEP] a bright star ##s. Pictures of the network's own size
    are only normalised, with CLIP's mean and deviation; the points are standardised as published."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = load_file(folder / "model.safetensors")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    tokens = seen(weights, (images - mean) / std)
    expected = (points(weights, tokens, [2, 4, 5, 6, 7, 3]) - MEAN) / STD
    found = rewarded(load_image_reward(folder), "A bright STARS")(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs() > 1e-3


def test_a_score_depends_on_the_prompt_and_not_on_the_others_in_the_batch(folder: Path) -> None:
    reward, images = rewarded(load_image_reward(folder)), torch.rand(2, 3, 40, 24)
    both = reward(images, ["a star", "a bright bright star"])
    torch.testing.assert_close(reward(images[:1], ["a star"]), both[:1], rtol=1e-4, atol=1e-4)
    assert (reward(images[1:], ["a star"]) - both[1:]).abs() > 1e-3


def test_the_gradient_reaches_the_picture_through_both_networks(folder: Path) -> None:
    """Central difference of the whole reward in single precision, h = 1e-3; on pictures of another size."""
    x = 0.35 + 0.3 * torch.rand(2, 3, 44, 40, generator=torch.Generator().manual_seed(1))
    by_autograd, by_hand = slopes(rewarded(load_image_reward(folder)), x, 1e-3)
    assert by_autograd == pytest.approx(by_hand, rel=2e-2) and abs(by_hand) > 1e-3


def test_without_a_prompt_it_says_where_to_write_one(folder: Path) -> None:
    with pytest.raises(RewardError, match="judges pictures for a prompt: write it as the wish"):
        rewarded(load_image_reward(folder), " ")(torch.rand(1, 3, 32, 32))


def test_a_long_prompt_is_cut_as_in_training(folder: Path) -> None:
    """35 tokens with those of beginning and end: 33 words count."""
    reward, image = rewarded(load_image_reward(folder)), torch.rand(1, 3, 32, 32)
    assert torch.equal(reward(image, ["star " * 33]), reward(image, ["star " * 60]))
    assert not torch.equal(reward(image, ["star " * 32]), reward(image, ["star " * 33]))


def weights_with(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "vocab.txt").unlink(), "no vocab.txt: copy it from bert-base-uncased"),
        (lambda f: (f / "vocab.txt").write_text("star\n"), "can't be read"),
        (lambda f: (f / "vocab.txt").write_text("\n".join(["[CLS]", "[SEP]", "[UNK]", "[PAD]", *map(str, range(99))])),
         "is not that of its weights"),
        (lambda f: (f / "med_config.json").unlink(), "has no med_config.json"),
        (lambda f: (f / "med_config.json").write_text('{"num_attention_heads": 2}'), "lacks 'layer_norm_eps'"),
        (lambda f: (f / "med_config.json").write_text('{"num_attention_heads": 5, "layer_norm_eps": 1}'), "no BLIP"),
        (lambda f: (f / "model.safetensors").rename(f / "ImageReward.pt"), "ImageReward.pt, which can run code"),
        (lambda f: weights_with(f, lambda w: w.pop("mlp.layers.7.weight")), "lacks 'mlp.layers.7.weight'"),
        (lambda f: weights_with(f, lambda w: w.pop("mlp.layers.7.bias")), "1 weights are not ImageReward's"),
        (lambda f: weights_with(f, lambda w: w.update({"vae.odd": torch.ones(1)})), "such as vae.odd"),
        (lambda f: weights_with(f, lambda w: w["mlp.layers.0.bias"].fill_(float("nan"))), "no numbers"),
    ],
)  # fmt: skip
def test_a_folder_of_another_layout_is_refused_with_what_to_do(spoil: Any, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "ImageReward"
    image_reward(folder)
    spoil(folder)
    with pytest.raises(RewardError, match=says):
        load_image_reward(folder)
