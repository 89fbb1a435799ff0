"""Small pictures of numbers and of pictures, drawn with Pillow: what the nodes show and hand out as IMAGE."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

INK = (32, 33, 36)
FAINT = (218, 220, 224)
PAPER = (255, 255, 255)
COLOURS = ((31, 119, 180), (214, 96, 32), (44, 140, 60), (170, 50, 120), (120, 100, 40), (90, 90, 200))


class Axis(NamedTuple):
    """A straight map from values `low`..`high` to pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def pixel(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_plot(series: Mapping[str, Sequence[float]], title: str, size: tuple[int, int] = (768, 384)) -> Tensor:
    """Curves over their index 1, 2, ... as IMAGE (1, H, W, 3) in 0..1; `size` is (width, height) in pixels.

    Values that are not finite leave a gap. Without any finite value the plot says that there is nothing to show.
    """
    image, draw = _canvas(size)
    _text(draw, (size[0] / 2, 6), title, 16, anchor="ma", width=size[0] - 16)
    known = [float(v) for values in series.values() for v in values if math.isfinite(v)]
    if not known:
        _text(draw, (size[0] / 2, size[1] / 2), "nothing to show yet", 14, anchor="mm")
        return _tensor(image)
    longest = max(len(values) for values in series.values())
    across = Axis(1, max(longest, 2), 64, size[0] - 16)
    up = Axis(*_padded(min(known), max(known)), size[1] - 46, 34)
    _frame(draw, across, up)
    for colour, values in zip(_colours(len(series)), series.values(), strict=True):
        _curve(draw, across, up, values, colour)
    _legend(draw, list(series), (64, size[1] - 20), size[0] - 16)
    return _tensor(image)


def interval_plot(
    rows: Mapping[str, tuple[float, float, float]],
    title: str,
    reference: float | None = None,
    size: tuple[int, int] = (768, 160),
    limits: tuple[float, float] | None = None,
) -> Tensor:
    """Each row's (value, low, high) as a dot on its interval, over a dashed line at `reference`; IMAGE (1, H, W, 3).

    limits: what the axis has to show whatever the values are, such as (0, 1) for shares.
    """
    image, draw = _canvas(size)
    _text(draw, (size[0] / 2, 6), title, 16, anchor="ma", width=size[0] - 16)
    known = [v for row in rows.values() for v in row if math.isfinite(v)] + ([] if reference is None else [reference])
    known += limits or ()
    if not known or not rows:
        _text(draw, (size[0] / 2, size[1] / 2), "nothing to show yet", 14, anchor="mm")
        return _tensor(image)
    across = Axis(*_padded(min(known), max(known)), 180, size[0] - 24)
    top, bottom = 34, size[1] - 26
    for value in _ticks(across.low, across.high):
        _text(draw, (across.pixel(value), bottom + 4), f"{value:g}", 12, anchor="ma")
    if reference is not None:
        _dashed(draw, across.pixel(reference), top, bottom)
    step = (bottom - top) / len(rows)
    for index, ((label, row), colour) in enumerate(zip(rows.items(), _colours(len(rows)), strict=True)):
        _whisker(draw, across, top + (index + 0.5) * step, label, row, colour)
    return _tensor(image)


def histogram(values: Sequence[float], title: str, size: tuple[int, int] = (512, 256)) -> Tensor:
    """How many of the values lie where, as IMAGE (1, H, W, 3): about the square root of their number of equal bins."""
    image, draw = _canvas(size)
    _text(draw, (size[0] / 2, 6), title, 16, anchor="ma", width=size[0] - 16)
    known = [float(v) for v in values if math.isfinite(v)]
    if not known:
        _text(draw, (size[0] / 2, size[1] / 2), "nothing to show yet", 14, anchor="mm")
        return _tensor(image)
    bins = max(1, min(40, math.ceil(len(known) ** 0.5)))
    counts, edges = np.histogram(known, bins, _padded(min(known), max(known)))
    across = Axis(float(edges[0]), float(edges[-1]), 48, size[0] - 16)
    up = Axis(0, float(counts.max()), size[1] - 30, 34)
    for value in _ticks(across.low, across.high):
        _text(draw, (across.pixel(value), up.start + 4), f"{value:g}", 12, anchor="ma")
    _text(draw, (across.start - 6, up.end), str(counts.max()), 12, anchor="rm")
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if count:
            draw.rectangle((across.pixel(low) + 1, up.pixel(count), across.pixel(high) - 1, up.start), fill=COLOURS[0])
    draw.line((across.start, up.start, across.end, up.start), fill=INK)
    return _tensor(image)


def grid(images: Tensor, columns: int, labels: Sequence[str] | None = None, side: int = 128) -> Tensor:
    """Pictures in rows of `columns`, each with its label below, as one IMAGE (1, H, W, 3).

    images: IMAGE (B, H, W, 3) in 0..1. Small pictures are enlarged by whole numbers to at least `side` pixels, so that
    their labels can be read; labels that are too long are cut. Raises ValueError for no pictures or too few labels.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
        raise ValueError(
            f"A grid needs at least one RGB picture of shape (B,H,W,3), but it was given {tuple(images.shape)}."
        )
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"There are {len(images)} pictures but {len(labels)} labels; give each picture one.")
    scale = max(1, math.ceil(side / max(images.shape[1:3])))
    pictures = images.detach().cpu().float().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    high, wide = pictures.shape[1:3]
    gap, strip = 4, 20 if labels is not None else 0
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    image, draw = _canvas((columns * (wide + gap) + gap, rows * (high + strip + gap) + gap))
    for index, picture in enumerate(pictures):
        left = gap + index % columns * (wide + gap)
        top = gap + index // columns * (high + strip + gap)
        image.paste(_picture(picture), (left, top))
        if labels is not None:
            _text(draw, (left + 2, top + high + 3), labels[index], 13, width=wide - 4)
    return _tensor(image)


def words(lines: Sequence[str], width: int = 768) -> Tensor:
    """Lines of text, broken where they would be wider than `width` pixels, as IMAGE (1, H, W, 3)."""
    _, draw = _canvas((1, 1))
    broken = [part for line in lines for part in _broken(draw, line, width - 16)]
    image, draw = _canvas((width, 18 * max(1, len(broken)) + 12))
    for place, line in enumerate(broken):
        _text(draw, (8, 6 + 18 * place), line, 13)
    return _tensor(image)


def _broken(draw: ImageDraw.ImageDraw, text: str, width: float) -> list[str]:
    lines = [""]
    for word in _printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=_font(13)) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def beneath(parts: Sequence[Tensor]) -> Tensor:
    """Pictures (1, H, W, 3) one below the other, white where they are narrower than the widest."""
    width = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, 0, 0, width - p.shape[2]), value=1.0) for p in parts], dim=1)


def _canvas(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, PAPER)
    return image, ImageDraw.Draw(image)


def _picture(pixels: Tensor) -> Image.Image:
    from PIL import Image

    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    anchor: str = "la",
    width: float = math.inf,
    colour: tuple[int, int, int] = INK,
) -> None:
    """One line at `at`, cut with an ellipsis where it would be wider than `width` pixels."""
    font = _font(size)
    line = _printable(text)
    while line and draw.textlength(line, font=font) > width:
        line = line.rstrip("…")[:-1].rstrip() + "…" if len(line) > 1 else ""
    draw.text(at, line, fill=colour, font=font, anchor=anchor)


def _printable(text: str) -> str:
    """One line in the letters that Pillow's own font has: accents are dropped, what is left over becomes "?"."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()).replace("…", "..."))
    bare = "".join(c for c in letters if not unicodedata.combining(c))
    return bare.encode("ascii", "replace").decode("ascii")


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _padded(low: float, high: float) -> tuple[float, float]:
    """Limits a little wider than the values, and never empty."""
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - room, high + room


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values between `low` and `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]


def _frame(draw: ImageDraw.ImageDraw, across: Axis, up: Axis) -> None:
    for value in _ticks(up.low, up.high):
        y = up.pixel(value)
        draw.line((across.start, y, across.end, y), fill=FAINT)
        _text(draw, (across.start - 6, y), f"{value:g}", 12, anchor="rm")
    for value in sorted({round(tick) for tick in _ticks(across.low, across.high)}):
        _text(draw, (across.pixel(value), up.start + 4), str(value), 12, anchor="ma")
    draw.line((across.start, up.end, across.start, up.start, across.end, up.start), fill=INK)


def _curve(
    draw: ImageDraw.ImageDraw, across: Axis, up: Axis, values: Sequence[float], colour: tuple[int, int, int]
) -> None:
    points = [(across.pixel(i), up.pixel(v)) if math.isfinite(v) else None for i, v in enumerate(values, start=1)]
    for a, b in zip(points, points[1:], strict=False):
        if a and b:
            draw.line((*a, *b), fill=colour, width=2)
    for index, point in enumerate(points):
        alone = not any(points[max(index - 1, 0) : index] + points[index + 1 : index + 2])
        if point and alone:
            draw.ellipse((point[0] - 3, point[1] - 3, point[0] + 3, point[1] + 3), fill=colour)


def _legend(draw: ImageDraw.ImageDraw, names: list[str], at: tuple[float, float], right: float) -> None:
    each = (right - at[0]) / len(names)
    for index, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
        left = at[0] + index * each
        draw.rectangle((left, at[1] + 3, left + 12, at[1] + 11), fill=colour)
        _text(draw, (left + 18, at[1]), name, 12, width=each - 24)


def _dashed(draw: ImageDraw.ImageDraw, x: float, top: float, bottom: float) -> None:
    for y in range(int(top), int(bottom), 8):
        draw.line((x, y, x, min(y + 4, bottom)), fill=INK)


def _whisker(
    draw: ImageDraw.ImageDraw,
    across: Axis,
    y: float,
    label: str,
    row: tuple[float, float, float],
    colour: tuple[int, int, int],
) -> None:
    _text(draw, (across.start - 12, y), label, 13, anchor="rm", width=across.start - 20)
    value, low, high = row
    if math.isfinite(low) and math.isfinite(high):
        left, right = across.pixel(low), across.pixel(high)
        draw.line((left, y, right, y), fill=colour, width=3)
        for x in (left, right):
            draw.line((x, y - 6, x, y + 6), fill=colour, width=3)
    if math.isfinite(value):
        x = across.pixel(value)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
