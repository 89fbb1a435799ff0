"""Synthetic watermarks and look-alikes, drawn by code: all that the watermark detector ever sees of a mark.

A mark is a coverage mask, (S, S) in 0..1, drawn large and averaged down; `lay` puts it on a picture. Families are kept
apart so that some can be held out of training: a detector that finds those has learned what a mark is, not a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CANVAS = 256  # masks are drawn at this size and averaged down to the picture's
WORDS = "sample stock preview draft copyright photo proof image studio watermark trial licensed review gallery".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=512)
def _font(path: Path | None, size: int) -> Font:
    return ImageFont.load_default(size=size) if path is None else ImageFont.truetype(str(path), size)


class Pen:
    """Random choices of one mark: its font, its words and its height."""

    def __init__(self, rng: np.random.Generator, fonts: Sequence[Path] = ()) -> None:
        self.rng = rng
        choices: list[Path | None] = [None, *fonts]
        # Pillow's own font half of the time, so that the recipe gives nearly the same with no other font installed
        self.path = None if rng.random() < 0.5 else choices[rng.integers(len(choices))]

    def font(self, height: float) -> Font:
        """A font whose letters are about `height` of the canvas high."""
        return _font(self.path, max(10, int(height * CANVAS)))

    def name(self) -> str:
        return "".join(self.rng.choice(list(LETTERS), size=self.rng.integers(3, 8)))

    def words(self) -> str:
        """What a mark says: a stock word, a name, a handle, a URL, a copyright line or a date."""
        rng = self.rng
        word = str(rng.choice(WORDS)) if rng.random() < 0.6 else self.name()
        kinds = (word, word, f"@{word}", f"{word}.com", f"www.{word}.net", f"© {word}", f"© {rng.integers(1990, 2031)}")
        said = str(rng.choice(kinds))
        return {0: said.upper(), 1: said.title()}.get(int(rng.integers(3)), said)

    def put(self, layer: Image.Image, x: float, y: float, text: str, font: Font, value: int = 255) -> None:
        """Text centred at (x, y)."""
        ImageDraw.Draw(layer).text((x, y), text, fill=value, font=font, anchor="mm")


def _blank(scale: float = 1.0) -> Image.Image:
    return Image.new("L", (int(CANVAS * scale), int(CANVAS * scale)))


def _turn(layer: Image.Image, degrees: float) -> Image.Image:
    """Rotated about its centre, and the middle cut out of it at canvas size."""
    turned = layer.rotate(degrees, resample=Image.Resampling.BILINEAR)
    low = (turned.width - CANVAS) // 2
    return turned.crop((low, low, low + CANVAS, low + CANVAS))


def _corner(pen: Pen, width: float, height: float) -> tuple[float, float]:
    """The centre of a box of that size, near one of the corners."""
    margin = CANVAS * float(pen.rng.uniform(0.02, 0.06))
    x = margin + width / 2 if pen.rng.random() < 0.5 else CANVAS - margin - width / 2
    y = margin + height / 2 if pen.rng.random() < 0.5 else CANVAS - margin - height / 2
    return x, y


def line_of_text(pen: Pen) -> Image.Image:
    """One line of text anywhere, at any angle."""
    layer = _blank(1.5)
    x, y = layer.width / 2 + pen.rng.uniform(-0.3, 0.3, 2) * CANVAS
    pen.put(layer, x, y, pen.words(), pen.font(float(pen.rng.uniform(0.09, 0.24))))
    return _turn(layer, float(pen.rng.normal(0, 25)))


def corner_text(pen: Pen) -> Image.Image:
    """A handle, URL or name in a corner, or at the middle of an edge."""
    layer, text, font = _blank(), pen.words(), pen.font(float(pen.rng.uniform(0.09, 0.18)))
    left, top, right, low = font.getbbox(text)
    x, y = _corner(pen, right - left, low - top)
    if pen.rng.random() < 0.2:
        x = CANVAS / 2
    pen.put(layer, x, y, text, font)
    return layer


def tiled_text(pen: Pen) -> Image.Image:
    """Rows of one text over the whole picture, level or slanted."""
    rng, layer, text = pen.rng, _blank(1.6), pen.words()
    size = float(rng.uniform(0.09, 0.18))
    font = pen.font(size)
    step_x = font.getlength(text) + size * CANVAS * float(rng.uniform(0.4, 2.0))
    step_y = size * CANVAS * float(rng.uniform(1.5, 3.0))
    stagger = float(rng.choice([0.0, 0.5]))
    for row, y in enumerate(np.arange(rng.random() * step_y, layer.height, step_y)):
        for x in np.arange(-step_x * ((row % 2) * stagger + rng.random() * 0.02), layer.width + step_x, step_x):
            pen.put(layer, x, y, text, font)
    return _turn(layer, float(rng.choice([0.0, rng.uniform(-45, 45)], p=[0.2, 0.8])))


def strip(pen: Pen) -> Image.Image:
    """A translucent bar, along an edge or across the picture, with text in it or cut out of it."""
    rng, layer = pen.rng, _blank(1.6)
    size = float(rng.uniform(0.10, 0.2))
    thick, middle = size * CANVAS * float(rng.uniform(1.1, 1.8)), layer.height / 2
    y = middle + float(rng.uniform(-0.3, 0.3)) * CANVAS
    ImageDraw.Draw(layer).rectangle([0, y - thick / 2, layer.width, y + thick / 2], fill=int(rng.uniform(90, 200)))
    if rng.random() < 0.85:
        pen.put(
            layer, middle + rng.uniform(-0.2, 0.2) * CANVAS, y, pen.words(), pen.font(size), int(rng.choice([0, 255]))
        )
    flat = rng.random() < 0.3
    return _turn(layer, 90.0 * int(rng.integers(4)) if flat else float(rng.choice([-1, 1]) * rng.uniform(15, 60)))


def plate(pen: Pen) -> Image.Image:
    """Text on, or cut out of, a translucent box around it: mostly in a corner, sometimes anywhere."""
    rng, layer, text = pen.rng, _blank(), pen.words()
    font = pen.font(float(rng.uniform(0.09, 0.2)))
    left, top, right, low = font.getbbox(text)
    rim = CANVAS * float(rng.uniform(0.015, 0.05))
    width, height = right - left + 2 * rim, low - top + 2 * rim
    x, y = _corner(pen, width, height) if rng.random() < 0.75 else rng.uniform(0.2, 0.8, 2) * CANVAS
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    ImageDraw.Draw(layer).rounded_rectangle(box, rim * float(rng.choice([0, 1])), fill=int(rng.uniform(70, 200)))
    pen.put(layer, x, y, text, font, int(rng.choice([0, 255], p=[0.25, 0.75])))
    return layer


def net(pen: Pen) -> Image.Image:
    """Crossing lines over the whole picture, sometimes with a text at the crossings."""
    rng, layer = pen.rng, _blank(1.6)
    draw, step, width = ImageDraw.Draw(layer), CANVAS * float(rng.uniform(0.2, 0.45)), int(rng.integers(3, 8))
    places = np.arange(rng.random() * step, layer.width, step)
    for p in places:
        draw.line([p, 0, p, layer.height], fill=200, width=width)
        if rng.random() < 0.95:
            draw.line([0, p, layer.width, p], fill=200, width=width)
    if rng.random() < 0.5:
        text, font = pen.words(), pen.font(float(rng.uniform(0.08, 0.13)))
        for p in places[::2]:
            pen.put(layer, p, p, text, font)
    return _turn(layer, float(rng.uniform(25, 65)))


def _logo(pen: Pen, side: float) -> Image.Image:
    """A random emblem: two or three overlaid rings, polygons and bars."""
    rng, icon = pen.rng, Image.new("L", (max(12, int(side)), max(12, int(side))))
    draw, s = ImageDraw.Draw(icon), icon.width
    for _ in range(int(rng.integers(1, 4))):
        fill = int(rng.choice([255, 0, 170], p=[0.6, 0.2, 0.2]))
        r, width = s * float(rng.uniform(0.25, 0.48)), max(2, int(s * rng.uniform(0.06, 0.16)))
        box = (s / 2 - r, s / 2 - r, s / 2 + r, s / 2 + r)
        kind = int(rng.integers(4))
        if kind == 0:
            draw.ellipse(box, outline=255, width=width)
        elif kind == 1:
            draw.regular_polygon(
                (s / 2, s / 2, r), int(rng.integers(3, 7)), rotation=int(rng.integers(90)), fill=fill or 255
            )
        elif kind == 2:
            a = float(rng.uniform(0, math.pi))
            dx, dy = r * math.cos(a), r * math.sin(a)
            draw.line([s / 2 - dx, s / 2 - dy, s / 2 + dx, s / 2 + dy], fill=fill or 255, width=width)
        else:
            draw.arc(box, int(rng.integers(360)), int(rng.integers(360, 700)), fill=255, width=width)
    return icon


def corner_logo(pen: Pen) -> Image.Image:
    """An emblem in a corner, sometimes with a name beside it."""
    layer, side = _blank(), CANVAS * float(pen.rng.uniform(0.16, 0.32))
    icon = _logo(pen, side)
    x, y = _corner(pen, side, side)
    layer.paste(icon, (int(x - side / 2), int(y - side / 2)))
    if pen.rng.random() < 0.4:
        beside = x + CANVAS * 0.35 * (1 if x < CANVAS / 2 else -1)
        pen.put(layer, beside, y, pen.name(), pen.font(float(pen.rng.uniform(0.09, 0.14))))
    return layer


def big_logo(pen: Pen) -> Image.Image:
    """One large emblem near the middle."""
    side = CANVAS * float(pen.rng.uniform(0.4, 0.8))
    layer, (dx, dy) = _blank(), pen.rng.uniform(-0.1, 0.1, 2) * CANVAS
    layer.paste(_logo(pen, side), (int((CANVAS - side) / 2 + dx), int((CANVAS - side) / 2 + dy)))
    return layer


def outlined_text(pen: Pen) -> Image.Image:
    """Large hollow letters. Held out of training."""
    rng, layer = pen.rng, _blank(1.5)
    font = pen.font(float(rng.uniform(0.2, 0.32)))
    middle = layer.width / 2 + rng.uniform(-0.2, 0.2, 2) * CANVAS
    text, draw = pen.words(), ImageDraw.Draw(layer)
    draw.text(tuple(middle), text, fill=255, font=font, anchor="mm", stroke_width=5, stroke_fill=255)
    draw.text(tuple(middle), text, fill=0, font=font, anchor="mm")
    return _turn(layer, float(rng.normal(0, 25)))


def tiled_logo(pen: Pen) -> Image.Image:
    """One emblem repeated over the whole picture. Held out of training."""
    rng, layer = pen.rng, _blank(1.6)
    side = CANVAS * float(rng.uniform(0.12, 0.22))
    icon, step = _logo(pen, side), side * float(rng.uniform(1.3, 2.2))
    for row, y in enumerate(np.arange(0, layer.height, step)):
        for x in np.arange((row % 2) * step / 2, layer.width, step):
            layer.paste(icon, (int(x), int(y)))
    return _turn(layer, float(rng.uniform(-45, 45)))


def seal(pen: Pen) -> Image.Image:
    """A round stamp: two rings around a sign or short text. Held out of training."""
    rng, layer = pen.rng, _blank()
    r = CANVAS * float(rng.uniform(0.16, 0.32))
    x, y = rng.uniform(r, CANVAS - r, 2)
    draw = ImageDraw.Draw(layer)
    for radius in (r, 0.82 * r):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=255, width=max(4, int(r * 0.08)))
    pen.put(layer, x, y, str(rng.choice(["©", "®", "TM", "NO", "A1", "PX"])), _font(pen.path, int(r)))
    return layer


Family = Callable[[Pen], Image.Image]
TRAINED: dict[str, Family] = {
    f.__name__: f for f in (line_of_text, corner_text, tiled_text, strip, plate, net, corner_logo, big_logo)
}
HELD_OUT: dict[str, Family] = {f.__name__: f for f in (outlined_text, tiled_logo, seal)}


def mark(family: Family, size: int, rng: np.random.Generator, fonts: Sequence[Path] = ()) -> np.ndarray:
    """One mark's coverage, (size, size) uint8. Never empty: a mark that fell outside the picture is drawn again."""
    while True:
        layer = family(Pen(rng, fonts))
        if rng.random() < 0.5:  # squeezed or stretched, as other fonts are
            x, y = rng.uniform(0.8, 1.2, 2)
            matrix = (x, float(rng.uniform(-0.15, 0.15)), CANVAS * (1 - x) / 2, 0, y, CANVAS * (1 - y) / 2)
            layer = layer.transform(layer.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        cover = np.asarray(layer.resize((size, size), Image.Resampling.BOX))
        if cover.mean() > 0.006 * 255:
            return cover


def lay(picture: np.ndarray, cover: np.ndarray, alpha: float, ink: Sequence[float]) -> np.ndarray:
    """picture (S,S,3) uint8, cover (S,S) uint8, ink RGB in 0..255 -> the marked picture, uint8."""
    weight = cover[..., None].astype(np.float32) * (alpha / 255)
    return (picture + (np.asarray(ink, dtype=np.float32) - picture) * weight).clip(0, 255).astype(np.uint8)
