"""Pictures made by code, without marks, for the watermark detector to be trained on; and look-alikes of marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .overlays import Pen

DRAWN = 256  # pixels; backdrops are drawn at this size and averaged down


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    return r, g, b


def _gradient(rng: np.random.Generator) -> np.ndarray:
    """(DRAWN, DRAWN, 3): a level or a slope between two colours."""
    a, b = rng.uniform(0, 255, (2, 3)) if rng.random() < 0.7 else np.repeat(rng.uniform(0, 255, (1, 3)), 2, 0)
    yy, xx = np.mgrid[0:DRAWN, 0:DRAWN] / DRAWN
    angle = rng.uniform(0, 2 * np.pi)
    t = np.clip((xx - 0.5) * np.cos(angle) + (yy - 0.5) * np.sin(angle) + 0.5, 0, 1)[..., None]
    return a * (1 - t) + b * t


def _cloud(rng: np.random.Generator) -> np.ndarray:
    """(DRAWN, DRAWN, 1) about -1..1: noise with a power-law spectrum, as natural textures have."""
    frequency = np.hypot(np.fft.fftfreq(DRAWN)[:, None], np.fft.rfftfreq(DRAWN)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(DRAWN, DRAWN))) / frequency ** rng.uniform(0.6, 1.6)
    field = np.fft.irfft2(spectrum, s=(DRAWN, DRAWN))
    return (field / (2 * field.std()))[..., None]


def _pattern(rng: np.random.Generator) -> np.ndarray:
    """(DRAWN, DRAWN, 1) in 0..1: stripes, dots or checks, opaque and with hard edges."""
    yy, xx = np.mgrid[0:DRAWN, 0:DRAWN]
    angle, period = rng.uniform(0, np.pi), rng.uniform(16, 60)
    u = (xx * np.cos(angle) + yy * np.sin(angle)) / period + rng.random()
    v = (yy * np.cos(angle) - xx * np.sin(angle)) / period + rng.random()
    kind = int(rng.integers(3))
    if kind == 0:
        mask = u % 1 < rng.uniform(0.2, 0.6)
    elif kind == 1:
        mask = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < rng.uniform(0.04, 0.14)
    else:
        mask = (np.floor(u) + np.floor(v)) % 2 == 0
    return mask[..., None].astype(np.float64)


def _shapes(picture: Image.Image, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 7))):
        x, y, r = *rng.uniform(0, DRAWN, 2), float(rng.uniform(0.05, 0.3)) * DRAWN
        kind = int(rng.integers(4))
        if kind == 0:
            draw.ellipse([x - r, y - r * rng.uniform(0.4, 1), x + r, y + r], fill=_colour(rng))
        elif kind == 1:
            draw.regular_polygon((x, y, r), int(rng.integers(3, 8)), rotation=int(rng.integers(90)), fill=_colour(rng))
        elif kind == 2:
            points = rng.normal([x, y], r, (int(rng.integers(3, 6)), 2))
            draw.polygon([(float(p), float(q)) for p, q in points], fill=_colour(rng))
        else:
            draw.line([x, y, *rng.uniform(0, DRAWN, 2)], fill=_colour(rng), width=int(rng.integers(3, 20)))


def _sign(picture: Image.Image, rng: np.random.Generator, pen: Pen) -> None:
    """Opaque text on an opaque plate, as on a sign, a book cover or a shirt."""
    text, font = pen.words(), pen.font(float(rng.uniform(0.08, 0.2)))
    x, y = rng.uniform(0.2, 0.8, 2) * DRAWN
    left, top, right, low = ImageDraw.Draw(picture).textbbox((x, y), text, font=font, anchor="mm")
    grow, plate = float(rng.uniform(4, 24)), _colour(rng)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([left - grow, top - grow, right + grow, low + grow], fill=plate)
    ink = (255, 255, 255) if sum(plate) < 380 else (0, 0, 0)
    draw.text((x, y), text, fill=ink, font=font, anchor="mm")


def _subtitle(picture: Image.Image, rng: np.random.Generator, pen: Pen) -> None:
    """Opaque text with an outline near the lower edge."""
    font = pen.font(float(rng.uniform(0.07, 0.12)))
    text = " ".join(pen.name() for _ in range(int(rng.integers(1, 4))))
    ImageDraw.Draw(picture).text(
        (DRAWN / 2, DRAWN * float(rng.uniform(0.85, 0.93))), text, fill="white", font=font, anchor="mm", stroke_width=4,
        stroke_fill="black",
    )  # fmt: skip


def _border(picture: Image.Image, rng: np.random.Generator, pen: Pen) -> None:
    width = int(rng.integers(4, 30))
    ImageDraw.Draw(picture).rectangle([0, 0, DRAWN - 1, DRAWN - 1], outline=_colour(rng), width=width)


LOOK_ALIKES = (_sign, _subtitle, _border)


def add_look_alike(picture: np.ndarray, rng: np.random.Generator, fonts: Sequence[Path] = ()) -> np.ndarray:
    """(S,S,3) uint8 -> the same with something in it that is no watermark but resembles one."""
    large = Image.fromarray(picture).resize((DRAWN, DRAWN), Image.Resampling.BICUBIC)
    LOOK_ALIKES[rng.integers(len(LOOK_ALIKES))](large, rng, Pen(rng, fonts))
    return np.asarray(large.resize(picture.shape[1::-1], Image.Resampling.BOX))


def backdrop(size: int, rng: np.random.Generator) -> np.ndarray:
    """A picture of slopes, clouds, patterns and shapes, (size, size, 3) uint8."""
    ground = _gradient(rng)
    if rng.random() < 0.5:
        ground = ground + _cloud(rng) * rng.uniform(10, 70) * rng.uniform(0.5, 1, 3)
    if rng.random() < 0.4:
        # opaque: a pattern laid on with contrast low enough looks like a mark to people, too, so it is kept plain
        ground = ground + _pattern(rng) * rng.choice([-1, 1]) * rng.uniform(25, 120)
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    _shapes(picture, rng)
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 4))))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))
