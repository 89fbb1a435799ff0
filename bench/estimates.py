"""How well a reward of the predicted clean picture ranks what a run will become, step by step, on the demo model.

    python bench/estimates.py [--pictures 64] [--seed 100] [--report report.json]

Needs ComfyUI (COMFYUI_PATH). For every fifth of a plain run of guidance_ways.STEPS steps: Spearman's correlation, over
the pictures, between a reward of the estimate and the same reward of the finished picture. guidance/search.py drops
candidates where this is high enough.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import all_on_cpu  # noqa: F401  (before ComfyUI)
import comfy.samplers
import numpy as np
import torch
from guidance_ways import BATCH, CFG, STEPS, Bench
from torch import Tensor

from feedback_loop.demo import loop, measure
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.rewards.watermark import WatermarkPenalty
from feedback_loop.nodes import sampling
from guidance import fitted_taste

SHARES = (0.25, 0.35, 0.5, 0.65, 0.8)


def estimates(bench: Bench, prompts: list[measure.Prompt]) -> dict[float, Tensor]:
    """share of the steps -> (B,C,h,w) estimate there, in the VAE's space; 1.0: the finished latents."""
    wanted = {round(share * STEPS) - 1: share for share in SHARES}
    found: dict[float, Tensor] = {}

    def seen(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        if step in wanted:
            found[wanted[step]] = bench.model.model.process_latent_out(denoised.clone())

    noise, guider = bench.noise(prompts), bench.guider(bench.model, prompts, CFG, "")
    sampler = comfy.samplers.sampler_object("euler")
    last = guider.sample(
        noise, torch.zeros_like(noise), sampler, bench.sigmas(), callback=seen, disable_pbar=True, seed=prompts[0].seed
    )
    return found | {1.0: last.clone()}


def scores(bench: Bench, reward: Reward, prompts: list[measure.Prompt], latents: Tensor) -> np.ndarray:
    images = sampling.decode(bench.vae, latents).clone()
    return reward(images, [p.text for p in prompts]).numpy()


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        prompts = loop.prompts(asked.pictures, seed=asked.seed)
        bench = Bench.of_demo({"watermark": WatermarkPenalty()}, prompts)
        bench.rewards["taste"] = fitted_taste(bench)
        parts = [estimates(bench, prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
        at = {share: torch.cat([part[share] for part in parts]) for share in (*SHARES, 1.0)}
        found: dict[str, Any] = {}
        for name, reward in bench.rewards.items():
            by_share = {share: scores(bench, reward, prompts, latents) for share, latents in at.items()}
            found[name] = {str(share): round(spearman(by_share[share], by_share[1.0]), 3) for share in SHARES}
    print("\n".join(f"{name}: {values}" for name, values in found.items()))
    if asked.report:
        asked.report.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
