"""LoRAs under kohya's names: the names of diffusers' own layers, loaded by ComfyUI as if nothing had changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from feedback_loop.nodes.export_lora import FeedbackExportLora, check_names, kohya_names
from feedback_loop.nodes.policy import Setup, trainable
from feedback_loop.nodes.training_run import with_lora
from feedback_loop.tests.nodes import tiny_models
from feedback_loop.training import lora_files
from feedback_loop.training.adapters import KINDS
from feedback_loop.training.lora_files import LoraFileError

from .test_policy import SIGMA, noised, prompts, push, stock

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


def trained(model: Any, adapter: Any = "LoRA") -> dict[str, Any]:
    with trainable(model, rank=4, seed=0, setup=Setup(adapter)) as policy, torch.no_grad():
        push(policy)
        return lora_files.to_tensors(policy.adapters.low_rank())


@pytest.mark.parametrize(("kind", "adapter"), [("sdxl", "LoRA"), *(("sd15", adapter) for adapter in KINDS)])
def test_the_exported_file_does_in_comfyui_what_the_trained_one_does(
    kind: str, adapter: Any, loras: Path, caplog: Any
) -> None:
    """Through ComfyUI's own loader: max |dD| < 1e-5, no unmatched key, and far from the plain model."""
    model, x, conds = tiny_models.MODELS[kind](), noised(kind), prompts(kind, 77)
    lora = trained(model, adapter)
    name = FeedbackExportLora.execute(model, "a", lora=lora).args[0]
    exported = load_file(loras / name)
    assert name == "a_kohya_00001.safetensors" and len(exported) == len(lora)
    with torch.no_grad():
        own, other, plain = (
            stock(m, x, SIGMA, conds[0]) for m in (with_lora(model, lora), loaded(model, exported), model)
        )
    assert (own - other).abs().max() < 1e-5 and (own - plain).abs().max() > 1e-2
    assert not [r.message for r in caplog.records if "not loaded" in r.message.lower()]


def loaded(model: Any, tensors: dict[str, Any]) -> Any:
    """By the stock loader, with as many layers patched as the file holds."""
    import comfy.sd

    applied, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    assert len(applied.patches) == len(lora_files.layer_paths(tensors))
    return applied


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_layer_has_kohyas_name_and_an_alpha(kind: str, loras: Path) -> None:
    model = tiny_models.MODELS[kind]()
    exported = load_file(loras / FeedbackExportLora.execute(model, "a", lora=trained(model)).args[0])
    layers = lora_files.layer_paths(exported)
    assert all(layer.startswith("lora_unet_") and "." not in layer for layer in layers)
    assert all(f"{layer}.alpha" in exported and f"{layer}.lora_up.weight" in exported for layer in layers)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q" in layers


