"""An evaluation as pictures for the graph, and as one file to keep: no script in it, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ..feedback.evaluation import Interval
from ..training.runs import write_whole
from .evaluating import Evaluation, EvaluationError
from .plots import beneath, grid, interval_plot, words
from .training_run import checked_name

SHOWN = 48
SIDE = 256  # pixels of a picture in the page, at most
FOLDER = "feedback_loop"
"""In ComfyUI's output folder."""

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#202124}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;text-align:left}"
    "td,th{border-bottom:1px solid #dadce0}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}.alarm{background:#fce8e6;padding:.8em 1em}"
    "figure{display:inline-block;margin:.5em;vertical-align:top;max-width:34em}figcaption{font-size:13px}"
    "img{max-width:100%;image-rendering:auto}h2{margin-top:1.6em}"
)


def shown_places(count: int) -> list[int]:
    """At most SHOWN of so many pairs, evenly."""
    return [index * count // min(count, SHOWN) for index in range(min(count, SHOWN))]


def side_by_side(a: Tensor, b: Tensor, rewards: tuple[Sequence[float], Sequence[float]], rows: Sequence[str]) -> Tensor:
    """Rows of A over the same prompts and seeds under B; (N, 3, H, W) each -> IMAGE. At most SHOWN pairs, evenly."""
    chosen = shown_places(len(rows))
    columns = min(8, len(chosen))
    pictures, labels = [], []
    for start in range(0, len(chosen), columns):
        block = chosen[start : start + columns]
        for name, images, values in (("A", a, rewards[0]), ("B", b, rewards[1])):
            empty = columns - len(block)
            pictures += [images[i] for i in block] + [torch.ones_like(images[0])] * empty
            labels += [f"{name} {values[i]:.3g} {rows[i]}" for i in block] + [""] * empty
    return grid(torch.stack(pictures).movedim(1, -1), columns, labels)


def win_rates(found: Evaluation) -> dict[str, Interval]:
    """Shares of pairs that B wins, by who says so; people last."""
    rates = {"the judge": found.result.win_rate}
    rates |= {name: one.win_rate for name, one in found.watched.items() if one.win_rate is not None}
    if found.votes is not None and found.votes.votes:
        rates["people, blind"] = found.votes.win_rate
    return rates


def picture_of(found: Evaluation, report: str, shown: Tensor) -> Tensor:
    """The report in words, win rates and drift with their intervals, and the pairs: IMAGE (1, H, W, 3)."""
    rates, drift = win_rates(found), {name: one for name, one in found.drift.items() if math.isfinite(one.value)}
    parts = [
        words(report.split("\n")),
        interval_plot(rates, "Share of pairs that B wins", 0.5, (768, 70 + 30 * len(rates)), (0, 1)),
        interval_plot(drift, "Drift of B in standard deviations of A", 0.0, (768, 70 + 30 * max(1, len(drift)))),
        shown,
    ]
    return beneath(parts)


def page_of(found: Evaluation, report: str) -> str:
    """The whole evaluation as one HTML document."""
    alarm = f'<p class="alarm">{escape(found.alarm)}</p>' if found.alarm else ""
    said = "".join(f"<li>{escape(line)}</li>" for line in report.split("\n") if line != found.alarm)
    pairs = "".join(_pair(found, place) for place in shown_places(len(found.drawn.rows)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>Two models compared</title><style>{STYLE}</style></head><body><h1>Two models compared</h1>"
        f"{alarm}<ul>{said}</ul><h2>Numbers</h2>{_table(found)}<h2>Pairs</h2>{pairs}</body></html>\n"
    )


def _table(found: Evaluation) -> str:
    result = found.result
    rows: list[tuple[str, str, float | None, float | None, Interval]]
    rows = [("Share of pairs that B wins", name, None, None, rate) for name, rate in win_rates(found).items()]
    rows.append(("Mean", f"the judge ({found.judge})", result.reward_a, result.reward_b, result.gain))
    rows += [("Mean", name, one.a, one.b, one.change) for name, one in found.watched.items()]
    rows += [("Drift in sd of A", name, None, None, one) for name, one in found.drift.items()]
    if found.gap is not None:
        rows.append(("Distance of predictions", "weighted as in training", None, None, found.gap))
    head = "".join(f"<th>{name}</th>" for name in ("", "", "A", "B", "B less A, or share", "95 % interval"))
    return f"<table><tr>{head}</tr>{''.join(_row(*row) for row in rows)}</table>"


def _row(what: str, name: str, a: float | None, b: float | None, change: Interval) -> str:
    numbers = [_number(a), _number(b), _number(change.value), f"{_number(change.low)} to {_number(change.high)}"]
    cells = "".join(f'<td class="n">{text}</td>' for text in numbers)
    return f"<tr><td>{escape(what)}</td><td>{escape(name)}</td>{cells}</tr>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if math.isfinite(value) else "unknown"


def _pair(found: Evaluation, place: int) -> str:
    drawn = found.drawn
    images = "".join(
        f'<img alt="{name}, reward {values[place]:.4g}" title="{name}, reward {values[place]:.4g}" '
        f'src="data:image/jpeg;base64,{_jpeg(pictures[place])}">'
        for name, pictures, values in (("A", drawn.a, found.rewards[0]), ("B", drawn.b, found.rewards[1]))
    )
    a, b = (values[place] for values in found.rewards)
    says = f"A {a:.4g}, B {b:.4g} · {drawn.rows[place]} · seed {drawn.seeds[place]}"
    return f"<figure>{images}<figcaption>{escape(says)}</figcaption></figure>"


def _jpeg(image: Tensor) -> str:
    picture = Image.fromarray((image.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def save_page(name: str, page: str) -> str:
    """Writes output/feedback_loop/<name>_00001.html, with the first free number; gives its path in the output folder.

    Raises EvaluationError for a name that is no plain file name.
    """
    try:
        stem = checked_name(name)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    folder = Path(folder_paths.get_output_directory()) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"{stem}_{number:05}.html").exists():
        number += 1
    write_whole(path, page)
    return f"{FOLDER}/{path.name}"
