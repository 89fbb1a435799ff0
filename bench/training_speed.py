"""One cell of bench/training.py: how fast and in how much memory a trainer takes its steps on the demo model.

    python bench/training_speed.py "ours, SFT" --batch 4 --seed 0 --folder DIR

All on the same 32 latents with their prompts, rank 16, a step a batch, AdamW. `ours`: what FeedbackTrainLora does, on
ratings, weights averaged; all linear and convolution layers, or the attention layers alone. `TrainLoraNode`: ComfyUI's
own node, executed as it stands: with its defaults, and with what is best for it here (float32, nothing computed twice);
it puts an adapter on every weight and bias. `train_text_to_image_lora`: diffusers' example script is in none of its
packages, so this is its loop written anew from diffusers' and PEFT's public parts with the script's defaults: attention
layers, float32, VAE and text encoder run anew in every step; `on latents`: the same with both done before.

`images_per_cpu_s` is by the CPU time of the one thread, which is the wall time of a machine with nothing else to do;
`peak` is the most memory held while training over what was held before it began, in MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import all_on_cpu  # noqa: F401  (before ComfyUI)
import numpy as np
import torch
import training_place as place
from torch import Tensor

from feedback_loop.demo import pack, world
from feedback_loop.nodes import demo, training
from feedback_loop.nodes.examples import encode_prompts
from feedback_loop.nodes.live import Live
from feedback_loop.nodes.policy import Setup, trainable
from feedback_loop.nodes.training_run import Training
from feedback_loop.training.objectives import Sft
from feedback_loop.training.sources import Example

STEPS, PICTURES, RANK, LR = 13, 32, 16, 1e-3
OURS = {
    "ours, SFT": Setup(),
    "ours, SFT, checkpointing": Setup(checkpointing=True),
    "ours, SFT, attention": Setup(layers="attention"),
}
AS_IT_COMES = {"training_dtype": "bf16", "lora_dtype": "bf16", "gradient_checkpointing": True}
CORE = {
    "TrainLoraNode": AS_IT_COMES,
    "TrainLoraNode, fp32": {"training_dtype": "fp32", "lora_dtype": "fp32", "gradient_checkpointing": False},
}
DIFFUSERS = {"train_text_to_image_lora": False, "train_text_to_image_lora, on latents": True}
TRAINERS = (*OURS, *CORE, *DIFFUSERS)


def material(seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Drawn pictures (N, 3, H, W), their latents as the VAE gives them, and a caption for each."""
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng) for _ in range(PICTURES)]
    images = torch.stack([torch.from_numpy(world.draw(scene).copy()) for scene in scenes])
    images = (images.float() / 255).movedim(-1, 1)
    latents = demo.load_demo_model()[2].encode(images.movedim(1, -1)).clone()
    return images, latents, [world.phrase(world.attributes(scene), scene, rng) for scene in scenes]


def ours(setup: Setup, batch: int, seed: int, latents: Tensor, prompts: list[str]) -> dict[str, float]:
    model, clip, _, _ = demo.load_demo_model()
    conds = encode_prompts(clip, prompts)
    with torch.inference_mode(False):
        inside = model.model.process_latent_in(latents.clone())
    stars = torch.randn(PICTURES, generator=torch.Generator().manual_seed(seed))
    learned = [Example(*row) for row in zip(inside, prompts, Sft(1.0).labels(stars).tolist(), strict=True)]
    numbers = {"steps": STEPS, "learning_rate": LR, "batch": batch}
    peak = place.Peak()
    with place.every_step(STEPS) as clock, trainable(model, RANK, seed, setup) as policy:
        run = Training.begin(policy, "speed", {"seed": seed, "batch": batch}, resume=False)
        training.learn(run, Sft(1.0), learned, conds, numbers, Live("speed", STEPS))
    return clock.images_per_second(batch) | {"peak": peak.megabytes()}


def core(options: dict[str, Any], batch: int, seed: int, latents: Tensor, prompts: list[str]) -> dict[str, float]:
    from comfy_extras.nodes_train import TrainLoraNode

    model, clip, _, _ = demo.load_demo_model()
    conds = encode_prompts(clip, prompts)
    given = {
        "batch_size": batch, "steps": STEPS, "grad_accumulation_steps": 1, "learning_rate": LR, "rank": RANK,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": seed, "quantized_backward": False, "algorithm": "LoRA",
        "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]", "bucket_mode": False,
        "bypass_mode": False,
    } | options  # fmt: skip
    peak = place.Peak()
    with place.every_step(STEPS) as clock:
        TrainLoraNode.execute(
            model=[model], latents=[{"samples": latents}], positive=[conds[p] for p in prompts],
            **{name: [value] for name, value in given.items()},
        )  # fmt: skip
    return clock.images_per_second(batch) | {"peak": peak.megabytes()}


def diffusers(on_latents: bool, batch: int, seed: int, images: Tensor, prompts: list[str]) -> dict[str, float]:
    """Random flips and crops of the script's loader are left out; they cost nothing that could be seen here."""
    from training_diffusers import Loop

    with torch.inference_mode(False):
        trainer = Loop(pack.ROOT / "demo" / "weights", RANK, LR, seed)
        peak, clock = place.Peak(), place.Clock(STEPS)
        for _ in trainer.steps(images.clone(), prompts, batch, STEPS, on_latents):
            clock.tick()
    return clock.images_per_second(batch) | {"peak": peak.megabytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    place.one_thread()
    place.settle(place.own(asked.folder, asked.trainer, asked.batch, asked.seed))
    with torch.inference_mode():  # as ComfyUI runs its nodes
        images, latents, prompts = material(asked.seed)
        torch.manual_seed(asked.seed)
        if asked.trainer in OURS:
            found = ours(OURS[asked.trainer], asked.batch, asked.seed, latents, prompts)
        elif asked.trainer in CORE:
            found = core(CORE[asked.trainer], asked.batch, asked.seed, latents, prompts)
        else:
            found = diffusers(DIFFUSERS[asked.trainer], asked.batch, asked.seed, images, prompts)
    place.tell(found)


if __name__ == "__main__":
    main()
