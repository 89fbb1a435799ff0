"""What words, marks and references change, on the demo model, as the independent judge sees it.

    python bench/refine.py words|regions|references|rounds [--pictures 200] [--report report.json]

Needs ComfyUI (COMFYUI_PATH). Every figure stands with its 95 % interval: Wilson's for shares of pictures, a mean over
pictures for what is a share of each, paired for differences.

words: for each of ten wishes, fresh prompts that leave the wished property open, each picture from the same seed
without and with the wish. `right`: a measured property (light, size) moved the right way, a named one is there; of
watermarks, those pictures that had one plain. `kept`: of the other words of the prompt that were true plain, those that
still are.

regions: drawn pictures with a watermark in a corner, or with another object than the prompt says, marked by the box
around it; one round of four candidates. `gone`: the judge sees no watermark, or the prompted shape and colour, in the
first candidate; in the one that a person picks, who takes a right one where there is one. `seam`: how well the gradient
across the edge of the mask tells the picked one from the picture drawn as it should be, by the area under the curve; .5
is not at all.

references: 4 pictures with the property and 4 without, picked from other prompts' plain pictures; how often it is
there, without and with them.

rounds: ten rounds on each of ten pictures; what changed outside of the masks, and the tree after the store is opened
again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "demo"))
import pack  # noqa: E402, F401

sys.path.remove(str(ROOT / "demo"))

from feedback_loop import start  # noqa: E402
from feedback_loop.demo import judge as judging  # noqa: E402
from feedback_loop.demo import world  # noqa: E402
from feedback_loop.feedback import evaluation  # noqa: E402

STEPS, CFG, SAMPLER, SCHEDULER = 20, 2.0, "euler", "sgm_uniform"
BATCH = 50
CANDIDATES = 4


@dataclass(frozen=True)
class Wish:
    comment: str
    attribute: str
    word: str


WISHES = (
    Wish("make the background brighter", "light", "bright"),
    Wish("darker background", "light", "dark"),
    Wish("larger", "size", "large"),
    Wish("make it smaller", "size", "small"),
    Wish("plain background please", "texture", "plain"),
    Wish("busy background", "texture", "busy"),
    Wish("red", "colour", "red"),
    Wish("make it blue", "colour", "blue"),
    Wish("on the left", "place", "left"),
    Wish("no watermark", "watermark", "none"),
)
REFERENCES = (("light", "bright"), ("texture", "busy"), ("size", "large"), ("colour", "red"))


@dataclass(frozen=True)
class Prompt:
    text: str
    words: dict[str, str]
    seed: int


class Demo:
    """The demo model in this process, and its judge."""

    def __init__(self) -> None:
        from feedback_loop.nodes.demo import load_demo_model

        with torch.inference_mode():
            self.model, self.clip, self.vae, _ = load_demo_model()
        self.judge = judging.load()

    def encode(self, text: str) -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def make(self, positives: Sequence[Any], negatives: Any, seeds: Sequence[int], model: Any = None) -> torch.Tensor:
        """(N, 3, 64, 64) in 0..1."""
        from feedback_loop.nodes.sampling import rollout

        with torch.inference_mode():
            made = rollout(
                model or self.model,
                positives,
                negatives,
                self.vae,
                seeds,
                STEPS,
                CFG,
                SAMPLER,
                SCHEDULER,
                64,
                64,
                BATCH,
            )
        return made.images.clone()

    def look(self, images: torch.Tensor) -> judging.Truth:
        return judging.look(self.judge, images)


def prompts(count: int, seed: int, leave_open: tuple[str, ...] = ()) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    made: list[Prompt] = []
    for _ in range(count):
        text, told = world.prompt(rng, leave_open)
        made.append(Prompt(text, told, int(rng.integers(2**48))))
    return made


def share(hits: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in evaluation.wilson(float(hits.sum()), len(hits))]


def mean(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in evaluation.mean_interval(values)]


# Words


def words(demo: Demo, count: int) -> dict[str, Any]:
    return {wish.comment: one_wish(demo, wish, count, place) for place, wish in enumerate(WISHES)}


def one_wish(demo: Demo, wish: Wish, count: int, seed: int) -> dict[str, Any]:
    from feedback_loop.nodes.text import FeedbackTextConditioning

    asked = prompts(count, 100 + seed, (wish.attribute,))
    plain_conds, empty, seeds = [demo.encode(p.text) for p in asked], demo.encode(""), [p.seed for p in asked]
    plain = demo.look(demo.make(plain_conds, empty, seeds))
    with torch.inference_mode():
        said = [
            FeedbackTextConditioning.execute(cond, demo.clip, wish.comment, 1.0, "everywhere", prompt=p.text).args
            for cond, p in zip(plain_conds, asked, strict=True)
        ]
    after = demo.look(demo.make([one[0] for one in said], said[0][1], seeds))
    right = moved_right(wish, plain, after)
    return report(
        {"right": share(right), "kept": mean(kept(asked, plain, after, wish.attribute)), "n": len(right)}, wish
    )


def moved_right(wish: Wish, plain: judging.Truth, after: judging.Truth) -> np.ndarray:
    if wish.attribute == "watermark":
        return ~after.marked()[plain.marked()]
    measured = {"light": "light", "size": "radius"}.get(wish.attribute)
    if measured is None:
        return after.holds(wish.attribute, wish.word)
    change = getattr(after, measured) - getattr(plain, measured)
    return change > 0 if wish.word in ("bright", "large") else change < 0


def kept(asked: Sequence[Prompt], plain: judging.Truth, after: judging.Truth, but: str) -> np.ndarray:
    """Of each picture's other words that were true, the share that is still true; pictures without any are left out."""
    shares = []
    for i, prompt in enumerate(asked):
        held = [(a, w) for a, w in prompt.words.items() if a != but and plain.holds(a, w)[i]]
        if held:
            shares.append(np.mean([after.holds(a, w)[i] for a, w in held]))
    return np.array(shares)


