"""TRL's DDPOTrainer on the demo model, in an environment of its own; what bench/training_online.py starts.

    python -m venv ENV; ENV/bin/pip install -r bench/training_ddpo_requirements.txt
    ENV/bin/python bench/training_ddpo.py WEIGHTS OUT.npz '{"prompts": [...], "epochs": 2, ...}'

WEIGHTS: the demo model's folder, which is a stock pipeline. Everything that is not given is TRL's default, but for
float32 instead of half precision, on a CPU. Writes the pictures of every epoch, uint8 (epochs, N, H, W, 3), and the
CPU and wall seconds at which each was scored.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def reward_of(images: torch.Tensor, target: float, unit: float) -> torch.Tensor:
    """The pack's colour reward `brightness near target`, written again: (B, 3, H, W) in 0..1 -> (B,), 0 at the best."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722], device=images.device).view(1, 3, 1, 1)
    brightness = (images.float() * weights).sum(1).mean((1, 2))
    return 0.05 - (((brightness - target) / unit) ** 2 + 0.05**2).sqrt()


class Seen:
    """The pictures of each epoch, and when they were there."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.drawn = given, 0
        self.pictures: list[np.ndarray] = []
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def prompt(self) -> tuple[str, dict[str, Any]]:
        prompts = self.given["prompts"]
        self.drawn += 1
        return prompts[(self.drawn - 1) // self.given["group_size"] % len(prompts)], {}

    def reward(self, images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        self.pictures.append((images.detach().movedim(1, -1).clamp(0, 1) * 255).round().byte().cpu().numpy())
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())
        return reward_of(images, self.given["target"], self.given["unit"]), {}


def main() -> None:
    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    weights, out, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    seen, at_once = Seen(given), given["at_once"]
    batches = given["pictures"] // at_once
    PartialState(cpu=True)  # TRL's pipeline writes to accelerate's log, which wants it
    with tempfile.TemporaryDirectory() as folder:
        config = DDPOConfig(
            seed=given["seed"], num_epochs=given["epochs"], mixed_precision="no", sample_num_steps=given["steps"],
            sample_guidance_scale=given["cfg"], sample_batch_size=at_once, sample_num_batches_per_epoch=batches,
            train_batch_size=at_once, train_learning_rate=given["learning_rate"], save_freq=10**6,
            accelerator_kwargs={"cpu": True}, project_kwargs={"project_dir": folder},
        )  # fmt: skip
        pipeline = DefaultDDPOStableDiffusionPipeline(weights, use_lora=True)
        began = (time.process_time(), time.perf_counter())
        DDPOTrainer(config, seen.reward, seen.prompt, pipeline).train()
        ended = (time.process_time(), time.perf_counter())
    cpu, wall = ([*times[::batches], end] for times, end in zip((seen.cpu, seen.wall), ended, strict=True))
    pictures = np.concatenate(seen.pictures).reshape(given["epochs"], given["pictures"], *seen.pictures[0].shape[1:])
    np.savez_compressed(out, pictures=pictures, cpu=np.array(cpu) - began[0], wall=np.array(wall) - began[1])


if __name__ == "__main__":
    main()
