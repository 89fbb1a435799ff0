"""Exports and tiny pipelines for the tests of training by several processes, and the way to start these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from feedback_loop.demo import world
from feedback_loop.feedback import formats
from feedback_loop.feedback.formats.bundle import Bundle, Picture, Said
from feedback_loop.feedback.media import encode_png
from feedback_loop.feedback.records import Comparison, Generation, Rating

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "weights"
PROMPTS = ("one small blue circle", "two large red stars")
SHORT = ["--steps", "3", "--rank", "2", "--learning-rate", "3e-4", "--cpu"]
CLIP = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 77, "vocab_size": 657, "bos_token_id": 655, "eos_token_id": 656, "projection_dim": 8,
}  # fmt: skip


def bundle(count: int = 6) -> Bundle:
    """Drawn pictures of two prompts with 1 to 3 stars, and a comparison that goes against the stars."""
    made, keys = Bundle(), [str(uuid.UUID(int=number + 1)) for number in range(count)]
    for number, key in enumerate(keys):
        pixels = np.ascontiguousarray(world.draw(world.sample_scene(np.random.default_rng((1, number)))))
        read = partial(bytes, encode_png(pixels))
        made.picture(Picture(key, read, Generation(prompt=PROMPTS[number % 2]), 64, 64))
        made.said.append(Said(Rating(key, 1.0 + number // 2, "ann")))
    made.said.append(Said(Comparison(keys[0], keys[2], "left", "ann")))
    return made


def export(folder: Path) -> list[Path]:
    """The ratings and the comparison, each in the file of the format that holds them."""
    files = [folder / "stars.zip", folder / "pairs.parquet"]
    formats.write("imagefolder", bundle(), files[0])
    formats.write("pick-a-pic", bundle(), files[1])
    return files


def lora(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def apart(a: Path, b: Path) -> float:
    """How far two LoRA files' numbers lie apart: the difference's length over that of the numbers.

    Not the largest difference: Adam divides a gradient by its own size, so that of 131,156 numbers the two or three
    whose gradient is but rounding may move by 1e-5. Both have learned something: `up` starts at 0.
    """
    one, other = lora(a), lora(b)
    assert one.keys() == other.keys()
    assert max(float(t.abs().max()) for key, t in one.items() if key.endswith("lora_up.weight")) > 1e-4
    all_of = [torch.cat([tensors[key].double().flatten() for key in sorted(tensors)]) for tensors in (one, other)]
    return float((all_of[0] - all_of[1]).norm() / all_of[0].norm())


def torchrun(*command: str, processes: int = 2, **more: Any) -> subprocess.Popen[str]:
    """torch's launcher with what it is to start, `-m module` or a file."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*start, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **more
    )


def kill(process: subprocess.Popen[str]) -> None:
    """The launcher and all that it started, at once, as when a machine goes down; nothing where it has ended."""
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        for one in (launcher, *launcher.children(recursive=True)):
            one.kill()
        process.wait()


def together(folder: Path, runs: Sequence[Sequence[str]], processes: int = 2) -> None:
    """Runs of the command, one after the other in the same processes, which saves their start."""
    asked = folder / "runs.json"
    asked.write_text(json.dumps([list(run) for run in runs]))
    process = torchrun(str(Path(__file__).with_name("ranks.py")), str(asked), processes=processes)
    try:
        said, _ = process.communicate()
    finally:
        kill(process)
    assert process.returncode == 0, said[-5000:]


def tiny_sd3(folder: Path) -> Path:
    """A random Stable Diffusion 3 of two blocks, without T5, for pictures in multiples of 16."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=128, pooled_projection_dim=16, out_channels=16,
        pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    pipe = diffusers.StableDiffusion3Pipeline(
        network, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), _tiny_vae(16), *_text(), *_text(), None, None
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_sdxl(folder: Path) -> Path:
    """A random SDXL of two levels."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 8, transformer_layers_per_block=(1, 1),
    )  # fmt: skip
    (first, first_words), (second, second_words) = _text(), _text()
    pipe = diffusers.StableDiffusionXLPipeline(
        _tiny_vae(4), first, second, first_words, second_words, network, diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _tiny_vae(channels: int) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), latent_channels=channels, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _text() -> tuple[Any, Any]:
    import transformers

    tower = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP))
    return tower, transformers.CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