def report(row: dict[str, Any], what: Any) -> dict[str, Any]:
    print(f"{what}: {row}", flush=True)
    return row


# Regions


def regions(demo: Demo, count: int) -> dict[str, Any]:
    half = count // 2
    results = {
        "watermark": refined(demo, [watermarked(i) for i in range(half)], "no watermark"),
        "wrong object": refined(demo, [wrong_object(i) for i in range(count - half)], ""),
    }
    return {name: report(row, name) for name, row in results.items()}


@dataclass(frozen=True)
class Marked:
    """A drawn picture, the same one as it should be, the box around what is wrong, and what the prompt says."""

    picture: torch.Tensor
    clean: torch.Tensor
    mask: torch.Tensor
    text: str
    words: dict[str, str]


def watermarked(seed: int) -> Marked:
    from dataclasses import replace

    rng = np.random.default_rng((31, seed))
    scene = replace(world.sample_scene(rng, 0.0), watermark="corner", watermark_seed=int(rng.integers(2**31)))
    clean = world.without_watermark(scene)
    told = world.attributes(clean)
    return marked(scene, clean, world.phrase(told, clean, rng), {"watermark": "none"})


def wrong_object(seed: int) -> Marked:
    """A circle where the prompt says star, or the like, in another colour too."""
    from dataclasses import replace

    rng = np.random.default_rng((37, seed))
    right = replace(world.sample_scene(rng, 0.0), count=1)
    others = [
        [one for one in every if one != own]
        for every, own in ((world.SHAPES, right.shape), (world.COLOURS, right.colour))
    ]
    wrong = replace(right, shape=str(rng.choice(others[0])), colour=str(rng.choice(others[1])))
    told = world.attributes(right)
    nothing = replace(wrong, radius=1e-6)
    found_ = marked(wrong, nothing, world.phrase(told, right, rng), {"shape": right.shape, "colour": right.colour})
    return replace(found_, clean=drawn(right))


