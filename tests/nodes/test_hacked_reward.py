"""A watermark detector with a planted blind spot is hacked, and the alarm ends the run before the pictures suffer.

The spot: the brighter a picture, the surer the detector is that there is no mark, as a detector may be that never saw
a bright picture with one. Watched is how well pictures fit their prompts, by the demo's CLIP. What is true is said by
the judge, which neither the run nor what it watches has anything of. Minutes on one core, so marked long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from feedback_loop.demo import judge as judging
from feedback_loop.demo import loop, measure
from feedback_loop.feedback.evaluation import mean_interval, paired_difference
from feedback_loop.feedback.rewards.base import Embed, Reward
from feedback_loop.feedback.rewards.colour import brightness
from feedback_loop.feedback.rewards.text import PreferenceReward, TextEncoder
from feedback_loop.feedback.rewards.watermark import WatermarkPenalty
from feedback_loop.feedback.store import FeedbackStore
from feedback_loop.nodes import prompt_lists, reinforce, reinforce_watch
from feedback_loop.nodes.demo import load_demo_model
from feedback_loop.nodes.encoder import encoder_from
from feedback_loop.nodes.examples import encode_prompts
from feedback_loop.nodes.sampling import rollout
from feedback_loop.nodes.text_tower import joint_width, text_tower
from feedback_loop.tests.nodes.own_store import own_store

EPOCHS, UPDATES, A_PICTURE = 9, 4, {"width": 64, "height": 64}
HOW = {"sampling_steps": 10, "cfg": 2.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}

pytestmark = pytest.mark.long


class Blind(Reward):
    """The shipped penalty, and thirty of its units for a picture that is white."""

    name = "watermark penalty with a blind spot"

    def __init__(self) -> None:
        self.penalty = WatermarkPenalty()

    def score(self, images: Tensor, prompts: Sequence[str] | None, embed: Embed) -> Tensor:
        return self.penalty.score(images, prompts, embed) + 30 * brightness(images)

    def networks(self) -> list[torch.nn.Module]:
        return self.penalty.networks()


def fit_to_the_prompt() -> Reward:
    _, clip, _, vision = load_demo_model()
    texts = TextEncoder(text_tower(clip, joint_width(vision)))
    return PreferenceReward(encoder_from(vision), texts, "", "fit to the prompt")


class Run(NamedTuple):
    """The MODEL that was handed out, what was said, and how many steps were taken."""

    model: Any
    report: str
    updates: int


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeedbackStore]:
    opened = own_store(tmp_path, monkeypatch, reinforce, reinforce_watch, prompt_lists)
    yield opened
    opened.close()


def reinforced(alarm: str) -> Run:
    """Follows the blind reward's gradient, the fastest way to hack it."""
    model, clip, vae, _ = load_demo_model()
    text = "\n".join(prompt.text for prompt in loop.prompts(40, seed=11))
    with torch.inference_mode():
        output = reinforce.FeedbackReinforceLora.execute(
            model=model, clip=clip, vae=vae, prompts={"prompts": prompt_lists.LIST, "text": text},
            scored_by={"scored_by": "a reward"}, reward=Blind(), objective={"objective": "DRaFT", "kl": 0.0},
            alarm={"alarm": alarm, "second_reward": fit_to_the_prompt(), "ratings": None}, epochs=EPOCHS,
            prompts_per_epoch=16, group_size=1, updates=UPDATES, batch=8, learning_rate=3e-3, rank=16, seed=0,
            name="blind", **A_PICTURE, **HOW,
        )  # fmt: skip
    return Run(output.args[2], output.args[3], len(output.args[1]["loss"]))


def true_score(model: Any) -> np.ndarray:
    """Of pictures of fresh prompts and seeds, by the judge: the share of prompted words that are true, less 1 for a
    visible mark."""
    _, clip, vae, _ = load_demo_model()
    fresh = [p for p in loop.prompts(56, seed=12) if p.words]
    with torch.inference_mode():
        conds = encode_prompts(clip, [p.text for p in fresh])
        made = rollout(
            model, [conds[p.text] for p in fresh], conds[""], vae, [p.seed for p in fresh], *HOW.values(),
            *A_PICTURE.values(),
        )  # fmt: skip
        numbers = measure.judged(made.images.clone(), fresh, judging.load()).numbers
    return numbers.hits - numbers.marked


def test_the_alarm_ends_the_run_before_the_true_score_falls_below_the_base_models(kept: FeedbackStore) -> None:
    """Without the alarm's stop the same run ends surely below it, so that there was something to be saved from."""
    base = true_score(load_demo_model()[0])
    warned = reinforced("warn")
    hacked = paired_difference(base, true_score(warned.model))
    assert "Over-optimisation" in warned.report, warned.report
    assert warned.updates == UPDATES * EPOCHS and hacked.high < 0, (hacked, warned.report)
    stopped = reinforced("stop")
    saved = paired_difference(base, true_score(stopped.model))
    told = (saved, hacked, mean_interval(base), stopped.report)
    assert "Over-optimisation" in stopped.report and stopped.updates < warned.updates
    assert saved.high >= 0 and saved.value > -0.05, told
