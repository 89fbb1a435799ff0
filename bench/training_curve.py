"""Cells of bench/training.py: what a LoRA from so many ratings gains in the rater's true taste.

    python bench/training_curve.py "SFT, and more" --ratings 200 --seed 0 --fresh 100 --folder DIR

The scripted rater gives noisy stars to pictures of the demo model, four of a prompt; those of 100 ratings are among
those of 200. The LoRA is trained by the nodes themselves, and the judge looks at pictures of other prompts and seeds,
the same with and without it, of the moving average that the node hands out. No trainer sees the judge.

`SFT, and more`: 400 pictures more, scored by the taste learned from the same stars, as the demo does it. `NFT online`:
FeedbackReinforceLora on that learned taste. The others: FeedbackTrainLora on the rated pictures alone.
`gain` is in standard deviations of the plain pictures' true taste, with the paired interval over prompts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import all_on_cpu  # noqa: F401  (before ComfyUI)
import torch
import training_place as place

from feedback_loop.demo import judge as judging
from feedback_loop.demo import loop, measure
from feedback_loop.feedback.rewards.base import Reward
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import demo, learning, prompt_lists, reinforce, training, training_inputs

COLLECTION = "rated"
RATINGS = (50, 100, 200, 500)
MORE, ONLINE = "SFT, and more", "NFT online"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "SFT": {"objective": "SFT", "tau": 0.5},
    "DPO": {"objective": "DPO", "beta": 200.0, "safe": True},
    "KTO": {"objective": "KTO", "beta": 200.0},
    "NFT": {"objective": "NFT", "beta": 1.0, "kl": 1e-3},
    MORE: {"objective": "SFT", "tau": 1.0},
    ONLINE: {"objective": "NFT", "beta": 1.0, "kl": 1e-3},
}
WAYS = tuple(OBJECTIVES)
LENGTH = {"steps": 150, "learning_rate": 1e-3, "rank": 16}
PICTURES = 24  # a step
SCORED = 400
EPOCHS = {"epochs": 10, "prompts_per_epoch": 8, "group_size": 4, "updates": 4, "batch": 12, "sampling_steps": 10}


def taste(kept: FeedbackStore) -> Reward:
    vision = demo.load_demo_model()[3]
    return learning.learn_taste(kept, kept.feedback(COLLECTION), vision, 1.0)[0]


def offline(kept: FeedbackStore, way: str, seed: int) -> Any:
    """The MODEL with its LoRA."""
    model, clip, vae, _ = demo.load_demo_model()
    pictures: dict[str, Any] = {"pictures": training_inputs.ONLY_RATED}
    if way == MORE:
        pictures = {"pictures": training_inputs.MORE, "reward": taste(kept), "count": SCORED} | place.NODE_HOW
    output = training.FeedbackTrainLora.execute(
        model=model, feedback=kept.feedback(COLLECTION), clip=clip, vae=vae, objective=OBJECTIVES[way],
        pictures=pictures, batch=PICTURES // (2 if way == "DPO" else 1), seed=seed, name="curve", **LENGTH,
    )  # fmt: skip
    return output.args[2]


def online(kept: FeedbackStore, prompts: list[str], seed: int) -> Any:
    model, clip, vae, _ = demo.load_demo_model()
    output = reinforce.FeedbackReinforceLora.execute(
        model=model, clip=clip, vae=vae, prompts={"prompts": prompt_lists.LIST, "text": "\n".join(prompts)},
        scored_by={"scored_by": "a reward"}, reward=taste(kept), objective=OBJECTIVES[ONLINE], seed=seed, name="curve",
        learning_rate=1e-3, rank=16, width=place.SIZE, height=place.SIZE, **(place.NODE_HOW | EPOCHS),
    )  # fmt: skip
    return output.args[2]


def plain_row(folder: Path, fresh: list[measure.Prompt], seed: int) -> measure.Row:
    """The model as it is on the fresh prompts; drawn once for all cells of a seed."""
    kept = folder / f"plain-{seed}-{len(fresh)}.pt"
    images = place.once(kept, lambda: place.draw(demo.load_demo_model()[0], fresh))
    return measure.judged(images, fresh, judging.load())


def measured(folder: Path, trained: Any, count: int, seed: int) -> dict[str, Any]:
    fresh = loop.prompts(count, seed=2000 + seed)
    plain = plain_row(folder, fresh, seed)
    found = measure.summary(measure.judged(place.draw(trained, fresh), fresh, judging.load()), plain)
    spread = float(plain.numbers.taste.std(ddof=1))
    base = measure.summary(plain, plain)
    return {
        "gain": found["taste_gain_in_sd_of_plain"],
        "interval": [edge / spread for edge in found["taste_gain_interval"]],
        "without_watermark": found["taste_gain_without_watermark_in_sd_of_plain"],
        "attributes": found["attribute_accuracy"],
        "attributes_of_plain": base["attribute_accuracy"],
        "diversity": found["diversity_ratio"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--ratings", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", type=int, default=100, help="fresh prompts, a picture each")
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    place.one_thread()
    kept = place.settle(place.own(asked.folder, asked.way, asked.ratings, asked.seed))
    with torch.inference_mode():
        drawn = asked.folder / f"rated-{asked.seed}.pt"
        prompts = place.rate(kept, COLLECTION, asked.ratings, asked.seed, drawn, RATINGS[-1])
        began = time.process_time()
        trained = online(kept, prompts, asked.seed) if asked.way == ONLINE else offline(kept, asked.way, asked.seed)
        seconds = time.process_time() - began
        place.tell(measured(asked.folder, trained, asked.fresh, asked.seed) | {"seconds": seconds})


if __name__ == "__main__":
    main()
