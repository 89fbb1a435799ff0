"""Does SD1.5 at full size train without a second copy of its weights? One step of a LoRA, and the memory it took.

    python bench/training_full_size.py [--size 512] [--rank 8] [--precision fp32 bf16]

Needs ComfyUI (COMFYUI_PATH), 10 GB of memory and some minutes. Random weights in float32, as the memory does not depend
on what they say; gradient checkpointing; one picture. Each precision runs in a process of its own. Prints in GiB the
size of the weights, what the process held over what it held before there was a model - with the adapter on and after
the step - and its peak. Exits with 1 where it held, before or after the step, one and a half times the weights or more,
or where the peak is twice the weights or more at `--size 128`, at which activations are small: a second copy of the
weights would show in either. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from guidance_cost import ROOT, randomise

MOST = 2.0
"""Times the weights, at the peak of a step on a small picture; with a second copy it could not stay below."""

KEPT = 1.5
"""Times the weights, between steps."""

SMALL = 128
"""Pixels up to which activations are small beside the weights."""


def held(name: str) -> float:
    """GiB of this process now (VmRSS) or at the most (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 2**20


def measure(precision: str, size: int, rank: int) -> dict[str, float]:
    sys.path[:0] = [str(ROOT / "demo"), os.environ.get("COMFYUI_PATH") or str(ROOT / ".cache" / "ComfyUI")]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    with tempfile.TemporaryDirectory() as base:
        comfy.cli_args.args.base_directory = base
        import comfy.model_patcher  # noqa: F401  (so that the baseline holds ComfyUI and torch)
        import pack  # noqa: F401
        import torch

        torch.set_num_threads(1)
        import feedback_loop.nodes.training

        before = held("VmRSS")
        with torch.inference_mode():  # as ComfyUI's own loaders make them
            model = unet()
        weights = sum(p.numel() * p.element_size() for p in model.model.parameters()) / 2**30
        kept = one_step(feedback_loop.nodes.training, model, precision, size, rank, Path(base))
    return {
        "weights_gib": weights, "started_gib": kept[0] - before, "after_gib": kept[1] - before,
        "peak_gib": held("VmHWM") - before, "baseline_gib": before,
    }  # fmt: skip


def unet() -> Any:
    """SD1.5's UNet, float32, on the CPU."""
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.SD15(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
            "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 768,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_spatial_transformer": True,
            "use_linear_in_transformer": False, "adm_in_channels": None, "legacy": False, "dtype": torch.float32,
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({})
    randomise(network.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(network, cpu, cpu)


def one_step(training: Any, model: Any, precision: str, size: int, rank: int, base: Path) -> tuple[float, float]:
    """What FeedbackTrainLora does once pictures and prompts are encoded: its memory estimate, one step, the LoRA.

    GiB that the process holds with the adapter on, and after the step.
    """
    import torch

    from feedback_loop.nodes import training_run
    from feedback_loop.nodes.policy import Setup, trainable
    from feedback_loop.training.objectives import Sft
    from feedback_loop.training.sources import Example

    training_run.data_directory = lambda: base
    generator = torch.Generator().manual_seed(0)
    learned = [Example(torch.randn(4, size // 8, size // 8, generator=generator), "a", 1.0)]
    conds = {name: [[torch.randn(1, 77, 768, generator=generator), {}]] for name in ("a", "")}
    numbers = {"steps": 1, "learning_rate": 1e-4, "batch": 1}
    with trainable(model, rank, 0, Setup(precision=precision, checkpointing=True)) as policy:
        run = training_run.Training.begin(policy, "full_size", {"seed": 0})
        started = held("VmRSS")
        layers = training.learn(run, Sft(), learned, conds, numbers, lambda step, history: None)
        assert any(bool(part.up.any()) for part in layers.values()), "nothing was learned"
        return started, held("VmRSS")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--row", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(measure(asked.row, asked.size, asked.rank)))
        return 0
    good = True
    for row in asked.precision:
        command = [sys.executable, __file__, "--size", str(asked.size), "--rank", str(asked.rank), "--row", row]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        weights, peak = found["weights_gib"], found["peak_gib"]
        good = good and max(found["started_gib"], found["after_gib"]) < KEPT * weights
        good = good and (peak < MOST * weights or asked.size > SMALL)
        print(
            f"{row}, {asked.size} px: weights {weights:.2f} GiB; held {found['started_gib']:.2f} with the adapter on, "
            f"{found['after_gib']:.2f} after the step; peak {peak:.2f}, {peak / weights:.2f} x the weights "
            f"(and {found['baseline_gib']:.2f} before there was a model)",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
