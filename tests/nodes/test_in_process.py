"""ComfyUI's modules are importable beside the pack, in this process and on the CPU."""

from __future__ import annotations

import comfy.model_management
import folder_paths
import nodes


def test_comfyui_runs_on_the_cpu_in_a_directory_of_its_own() -> None:
    assert comfy.model_management.get_torch_device().type == "cpu"
    assert folder_paths.get_user_directory().startswith(folder_paths.base_path)


def test_nodes_is_comfyuis_module_and_not_the_packs_folder() -> None:
    assert "KSampler" in nodes.NODE_CLASS_MAPPINGS
