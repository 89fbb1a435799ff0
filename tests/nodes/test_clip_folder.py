"""CLIP's image encoder from a folder is the same to a taste as the CLIP_VISION that ComfyUI loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import comfy.clip_vision
import pytest
import torch

from feedback_loop.feedback.rewards.base import RewardError
from feedback_loop.feedback.rewards.clip_folder import clip_encoders, clip_id, comfy_config
from feedback_loop.feedback.rewards.files import load_reward, save_reward
from feedback_loop.feedback.rewards.taste import TasteReward
from feedback_loop.nodes.demo import load_clip_vision
from feedback_loop.nodes.encoder import encoder_from

FOLDER = Path(__file__).resolve().parents[2] / "demo" / "weights" / "image_encoder"


def test_a_taste_scores_pictures_outside_comfyui_as_inside(tmp_path: Path) -> None:
    """Saved with ComfyUI's encoder, loaded with transformers': the id fits, and so do the scores, also of pictures
    that have to be scaled."""
    encoder = encoder_from(load_clip_vision())
    width = encoder(torch.zeros(1, 3, 64, 64)).shape[1]
    draw = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(width, generator=draw) for key in ("centre", "weight")}
    tensors |= {"scale": torch.rand(width, generator=draw) + 0.5, "root": torch.randn(width, 3, generator=draw) / 30}
    inside = TasteReward(encoder, tensors)
    save_reward(inside, tmp_path / "taste.safetensors")
    outside = load_reward(tmp_path / "taste.safetensors", clip_encoders(FOLDER))
    for size in (64, 96):
        images = torch.rand(2, 3, size, size, generator=draw)
        a, b = inside(images), outside(images)
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-4) and a.std() > 0.01, (a, b)


@pytest.mark.parametrize("size", ["vitl", "vitl_336", "h", "g"])
def test_the_id_is_made_of_what_comfyui_notes_of_each_published_size(size: str) -> None:
    """transformers' configuration of the same tower, in which nothing but its sizes is said, gives ComfyUI's own."""
    from transformers import CLIPVisionConfig

    path = Path(comfy.clip_vision.__file__).with_name(f"clip_vision_config_{size}.json")
    noted = json.loads(path.read_text())
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    config = CLIPVisionConfig(**{name: noted[name] for name in (*sizes, "projection_dim", "hidden_act")})
    assert comfy_config(config) == noted
    weights = {"a": torch.ones(2)}
    assert clip_id("k", noted, 224, weights) == clip_id("k", comfy_config(config), 224, weights)
    assert clip_id("k", noted, 224, weights) != clip_id("k", noted, 224, {"a": torch.zeros(2)})


def test_a_whole_clip_is_read_as_its_tower(tmp_path: Path) -> None:
    """Published folders hold both towers; of the text encoder nothing is looked at."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision: dict[str, Any] = small | {"image_size": 32, "patch_size": 8, "projection_dim": 16}
    torch.manual_seed(0)
    text = small | {"vocab_size": 50, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    whole.save_pretrained(tmp_path / "whole")
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
    tower.load_state_dict({k: v for k, v in whole.state_dict().items() if k in tower.state_dict()})
    tower.save_pretrained(tmp_path / "tower")
    found, alone = clip_encoders(tmp_path / "whole")[0], clip_encoders(tmp_path / "tower")[0]
    images = torch.rand(1, 3, 32, 32)
    assert found.id == alone.id and torch.equal(found(images), alone(images))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: shutil.rmtree(f), "There is no folder"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").write_text('{"model_type": "siglip_vision_model"}'), "siglip_vision_model"),
        (lambda f: (f / "config.json").write_text('{"model_type": "clip", "auto_map": {"a": "b"}}'), "code of its own"),
    ],
)
def test_what_is_no_clip_is_refused_by_name(tmp_path: Path, change, why: str) -> None:
    copied = Path(shutil.copytree(FOLDER, tmp_path / "encoder"))
    change(copied)
    with pytest.raises(RewardError, match=why):
        clip_encoders(copied)
