"""What the workflows of the tour hold: nodes, settings and the words that explain them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workflow_layout import Group, Node, note

DRAW, RATE, LEARN, COMPARE = "#3f789e", "#a1842c", "#4c7a4f", "#7b5ea7"
COLLECTION = "my taste"

# Prompts leave things open on purpose: a taste lives in what a prompt does not say.
PROMPT = "red star, bright background"
FRESH_PROMPTS = "\n".join(
    (
        "blue square",
        "two green circles",
        "yellow triangle, dark background",
        "one purple star on the left",
        "three red squares",
        "large blue circle, busy background",
    )
)


def demo_model() -> Node:
    return Node("model", "FeedbackDemoModel", title="Demo model, or Load Checkpoint")


def prompts() -> list[list[Node]]:
    clip = "@model.CLIP"
    positive = Node("positive", "CLIPTextEncode", {"text": PROMPT, "clip": clip}, "Prompt", (330, 110))
    negative = Node("negative", "CLIPTextEncode", {"text": "", "clip": clip}, "Negative prompt", (330, 90))
    return [[positive], [negative]]


def sampler(key: str, model: str, seed: int, title: str, after: str = "fixed") -> Node:
    settings: dict[str, Any] = {
        "seed": seed,
        "control_after_generate": after,
        "steps": 20,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "sgm_uniform",
        "denoise": 1.0,
    }
    links = {
        "model": model,
        "positive": "@positive.CONDITIONING",
        "negative": "@negative.CONDITIONING",
        "latent_image": "@latent.LATENT",
    }
    return Node(key, "KSampler", {**settings, **links}, title)


def latents(count: int) -> Node:
    size = {"width": 64, "height": 64, "batch_size": count}
    return Node("latent", "EmptyLatentImage", size, "Size and number of pictures")


def decode(key: str, samples: str) -> Node:
    return Node(key, "VAEDecode", {"samples": samples, "vae": "@model.VAE"})


def preview(key: str, images: str, title: str) -> Node:
    return Node(key, "PreviewImage", {"images": images}, title, (420, 420))


def capture(images: str, latent: str, size: tuple[int, int], title: str | None = None) -> Node:
    links = {"images": images, "latent": latent}
    return Node("capture", "FeedbackCapture", {**links, "collection": COLLECTION}, title, size)


def dataset() -> Node:
    return Node("feedback", "FeedbackDataset", {"collection": COLLECTION}, size=(400, 400))


def taste() -> Node:
    links = {"feedback": "@feedback.feedback", "clip_vision": "@model.CLIP_VISION"}
    return Node("taste", "FeedbackTrainReward", links, size=(400, 360))


def guided(reward: str, strength: float = 1.0, **more: str) -> Node:
    links = {"model": "@model.MODEL", "reward": reward, "vae": "@model.VAE", "plain": "@plain_pictures.IMAGE", **more}
    return Node("guided", "FeedbackRewardGuidance", {**links, "strength": strength}, size=(400, 640))


COLLECT_NOTE = """# Collect ratings

Press **Run**, then give the pictures on the right some stars: click, or point at a picture and press **1** to **5**. \
Run again for more. Rate now or later; every star is stored at once.

Change the prompt from time to time and leave things open. *red star* says nothing of its size or place: what you \
like there is what will be learned.

**50 rated pictures** are a start, 200 are good. Then open *02 Learn a taste and guide*."""

OWN_MODEL_NOTE = """**Your own model:** put *Load Checkpoint* in place of the demo model and set your usual size, \
steps and CFG. All else stays."""

COLLECT = [
    Group(
        "1 · What to draw",
        [[note("about", COLLECT_NOTE, (380, 300))], [demo_model()], *prompts()],
        0,
        DRAW,
    ),
    Group(
        "2 · Draw",
        [
            [latents(9)],
            [sampler("sampler", "@model.MODEL", 1, "Draw", "randomize")],
            [decode("decode", "@sampler.LATENT")],
            [note("own", OWN_MODEL_NOTE, (315, 130))],
        ],
        1,
        DRAW,
    ),
    Group("3 · Give stars", [[capture("@decode.IMAGE", "@sampler.LATENT", (640, 820))]], 2, RATE),
]

GUIDE_NOTE = """# Learn a taste and guide by it

Needs the stars from *01 Collect ratings*. **Learn a taste** fits them in seconds and says how often it ranks two \
pictures as you did, on prompts that it has not seen. Half is chance.

