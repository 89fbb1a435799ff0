"""What guidance costs at the full size of SD1.5: time and peak memory, guided over plain.

    python bench/guidance_cost.py [--steps 8] [--size 512] [--report report.json]

Needs ComfyUI (COMFYUI_PATH), 10 GB of memory and some minutes. Random weights: the cost does not depend on what they
say. The reward is the watermark penalty, which looks at every estimate; the interval is the default one, which steers a
part of the steps. Each row runs in a process of its own, so that its peak memory is its own. Time is CPU seconds of one
thread: what a clock shows on a machine with nothing else to do, and the same on a busy one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("plain", "small decoder", "VAE at half size", "VAE at full size")
DECODERS = {"small decoder": "small", "VAE at half size": "half", "VAE at full size": "full"}


def measure(row: str, steps: int, size: int) -> dict[str, float]:
    """Seconds of a run, and the process's peak memory in GiB."""
    sys.path[:0] = [str(ROOT / "demo"), os.environ.get("COMFYUI_PATH") or str(ROOT / ".cache" / "ComfyUI")]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    with tempfile.TemporaryDirectory() as base:
        comfy.cli_args.args.base_directory = base
        import torch

        torch.set_num_threads(1)
        with torch.inference_mode():
            model, vae, conds = parts(Path(base))
            if row != "plain":
                model = guided(model, vae, DECODERS[row])
            seconds = run(model, conds, steps, size)
    return {"seconds": seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def parts(base: Path) -> tuple[Any, Any, Any]:
    """SD1.5's UNet and VAE of full size with random weights, a TAESD with random weights, and prompts of its width."""
    import comfy.ldm.models.autoencoder
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    import comfy.taesd.taesd
    import folder_paths
    import pack  # noqa: F401
    import torch
    from safetensors.torch import save_file

    unet = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "num_heads": 8,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
        "context_dim": 768, "use_spatial_transformer": True, "use_linear_in_transformer": False,
        "adm_in_channels": None, "legacy": False, "dtype": torch.float32,
    }  # fmt: skip
    config = comfy.supported_models.SD15(unet)
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({})
    randomise(network.diffusion_model)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(network, cpu, cpu)
    levels = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    settings = {"ddconfig": levels, "embed_dim": 4}
    autoencoder = randomise(comfy.ldm.models.autoencoder.AutoencoderKL(**settings))
    vae = comfy.sd.VAE(autoencoder.state_dict(), config={"params": settings}, dtype=torch.float32)
    small = randomise(comfy.taesd.taesd.TAESD(None, None, latent_channels=4).taesd_decoder)
    folder = base / "models" / "vae_approx"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in small.state_dict().items()}, folder / "taesd_decoder.safetensors")
    folder_paths.add_model_folder_path("vae_approx", str(folder))
    prompts = [[[torch.randn(1, 77, 768), {}]] for _ in range(2)]
    return model, vae, prompts


def randomise(module: Any) -> Any:
    import torch

    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
    return module.eval()


def guided(model: Any, vae: Any, decoder: str) -> Any:
    from feedback_loop.feedback.rewards.watermark import WatermarkPenalty
    from feedback_loop.nodes.guidance import FeedbackRewardGuidance

    return FeedbackRewardGuidance.execute(model, WatermarkPenalty(), vae, 1.0, decoder=decoder).args[0]


def run(model: Any, prompts: Any, steps: int, size: int) -> float:
    import comfy.sample
    import torch

    noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    comfy.sample.sample(
        model, noise, steps, 7.0, "euler", "karras", *prompts, torch.zeros_like(noise), disable_pbar=True, seed=0
    )
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(measure(asked.row, asked.steps, asked.size)))
        return
    found: dict[str, dict[str, float]] = {}
    for row in ROWS:
        command = [sys.executable, __file__, "--steps", str(asked.steps), "--size", str(asked.size), "--row", row]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[row] = json.loads(done.stdout.splitlines()[-1])
        plain = found["plain"]
        found[row] |= {
            "time": found[row]["seconds"] / plain["seconds"],
            "memory": found[row]["peak_gib"] / plain["peak_gib"],
        }
        print(f"{row:>18}  {found[row]['time']:.3f} x time  {found[row]['peak_gib']:.1f} GiB peak", flush=True)
    if asked.report:
        asked.report.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
