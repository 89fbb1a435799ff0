"""What words, marks and references change, on the demo model, as the independent judge sees it.

    python bench/refine.py words|regions|references|rounds [--pictures 200] [--report report.json]

Needs ComfyUI (COMFYUI_PATH). Every figure stands with its 95 % interval: Wilson's for shares of pictures, a mean over
pictures for what is a share of each, paired for differences.

words: for each of ten wishes, and two more for something to go away, prompts that leave the wished property open, each
picture from the same seed without and with the wish. `right`: a measured property (light, size) moved the right way, a
named one is there; of what is to go away, those pictures that had it plain. `kept`: of the other words of the prompt
that were true plain, those that still are.

regions: drawn pictures with a watermark in a corner, or with another object than the prompt says, marked by the box
around it; one round of four candidates. `gone`: the judge sees no watermark, or the prompted shape and colour, in the
first candidate; in the one that a person picks, who takes a right one where there is one. `seam`: how well the gradient
across the edge of the mask tells the picked one from the picture before, in which nothing is pasted, by the area under
the curve; .5 is not at all. Beside it how well that, and the gradient one and two pixels inside, tells it from the
picture drawn as it should be.

references: 4 pictures with the property and 4 without, of other prompts, others for each quarter of the pictures; how
often it is there, without and with them.

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
from refine_demo import ROOT, Demo, Plain, Report, kept, mean, share
from refine_regions import regions, rounds
from refine_table import tables

from feedback_loop import start
from feedback_loop.demo import judge as judging
from feedback_loop.feedback import evaluation


@dataclass(frozen=True)
class Wish:
    comment: str
    attribute: str
    word: str
    wanted: bool = True


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
    Wish("no watermark", "watermark", "watermark", wanted=False),
    Wish("less busy background", "texture", "busy", wanted=False),
    Wish("not red", "colour", "red", wanted=False),
)
REFERENCES = (("texture", "busy"), ("colour", "red"), ("light", "bright"), ("size", "large"))


# Words


def words(demo: Demo, report: Report) -> None:
    for wish in WISHES:
        report.row("words", wish.comment, partial(one_wish, demo, wish, report.pictures))


def one_wish(demo: Demo, wish: Wish, count: int) -> dict[str, Any]:
    from feedback_loop.nodes.text import FeedbackTextConditioning

    plain = demo.plain(count, 100, wish.attribute)
    with torch.inference_mode():
        said = [
            FeedbackTextConditioning.execute(cond, demo.clip, wish.comment, 1.0, "everywhere", prompt=p.text).args
            for cond, p in zip(plain.conds, plain.asked, strict=True)
        ]
    after = demo.look(demo.make([one[0] for one in said], said[0][1], plain.seeds))
    right = moved_right(wish, plain.truth, after)
    others = kept(plain.asked, plain.truth, after, wish.attribute)
    return {"right": share(right), "kept": mean(others), "n": len(right)}


def moved_right(wish: Wish, plain: judging.Truth, after: judging.Truth) -> np.ndarray:
    if not wish.wanted:
        had, has = (
            one.marked() if wish.attribute == "watermark" else one.holds(wish.attribute, wish.word)
            for one in (plain, after)
        )
        return ~has[had]
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
    plain = demo.plain(count, 100, attribute)
    before = plain.truth.holds(attribute, word)
    images = []
    for rows in np.array_split(np.arange(count), SETS):
        looking = looking_at(demo, plain, *examples(before, rows))
        conds, seeds = [plain.conds[i] for i in rows], [plain.seeds[i] for i in rows]
        images.append(demo.make(conds, plain.negative, seeds, looking))
    after = demo.look(torch.cat(images))
    then = after.holds(attribute, word)
    rise = evaluation.paired_difference(before.astype(float), then.astype(float))
    return {
        "plain": share(before),
        "with": share(then),
        "rise": [round(float(x), 4) for x in rise],
        "kept": mean(kept(plain.asked, plain.truth, after, attribute)),
    }


SETS = 4
"""So many times eight references, each for its share of the pictures: what eight have in common is often chance."""
REFERENCE_SETTINGS = (0.5, 0.0, 1.0)
"""strength, start_percent, end_percent: the node's defaults."""


def looking_at(demo: Demo, plain: Plain, liked: np.ndarray, disliked: np.ndarray) -> Any:
    """The model that looks at these plain pictures."""
    from feedback_loop.nodes.reference import FeedbackReferenceGuidance

    images = plain.images.movedim(1, -1)
    with torch.inference_mode():
        return FeedbackReferenceGuidance.execute(
            demo.model, demo.vae, *REFERENCE_SETTINGS, liked=images[liked], disliked=images[disliked]
        ).args[0]


def examples(has: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first four pictures after these rows that have the property, and that have not, none of them in the rows.

    Raises SystemExit where there are fewer.
    """
    others = np.setdiff1d(np.roll(np.arange(len(has)), -int(rows[-1]) - 1), rows, assume_unique=True)
    liked, disliked = others[has[others]][:4], others[~has[others]][:4]
    if min(len(liked), len(disliked)) < 4:
        raise SystemExit("There are not four pictures with the property and four without: take more pictures.")
    return liked, disliked


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
    print(tables(report.parts))


if __name__ == "__main__":
    main()
