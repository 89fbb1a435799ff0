"""Marked places made anew, once and for ten rounds: the parts "regions" and "rounds" of bench/refine.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from refine_demo import CANDIDATES, CFG, SAMPLER, SCHEDULER, STEPS, Demo, Report, share

from feedback_loop.demo import judge as judging
from feedback_loop.demo import world


def regions(demo: Demo, report: Report) -> None:
    half = report.pictures // 2
    report.row("regions", "wrong object", lambda: refined(demo, [wrong_object(i) for i in range(half)], ""))
    report.row("regions", "watermark", lambda: refined(demo, [watermarked(i) for i in range(half)], "no watermark"))


@dataclass(frozen=True)
class Marked:
    """A picture, the same one as it should be, the box around what is wrong, and what the prompt says.

    Both went through the autoencoder once, as everything that a model made: the plain grounds of drawn pictures have no
    gradient at all, so that there every decoded pixel would show, pasted or not.
    """

    picture: torch.Tensor
    clean: torch.Tensor
    mask: torch.Tensor
    text: str
    words: dict[str, str]


def watermarked(seed: int) -> Marked:
    rng = np.random.default_rng((31, seed))
    scene = replace(world.sample_scene(rng, 0.0), watermark="corner", watermark_seed=int(rng.integers(2**31)))
    clean = world.without_watermark(scene)
    told = world.attributes(clean)
    return marked(scene, clean, world.phrase(told, clean, rng), {"watermark": "none"})


def wrong_object(seed: int) -> Marked:
    """A circle where the prompt says star, or the like, in another colour too."""
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


def refined(demo: Demo, drawn_: Sequence[Marked], comment: str) -> dict[str, Any]:
    marks = [replace(one, picture=decoded(demo, one.picture), clean=decoded(demo, one.clean)) for one in drawn_]
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


def decoded(demo: Demo, picture: torch.Tensor) -> torch.Tensor:
    """(64, 64, 3) through the autoencoder, at the 8 bits of a file."""
    with torch.inference_mode():
        made = demo.vae.decode(demo.vae.encode(picture[None]))[0]
    return (made.clone() * 255).round().clamp(0, 255) / 255


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


def seam_shows(images: torch.Tensor, marks: Sequence[Marked]) -> dict[str, list[float]]:
    """How well results (N, 3, H, W) are told from pictures with nothing pasted, by the gradient across the edge.

    From the same pictures before, whose edge nobody touched: by that gradient alone, and by how far it exceeds that of
    the picture beside. From the pictures as they should be, which the autoencoder, that smears a mark over the edge of
    its box, saw without it: by the gradient across the edge, and by the one one and two pixels further in, where the
    blend is steepest. `untouched` tells the pictures before from those as they should be, so what of it is the
    smear. Each an area under the curve with its interval.
    """
    from feedback_loop.guidance.regions import grown, seam

    def further_in(image: torch.Tensor, mask: torch.Tensor) -> float:
        return float(np.mean([seam(image, grown(mask[None], -by)[0])[0] for by in (1, 2)]))

    made = np.array([seam(i, m.mask) for i, m in zip(images, marks, strict=True)])
    before, clean = (
        np.array([seam(one.movedim(-1, 0), m.mask) for one, m in zip(every, marks, strict=True)])
        for every in ([m.picture for m in marks], [m.clean for m in marks])
    )
    return {
        "across the edge": told_apart(made[:, 0], before[:, 0]),
        "across less beside": told_apart(made[:, 0] - made[:, 1], before[:, 0] - before[:, 1]),
        "from as it should be": told_apart(made[:, 0], clean[:, 0]),
        "untouched from as it should be": told_apart(before[:, 0], clean[:, 0]),
        "further in": told_apart(
            np.array([further_in(i, m.mask) for i, m in zip(images, marks, strict=True)]),
            np.array([further_in(m.clean.movedim(-1, 0), m.mask) for m in marks]),
        ),
    }


def told_apart(made: np.ndarray, clean: np.ndarray) -> list[float]:
    """[area, low, high]: the chance that one of `made` exceeds one of `clean`, with the 95 % interval of a bootstrap
    over pictures, each with its counterpart."""
    rng = np.random.default_rng(0)
    draws = [np.arange(len(made)), *rng.integers(len(made), size=(2000, len(made)))]
    areas = []
    for rows in draws:
        left, right = made[rows, None], clean[None, rows]
        areas.append((left > right).mean() + 0.5 * (left == right).mean())
    return [round(float(x), 4) for x in (areas[0], *np.quantile(areas[1:], (0.025, 0.975)))]


# Rounds


def rounds(demo: Demo, report: Report) -> None:
    report.row("rounds", "ten in a row", lambda: ten_rounds(demo, max(1, min(report.pictures, 10))))


def ten_rounds(demo: Demo, pictures: int) -> dict[str, Any]:
    from feedback_loop.feedback import media, refinements
    from feedback_loop.nodes import compat
    from feedback_loop.nodes.recording import pictures_of

    equal, last = [], []
    for number in range(pictures):
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
    return {"bit-equal outside": share(np.array(equal)), "rounds of each": [len(f.rounds) for f in families]}


def found(kept_: Any, pixel_hash: str) -> list[str]:
    from feedback_loop.feedback import refinements

    return kept_.ask(lambda c: refinements.with_pixels(c, pixel_hash, "rounds"))[:1]
