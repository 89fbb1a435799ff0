"""How well tastes that are learned from 200 stars each rank fresh pictures, on the demo model.

    python bench/taste.py [--sets 5] [--fresh 120] [--report report.json]

Needs ComfyUI (COMFYUI_PATH). Each set is 4 pictures of each of 50 prompts of its own, rated by the scripted rater; all
are tried on the same fresh pictures, 4 of each of --fresh prompts. `accuracy` is the chance that the taste ranks a pair
as one noisy answer of the rater does, averaged over all pairs, so that neither answers nor pairs are drawn. `halfway`
lies between a coin and the most that any model can reach, which follows from how often the rater agrees with himself.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import all_on_cpu  # noqa: F401  (before ComfyUI)
import comfy.sample
import numpy as np
import torch
from guidance_ways import BATCH, SIZE, Bench, sampled

from feedback_loop.demo import judge as judging
from feedback_loop.demo import loop, measure, rater
from feedback_loop.feedback.rewards.base import Encoder, Reward
from feedback_loop.nodes import learning, sampling
from feedback_loop.nodes.encoder import encoder_from


@dataclass(frozen=True)
class Pictures:
    """texts: the prompt of each; utility: (n,) the rater's true taste; features: (n, F) of the image encoder."""

    texts: list[str]
    utility: np.ndarray
    features: np.ndarray


def made(bench: Bench, encoder: Encoder, prompts: list[measure.Prompt], per_prompt: int = loop.PER_PROMPT) -> Pictures:
    """As the demo makes them: the pictures of a prompt are one batch of one seed."""
    each = [prompt for prompt in prompts for _ in range(per_prompt)]
    empty = torch.zeros(per_prompt, 4, SIZE // 8, SIZE // 8)
    noise = torch.cat([comfy.sample.prepare_noise(empty, prompt.seed) for prompt in prompts])
    parts = [(each[i : i + BATCH], noise[i : i + BATCH]) for i in range(0, len(each), BATCH)]
    latents = torch.cat([sampled(bench, some, bench.model, noise=start).clone() for some, start in parts])
    images = sampling.decode(bench.vae, latents).clone()
    utility = rater.utility(judging.look(bench.judge, images), [prompt.words for prompt in each])
    pixels = (images.movedim(1, -1) * 255).byte().numpy()
    return Pictures([prompt.text for prompt in each], utility, np.stack(learning.features(encoder, pixels)))


def fitted(encoder: Encoder, pictures: Pictures, seed: int) -> Reward:
    """The taste that is learned from one star rating of each picture."""
    stars = rater.stars(pictures.utility, np.random.default_rng(seed))
    return rater.taste_from(encoder, pictures.texts, stars, pictures.features)


def ranked(taste: Reward, fresh: Pictures) -> float:
    """The chance that the taste ranks a pair as one noisy answer of the rater, over all pairs."""
    features = torch.as_tensor(fresh.features).float()
    scores = taste.score(torch.empty(0), None, lambda encoder: features).numpy()
    left, right = np.triu_indices(len(scores), 1)
    prefers = preferred(fresh.utility)
    return float(np.where(scores[left] > scores[right], prefers, 1 - prefers).mean())


def preferred(utility: np.ndarray) -> np.ndarray:
    """Of each pair, the chance that the rater prefers its left one: both utilities carry NOISE."""
    left, right = np.triu_indices(len(utility), 1)
    return np.array([0.5 * (1 + math.erf(d / (2 * rater.NOISE))) for d in utility[left] - utility[right]])


def halfway(fresh: Pictures) -> float:
    left = preferred(fresh.utility)
    return (0.5 + measure.bound(float((left**2 + (1 - left) ** 2).mean()))) / 2


def measured(sets: int, fresh_prompts: int) -> dict[str, Any]:
    bench = Bench.of_demo()
    encoder = encoder_from(bench.vision)
    fresh = made(bench, encoder, loop.prompts(fresh_prompts, seed=4))
    accuracy: list[float] = []
    for one in range(sets):
        rated = made(bench, encoder, loop.prompts(loop.RATED_PROMPTS, seed=5 + one))
        accuracy.append(round(ranked(fitted(encoder, rated, seed=one), fresh), 4))
        print(f"set {one + 1}: {accuracy[-1]:.1%}", flush=True)
    found = {"accuracy": accuracy, "mean": round(float(np.mean(accuracy)), 4), "halfway": round(halfway(fresh), 4)}
    return found | {"pictures": len(fresh.texts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--fresh", type=int, default=120)
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = measured(asked.sets, asked.fresh)
    print(json.dumps(found))
    if asked.report:
        asked.report.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
