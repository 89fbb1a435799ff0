"""LoRA files: whole or not there, never over another, with nothing that a loader would leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from feedback_loop.training import lora_files
from feedback_loop.training.adapters import LowRank


def layers() -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "blocks.0.attn.to_q": LowRank(random(4, 8), random(16, 4), 4.0),
        "conv_in": LowRank(random(4, 3, 3, 3), random(8, 4, 1, 1), 2.0),
    }


KNOWN = {"diffusion_model.blocks.0.attn.to_q", "diffusion_model.conv_in", "diffusion_model.never_trained"}


def save(path: Path, known: set[str] = KNOWN) -> None:
    about = lora_files.metadata(
        "mine", "sd15", layers(), {"steps": 3, "learning_rate": 1e-4, "seed": 7, "objective": "SFT"}
    )
    lora_files.save(path, layers(), about, known)


def test_a_file_reads_back_as_the_layers_that_were_saved(tmp_path: Path) -> None:
    save(tmp_path / "mine.safetensors")
    back = lora_files.from_tensors(load_file(tmp_path / "mine.safetensors"))
    assert back.keys() == layers().keys()
    for path, part in layers().items():
        assert torch.equal(back[path].down, part.down) and torch.equal(back[path].up, part.up)
        assert back[path].alpha == part.alpha


def test_keys_and_metadata_are_those_that_other_programs_read(tmp_path: Path) -> None:
    save(tmp_path / "mine.safetensors")
    with safe_open(tmp_path / "mine.safetensors", "pt") as opened:
        about = opened.metadata()
        assert sorted(opened.keys())[-1] == "diffusion_model.conv_in.lora_up.weight"
    assert about["ss_network_module"] == "networks.lora"
    assert (about["ss_network_dim"], about["ss_network_alpha"]) == ("4", "4.0")
    assert about["ss_learning_rate"] == "0.0001"
    assert about["modelspec.architecture"] == "sd15/lora" and about["modelspec.title"] == "mine"
    assert json.loads(about["ss_feedback_loop"])["objective"] == "SFT"


def test_a_layer_that_the_model_does_not_know_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(lora_files.LoraFileError, match=r"3 of 6 keys would not load.*conv_in"):
        save(tmp_path / "mine.safetensors", KNOWN - {"diffusion_model.conv_in"})
    assert list(tmp_path.iterdir()) == []


def test_a_finished_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"somebody's work")
    with pytest.raises(FileExistsError):
        save(path)
    assert path.read_bytes() == b"somebody's work"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_go_on_where_files_are(tmp_path: Path) -> None:
    assert lora_files.free_path(tmp_path, "mine").name == "mine_00001.safetensors"
    save(tmp_path / "mine_00001.safetensors")
    assert lora_files.free_path(tmp_path, "mine").name == "mine_00002.safetensors"


def test_a_layer_without_its_alpha_is_incomplete() -> None:
    """A loader would take it for scale 1, whatever it was trained with."""
    tensors = lora_files.to_tensors(layers())
    del tensors["diffusion_model.conv_in.alpha"]
    with pytest.raises(lora_files.LoraFileError, match="conv_in is incomplete"):
        lora_files.from_tensors(tensors)
