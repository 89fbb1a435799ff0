"""Folders of tiny random models in Hugging Face's published layouts, written by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

LABELS = {0: "cat", 1: "dog", 2: "tree"}
SIDE = 32
VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
PREPROCESSOR = {
    "size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.25, 0.2],
    "resample": 3,
}  # fmt: skip


def classifier(folder: Path, kind: str = "vit", **settings: Any) -> nn.Module:
    """A classifier of cats, dogs and trees that writes into `folder`; comes back as transformers made it."""
    import transformers as t

    named = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}} | settings
    made = {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**VISION, **named)),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **named)
        ),
        "swin": lambda: t.SwinForImageClassification(
            t.SwinConfig(
                image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, **named
            )
        ),
        "siglip": lambda: t.SiglipForImageClassification(t.SiglipConfig(vision_config=VISION, **named)),
    }
    return written(made[kind](), folder, PREPROCESSOR)


def clip(folder: Path, width: int = 12, kind: str = "clip") -> nn.Module:
    """A whole CLIP or SigLIP with its tokenizer, as PickScore and SigLIP are published."""
    import transformers as t

    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "clip":
        tokens = clip_tokenizer(folder)
        text |= {"vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id, "bos_token_id": tokens.bos_token_id}
        text |= {"pad_token_id": tokens.pad_token_id, "max_position_embeddings": 40}
        model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=width))
    else:
        tokens = siglip_tokenizer(folder)
        text |= {"vocab_size": len(tokens), "max_position_embeddings": 24, "projection_size": 16}
        model = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=VISION))
    return written(model, folder, PREPROCESSOR)


def written(model: Any, folder: Path, preprocessor: dict[str, Any]) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # transformers starts so small that nothing of a text or a picture would be left at the end
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's own kind of byte-pair encoding, without any pair: a token for each letter."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz.,"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokens.save_pretrained(folder)
    return tokens


def siglip_tokenizer(folder: Path) -> Any:
    """tokenizer.json as SigLIP's is published: pieces of words, an end after each text, which also fills it up."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokens = Tokenizer(models.Unigram())
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    tokens.train_from_iterator(["a bright picture", "a dark picture", "red green blue yellow", "cats dogs"], trainer)
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokens.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "SiglipTokenizer", "pad_token": {"content": "</s>"}, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return range(tokens.get_vocab_size())


def change(file: Path, **settings: Any) -> None:
    """Replaces settings in a JSON file; None takes one away."""
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def image_reward(folder: Path) -> None:
    """ImageReward as published, in safetensors: a ViT of two heads, a BERT that looks at it, a head of five layers."""
    from safetensors.torch import save_file

    generator, wide, text, words = torch.Generator().manual_seed(0), 128, 32, 10
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, wide), "pos_embed": (1, 5, wide)}
    shapes |= {"patch_embed.proj.weight": (wide, 3, 16, 16), "patch_embed.proj.bias": (wide,)} | _norm("norm", wide)
    for i in range(2):
        shapes |= _norm(f"blocks.{i}.norm1", wide) | _norm(f"blocks.{i}.norm2", wide)
        for name, sides in {
            "attn.qkv": (wide, 384),
            "attn.proj": (wide, wide),
            "mlp.fc1": (wide, 48),
            "mlp.fc2": (48, wide),
        }.items():
            shapes |= _linear(f"blocks.{i}.{name}", *sides)
    shapes = {f"blip.visual_encoder.{name}": shape for name, shape in shapes.items()}
    own = {"embeddings.word_embeddings.weight": (words, text), "embeddings.position_embeddings.weight": (40, text)}
    own |= _norm("embeddings.LayerNorm", text)
    for i in range(2):
        layer = f"encoder.layer.{i}"
        for part, source in (("attention", text), ("crossattention", wide)):
            own |= _linear(f"{layer}.{part}.self.query", text, text) | _norm(f"{layer}.{part}.output.LayerNorm", text)
            own |= _linear(f"{layer}.{part}.self.key", source, text) | _linear(
                f"{layer}.{part}.self.value", source, text
            )
            own |= _linear(f"{layer}.{part}.output.dense", text, text)
        own |= _linear(f"{layer}.intermediate.dense", text, 64) | _linear(f"{layer}.output.dense", 64, text)
        own |= _norm(f"{layer}.output.LayerNorm", text)
    shapes |= {f"blip.text_encoder.{name}": shape for name, shape in own.items()}
    sides = [text, 24, 16, 12, 8, 1]
    for name, (a, b) in zip((0, 2, 4, 6, 7), zip(sides, sides[1:], strict=False), strict=True):
        shapes |= _linear(f"mlp.layers.{name}", a, b)
    weights = {
        name: torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
        + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bright", "star", "##s"]))
    settings = {"num_attention_heads": 2, "layer_norm_eps": 1e-12, "hidden_size": text, "encoder_width": wide}
    (folder / "med_config.json").write_text(json.dumps(settings))


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