**Reward guidance** then nudges every step of the sampler towards what you like. Both samplers have the same seed, so \
the two rows differ by your taste alone. *strength* 0 is off, 1 is a good start.

The guided pictures can be rated too: the next run learns from them as well."""

VISION_NOTE = """**Your own model:** *Load Checkpoint* has no CLIP_VISION. Add *Load CLIP Vision* with a file such as \
CLIP-ViT-H and connect it to *Learn a taste*. Save the taste to use it elsewhere with *Load reward*."""

GUIDE = [
    Group(
        "1 · Learn from your stars",
        [
            [note("about", GUIDE_NOTE, (420, 320))],
            [demo_model()],
            [dataset()],
        ],
        0,
        LEARN,
    ),
    Group(
        "2 · Your taste as a reward",
        [
            [taste()],
            [Node("save", "FeedbackSaveReward", {"reward": "@taste.reward", "name": "my taste"})],
            [guided("@taste.reward")],
            [note("own", VISION_NOTE, (420, 140))],
        ],
        1,
        LEARN,
    ),
    Group("3 · What to draw", [*prompts(), [latents(6)]], 2, DRAW),
    Group("4 · Without your taste", [[sampler("plain", "@model.MODEL", 7, "Draw plainly")]], 3, DRAW),
    Group("5 · With your taste", [[sampler("steered", "@guided.MODEL", 7, "Draw guided")]], 3, COMPARE),
    Group(
        "Plain",
        [[decode("plain_pictures", "@plain.LATENT"), preview("plain_view", "@plain_pictures.IMAGE", "Plain")]],
        4,
        DRAW,
    ),
    Group(
        "Guided: rate them too",
        [
            [
                decode("guided_pictures", "@steered.LATENT"),
                capture("@guided_pictures.IMAGE", "@steered.LATENT", (420, 480)),
            ]
        ],
        4,
        COMPARE,
    ),
]

WATERMARK_NOTE = """# Fewer watermarks

Models learn watermarks from the pictures they were trained on: about a third of what the demo model draws has one.

**Watermark penalty** is a small detector, trained on drawn marks, used as a reward: the surer it sees a mark, the \
lower. **Reward guidance** steers every step away from it. Both samplers have the same seed, so the two rows differ by \
the penalty alone. A second detector, the *auditor*, was trained apart and steers nothing: when it disagrees, the node \
says so.

Rewards add up: *Combine rewards* takes this one and your taste together."""

WATERMARK = [
    Group(
        "1 · What to draw",
        [[note("about", WATERMARK_NOTE, (380, 290))], [demo_model()], *prompts(), [latents(9)]],
        0,
        DRAW,
    ),
    Group(
        "2 · A penalty on watermarks",
        [
            [
                Node("penalty", "FeedbackWatermarkPenalty"),
                Node("auditor", "FeedbackWatermarkPenalty", {"detector": "auditor"}, "A second detector, to audit"),
            ],
            [guided("@penalty.reward", judge="@auditor.reward")],
        ],
        1,
        LEARN,
    ),
    Group("3 · Draw plainly", [[sampler("plain", "@model.MODEL", 12, "Draw plainly")]], 1, DRAW),
    Group("4 · Draw guided", [[sampler("steered", "@guided.MODEL", 12, "Draw guided")]], 1, COMPARE),
    Group(
        "Plain",
        [
            [decode("plain_pictures", "@plain.LATENT"), preview("plain_view", "@plain_pictures.IMAGE", "Plain")],
        ],
        2,
        DRAW,
    ),
    Group(
        "With the penalty",
        [
            [
                decode("guided_pictures", "@steered.LATENT"),
                preview("guided_view", "@guided_pictures.IMAGE", "With the penalty"),
            ],
        ],
        2,
        COMPARE,
    ),
]

LORA_NOTE = """# Train a LoRA from your stars

Guidance steers one run and costs time in each. A LoRA puts the same taste into the weights: a small file that every \
ComfyUI loads with *Load LoRA*.

Needs the stars from *01 Collect ratings*. **Train LoRA from feedback** learns from the pictures you liked, takes some \
minutes, and shows what the LoRA makes by then. It may be cancelled: what was learned so far is kept, and running it \
again goes on there. The file is in *models/loras*.

*objective* says how: SFT from the good pictures, NFT and KTO from good and bad ones, DPO from pairs.

