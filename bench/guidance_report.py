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


PANEL, EDGE, LINE = (620, 420), 60, 16
FIGURES = (("watermark", "watermarked"), ("taste", "taste"))
COLUMNS = 3
OURS = "#2f6fde"
Point = tuple[float, float]


def plot(rows: dict[str, dict[str, list[float]]], path: Path) -> None:
    """What is reached against denoiser evaluations and against time. Ours are filled; the line joins the ways that no
    other one beats in both; ways are numbered, and named below."""
    from PIL import Image, ImageDraw

    numbers = {way: i + 1 for i, way in enumerate(dict.fromkeys(name.split("|")[1] for name in rows))}
    below = -(-len(numbers) // COLUMNS) * LINE + 20
    image = Image.new("RGB", (2 * PANEL[0], 2 * PANEL[1] + below), "white")
    draw = ImageDraw.Draw(image)
    for down, (target, aim) in enumerate(FIGURES):
        for across, cost in enumerate(("evaluations", "time")):
            own = {n.split("|")[1]: (v[cost][0], v[aim][0]) for n, v in rows.items() if n.startswith(target)}
            points = {name: point for name, point in own.items() if not math.isnan(point[0])}
            title = f"{aim}, steered by {target}, against {cost} (plain is 1)"
            corner = (across * PANEL[0], down * PANEL[1])
            if points:
                _panel(draw, corner, points, title, numbers, BETTER[aim])
    _legend(draw, 2 * PANEL[1], numbers)
    image.save(path)


def _panel(
    draw: Any, corner: tuple[int, int], points: dict[str, Point], title: str, numbers: dict[str, int], good: int
) -> None:
    left, top = corner
    _text(draw, (left + EDGE, top + 8), title)
    draw.rectangle((left + EDGE, top + 30, left + PANEL[0] - 20, top + PANEL[1] - 30), outline="gray")
    most = max(x for x, _ in points.values())
    low, high = (f(y for _, y in points.values()) for f in (min, max))

    def at(point: Point) -> Point:
        across = left + EDGE + point[0] / most * (PANEL[0] - EDGE - 60)
        return across, top + PANEL[1] - 45 - (point[1] - low) / max(high - low, 1e-9) * (PANEL[1] - 100)

    draw.line([at(point) for point in frontier(points, good)], fill="#c0c0c0", width=2)
    labels: list[tuple[Point, list[int]]] = []
    for name, point in points.items():
        x, y = at(point)
        fill = OURS if name.startswith("ours") else "white"
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=fill, outline=OURS)
        near = [own for place, own in labels if abs(place[0] - x) < 30 and abs(place[1] - y) < 9]
        if near:
            near[0].append(numbers[name])
        else:
            labels.append(((x, y), [numbers[name]]))
    for (x, y), own in labels:
        _text(draw, (x + 7, y - 7), ", ".join(map(str, own)))
    for y in (low, high):
        _text(draw, (left + 6, at((0, y))[1] - 6), f"{y:.2g}")
    for x in range(0, math.floor(most) + 1, 2):
        _text(draw, (at((x, low))[0] - 3, top + PANEL[1] - 26), str(x))


def frontier(points: dict[str, Point], good: int) -> list[Point]:
    """The (cost, reached) that nothing cheaper reaches, by cost. good: 1 where more is better, -1 where less is."""
    kept: list[Point] = []
    for point in sorted(points.values(), key=lambda p: (p[0], -good * p[1])):
        if not kept or good * point[1] > good * kept[-1][1]:
            kept.append(point)
    return kept


def _legend(draw: Any, top: int, numbers: dict[str, int]) -> None:
    high = -(-len(numbers) // COLUMNS)
    for i, (name, number) in enumerate(numbers.items()):
        place = (EDGE + i // high * (2 * PANEL[0] - EDGE) // COLUMNS, top + i % high * LINE)
        _text(draw, place, f"{number}  {name}", OURS if name.startswith("ours") else "black")


def _text(draw: Any, place: Point, text: str, colour: str = "black") -> None:
    from PIL import ImageFont

    draw.text(place, text, colour, ImageFont.load_default(12))
