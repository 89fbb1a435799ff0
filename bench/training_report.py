"""What bench/training.py has found, as tables and as the picture of the learning curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Found = dict[str, dict[str, Any]]
Row = dict[str, list[float]]


def collected(found: Found, part: str) -> dict[str, Row]:
    """By the row's name without its seed: each measure's values over the seeds. What failed has none."""
    rows: dict[str, Row] = {}
    for key, values in found.items():
        if not key.startswith(part + "|"):
            continue
        row = rows.setdefault(key.removeprefix(part + "|").rsplit("|", 1)[0], {})
        for name, value in values.items():
            if isinstance(value, (int, float)):
                row.setdefault(name, []).append(float(value))
    return rows


def cell(values: Iterable[float], form: str = ".3g") -> str:
    """Median (lowest .. highest)."""
    known = list(values)
    if not known:
        return "not measured"
    middle = format(float(np.median(known)), form)
    return middle if len(known) == 1 else f"{middle} ({format(min(known), form)} .. {format(max(known), form)})"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def speed(found: Found, measure: str) -> str:
    rows = collected(found, "speed")
    trainers = list(dict.fromkeys(name.split("|")[0] for name in rows))
    batches = sorted({int(name.split("|")[1]) for name in rows})

    def cells(trainer: str) -> list[str]:
        return [trainer, *(cell(rows.get(f"{trainer}|{batch}", {}).get(measure, [])) for batch in batches)]

    return table(["trainer", *(f"batch {batch}" for batch in batches)], map(cells, trainers))


ONLINE = ("images_per_cpu_s", "first", "last", "per_1000_images", "per_cpu_minute", "diversity", "images_to_ddpo")


def online(found: Found) -> str:
    told = dict(found)
    for key, values in found.items():
        if key.startswith("online|") and "curve" in values:
            told[key] = values | {"images_to_ddpo": images_to_ddpo(found, key)}
    rows = collected(told, "online")
    return table(
        ["trainer", *ONLINE],
        [[name, *(cell(row.get(measure, [])) for measure in ONLINE)] for name, row in rows.items()],
    )


def images_to_ddpo(found: Found, key: str, pictures: int = 32) -> float:
    """Pictures drawn before an epoch's mean reward, and that of all later ones, was what DDPO's best run came to; nan
    where the last one was not. One epoch alone is too noisy to tell."""
    seed = key.rsplit("|", 1)[1]
    aims = [
        v["last"] for k, v in found.items() if k.startswith("online|DDPO") and k.endswith(f"|{seed}") and "last" in v
    ]
    rewards = found[key]["curve"]
    short = [place for place, reward in enumerate(rewards) if not aims or reward < max(aims)]
    reached = short[-1] + 1 if short else 0
    return float(reached * pictures) if reached < len(rewards) else float("nan")


CURVE = ("gain", "without_watermark", "attributes", "diversity", "seconds")


def curve(found: Found) -> str:
    rows = collected(found, "curve")
    intervals = {k.removeprefix("curve|").rsplit("|", 1)[0]: v["interval"] for k, v in found.items() if "interval" in v}

    def order(name: str) -> tuple[str, int]:
        return name.split("|")[0], int(name.split("|")[1])

    def cells(name: str) -> list[str]:
        way, count = name.split("|")
        low, high = intervals.get(name, (float("nan"), float("nan")))
        within = f"{low:+.2f} .. {high:+.2f}"
        gain = cell(rows[name].get("gain", []), "+.2f")
        return [way, count, gain, within, *(cell(rows[name].get(measure, [])) for measure in CURVE[1:])]

    return table(
        ["way", "ratings", "gain", "interval of the last seed", *CURVE[1:]], map(cells, sorted(rows, key=order))
    )


def tables(found: Found) -> str:
    parts: list[tuple[str, str, Callable[[], str]]] = [
        ("speed", "Images a second of CPU time", lambda: speed(found, "images_per_cpu_s")),
        ("speed", "Images a second of the wall's time", lambda: speed(found, "images_per_s")),
        ("speed", "Peak memory of training, MB", lambda: speed(found, "peak")),
        ("online", "Online, from a reward whose optimum is 0", lambda: online(found)),
        ("curve", "True taste gained, in standard deviations of plain", lambda: curve(found)),
    ]
    return "\n".join(f"## {title}\n\n{make()}" for part, title, make in parts if collected(found, part))


SIZE, LEFT, RIGHT, TOP, BOTTOM = (900, 460), 70, 190, 40, 50
COLOURS = ("#d6402b", "#2f6fde", "#2a9d55", "#8a4fd0", "#d08a1e", "#555555")


def plot(found: Found, path: Path) -> None:
    """Gain against the number of ratings, a line for each way; median over the seeds, bars from lowest to highest."""
    from PIL import Image, ImageDraw, ImageFont

    rows = {tuple(k.split("|")): v["gain"] for k, v in collected(found, "curve").items() if "gain" in v}
    if not rows:
        return
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    counts = sorted({int(count) for _, count in rows})
    low, high = min(0.0, *(min(v) for v in rows.values())), max(max(v) for v in rows.values())

    def at(count: int, gain: float) -> tuple[float, float]:
        across = np.log(count / counts[0]) / max(np.log(counts[-1] / counts[0]), 1e-9)
        up = (gain - low) / max(high - low, 1e-9)
        return LEFT + across * (SIZE[0] - LEFT - RIGHT), SIZE[1] - BOTTOM - up * (SIZE[1] - TOP - BOTTOM)

    _frame(draw, font, counts, low, high, at)
    for colour, way in zip(COLOURS, dict.fromkeys(way for way, _ in rows), strict=False):
        own = {count: rows[way, str(count)] for count in counts if (way, str(count)) in rows}
        points = [at(count, float(np.median(values))) for count, values in own.items()]
        draw.line(points, colour, 3)
        for (x, y), (count, values) in zip(points, own.items(), strict=True):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
            draw.line([at(count, min(values)), at(count, max(values))], colour, 1)
        draw.text((points[-1][0] + 10, points[-1][1] - 8), way, colour, font)
    image.save(path)


def _frame(draw: Any, font: Any, counts: list[int], low: float, high: float, at: Callable[..., Any]) -> None:
    draw.text((LEFT, 10), "true taste gained, in standard deviations, against ratings", "black", font)
    for count in counts:
        draw.text((at(count, low)[0] - 12, SIZE[1] - BOTTOM + 10), str(count), "black", font)
    for gain in np.arange(np.ceil(low * 5) / 5, high + 1e-9, 0.2):
        y = at(counts[0], gain)[1]
        draw.line([(LEFT, y), (SIZE[0] - RIGHT, y)], "#bbbbbb" if abs(gain) > 1e-9 else "black")
        draw.text((14, y - 8), f"{gain:+.1f}", "black", font)
