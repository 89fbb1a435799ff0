"""Trains a LoRA of a diffusers pipeline on several devices, outside ComfyUI; what it writes loads there.

python -m torch.distributed.run --nproc_per_node 2 -m feedback_loop.training.distributed \\
    --pipeline FOLDER --feedback EXPORT.zip --objective dpo --out taste.safetensors

in the folder that the pack's folder, here feedback_loop, lies in; the path of this file instead of `-m ...` works from
anywhere. docs/distributed.md says more.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the arguments say and returns the exit status: 2 where they, or what they name, can't be used."""
    if importlib.util.find_spec("accelerate") is None:
        return _refused("This command needs a package that is missing: pip install accelerate")
    from ..feedback.formats.bundle import BadData
    from ..feedback.formats.parquet import MissingPackage
    from ..feedback.rewards.base import RewardError
    from .distributed_options import OptionError, parsed
    from .distributed_run import RunError, run
    from .loop import DivergedError
    from .lora_files import LoraFileError
    from .pipeline import PipelineError
    from .sources import NoPreferenceError

    wrong = (OptionError, RunError, PipelineError, BadData, MissingPackage, NoPreferenceError, RewardError)
    try:
        run(parsed(arguments))
    except (*wrong, DivergedError, LoraFileError, FileExistsError) as error:
        return _refused(str(error))
    return 0


def _refused(why: str) -> int:
    """All processes of a machine find the same: one says it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"{why}\n")
    return 2


def _entry() -> Callable[[], int]:
    """`main` of this module as a part of the pack, which a file that is run by its path does not belong to."""
    if __package__:
        return main
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "feedback_loop", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None  # it is there, for so is this file # nosec B101
    sys.modules["feedback_loop"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["feedback_loop"])
    return importlib.import_module("feedback_loop.training.distributed").main


def _disconnect() -> None:
    """Ends what connects the processes, or torch complains that nobody did."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    status = _entry()()
    _disconnect()
    sys.exit(status)