def diffusers_unet(sdxl: bool) -> Any:
    """The tiny UNet's twin by diffusers' own class: two levels of 1 block, attention of SD1.5's 8 heads on both."""
    from diffusers import UNet2DConditionModel

    more: dict[str, Any] = {}
    if sdxl:
        more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
        more |= {"projection_class_embeddings_input_dim": 6 * 256 + 32}
    width = 64 if sdxl else 32
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width), layers_per_block=1, cross_attention_dim=width, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2, **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_names_are_those_of_diffusers_own_layers(kind: str) -> None:
    """Of every linear layer and convolution in diffusers' network of the same shape, none missing and none besides."""
    network = diffusers_unet(kind == "sdxl")
    theirs = {
        "lora_unet_" + path.replace(".", "_"): tuple(module.weight.shape)
        for path, module in network.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    model = tiny_models.MODELS[kind]()
    names, weights = kohya_names(model), model.model.diffusion_model.state_dict()
    with trainable(model, rank=2, seed=0) as policy:
        ours = {names[path]: tuple(weights[f"{path}.weight"].shape) for path in policy.adapters.low_rank()}
    assert ours == theirs


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_reads_every_layer_of_the_exported_file(kind: str, loras: Path) -> None:
    """By its own reading of kohya's files: each layer's added weight is what it is in ComfyUI.

    But for SDXL's add_embedding, which kohya's scripts never train and whose two layers diffusers takes for one.
    """
    from diffusers import StableDiffusionPipeline

    model = tiny_models.MODELS[kind]()
    lora = trained(model)
    exported = load_file(loras / FeedbackExportLora.execute(model, "a", lora=lora).args[0])
    read, alphas = StableDiffusionPipeline.lora_state_dict(dict(exported))
    read = {plain(key): value for key, value in read.items()}
    alphas = {plain(key): value for key, value in alphas.items()}
    paths = {"lora_unet_" + path.replace(".", "_"): path for path, _ in diffusers_unet(kind == "sdxl").named_modules()}
    names = kohya_names(model)
    parts = {f"unet.{paths[names[path]]}": part for path, part in lora_files.from_tensors(lora).items()}
    parts = {path: part for path, part in parts.items() if "add_embedding" not in path}
    for path, part in parts.items():
        up, down = read[f"{path}.lora.up.weight"], read[f"{path}.lora.down.weight"]
        added = (alphas[f"{path}.alpha"] / down.shape[0] * up.flatten(1) @ down.flatten(1)).reshape(part.added().shape)
        assert torch.allclose(added, part.added(), atol=1e-6), path
    assert len(parts) >= 119


def plain(key: str) -> str:
    """diffusers' older names of attention's layers as those of its modules."""
    key = re.sub(r"\b(to_q|to_k|to_v|to_out)_lora\b", r"\1.lora", key.replace(".processor.", "."))
    return re.sub(r"\.to_out\.(?!0)", ".to_out.0.", key.replace(".lora.down.weight.alpha", ".alpha"))


def test_a_saved_file_is_exported_with_what_it_says_of_itself(loras: Path) -> None:
    model, tensors = tiny_models.sd15(), trained(tiny_models.sd15())
    layers = lora_files.from_tensors(tensors)
    about = lora_files.metadata("mine", "sd15", layers, {"steps": 7, "rank": 4})
    lora_files.save(loras / "mine.safetensors", layers, about, comfy.lora.model_lora_keys_unet(model.model, {}))
    name = FeedbackExportLora.execute(model, "mine", lora_file="mine.safetensors").args[0]
    with safe_open(loras / name, "pt") as file:
        told = file.metadata()
    assert told["ss_steps"] == "7" and told["ss_network_module"] == "networks.lora"
    assert told["ss_base_model_version"] == "sd_v1" and told["ss_network_dim"] == "4"
    second = FeedbackExportLora.execute(model, "mine", lora_file="mine.safetensors").args[0]
    assert second == "mine_kohya_00002.safetensors"


@pytest.mark.parametrize("kind", ["sd3", "flux", "qwen", "zimage"])
def test_other_models_are_refused_by_name(kind: str, loras: Path) -> None:
    model = tiny_models.MODELS[kind]()
    with pytest.raises(LoraFileError, match=f"this model is a {type(model.model.model_config).__name__}"):
        FeedbackExportLora.execute(model, "a", lora={})
    assert list(loras.iterdir()) == []


def test_a_lora_of_another_model_is_not_written_under_names_that_lead_nowhere(loras: Path) -> None:
    with pytest.raises(LoraFileError, match="has no name in kohya's files"):
        FeedbackExportLora.execute(tiny_models.sd15(), "a", lora=trained(tiny_models.flux()))
    with pytest.raises(LoraFileError, match="does not read lora_unet_x"):
        check_names({"a": "lora_unet_x"}, ["a"], {"lora_unet_x": "diffusion_model.b.weight"})
    assert list(loras.iterdir()) == []


def test_one_of_lora_and_file_has_to_be_given() -> None:
    for given in ({}, {"lora": {}, "lora_file": "a.safetensors"}):
        with pytest.raises(LoraFileError, match="one of both"):
            FeedbackExportLora.execute(tiny_models.sd15(), "a", **given)
