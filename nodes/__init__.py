"""ComfyUI's view of the pack: every module's nodes, the HTTP routes and the models folder."""

from __future__ import annotations

from importlib import import_module

from .compat import ComfyExtension, io, register_folders

MODULES = ("capture", "dataset", "rewards", "guidance", "training", "evaluate", "demo")


def all_nodes() -> list[type[io.ComfyNode]]:
    """The NODES of each module in MODULES; an import that fails is raised, never skipped."""
    return [node for name in MODULES for node in import_module(f".{name}", __name__).NODES]


class FeedbackLoopExtension(ComfyExtension):
    """What comfy_entrypoint() hands to ComfyUI."""

    async def on_load(self) -> None:
        register_folders()
        import_module(".routes", __name__).register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return all_nodes()
