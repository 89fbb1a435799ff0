"""On the demo model: true ratings and a true reward give a gain on fresh noise, shuffled ratings give none.

Minutes on one core, so marked long; what each objective learns in principle is shown on numbers in tests/training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from feedback_loop.feedback.evaluation import paired_difference
from feedback_loop.feedback.records import Generation, Rating
from feedback_loop.feedback.rewards.colour import ColourReward
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import prompt_lists, reinforce, training, training_inputs
from feedback_loop.nodes.demo import load_demo_model
from feedback_loop.nodes.examples import encode_prompts
from feedback_loop.nodes.sampling import rollout
from feedback_loop.tests.nodes.own_store import own_store

PROMPTS = ("red star", "blue square", "two green circles", "yellow triangle", "purple circle", "three red squares")
EACH = 20
HOW = {"sampling_steps": 12, "cfg": 2.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}

pytestmark = pytest.mark.long


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    opened = own_store(tmp_path, monkeypatch, training, reinforce, prompt_lists)
    yield opened
    opened.close()


def drawn(model: Any, first_seed: int, each: int = EACH) -> tuple[Tensor, list[str]]:
    _, clip, vae, _ = load_demo_model()
    prompts = [prompt for prompt in PROMPTS for _ in range(each)]
    with torch.inference_mode():
        conds = encode_prompts(clip, prompts)
        seeds = list(range(first_seed, first_seed + len(prompts)))
        made = rollout(
            model, [conds[p] for p in prompts], conds[""], vae, seeds, 12, 2.0, "euler", "sgm_uniform", 64, 64
        )
    return made.images, prompts


def brightness(images: Tensor) -> Tensor:
    return ColourReward("brightness")(images)


def rate(kept: FeedbackStore, shuffled: bool) -> None:
    """Pictures of the demo model with one to five stars by brightness, in fifths; or the same stars dealt anew."""
    images, prompts = drawn(load_demo_model()[0], first_seed=0)
    order = brightness(images).argsort().argsort()
    stars = 1 + (5 * order // len(order)).numpy()
    if shuffled:
        stars = np.random.default_rng(0).permutation(stars)
    for image, prompt, star in zip(images.movedim(1, -1), prompts, stars.tolist(), strict=True):
        pixels = (image.clamp(0, 1) * 255).round().byte().numpy()
        kept.add_rating(Rating(kept.add_image(pixels, Generation(prompt=prompt), "rated"), star, "scripted"))


def gain(trained: Any) -> tuple[float, float, float]:
    """(gain, low, high) in brightness on fresh noise, in standard deviations of the base model's pictures."""
    before, prompts = drawn(load_demo_model()[0], first_seed=10_000)
    after, _ = drawn(trained, first_seed=10_000)
    a, b = brightness(before), brightness(after)
    value, low, high = paired_difference(a, b)
    spread = float(a.std())
    return value / spread, low / spread, high / spread


def trained_on(kept: FeedbackStore, objective: dict[str, Any]) -> Any:
    model, clip, vae, _ = load_demo_model()
    with torch.inference_mode():
        return training.FeedbackTrainLora.execute(
            model=model, feedback=kept.feedback("rated"), clip=clip, vae=vae, objective=objective,
            pictures={"pictures": training_inputs.ONLY_RATED}, steps=120, learning_rate=1e-3, batch=16, rank=16, seed=0,
            name="gain",
        ).args[2]  # fmt: skip


@pytest.mark.parametrize(
    "objective",
    [{"objective": "SFT", "tau": 0.5}, {"objective": "KTO", "beta": 200.0}, {"objective": "DPO", "beta": 200.0}],
    ids=lambda o: o["objective"],
)
def test_true_ratings_give_a_gain(kept: FeedbackStore, objective: dict[str, Any]) -> None:
    rate(kept, shuffled=False)
    value, low, _ = gain(trained_on(kept, objective | ({"safe": True} if objective["objective"] == "DPO" else {})))
    assert low > 0, value


def test_shuffled_ratings_give_no_gain(kept: FeedbackStore) -> None:
    """The interval of 120 pairs holds 0, or the change is below a fifth of a standard deviation."""
    rate(kept, shuffled=True)
    value, low, high = gain(trained_on(kept, {"objective": "SFT", "tau": 0.5}))
    assert low <= 0 <= high or abs(value) < 0.2


@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "NFT", "beta": 1.0, "kl": 1e-3},
        {"objective": "PPO", "clip": 1e-3, "kl": 1e-3, "eta": 1.0, "window": 2},
        {"objective": "DRaFT", "kl": 1e-3},
    ],
    ids=lambda o: o["objective"],
)
def test_a_reward_raises_itself_online(kept: FeedbackStore, objective: dict[str, Any]) -> None:
    model, clip, vae, _ = load_demo_model()
    with torch.inference_mode():
        output = reinforce.FeedbackReinforceLora.execute(
            model=model, clip=clip, vae=vae, prompts={"prompts": prompt_lists.LIST, "text": "\n".join(PROMPTS)},
            scored_by={"scored_by": "a reward", "reward": ColourReward("brightness")}, objective=objective, epochs=8,
            prompts_per_epoch=6, group_size=4, updates=4, batch=12, learning_rate=1e-3, rank=16, seed=0, name="online",
            width=64, height=64, **HOW,
        )  # fmt: skip
    value, low, _ = gain(output.args[2])
    assert low > 0, (value, output.args[3])
