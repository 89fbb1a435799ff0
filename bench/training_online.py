"""Cells of bench/training.py: learning online from a reward whose optimum is known, beside TRL's DDPOTrainer.

    python bench/training_online.py NFT --seed 0 --epochs 16 --folder DIR [--ddpo ENV/bin/python]

The reward is how near a picture's brightness comes to BRIGHT, in standard deviations of ordinary pictures: 0 at the
best. The same prompts, 32 pictures an epoch in groups of four, ten steps at CFG 2 and a learning rate of 1e-3 for all;
`DDPOTrainer, its own rate` learns at TRL's 3e-4. NFT and PPO are FeedbackReinforceLora's, with its defaults but for the
sizes. TRL's trainer runs on its own torch and diffusers, as it stands (bench/training_ddpo.py).

A curve is the mean reward of the pictures of each epoch, so of the model as it was before that epoch's training.
`images_per_cpu_s` is end to end, drawing and training; `diversity` that of the last epoch's pictures over the
first one's, by the judge's features.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import all_on_cpu  # noqa: F401  (before ComfyUI)
import numpy as np
import torch
import training_place as place
from torch import Tensor

from feedback_loop.demo import judge as judging
from feedback_loop.demo import pack
from feedback_loop.feedback import evaluation
from feedback_loop.feedback.rewards.base import Embed, Reward
from feedback_loop.feedback.rewards.colour import PROPERTIES, ColourReward
from feedback_loop.nodes import demo, prompt_lists, reinforce

PROMPTS = ("red star", "blue square", "two green circles", "yellow triangle", "purple circle", "three red squares")
BRIGHT, PICTURES, GROUP, STEPS, CFG, RATE = 0.8, 32, 4, 10, 2.0, 1e-3
OBJECTIVES: dict[str, dict[str, Any]] = {
    "NFT": {"objective": "NFT", "beta": 1.0, "kl": 1e-3},
    "PPO": {"objective": "PPO", "clip": 1e-4, "kl": 0.01, "eta": 1.0, "window": 2},
}
TRL = {"DDPOTrainer": RATE, "DDPOTrainer, its own rate": 3e-4}
TRAINERS = (*OBJECTIVES, *TRL)


class Seen(Reward):
    """A reward that keeps what it was shown, and when."""

    differentiable = False

    def __init__(self, reward: Reward) -> None:
        self.reward, self.name = reward, reward.name
        self.images: list[Tensor] = []
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        self.images.append(images.detach().clone())
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())
        return self.reward.score(images, prompts, embed)


def aim() -> ColourReward:
    return ColourReward("brightness", target=BRIGHT)


def ours(name: str, epochs: int, seed: int) -> dict[str, Any]:
    model, clip, vae, _ = demo.load_demo_model()
    seen, began = Seen(aim()), (time.process_time(), time.perf_counter())
    reinforce.FeedbackReinforceLora.execute(
        model=model, clip=clip, vae=vae, prompts={"prompts": prompt_lists.LIST, "text": "\n".join(PROMPTS)},
        scored_by={"scored_by": "a reward"}, reward=seen, objective=OBJECTIVES[name], epochs=epochs, updates=4,
        prompts_per_epoch=PICTURES // GROUP, group_size=GROUP, batch=16, learning_rate=RATE, rank=16, seed=seed,
        name="online", width=place.SIZE, height=place.SIZE, sampling_steps=STEPS, cfg=CFG, sampler_name="euler",
        scheduler="sgm_uniform",
    )  # fmt: skip
    ended = (time.process_time(), time.perf_counter())
    calls = len(seen.images) // epochs
    images = torch.cat(seen.images).reshape(epochs, PICTURES, 3, place.SIZE, place.SIZE)
    cpu, wall = ([*times[::calls], end] for times, end in zip((seen.cpu, seen.wall), ended, strict=True))
    return {"images": images, "cpu": np.array(cpu) - began[0], "wall": np.array(wall) - began[1]}


def trl(python: Path, rate: float, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    out, unit = folder / "ddpo.npz", PROPERTIES["brightness"][1]
    given = {
        "prompts": PROMPTS, "group_size": GROUP, "pictures": PICTURES, "at_once": 8, "steps": STEPS, "cfg": CFG,
        "epochs": epochs, "learning_rate": rate, "seed": seed, "target": BRIGHT, "unit": unit,
    }  # fmt: skip
    script = Path(__file__).with_name("training_ddpo.py")
    subprocess.run([python, script, pack.ROOT / "demo" / "weights", out, json.dumps(given)], check=True)
    found = np.load(out)
    images = torch.from_numpy(found["pictures"]).float().div(255).movedim(-1, -3)
    return {"images": images, "cpu": found["cpu"], "wall": found["wall"]}


def measured(found: dict[str, Any]) -> dict[str, Any]:
    images: Tensor = found["images"]
    judge, reward = judging.load(), aim()

    def diversity(pictures: Tensor) -> float:
        return evaluation.diversity(torch.from_numpy(judging.features(judge, pictures)))

    curve = [float(reward(epoch).mean()) for epoch in images]
    count, cpu, wall = images.shape[0] * images.shape[1], float(found["cpu"][-1]), float(found["wall"][-1])
    last = float(np.mean(curve[-3:]))
    return {
        "curve": curve,
        "seconds": [float(s) for s in found["cpu"]],
        "images_per_cpu_s": count / cpu,
        "images_per_s": count / wall,
        "first": curve[0],
        "last": last,
        "per_1000_images": (last - curve[0]) / count * 1000,
        "per_cpu_minute": (last - curve[0]) / cpu * 60,
        "diversity": diversity(images[-1]) / diversity(images[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ddpo", type=Path, help="the Python of an environment with training_ddpo_requirements.txt")
    asked = parser.parse_args()
    place.one_thread()
    folder = place.own(asked.folder, asked.trainer, asked.seed)
    place.settle(folder)
    if asked.trainer in OBJECTIVES:
        with torch.inference_mode():
            found = ours(asked.trainer, asked.epochs, asked.seed)
    else:
        found = trl(asked.ddpo, TRL[asked.trainer], asked.epochs, asked.seed, folder)
    with torch.inference_mode():
        place.tell(measured(found))


if __name__ == "__main__":
    main()
