"""FeedbackExportLora: a LoRA under the names that other user interfaces read, kohya's for Stable Diffusion and SDXL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.utils
import folder_paths
from torch import Tensor

from ..training import lora_files
from ..training.lora_files import PREFIX, LoraFileError
from ..training.low_rank import Part
from .compat import io
from .existing_lora import NONE, choices
from .training_run import architecture, checked_name, lora_folder

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KOHYA = "lora_unet_"
BASES = {"SD15": "sd_v1", "SD20": "sd_v2", "SD21UnclipL": "sd_v2", "SD21UnclipH": "sd_v2"}
"""What kohya's scripts write as ss_base_model_version; SDXL and its kin are sdxl_base_v1-0."""


def kohya_names(model: ModelPatcher) -> dict[str, str]:
    """Layer path -> its name in kohya's files: `lora_unet_` and the path in diffusers' layout, with _ for dots.

    Raises LoraFileError for a model that is no Stable Diffusion 1, 2 or SDXL.
    """
    config = model.model.model_config
    diffusers = comfy.utils.unet_to_diffusers(config.unet_config)
    if not diffusers:
        raise LoraFileError(
            f"kohya's names are for Stable Diffusion 1, 2 and SDXL; this model is a {type(config).__name__}. Its LoRA "
            "keeps the names that it has, which other programs for such models read too."
        )
    # SDXL's label_emb has two names in ComfyUI's table, of which diffusers has the one for what is added
    named = {key: path for key, path in diffusers.items() if not key.startswith("class_embedding")}
    weights = {key: path for key, path in named.items() if key.endswith(".weight")}
    return {
        path.removesuffix(".weight"): KOHYA + key.removesuffix(".weight").replace(".", "_")
        for key, path in weights.items()
    }


def check_names(names: Mapping[str, str], layers: Collection[str], known: Mapping[str, Any]) -> None:
    """Raises LoraFileError where a layer has no such name, or where ComfyUI takes the name for another layer's."""
    for path in layers:
        if path not in names:
            raise LoraFileError(f"The layer {path} has no name in kohya's files: train without it, by layer_patterns.")
        if known.get(names[path]) != f"{PREFIX}{path}.weight":
            raise LoraFileError(f"ComfyUI does not read {names[path]} as the layer {path}, so it was not exported.")


def lora_of(lora: dict[str, Tensor] | None, file: str) -> tuple[dict[str, Part], dict[str, str]]:
    """(layers, what the file says about itself), of the one of both that is given. Raises LoraFileError."""
    if (lora is None) == (file == NONE):
        raise LoraFileError("Connect a LoRA or choose a file, one of both: there is nothing else to export.")
    about: dict[str, str] = {}
    if lora is None:
        if (path := folder_paths.get_full_path("loras", file)) is None:
            raise LoraFileError(f"There is no LoRA {file} any more: choose another.")
        lora, about = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    assert lora is not None  # tells types, guards nothing # nosec B101
    if not all(key.startswith(PREFIX) for key in lora):
        raise LoraFileError("This LoRA is not named as Feedback Loop names them; it may have kohya's names already.")
    return lora_files.from_tensors(lora), about or {}


def export(model: ModelPatcher, layers: dict[str, Part], about: Mapping[str, str], name: str) -> Path:
    """Writes models/loras/<name>_kohya_00001.safetensors, with the first free number."""
    names = kohya_names(model)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    check_names(names, layers, known)
    kind = architecture(model)
    base = BASES.get(type(model.model.model_config).__name__, "sdxl_base_v1-0")
    told = lora_files.metadata(name, kind, layers, {}) | dict(about) | {"ss_base_model_version": base}
    lora_folder().mkdir(parents=True, exist_ok=True)
    path = lora_files.free_path(lora_folder(), f"{checked_name(name)}_kohya")
    lora_files.save(path, layers, told, known, names)
    return path


class FeedbackExportLora(io.ComfyNode):
    """Renames a LoRA's layers for other programs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackExportLora",
            display_name="Export LoRA for other programs",
            category="feedback/training",
            search_aliases=["kohya", "A1111", "Forge", "diffusers", "convert LoRA", "lora_unet"],
            description=(
                "Saves a LoRA of Stable Diffusion 1, 2 or SDXL once more, under the names that kohya's scripts write "
                "and that other user interfaces read. ComfyUI loads both files alike."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that the LoRA was trained on: it says what layers there are."
                ),
                io.String.Input(
                    "name",
                    default="feedback",
                    tooltip="Saved as models/loras/<name>_kohya_00001.safetensors; the number grows.",
                ),
                io.Custom("LORA_MODEL").Input(
                    "lora", optional=True, tooltip="The LoRA of a training node. Leave it open to choose a file."
                ),
                io.Combo.Input(
                    "lora_file",
                    options=choices(),
                    default=NONE,
                    optional=True,
                    tooltip="A LoRA that Feedback Loop saved, where none is connected.",
                ),
            ],
            outputs=[io.String.Output("file", tooltip="Name of the new file in the folder of LoRAs.")],
        )

    @classmethod
    def execute(cls, model, name, lora=None, lora_file=NONE) -> io.NodeOutput:
        layers, about = lora_of(lora, lora_file)
        path = export(model, layers, about, name)
        return io.NodeOutput(path.name, ui={"text": (f"{path.name}: {len(layers)} layers",)})


NODES: list[type[io.ComfyNode]] = [FeedbackExportLora]