**Compare two models** then draws fresh prompts with and without it, from the same noise, and says who wins. Its judge \
here is the taste learned from your stars; look at the pictures too."""

EVALUATION: dict[str, Any] = {
    "model_a": "@model.MODEL",
    "model_b": "@train.model",
    "clip": "@model.CLIP",
    "vae": "@model.VAE",
    "judge": "@taste.reward",
    "encoder": "@model.CLIP_VISION",
    "prompts": FRESH_PROMPTS,
    "seeds": 4,
    "steps": 20,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "sgm_uniform",
    "width": 64,
    "height": 64,
}

TRAINING: dict[str, Any] = {
    "model": "@model.MODEL",
    "feedback": "@feedback.feedback",
    "clip": "@model.CLIP",
    "vae": "@model.VAE",
    "objective": "SFT",
    "steps": 300,
    "learning_rate": 1e-3,
    "name": "my taste",
    "show": "curves and samples",
    "show.every": 100,
    "show.sampling_steps": 20,
    "show.cfg": 2.0,
    "show.sampler_name": "euler",
    "show.scheduler": "sgm_uniform",
}

LORA = [
    Group("1 · Your stars", [[note("about", LORA_NOTE, (420, 420))], [demo_model()], [dataset()]], 0, LEARN),
    Group("2 · Train", [[Node("train", "FeedbackTrainLora", TRAINING, size=(520, 700))]], 1, LEARN),
    Group(
        "How training goes",
        [[Node("curve", "LossGraphNode", {"loss": "@train.loss", "filename_prefix": "loss"}, "Loss", (420, 340))]],
        2,
        LEARN,
    ),
    Group("A judge: your taste", [[taste()]], 2, LEARN),
    Group("3 · Did it help?", [[Node("compare", "FeedbackEvaluate", EVALUATION, size=(600, 1150))]], 3, COMPARE),
]

WORDS_NOTE = """# Say what to change

Press **Run**: the two rows have the same seed, the second one with what is written in **Say what to change**.

Write what you would change about the pictures, such as *darker background, larger, no watermark*, and run again. For \
the next round, move your comment into *earlier*: there it still counts, half as much each round, and can be edited. \
*strength* 0 is off.

What you do not want (*no*, *less*, *remove*, *too*) is taken off the prompt and put into the negative prompt."""

SAID: dict[str, Any] = {
    "positive": "@positive.CONDITIONING",
    "clip": "@model.CLIP",
    "comment": "on the left, plain background",
    "strength": 1.0,
    "mode": "everywhere",
    "earlier": "larger",
    "negative": "@negative.CONDITIONING",
}


def said_sampler() -> Node:
    made = sampler("steered", "@model.MODEL", 21, "Draw as you said")
    return replace(made, inputs={**made.inputs, "positive": "@said.positive", "negative": "@said.negative"})


WORDS = [
    Group(
        "1 · What to draw",
        [[note("about", WORDS_NOTE, (400, 320))], [demo_model()], *prompts(), [latents(6)]],
        0,
        DRAW,
    ),
    Group("2 · What to change", [[Node("said", "FeedbackTextConditioning", SAID, size=(420, 720))]], 1, RATE),
    Group("3 · As it was", [[sampler("plain", "@model.MODEL", 21, "Draw plainly")]], 2, DRAW),
    Group("4 · As you said", [[said_sampler()]], 2, COMPARE),
    Group(
        "Plain",
        [[decode("plain_pictures", "@plain.LATENT"), preview("plain_view", "@plain_pictures.IMAGE", "Plain")]],
        3,
        DRAW,
    ),
    Group(
        "As you said",
        [
            [
                decode("said_pictures", "@steered.LATENT"),
                preview("said_view", "@said_pictures.IMAGE", "As you said"),
            ]
        ],
        3,
        COMPARE,
    ),
]

REGIONS_NOTE = """# Mark and refine

1. Press **Run**: four pictures are drawn and captured.
2. Open one large in *Capture pictures* (Space), draw a box around what is wrong (a watermark, a bad shape), and write \
at the mark what you want.
3. Press **Run** again: only the marked places are made anew, four times, the cleanest is put in, and everything else \
stays as it was, to the last bit. Each round is recorded.

