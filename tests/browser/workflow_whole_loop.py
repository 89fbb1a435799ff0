"""The tour's last workflow: everything at once, each part once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workflow_layout import Group, Node, note
from workflow_plans import (
    COLLECTION,
    COMPARE,
    DRAW,
    FRESH_PROMPTS,
    LEARN,
    RATE,
    REFINED,
    SAID,
    dataset,
    decode,
    demo_model,
    latents,
    prompts,
    sampler,
    taste,
)

LOOP_NOTE = """# The whole loop

Needs some stars from *01 Collect ratings*. Then press **Run** as often as you like:

1. Four pictures are **drawn**, steered by the taste learned from all that you said, away from watermarks, and by the \
words in *Say what to change*.
2. The run **waits** for you: click the best one. *Mark* paints over what is wrong, the comment says what \
you want there.
3. The marked place is **made anew**; everything else stays to the last bit.
4. Give the result **stars**, at once or later. Both your choice and your stars are learned from in the next run.
5. Once 50 new judgements have come, *Train by itself* **trains** a LoRA, and asks you to compare its pictures \
blindly in the sidebar. It is used from then on if it wins.

Each part may be left out: select its nodes and press Ctrl+B."""

TRAINED: dict[str, Any] = {
    "model": "@model.MODEL",
    "feedback": "@feedback.feedback",
    "clip": "@model.CLIP",
    "vae": "@model.VAE",
    "clip_vision": "@model.CLIP_VISION",
    "decided_by": "people",
    "objective": "SFT",
    "steps": 300,
    "learning_rate": 1e-3,
    "prompts": FRESH_PROMPTS,
    "sampling_steps": 20,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "sgm_uniform",
    "width": 64,
    "height": 64,
}


def steering(key: str, model: str, reward: str, strength: float, title: str) -> Node:
    links = {"model": model, "reward": reward, "vae": "@model.VAE"}
    return Node(key, "FeedbackRewardGuidance", {**links, "strength": strength}, title, (400, 480))


def drawing() -> Node:
    made = sampler("sampler", "@clean.MODEL", 31, "Draw", "randomize")
    return replace(made, inputs={**made.inputs, "positive": "@said.positive", "negative": "@said.negative"})


WISH = {**SAID, "comment": "", "earlier": ""}
ANEW = {
    **REFINED,
    "model": "@clean.MODEL",
    "images": "@gate.images",
    "mask": "@gate.mask",
    "comment": "@gate.comment",
    "collection": COLLECTION,
}

LOOP = [
    Group(
        "1 · What to draw",
        [[note("about", LOOP_NOTE, (440, 520))], [demo_model()], *prompts(), [latents(4)]],
        0,
        DRAW,
    ),
    Group("2 · What you said so far", [[dataset()]], 1, RATE),
    Group("3 · A wish for the next run", [[Node("said", "FeedbackTextConditioning", WISH, size=(400, 640))]], 1, RATE),
    Group("4 · Learn your taste", [[taste()], [Node("penalty", "FeedbackWatermarkPenalty")]], 2, LEARN),
    Group("5 · Train by itself", [[Node("trained", "FeedbackAutoTrain", TRAINED, size=(520, 1000))]], 3, LEARN),
    Group(
        "6 · Guide and draw",
        [
            [steering("guided", "@trained.model", "@taste.reward", 0.5, "Towards your taste")],
            [steering("clean", "@guided.MODEL", "@penalty.reward", 1.0, "Away from watermarks")],
            [drawing()],
            [decode("decode", "@sampler.LATENT")],
        ],
        4,
        DRAW,
    ),
    Group(
        "7 · Choose, mark, say",
        [
            [
                Node(
                    "gate",
                    "FeedbackGate",
                    {
                        "images": "@decode.IMAGE",
                        "mode": "choose",
                        "timeout": 0,
                        "without_client": "first",
                        "collection": COLLECTION,
                    },
                    size=(560, 760),
                )
            ]
        ],
        5,
        RATE,
    ),
    Group(
        "8 · Made anew where you marked",
        [[Node("refined", "FeedbackRefineRegion", ANEW, size=(480, 1300))]],
        6,
        COMPARE,
    ),
    Group(
        "9 · Stars",
        [
            [
                Node(
                    "capture",
                    "FeedbackCapture",
                    {"images": "@refined.images", "collection": COLLECTION},
                    "The result",
                    (480, 620),
                )
            ]
        ],
        7,
        RATE,
    ),
]

PLANS = {"09_the_whole_loop": LOOP}
