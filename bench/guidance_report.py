"""What bench/guidance.py has found, as a table and as plots of gain against cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from feedback_loop.demo.marked import filled

PLAIN = "watermark|plain"
"""The row that times are relative to, of the same seed."""


def medians(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of each row and measure: median, lowest and highest over seeds. found: by "target|way|seed".

    time: seconds over those of the plain run of the same seed; nan where that has not been run.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    for key, values in found.items():
        name, seed = key.rsplit("|", 1)
        plain = found.get(f"{PLAIN}|{seed}", {}).get("seconds", math.nan)
        for measure_name, value in (values | {"time": values["seconds"] / plain}).items():
            rows.setdefault(name, {}).setdefault(measure_name, []).append(value)
    return {
        name: {k: [float(np.median(v)), float(np.min(v)), float(np.max(v))] for k, v in measures.items()}
        for name, measures in rows.items()
    }


SHOWN = ("watermarked", "taste", "attributes", "diversity", "evaluations", "time")


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| steered by | way | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, values in rows.items():
        target, method = name.split("|")
        cells = [_cell(*values[k]) for k in SHOWN]
        lines.append(f"| {target} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(middle: float, low: float, high: float) -> str:
    return "plain is not run yet" if math.isnan(middle) else f"{middle:.3g} ({low:.3g} .. {high:.3g})"


BETTER = {"watermarked": -1, "taste": 1, "attributes": 1, "diversity": 1, "evaluations": -1, "time": -1}
"""Which way of each measure is good."""


def dominated(rows: dict[str, dict[str, list[float]]]) -> list[tuple[str, str]]:
    """(ours, another way) of the same target, where the other reaches more and is in nothing worse.

    More: beyond both ranges over the seeds. Nothing worse: no cost and no side effect is worse beyond the ranges.
    """
    found = []
    for name, own in rows.items():
        target, way = name.split("|")
        aim = "watermarked" if target == "watermark" else "taste"
        for other_name, other in rows.items():
            other_target, other_way = other_name.split("|")
            if not way.startswith("ours") or other_target != target or other_way.startswith("ours"):
                continue
            rest = [k for k in ("attributes", "diversity", "evaluations", "time") if not math.isnan(own[k][0])]
            if _beyond(other, own, aim) and not any(_beyond(own, other, k) for k in rest):
                found.append((name, other_name))
    return found


def _beyond(one: dict[str, list[float]], other: dict[str, list[float]], measure_name: str) -> bool:
    """Whether all seeds of `one` are better than all seeds of `other`."""
    (_, low, high), (_, other_low, other_high) = one[measure_name], other[measure_name]
    return low > other_high if BETTER[measure_name] > 0 else high < other_low


def verdict(rows: dict[str, dict[str, list[float]]]) -> str:
    """What `dominated` found, in Markdown."""
    lines = [f"- {ours} is dominated by {other.split('|')[1]}" for ours, other in dominated(rows)]
    return "\n".join(lines or ["None of ours is dominated by a way that is not ours."]) + "\n"


def publish(found: dict[str, dict[str, Any]], docs: Path) -> None:
    """Writes the figures beside docs/guidance_bench.md, and table, verdict and plot of them into it."""
    rows, page = medians(found), docs / "guidance_bench.md"
    (docs / "guidance_bench.json").write_text(json.dumps(found, indent=1) + "\n")
    page.write_text(filled(filled(page.read_text(), "table", table(rows)), "verdict", verdict(rows)))
    plot(rows, docs / "images" / "guidance.png")


PANEL, EDGE = (620, 420), 60
FIGURES = (("watermark", "watermarked"), ("taste", "taste"))


def plot(rows: dict[str, dict[str, list[float]]], path: Path) -> None:
    """What is reached against denoiser evaluations and against time; ours are filled."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (2 * PANEL[0], 2 * PANEL[1]), "white")
    draw = ImageDraw.Draw(image)
    for down, (target, aim) in enumerate(FIGURES):
        for across, cost in enumerate(("evaluations", "time")):
            own = {n.split("|")[1]: (v[cost][0], v[aim][0]) for n, v in rows.items() if n.startswith(target)}
            points = {name: point for name, point in own.items() if not math.isnan(point[0])}
            title = f"{aim}, steered by {target}, against {cost}"
            _panel(draw, across * PANEL[0], down * PANEL[1], points, title)
    image.save(path)


def _panel(draw: Any, left: int, top: int, points: dict[str, tuple[float, float]], title: str) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(11)
    draw.text((left + EDGE, top + 8), title, "black", font)
    draw.rectangle((left + EDGE, top + 30, left + PANEL[0] - 20, top + PANEL[1] - 30), outline="gray")
    if not points:
        return
    most = max(x for x, _ in points.values())
    low, high = (f(y for _, y in points.values()) for f in (min, max))

    def up(y: float) -> float:
        return top + PANEL[1] - 40 - (y - low) / max(high - low, 1e-9) * (PANEL[1] - 90)

    for name, (x, y) in points.items():
        px, py = left + EDGE + x / most * (PANEL[0] - EDGE - 60), up(y)
        fill = "#2f6fde" if name.startswith("ours") else None
        draw.ellipse((px - 4, py - 4, px + 4, py + 4), fill=fill, outline="#2f6fde")
        draw.text((px + 6, py - 6), name.removeprefix("ours: "), "black", font)
    for y in (low, high):
        draw.text((left + 6, up(y) - 6), f"{y:.2g}", "black", font)
