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
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from refine_demo import ROOT, Demo, Report, kept, mean, prompts, share
from refine_regions import regions, rounds

from feedback_loop import start
from feedback_loop.demo import judge as judging
from feedback_loop.feedback import evaluation


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


# Words


def words(demo: Demo, report: Report) -> None:
    for place, wish in enumerate(WISHES):
        report.row("words", wish.comment, partial(one_wish, demo, wish, report.pictures, place))


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
    return {"right": share(right), "kept": mean(kept(asked, plain, after, wish.attribute)), "n": len(right)}


def moved_right(wish: Wish, plain: judging.Truth, after: judging.Truth) -> np.ndarray:
    if wish.attribute == "watermark":
        return ~after.marked()[plain.marked()]
    measured = {"light": "light", "size": "radius"}.get(wish.attribute)
    if measured is None:
        return after.holds(wish.attribute, wish.word)
    change = getattr(after, measured) - getattr(plain, measured)
    return change > 0 if wish.word in ("bright", "large") else change < 0


# References


def references(demo: Demo, report: Report) -> None:
    for attribute, word in REFERENCES:
        name = f"{attribute}: {word}"
        report.row("references", name, partial(one_reference, demo, attribute, word, report.pictures))


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


PARTS: dict[str, Callable[[Demo, Report], None]] = {
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
    report = Report(asked.report, asked.pictures)
    comfyui = start.find_comfyui(ROOT)
    if comfyui is None:
        parser.error("no ComfyUI found: set COMFYUI_PATH")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args

    with tempfile.TemporaryDirectory() as base:
        comfy.cli_args.args.cpu, comfy.cli_args.args.base_directory = True, base
        demo = Demo()
        for part in asked.parts:
            PARTS[part](demo, report)


if __name__ == "__main__":
    main()
