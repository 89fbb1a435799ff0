"""ComfyUI's view of the pack: every module's nodes, the HTTP routes and the models folder."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path

from ..training import stopping
from .compat import ComfyExtension, io, register_folders

MODULES = (
    "capture", "gate", "dataset", "formats", "rewards", "rewards_watermark", "rewards_classifier", "rewards_text",
    "rewards_colour", "rewards_combine", "guidance", "rules", "steering", "search", "noise",
    "text", "refine", "reference", "suggest", "training", "reinforce", "auto_train", "export_lora", "evaluate", "demo",
)  # fmt: skip


def all_nodes() -> list[type[io.ComfyNode]]:
    """The NODES of each module in MODULES; an import that fails is raised, never skipped."""
    return [node for name in MODULES for node in import_module(f".{name}", __name__).NODES]


def check_only_copy() -> None:
    """Raises RuntimeError where ComfyUI loaded the pack from another folder before: both would write one database."""
    from server import PromptServer

    here = str(Path(__file__).parents[1])
    first = vars(PromptServer.instance).setdefault("feedback_loop_folder", here)
    if first != here:
        raise RuntimeError(f"Feedback Loop is installed twice, in {first} and in {here}. Remove one, then restart.")


class FeedbackLoopExtension(ComfyExtension):
    """What comfy_entrypoint() hands to ComfyUI."""

    async def on_load(self) -> None:
        try:
            check_only_copy()
            register_folders()
            import_module(".reward_folders", __name__).register()
            import_module(".routes", __name__).register()
            import_module(".collector", __name__).register()
            stopping.install()
            self.nodes = all_nodes()
        except Exception:
            # Of whatever kind it is, ComfyUI logs one line; whoever has to repair it needs all of it. Nothing is
            # swallowed: it is raised again.
            logging.exception("Feedback Loop could not be loaded")
            raise

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return self.nodes