def drawn(scene: world.Scene) -> torch.Tensor:
    """(64, 64, 3) in 0..1."""
    return torch.from_numpy(world.draw(scene).copy()).float() / 255


def marked(scene: world.Scene, without: world.Scene, text: str, words_: dict[str, str]) -> Marked:
    """The box of all pixels that differ, as a person would draw it: a pixel or two wider on every side."""
    from feedback_loop.guidance.regions import grown

    picture, clean = drawn(scene), drawn(without)
    where = ((picture - clean).abs().amax(-1) > 0.02).nonzero()
    (top, left), (bottom, right) = where.min(0).values.tolist(), where.max(0).values.tolist()
    mask = torch.zeros(world.SIZE, world.SIZE)
    mask[top : bottom + 1, left : right + 1] = 1
    return Marked(picture, clean, (grown(mask[None], 4)[0] > 0).float(), text, words_)


def refined(demo: Demo, marks: Sequence[Marked], comment: str) -> dict[str, Any]:
    made = torch.stack([refine(demo, one, comment, seed=1000 * i) for i, one in enumerate(marks)])
    truth = demo.look(made.flatten(0, 1).movedim(-1, 1))
    right = as_it_should_be(truth, [one for one in marks for _ in range(CANDIDATES)]).reshape(-1, CANDIDATES)
    picked = made[torch.arange(len(marks)), torch.from_numpy(right.argmax(1))]
    outside = [one.mask == 0 for one in marks]
    same = [
        torch.equal(m[:, o], one.picture[o].expand(CANDIDATES, -1, -1))
        for m, o, one in zip(made, outside, marks, strict=True)
    ]
    return {
        "gone in the first candidate": share(right[:, 0]),
        "gone in the picked one": share(right.max(1)),
        "bit-equal outside": share(np.array(same)),
        "seam": seam_shows(picked.movedim(-1, 1), marks),
        "n": len(marks),
    }


def as_it_should_be(truth: judging.Truth, marks: Sequence[Marked]) -> np.ndarray:
    if "watermark" in marks[0].words:
        return ~truth.marked()
    return np.array([all(truth.holds(a, w)[i] for a, w in one.words.items()) for i, one in enumerate(marks)])


def refine(demo: Demo, one: Marked, comment: str, seed: int, **more: Any) -> torch.Tensor:
    """The candidates of one round, (N, 64, 64, 3), by the node's defaults."""
    from feedback_loop.nodes.refine import FeedbackRefineRegion

    given = {
        "model": demo.model, "positive": demo.encode(one.text), "negative": demo.encode(""), "vae": demo.vae,
        "seed": seed, "steps": STEPS, "cfg": CFG, "sampler_name": SAMPLER, "scheduler": SCHEDULER, "denoise": 1.0,
        "candidates": CANDIDATES, "clip": demo.clip, "comment": comment, "collection": "", "prompt": one.text,
    }  # fmt: skip
    with torch.inference_mode():
        every = FeedbackRefineRegion.execute(images=one.picture[None], mask=one.mask[None], **(given | more)).args[1]
    return every.clone()


def seam_shows(images: torch.Tensor, marks: Sequence[Marked]) -> float:
    """Area under the curve of telling a result from the clean picture by the gradient across the edge of the mask."""
    from feedback_loop.guidance.regions import seam

    pairs = zip(images, marks, strict=True)
    made, clean = zip(*[(seam(i, m.mask)[0], seam(m.clean.movedim(-1, 0), m.mask)[0]) for i, m in pairs], strict=True)
    left, right = np.array(made)[:, None], np.array(clean)[None]
    return round(float((left > right).mean() + 0.5 * (left == right).mean()), 4)


# References


def references(demo: Demo, count: int) -> dict[str, Any]:
    return {f"{a}: {w}": report(one_reference(demo, a, w, count), w) for a, w in REFERENCES}