Pictures in which nothing is marked pass as they are. The refined ones are captured too: mark them again."""

REFINED: dict[str, Any] = {
    "model": "@model.MODEL",
    "positive": "@positive.CONDITIONING",
    "negative": "@negative.CONDITIONING",
    "vae": "@model.VAE",
    "images": "@capture.images",
    "mask": "@mask.mask",
    "seed": 100,
    "control_after_generate": "fixed",
    "steps": 20,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "sgm_uniform",
    "candidates": 4,
    "clip": "@model.CLIP",
    "comment": "@mask.comment",
    "reward": "@penalty.reward",
    "collection": "refined",
}
MARKED = {"images": "@capture.images", "labels": "", "points": "snap", "grow": 4}

REGIONS = [
    Group(
        "1 · What to draw",
        [[note("about", REGIONS_NOTE, (400, 380))], [demo_model()], *prompts(), [latents(4)]],
        0,
        DRAW,
    ),
    Group(
        "2 · Draw",
        [[sampler("sampler", "@model.MODEL", 12, "Draw")], [decode("decode", "@sampler.LATENT")]],
        1,
        DRAW,
    ),
    Group("3 · Mark what is wrong", [[capture("@decode.IMAGE", "@sampler.LATENT", (480, 620))]], 2, RATE),
    Group(
        "4 · What you marked",
        [
            [Node("mask", "FeedbackRegionMask", MARKED, size=(400, 640))],
            [Node("penalty", "FeedbackWatermarkPenalty")],
        ],
        3,
        LEARN,
    ),
    Group("5 · Made anew", [[Node("refined", "FeedbackRefineRegion", REFINED, size=(480, 1300))]], 4, COMPARE),
    Group(
        "6 · Mark again",
        [
            [
                Node(
                    "again",
                    "FeedbackCapture",
                    {"images": "@refined.images", "collection": "refined"},
                    "The refined pictures",
                    (480, 620),
                )
            ]
        ],
        5,
        RATE,
    ),
]

SEARCH_NOTE = """# Search without gradients

Some rewards cannot pull: a count, a label, a person. These nodes only ask them which candidate is better, so **any** \
reward will do.

**Best of N** starts eight pictures and drops the weak ones on the way: five at half of the steps, two more at \
two thirds. That costs 4.8 runs instead of 8. Its *best noise* makes the same picture again, or starts the next search.

**Steer by candidates** keeps several of each picture in one run and lets the promising ones go on.

**Rule while sampling** does something when a picture is not good enough on the way: here it goes four steps back."""


def search_inputs() -> list[list[Node]]:
    noise = Node("noise", "RandomNoise", {"noise_seed": 5, "control_after_generate": "fixed"})
    links = {"positive": "@positive.CONDITIONING", "negative": "@negative.CONDITIONING"}
    guider = Node("guider", "CFGGuider", {"model": "@model.MODEL", **links, "cfg": 2.0})
    sigmas = {"model": "@model.MODEL", "scheduler": "sgm_uniform", "steps": 20, "denoise": 1.0}
    ancestral = Node("ancestral", "KSamplerSelect", {"sampler_name": "euler_ancestral"}, "A sampler that adds noise")
    euler = Node("euler", "KSamplerSelect", {"sampler_name": "euler"})
    return [[noise, guider], [euler, ancestral], [Node("sigmas", "BasicScheduler", sigmas)]]


def custom(key: str, guider: str, sampler: str, title: str) -> Node:
    links = {"noise": "@noise.NOISE", "guider": guider, "sampler": sampler, "sigmas": "@sigmas.SIGMAS"}
    return Node(key, "SamplerCustomAdvanced", {**links, "latent_image": "@latent.LATENT"}, title)


BEST: dict[str, Any] = {
    "noise": "@noise.NOISE",
    "guider": "@guider.GUIDER",
    "sampler": "@euler.SAMPLER",
    "sigmas": "@sigmas.SIGMAS",
    "latent_image": "@latent.LATENT",
    "reward": "@colour.reward",
    "vae": "@model.VAE",
}
STEERED = {"sampler": "@ancestral.SAMPLER", "reward": "@colour.reward", "vae": "@model.VAE"}
RULE: dict[str, Any] = {
    "model": "@model.MODEL",
    "reward": "@penalty.reward",
    "vae": "@model.VAE",
    "compare": "below",
    "threshold": -2.0,
    "action": "step back",
    "amount": 4.0,
    "start_percent": 0.4,
    "end_percent": 0.9,
}

SEARCH = [
    Group(
        "1 · What to draw",
        [[note("about", SEARCH_NOTE, (400, 360))], [demo_model()], *prompts(), [latents(4)]],
        0,
        DRAW,
    ),
    Group("2 · Noise, steps, samplers", search_inputs(), 1, DRAW),
    Group(
        "3 · What is good",
        [
            [Node("colour", "FeedbackColorReward", {"property": "brightness"}, size=(330, 170))],
            [Node("penalty", "FeedbackWatermarkPenalty")],
        ],
        1,
        LEARN,
    ),
    Group(
        "4 · The best of eight starts",
        [
            [
                Node("best", "FeedbackBestOfN", BEST, size=(400, 560)),
                preview("best_view", "@best.image", "Best of eight"),
            ]
        ],
        2,
        COMPARE,
    ),
    Group(
        "5 · Steered by candidates",
        [
            [
                Node("steered", "FeedbackRewardSteering", STEERED, size=(400, 420)),
                custom("steered_run", "@guider.GUIDER", "@steered.SAMPLER", "Draw with candidates"),
            ],
            [
                decode("steered_pictures", "@steered_run.output"),
                preview("steered_view", "@steered_pictures.IMAGE", "Steered"),
            ],
        ],
        3,
        COMPARE,
    ),
    Group(
        "6 · A rule on the way",
        [
            [
                Node("rule", "FeedbackRule", RULE, "No watermark, or four steps back", (400, 360)),
                sampler("ruled", "@rule.MODEL", 5, "Draw by the rule"),
            ],
            [
                decode("ruled_pictures", "@ruled.LATENT"),
                Node(
                    "ruled_view",
                    "FeedbackCapture",
                    {"images": "@ruled_pictures.IMAGE", "latent": "@ruled.LATENT", "collection": "search"},
                    "What the rule did is a tag",
                    (420, 560),
                ),
            ],
        ],
        4,
        COMPARE,
    ),
]

REINFORCE_NOTE = """# Learn from what it draws itself