def one_reference(demo: Demo, attribute: str, word: str, count: int) -> dict[str, Any]:
    from feedback_loop.nodes.reference import FeedbackReferenceGuidance

    liked, disliked = examples(demo, attribute, word)
    asked = prompts(count, 200, (attribute,))
    conds, empty, seeds = [demo.encode(p.text) for p in asked], demo.encode(""), [p.seed for p in asked]
    with torch.inference_mode():
        looking = FeedbackReferenceGuidance.execute(
            demo.model, demo.vae, *REFERENCE_SETTINGS, liked=liked, disliked=disliked
        ).args[0]
    plain, after = (demo.look(demo.make(conds, empty, seeds, model)) for model in (demo.model, looking))
    before, then = (truth.holds(attribute, word).astype(float) for truth in (plain, after))
    rise = [round(float(x), 4) for x in evaluation.paired_difference(before, then)]
    return {
        "plain": share(before),
        "with": share(then),
        "rise": rise,
        "kept": mean(kept(asked, plain, after, attribute)),
    }


REFERENCE_SETTINGS = (0.8, 0.0, 0.6)
"""strength, start_percent, end_percent: the node's defaults."""


def examples(demo: Demo, attribute: str, word: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Four plain pictures (4, 64, 64, 3) with the property and four without, of prompts that leave it open."""
    asked = prompts(60, 300, (attribute,))
    images = demo.make([demo.encode(p.text) for p in asked], demo.encode(""), [p.seed for p in asked])
    has = torch.from_numpy(demo.look(images).holds(attribute, word))
    return images[has][:4].movedim(1, -1), images[~has][:4].movedim(1, -1)


# Rounds


def rounds(demo: Demo, count: int) -> dict[str, Any]:
    from feedback_loop.feedback import media, refinements
    from feedback_loop.nodes import compat
    from feedback_loop.nodes.recording import pictures_of

    equal, last = [], []
    for number in range(max(1, min(count, 10))):
        one = watermarked(1000 + number)
        image = one.picture
        for round_ in range(10):
            now = Marked(image, one.clean, one.mask, one.text, one.words)
            made = refine(demo, now, "no watermark", seed=round_, collection="rounds", candidates=1)[0]
            [id_] = found(compat.store(), media.pixel_hash(pictures_of(made[None])[0]))
            image = torch.tensor(compat.store().image_pixels(id_)).float() / 255
        outside = one.mask == 0
        equal.append(torch.equal((image[outside] * 255).round(), (one.picture[outside] * 255).round()))
        last.append(id_)
    compat.store().close()
    compat._open_store.cache_clear()  # as a restart of the server does
    again = compat.store()
    families = [again.ask(lambda c, id_=id_: refinements.family(c, id_)) for id_ in last]
    return report(
        {"bit-equal outside": share(np.array(equal)), "rounds of each": [len(f.rounds) for f in families]}, "ten"
    )


def found(kept_: Any, pixel_hash: str) -> list[str]:
    from feedback_loop.feedback import refinements

    return kept_.ask(lambda c: refinements.with_pixels(c, pixel_hash, "rounds"))[:1]


PARTS: dict[str, Callable[[Demo, int], dict[str, Any]]] = {
    "words": words,
    "regions": regions,
    "references": references,
    "rounds": rounds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    comfyui = start.find_comfyui(ROOT)
    if comfyui is None:
        parser.error("no ComfyUI found: set COMFYUI_PATH")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args

    with tempfile.TemporaryDirectory() as base:
        comfy.cli_args.args.cpu, comfy.cli_args.args.base_directory = True, base
        demo = Demo()
        results = {part: PARTS[part](demo, asked.pictures) for part in asked.parts}
    if asked.report is not None:
        before = json.loads(asked.report.read_text()) if asked.report.exists() else {}
        asked.report.write_text(json.dumps(before | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