A LoRA from ratings learns from pictures that are there. Here the model draws, a **reward** scores what it drew, a \
LoRA learns from the scores, and the model draws again as it has become: some minutes on the demo model.

The reward is brightness, so that it works at once. Put *Learn a taste* in its place for your own, or set *scored_by* \
to *people* and rate each round in the sidebar.

A model finds whatever raises the score. So a **second reward** is only looked at: here the watermark penalty. When it \
falls while the first rises, the alarm ends the run."""

REINFORCED: dict[str, Any] = {
    "model": "@model.MODEL",
    "clip": "@model.CLIP",
    "vae": "@model.VAE",
    "prompts": "written here",
    "prompts.text": PROMPT + "\n" + FRESH_PROMPTS,
    "scored_by": "a reward",
    "objective": "NFT",
    "epochs": 12,
    "learning_rate": 1e-3,
    "name": "brighter",
    "sampling_steps": 20,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "sgm_uniform",
    "width": 64,
    "height": 64,
    "alarm": "stop",
    "reward": "@reward.reward",
    "alarm.second_reward": "@watched.reward",
}

JUDGED = {name: value for name, value in EVALUATION.items() if name != "judge"} | {"judge": "@reward.reward"}

REINFORCE = [
    Group("1 · A model", [[note("about", REINFORCE_NOTE, (420, 430))], [demo_model()]], 0, DRAW),
    Group(
        "2 · What is good",
        [
            [Node("reward", "FeedbackColorReward", {"property": "brightness"}, "The reward: brighter", (420, 170))],
            [Node("watched", "FeedbackWatermarkPenalty", {}, "Only looked at: watermarks", (420, 130))],
        ],
        0,
        RATE,
    ),
    Group("3 · Draw, score, learn", [[Node("train", "FeedbackReinforceLora", REINFORCED, size=(560, 900))]], 1, LEARN),
    Group(
        "How training goes",
        [
            [Node("curve", "LossGraphNode", {"loss": "@train.loss", "filename_prefix": "loss"}, "Loss", (420, 340))],
            [Node("told", "PreviewAny", {"source": "@train.report"}, "What happened", (420, 200))],
        ],
        2,
        LEARN,
    ),
    Group("4 · Did it help?", [[Node("compare", "FeedbackEvaluate", JUDGED, size=(600, 1150))]], 3, COMPARE),
]

PLANS: dict[str, list[Group]] = {
    "01_collect_ratings": COLLECT,
    "02_learn_a_taste_and_guide": GUIDE,
    "03_watermark_penalty": WATERMARK,
    "04_train_a_lora": LORA,
    "05_a_wish_in_words": WORDS,
    "06_mark_and_refine": REGIONS,
    "07_search_without_gradients": SEARCH,
    "08_reinforce_online": REINFORCE,
}
